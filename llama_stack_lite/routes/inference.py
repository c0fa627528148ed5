"""/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/rerank, /v1/models"""

import base64
import struct
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

from llama_stack_lite import answer, enforcement
from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.agents import PREFIX
from llama_stack_lite.api.inference import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    EmbeddingUsage,
    RerankDocument,
    RerankRequest,
    RerankResponse,
    RerankResult,
    RerankUsage,
)
from llama_stack_lite.stack import Model, Stack

router = APIRouter(prefix="/v1", tags=["inference"], route_class=BodyRoute)


@router.post("/chat/completions", response_model=ChatCompletion)
async def chat_completions(request: ChatRequest, http: Request) -> Any:
    """Answer a conversation: whole, or as `text/event-stream` chunks with `stream: true`."""
    chunks = enforcement.answered(Stack.of(http), request)
    if request.stream:
        return await answer.stream(http, chunks)
    return await answer.completion(http, answer.chat_completion(chunks))


@router.post("/completions", response_model=Completion)
async def completions(request: CompletionRequest, http: Request) -> Any:
    """Continue plain prompts: whole, or as `text/event-stream` chunks with `stream: true`."""
    chunks = enforcement.complete(Stack.of(http), request)
    if request.stream:
        return await answer.stream(http, chunks)
    return await answer.completion(http, answer.text_completion(chunks))


@router.post("/embeddings")
async def embeddings(request: EmbeddingRequest, http: Request) -> EmbeddingResponse:
    """Turn texts into vectors, in order."""
    model = Stack.of(http).model(request.model, "embedding")
    work = model.provider.embed(model.name, request.inputs(), dimensions=request.dimensions)
    found = await answer.whole(http, work)
    data = [
        Embedding(index=index, embedding=_encoded(vector, request.encoding_format))
        for index, vector in enumerate(found.vectors)
    ]
    usage = EmbeddingUsage(prompt_tokens=found.prompt_tokens, total_tokens=found.prompt_tokens)
    return EmbeddingResponse(data=data, model=model.id, usage=usage)


def _encoded(vector: list[float], encoding: str) -> list[float] | str:
    return (
        base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
        if encoding == "base64"
        else vector
    )


@router.post("/rerank")
async def rerank(request: RerankRequest, http: Request) -> RerankResponse:
    """Sort documents by how well they answer a query, best first; scores lie between 0 and 1."""
    model = Stack.of(http).model(request.model, "rerank")
    texts = request.texts()
    found = await answer.whole(http, model.provider.rerank(model.name, request.query, texts))
    results = [
        RerankResult(
            index=index,
            relevance_score=found.scores[index],
            document=RerankDocument(text=texts[index]) if request.return_documents else None,
        )
        for index in found.best(request.top_n)
    ]
    usage = RerankUsage(prompt_tokens=found.prompt_tokens, total_tokens=found.prompt_tokens)
    return RerankResponse(model=model.id, results=results, usage=usage)


class ModelEntry(BaseModel, extra="allow"):
    """OpenAI's model object, and beside it the facts of our model card and the model's state in memory."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str

    @classmethod
    def of(cls, model: Model) -> "ModelEntry":
        facts = model.card.model_dump(exclude={"id"}, exclude_none=True)
        if state := model.state:
            facts |= state.model_dump(exclude_none=True)
        return cls(id=model.id, owned_by=model.provider_name, **facts)


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelEntry]


@router.get("/models")
async def list_models(http: Request) -> ModelList:
    """Every model served, with the facts of its card, and every agent, as `agent:name`."""
    stack = Stack.of(http)
    found = [ModelEntry.of(model) for model in stack.models.values()]
    agents = await stack.agents.cards() if stack.agents else []
    return ModelList(data=[*found, *map(ModelEntry.model_validate, agents)])


@router.get("/models/{model_id:path}")
async def get_model(model_id: str, http: Request) -> ModelEntry:
    """One model, by `provider/model` or by its bare name while that is unique; or an agent."""
    if model_id.startswith(PREFIX):
        return ModelEntry.model_validate(await Stack.of(http).agents_of(model_id).card(model_id))
    return ModelEntry.of(Stack.of(http).named(model_id))
