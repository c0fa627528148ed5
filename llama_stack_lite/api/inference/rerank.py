"""/v1/rerank: a query and documents in, the documents by relevance out, as Jina, Cohere and vLLM speak it."""

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Field, Tag

from .messages import Wire, sparse

Text = Annotated[str, Field(min_length=1)]


class TextDocument(Wire):
    text: Text


def _shape(given: Any) -> str:
    return "string" if isinstance(given, str) else "object"


# told apart by their shape, so that an error names the one that was meant
Document = Annotated[
    Annotated[Text, Tag("string")] | Annotated[TextDocument, Tag("object")], Discriminator(_shape)
]


class RerankRequest(Wire):
    model: str = Field(min_length=1, max_length=500)
    query: Text
    documents: list[Document] = Field(min_length=1, max_length=2048)
    top_n: int | None = Field(None, ge=1, description="how many results, best first; all by default")
    return_documents: bool = False

    def texts(self) -> list[str]:
        return [given if isinstance(given, str) else given.text for given in self.documents]


class Ranking(BaseModel):
    """What `Inference.rerank` returns: a score from 0 to 1 a document, in order, and the tokens read."""

    scores: list[Annotated[float, Field(ge=0, le=1)]]
    prompt_tokens: int

    def best(self, top_n: int | None = None) -> list[int]:
        """The numbers of the documents, best first; among equals, in their order."""
        return sorted(range(len(self.scores)), key=lambda index: -self.scores[index])[:top_n]


class RerankDocument(BaseModel):
    text: str


class RerankResult(BaseModel):
    index: int = Field(description="of the document in the request")
    relevance_score: float
    document: RerankDocument | None = sparse()


class RerankUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class RerankResponse(BaseModel):
    model: str
    results: list[RerankResult]
    usage: RerankUsage
