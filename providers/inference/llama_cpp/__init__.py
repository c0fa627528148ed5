"""llama.cpp in this process: every model a GGUF file, in memory while it is used, shared by all requests."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

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
from llama_stack_lite.prompting.template import PLAIN_TURNS, ChatTemplate
from llama_stack_lite.stack import Stack

from . import encoder, writer
from .encoder import Encoder, kind_of
from .loading import Weights
from .quantizing import quantize
from .threads import Threads, cores, default_threads
from .writer import Writer, files


class LlamaCpp:
    """Chat, tool calls, completions, embeddings and reranking on local GGUF models.

    A model that cannot be loaded is logged, and asked for it answers why; the others are served.
    """

    class Config(ResidentModels):
        context: int = Field(4096, ge=64, description="tokens of one request, prompt and answer together")
        slots: int = Field(4, ge=1, le=64, description="requests answered at the same time")
        queue: int = Field(64, ge=0, description="requests that may wait; more are answered 429")
        threads: int | None = Field(
            None, ge=1, description="CPU threads; by default all cores or one less, whichever is faster"
        )
        flash_attention: bool | None = Field(
            None,
            description="by default on GPUs only; on CPUs it makes short conversations faster, and answers "
            "at temperature 0 less alike",
        )
        adapters: dict[str, Path] = Field(
            {}, description="LoRA adapters (GGUF) by name, each served as `model:name`"
        )

    quantize = staticmethod(quantize)

    def __init__(self, config: Config, stack: Stack) -> None:
        self.config = config
        self.stack = stack
        self.few, self.most = config.threads or default_threads(), config.threads or cores()
        self.residents: Residents[Writer | Encoder] = Residents(config)
        self.cards: dict[str, ModelCard] = {}
        self.adapted: dict[str, tuple[str, str | None]] = {}
        cards, optional = config.cards(), config.optional_cards()
        if config.adapters and len(cards + optional) > 1:
            raise ConfigError("adapters: they belong to one model, so give it a provider of its own")
        for card in cards:
            self._add(card)
        for card in optional:
            self._add(card, optional=True)

    def _add(self, card: ModelCard, *, optional: bool = False) -> None:
        described, size = self._look(card)
        load = partial(self._load, described, card)
        self.residents.add(card, load, size=size, now=self.config.preload, optional=optional)
        for adapter in (None, *self.config.adapters):
            name = f"{card.id}:{adapter}" if adapter else card.id
            self.adapted[name] = card.id, adapter
            self.cards[name] = described.model_copy(update={"id": name})

    def _look(self, card: ModelCard) -> tuple[ModelCard, int]:
        """The card with what the file says, and the bytes that the model will take.

        Where the file cannot be read the card stays as it is: loading it will say why.
        """
        try:
            path, mmproj = files(card)
            weights = Weights(path, vocab_only=True)
        except StackError:
            return card, 0
        try:
            context, size = self.config.context, path.stat().st_size
            if kind_of(card, weights) != "chat":
                return encoder.described(card, weights, context=context), size
            found = writer.described(card, weights, context=context, sees=mmproj is not None)
            size += mmproj.stat().st_size if mmproj else 0
            return found, size + (found.context_length or 0) * self.config.slots * weights.cell()
        except ConfigError:
            return card, 0
        finally:
            weights.close()

    def _load(self, described: ModelCard, card: ModelCard) -> Writer | Encoder:
        if described.kind != "chat":
            if self.config.adapters:
                raise ConfigError("adapters: they change what a model writes, and this one writes nothing")
            path, _ = files(card)
            return Encoder(card, path, context=self.config.context, threads=self.few)
        adapters = {name: path.expanduser() for name, path in self.config.adapters.items()}
        passed = {"context", "slots", "queue", "stream_interval", "flash_attention"}
        settings = self.config.model_dump(include=passed)
        return Writer(card, self.stack, adapters=adapters, threads=Threads(self.few, self.most), **settings)

    async def models(self) -> list[ModelCard]:
        return list(self.cards.values())

    def state(self, model: str) -> ModelState:
        return self.residents.state(self.adapted[model][0])

    def template(self, model: str) -> ChatTemplate | None:
        """The template in the model's own file, while it is loaded and has one."""
        name, adapter = self._named(model)
        found = self.residents.places[name].model
        own = found.served[adapter].template if isinstance(found, Writer) else None
        return own if own and own.source != PLAIN_TURNS else None

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        async with self._writer(model) as (found, adapter):
            chunks = found.chats[adapter].answer(request)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def count(self, model: str, request: ChatRequest) -> int:
        async with self._writer(model) as (found, adapter):
            return await found.chats[adapter].count(request)

    async def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        async with self._writer(model) as (found, adapter):
            chunks = complete(found.served[adapter], request)
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        async with self._encoder(model) as found:
            return await found.embed(inputs, dimensions=dimensions)

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        async with self._encoder(model) as found:
            return await found.token_starts(texts)

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        async with self._encoder(model) as found:
            return await found.rerank(query, documents)

    @asynccontextmanager
    async def _writer(self, model: str) -> AsyncIterator[tuple[Writer, str | None]]:
        name, adapter = self._named(model)
        async with self.residents.use(name) as found:
            if not isinstance(found, Writer):
                raise InvalidRequest(f"`{model}` writes nothing: it is for {found.card.kind}", param="model")
            found.check(adapter)
            yield found, adapter

    @asynccontextmanager
    async def _encoder(self, model: str) -> AsyncIterator[Encoder]:
        name, _ = self._named(model)
        async with self.residents.use(name) as found:
            if not isinstance(found, Encoder):
                raise InvalidRequest(
                    f"`{model}` writes, and makes neither embeddings nor scores", param="model"
                )
            yield found

    def _named(self, model: str) -> tuple[str, str | None]:
        if model not in self.adapted:
            raise NotFound("model", model, self.adapted, param="model", code="model_not_found")
        return self.adapted[model]

    async def aclose(self) -> None:
        await self.residents.aclose()
