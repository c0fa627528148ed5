"""Hugging Face transformers in this process: chat, vision, embeddings and reranking, on CPU or GPU."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from huggingface_hub import try_to_load_from_cache
from pydantic import Field

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    Embeddings,
    Ranking,
)
from llama_stack_lite.api.models import ModelCard, ModelState
from llama_stack_lite.errors import ConfigError, InvalidRequest, NotFound, StackError
from llama_stack_lite.local.completion import complete
from llama_stack_lite.local.residents import ResidentModels, Residents
from llama_stack_lite.models import card as card_of
from llama_stack_lite.prompting.template import PLAIN_TURNS, ChatTemplate
from llama_stack_lite.stack import Stack

from . import encoder, writer
from .encoder import Encoder
from .loading import Checkpoint
from .writer import Writer

K = TypeVar("K", Writer, Encoder)


class Transformers:
    """Chat, tool calls, images, plain completions, embeddings and reranking on local checkpoints.

    A model that cannot be loaded is logged, and asked for it answers why; the others are served.
    """

    class Config(ResidentModels):
        device: str = Field(
            "auto", description="`cpu`, `cuda`, `cuda:1`, `mps`, ...; by default the best there is"
        )
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
            "auto", description="by default the checkpoint's own"
        )
        context: int = Field(4096, ge=64, description="tokens of one request, prompt and answer together")
        slots: int = Field(4, ge=1, le=256, description="requests answered at the same time")
        queue: int = Field(64, ge=0, description="requests that may wait; more are answered 429")

        def cards(self) -> list[ModelCard]:
            return [_card(model) for model in self.models]

    def __init__(self, config: Config, stack: Stack) -> None:
        self.config = config
        self.residents: Residents[Writer | Encoder] = Residents(config)
        self.cards: dict[str, ModelCard] = {}
        for card in config.cards():
            self._add(card, stack)
        for card in config.optional_cards():
            self._add(card, stack, optional=True)

    def _add(self, card: ModelCard, stack: Stack, *, optional: bool = False) -> None:
        try:
            checkpoint = Checkpoint(card)
        except StackError:  # to be told when it is loaded
            size = 0
        else:
            size = sum(path.stat().st_size for path in checkpoint.weights())
        load = partial(self._load, card, stack)
        self.residents.add(card, load, size=size, now=self.config.preload, optional=optional)
        loaded = self.residents.places[card.id].model
        self.cards[card.id] = loaded.card if loaded else self._described(card)

    def _load(self, card: ModelCard, stack: Stack) -> Writer | Encoder:
        checkpoint = Checkpoint(card)
        where = self.config.model_dump(include={"device", "dtype"})
        if checkpoint.kind != "chat":
            return Encoder(checkpoint, **where)
        settings = self.config.model_dump(include={"context", "slots", "queue", "stream_interval"})
        return Writer(checkpoint, stack, **where, **settings)

    def _described(self, card: ModelCard) -> ModelCard:
        """The card with what the files say; as it is where they cannot be read, which the state tells."""
        try:
            checkpoint = Checkpoint(card)
            if checkpoint.gguf:  # to read its metadata takes as long as to load it
                return card
            if checkpoint.kind == "chat":
                return writer.described(checkpoint, context=self.config.context)
            return encoder.described(checkpoint)
        except StackError:
            return card

    async def models(self) -> list[ModelCard]:
        return list(self.cards.values())

    def state(self, model: str) -> ModelState:
        return self.residents.state(model)

    def template(self, model: str) -> ChatTemplate | None:
        """The template in the model's own files, while it is loaded and has one."""
        found = self.residents.places[model].model
        own = found.served.template if isinstance(found, Writer) else None
        return own if own and own.source != PLAIN_TURNS else None

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        async with self._using(model, Writer) as found, aclosing(found.chat.answer(request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def count(self, model: str, request: ChatRequest) -> int:
        async with self._using(model, Writer) as found:
            return await found.chat.count(request)

    async def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        async with self._using(model, Writer) as found, aclosing(complete(found.served, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        async with self._using(model, Encoder) as found:
            return await found.embed(inputs, dimensions=dimensions)

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        async with self._using(model, Encoder) as found:
            return await found.token_starts(texts)

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        async with self._using(model, Encoder) as found:
            return await found.rerank(query, documents)

    @asynccontextmanager
    async def _using(self, model: str, kind: type[K]) -> AsyncIterator[K]:
        async with self.residents.use(model) as found:
            if not isinstance(found, kind):
                does = "makes no embeddings, and no scores" if kind is Encoder else "cannot write"
                raise InvalidRequest(f"`{model}` {does}", param="model")
            yield found

    async def aclose(self) -> None:
        await self.residents.aclose()


def _card(model: str | ModelCard) -> ModelCard:
    """As every provider resolves a model, and `user/repo` to what `hf download` has put on this disk."""
    try:
        return card_of(model)
    except NotFound as error:
        if not isinstance(model, str) or model.count("/") != 1:
            raise
        found = try_to_load_from_cache(model, "config.json")
        if not isinstance(found, str):
            raise ConfigError(
                f"{error}; to get a repository of the Hugging Face hub: hf download {model}"
            ) from error
        return card_of(str(Path(found).parent)).model_copy(update={"id": model})
