"""Replies written beforehand, requests kept: a model for testing what stands in front of one."""

import asyncio
import json
import math
import random
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Embeddings,
    FinishReason,
    FunctionDelta,
    Ranking,
    Usage,
)
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import (
    Busy,
    InvalidRequest,
    NotFound,
    StackError,
    Unauthorized,
    Unavailable,
    UpstreamError,
    UpstreamTimeout,
)

T = TypeVar("T")

ERRORS: dict[int, type[StackError]] = {
    401: Unauthorized,
    429: Busy,
    502: UpstreamError,
    503: Unavailable,
    504: UpstreamTimeout,
}


class Failure(BaseModel):
    """An error to answer with: once the reply's text has been sent, or at once where there is none."""

    model_config = ConfigDict(extra="forbid")
    status: int = Field(500, ge=400, le=599)
    message: str = "scripted failure"

    def exception(self) -> StackError:
        usual = InvalidRequest if self.status < 500 else StackError
        error = ERRORS.get(self.status, usual)(self.message)
        error.status = self.status
        return error


class Call(BaseModel):
    """A tool call; `arguments` as an object, or as the very text that a careless model wrote."""

    model_config = ConfigDict(extra="forbid")
    name: str
    arguments: dict[str, Any] | str = {}
    id: str | None = None

    def text(self) -> str:
        return self.arguments if isinstance(self.arguments, str) else json.dumps(self.arguments)


class Reply(BaseModel):
    """What one request is answered with; all its `n` choices say the same."""

    model_config = ConfigDict(extra="forbid")
    content: str | None = None
    chunks: list[str] | None = Field(None, description="the content, in the very pieces to send")
    reasoning_content: str | None = None
    tool_calls: list[Call] = []
    finish_reason: FinishReason | None = None
    error: Failure | None = None
    delay: float = Field(0, ge=0, description="seconds before each chunk")
    repeat: int = Field(1, ge=1, description="how many requests are answered with this")

    def pieces(self, stops: list[str]) -> tuple[list[str], str | None]:
        """The content up to the first stop string, and which one it was."""
        pieces = _words(self.content or "") if self.chunks is None else self.chunks
        text = "".join(pieces)
        found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
        left, stop = min(found, default=(len(text), None))
        kept = []
        for piece in pieces:
            kept.append(piece[:left])
            left -= len(kept[-1])
        return [piece for piece in kept if piece], stop


