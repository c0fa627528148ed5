"""llama.cpp in this process: every model a GGUF file, loaded at start, shared by all requests."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TypeVar

from pydantic import Field

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    Embeddings,
)
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import InvalidRequest, NotFound
from llama_stack_lite.models import LocalModels
from llama_stack_lite.stack import Stack

from .chat import Chat
from .completion import complete
from .loading import default_threads
from .served import Served

T = TypeVar("T")


class LlamaCpp:
    """Chat, tool calls and plain completions on local GGUF models."""

    class Config(LocalModels):
        context: int = Field(4096, ge=64, description="tokens of one request, prompt and answer together")
        slots: int = Field(4, ge=1, le=64, description="requests answered at the same time")
        queue: int = Field(64, ge=0, description="requests that may wait; more are answered 429")
        threads: int = Field(
            default_factory=default_threads, ge=1, description="CPU threads; by default one core is left free"
        )

    def __init__(self, config: Config, stack: Stack) -> None:
        self.served: dict[str, Served] = {}
        try:
            for card in config.cards():
                self.served[card.id] = Served(
                    card,
                    context=config.context,
                    slots=config.slots,
                    queue=config.queue,
                    threads=config.threads,
                )
        except BaseException:
            self.close()
            raise
        self.chats = {name: Chat(served, stack) for name, served in self.served.items()}

    async def models(self) -> list[ModelCard]:
        return [served.card for served in self.served.values()]

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        async with aclosing(self._found(model, self.chats).answer(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        async with aclosing(complete(self._found(model, self.served), request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        raise InvalidRequest(f"`{model}` makes no embeddings", param="model")

    def _found(self, model: str, kept: dict[str, T]) -> T:
        if model not in kept:
            raise NotFound("model", model, kept, param="model", code="model_not_found")
        return kept[model]

    def close(self) -> None:
        for served in self.served.values():
            served.engine.close()

    async def aclose(self) -> None:
        await asyncio.to_thread(self.close)
