"""/v1/embeddings: texts in, vectors out."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from .completions import Tokens
from .messages import Wire


class EmbeddingRequest(Wire):
    model: str = Field(min_length=1, max_length=500)
    input: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=2048)]
        | Tokens
    )
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        """The inputs as a list, in the shape they came in: all texts, or all token ids."""
        if isinstance(self.input, str):
            return [self.input]
        if isinstance(self.input[0], int):
            return [self.input]
        return self.input


class Embeddings(BaseModel):
    """What `Inference.embed` returns: one vector an input, in order, and the tokens read."""

    vectors: list[list[float]]
    prompt_tokens: int


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(description="floats, or base64 of little-endian float32")


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
