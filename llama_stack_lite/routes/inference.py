"""/v1/chat/completions, /v1/completions, /v1/embeddings, /v1/models"""

import base64
import struct
from typing import Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel

from llama_stack_lite import answer, enforcement
from llama_stack_lite.api.inference import (
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Embedding,
    EmbeddingRequest,
    EmbeddingResponse,
    EmbeddingUsage,
)
from llama_stack_lite.stack import Model, Stack

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post("/chat/completions", response_model=ChatCompletion)
async def chat_completions(request: ChatRequest, http: Request, stack: Stack = Depends(Stack.of)) -> Any:
    """Answer a conversation: whole, or as `text/event-stream` chunks with `stream: true`."""
    chunks = enforcement.chat(stack, request)
    return await (
        answer.stream(http, chunks) if request.stream else answer.whole(http, answer.chat_completion(chunks))
    )


@router.post("/completions", response_model=Completion)
async def completions(request: CompletionRequest, http: Request, stack: Stack = Depends(Stack.of)) -> Any:
    """Continue plain prompts: whole, or as `text/event-stream` chunks with `stream: true`."""
    chunks = enforcement.complete(stack, request)
    return await (
        answer.stream(http, chunks) if request.stream else answer.whole(http, answer.text_completion(chunks))
    )


@router.post("/embeddings")
async def embeddings(
    request: EmbeddingRequest, http: Request, stack: Stack = Depends(Stack.of)
) -> EmbeddingResponse:
    """Turn texts into vectors, in order."""
    model = stack.model(request.model, "embedding")
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


class ModelEntry(BaseModel, extra="allow"):
    """OpenAI's model object, and beside it the facts of our model card and the model's state in memory."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str

    @classmethod
    def of(cls, model: Model) -> "ModelEntry":
        facts = model.card.model_dump(exclude={"id"}, exclude_none=True)
        if hasattr(model.provider, "state"):
            facts |= model.provider.state(model.name).model_dump(exclude_none=True)
        return cls(id=model.id, owned_by=model.provider_name, **facts)


class ModelList(BaseModel):
    object: str = "list"
    data: list[ModelEntry]


@router.get("/models")
async def list_models(stack: Stack = Depends(Stack.of)) -> ModelList:
    """Every model served, with the facts of its card."""
    return ModelList(data=[ModelEntry.of(model) for model in stack.models.values()])


@router.get("/models/{model_id:path}")
async def get_model(model_id: str, stack: Stack = Depends(Stack.of)) -> ModelEntry:
    """One model, by `provider/model` or by its bare name while that is unique."""
    return ModelEntry.of(stack.named(model_id))