class Scripted:
    """Answers requests in the order of its replies, and keeps them in `requests` and `completions`.

    A token is a word with the space behind it, or one of a reply's `chunks`. `max_tokens`, `stop` and `n` are
    honoured; everything else of a request is only kept. `cancelled` counts streams closed before their end.
    """

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        models: list[str] = ["scripted"]
        replies: list[str | Reply] = []
        loop: bool = Field(False, description="begin again where the replies are used up")
        embedding_models: list[str] = []
        embedding_dimension: int = Field(64, ge=1)
        rerank_models: list[str] = []

    def __init__(self, config: Config) -> None:
        self.config = config
        self.replies: list[Reply] = []
        self.requests: list[ChatRequest] = []
        self.completions: list[CompletionRequest] = []
        self.cancelled = 0
        self._answered = 0
        self.queue(*config.replies)

    def queue(self, *replies: str | Reply) -> None:
        """Append replies; a string is a plain answer."""
        for given in replies:
            reply = Reply(content=given) if isinstance(given, str) else given
            self.replies += [reply] * reply.repeat

    async def models(self) -> list[ModelCard]:
        cards = [ModelCard(id=name, tool_calling="remote") for name in self.config.models]
        dimension = self.config.embedding_dimension
        cards += [
            ModelCard(id=name, kind="embedding", embedding_dimension=dimension)
            for name in self.config.embedding_models
        ]
        return cards + [ModelCard(id=name, kind="rerank") for name in self.config.rerank_models]

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        _check(model, self.config.models)
        self.requests.append(request)
        reply = self._next()
        pieces, stop = reply.pieces(request.stops())
        deltas: list[Delta] = [{"reasoning_content": word} for word in _words(reply.reasoning_content or "")]
        deltas += [{"content": piece} for piece in pieces]
        if stop is None:
            deltas += _calls(reply.tool_calls, self._answered)
        kept = deltas[: request.limit()]
        finish = "length" if len(kept) < len(deltas) else _finish(reply, stop is not None)
        if not (kept or reply.error):
            kept = [{"content": ""}]
        kept[:1] = [{"role": "assistant", **first} for first in kept[:1]]
        read = await self.count(model, request)
        async with aclosing(self._paced(reply, kept, finish)) as steps:
            async for delta, reason in steps:
                said, ended = delta or Delta(), stop if reason == "stop" else None
                for index in range(request.n):
                    choice = ChunkChoice(
                        index=index, delta=said.copy(), finish_reason=reason, stop_reason=ended
                    )
                    yield ChatChunk(choices=[choice], prompt_tokens=read)
        yield ChatChunk(choices=[], usage=_usage(read, min(len(kept), len(deltas)) * request.n))

    async def count(self, model: str, request: ChatRequest) -> int:
        """The words of the messages."""
        _check(model, self.config.models)
        return sum(len(_words(message.text())) for message in request.messages)

    async def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        _check(model, self.config.models)
        self.completions.append(request)
        reply = self._next()
        pieces, stop = reply.pieces(request.stops())
        kept = pieces[: request.max_tokens]
        finish = "length" if len(kept) < len(pieces) else _finish(reply, stop is not None)
        prompts = request.prompts()
        choices = range(len(prompts) * request.n)
        async with aclosing(self._paced(reply, kept, finish)) as steps:
            async for text, reason in steps:
                for index in choices:
                    done = "stop" if reason == "tool_calls" else reason
                    yield Completion(
                        choices=[CompletionChoice(index=index, text=text or "", finish_reason=done)]
                    )
        read = sum(len(_words(prompt) if isinstance(prompt, str) else prompt) for prompt in prompts)
        yield Completion(choices=[], usage=_usage(read, len(kept) * len(choices)))

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        """Unit vectors made of the words alone: the more of them two texts share, the closer they are."""
        _check(model, self.config.embedding_models)
        most = self.config.embedding_dimension
        if dimensions and dimensions > most:
            raise InvalidRequest(f"dimensions: `{model}` has {most}", param="dimensions")
        texts = [_words(text) if isinstance(text, str) else list(map(str, text)) for text in inputs]
        vectors = [_vector(words, dimensions or most) for words in texts]
        return Embeddings(vectors=vectors, prompt_tokens=sum(map(len, texts)))

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        _check(model, self.config.embedding_models)
        return [list(accumulate(map(len, _words(text)[:-1]), initial=0)) if text else [] for text in texts]

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        """The share of the query's words that a document has."""
        _check(model, self.config.rerank_models)
        asked, *found = ({word.strip().lower() for word in _words(text)} for text in (query, *documents))
        tokens = sum(len(_words(query)) + len(_words(document)) for document in documents)
        return Ranking(
            scores=[len(asked & words) / max(1, len(asked)) for words in found], prompt_tokens=tokens
        )

    def _next(self) -> Reply:
        count = len(self.replies)
        if count and (self.config.loop or self._answered < count):
            self._answered += 1
            return self.replies[(self._answered - 1) % count]
        raise InvalidRequest(
            f"the scripted provider has no reply left: it has answered {self._answered} requests. "
            "Add to its `replies`, or set `loop: true`"
        )

    async def _paced(
        self, reply: Reply, steps: Sequence[T], finish: FinishReason
    ) -> AsyncGenerator[tuple[T | None, FinishReason | None], None]:
        """Yield the steps, then the finish reason or the error; count it if somebody hangs up."""
        try:
            for step in steps:
                await asyncio.sleep(reply.delay)
                yield step, None
            await asyncio.sleep(reply.delay)
            if reply.error:
                raise reply.error.exception()
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled += 1
            raise
        yield None, finish


def _check(model: str, known: list[str]) -> None:
    if model not in known:
        raise NotFound("model", model, known, param="model", code="model_not_found")


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*|\s+", text)


def _calls(calls: list[Call], answer: int) -> list[Delta]:
    """The name first, then the arguments word by word, as remote models stream them."""
    deltas: list[Delta] = []
    for index, call in enumerate(calls):
        identifier = call.id or f"call_{answer}_{index}"
        function: FunctionDelta = {"name": call.name, "arguments": ""}
        deltas.append(
            {"tool_calls": [{"index": index, "id": identifier, "type": "function", "function": function}]}
        )
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": word}}]}
            for word in _words(call.text())
        ]
    return deltas


def _finish(reply: Reply, stopped: bool) -> FinishReason:
    if reply.finish_reason:
        return reply.finish_reason
    return "tool_calls" if reply.tool_calls and not stopped else "stop"


def _usage(read: int, made: int) -> Usage:
    return Usage(prompt_tokens=read, completion_tokens=made, total_tokens=read + made)


def _vector(words: list[str], dimension: int) -> list[float]:
    """The normalised sum of a random direction for each word, the same in every process."""
    generators = [random.Random(word.strip().lower()) for word in words]
    total = [sum(generator.gauss() for generator in generators) for _ in range(dimension)]
    length = math.hypot(*total)
    return [value / length for value in total]
