"""One model as it is served: its engine, its card, and its way of writing prompts."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from llama_stack_lite.api.inference import CompletionRequest, Message, TokenLogprob, Tool, TopLogprob
from llama_stack_lite.api.inference import Sampling as Request
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ContextOverflow, InvalidRequest
from llama_stack_lite.prompting.template import ChatTemplate

from .engine import Engine, Job, Sampling, Step, Vocab

T = TypeVar("T")

MOST_CHOICES = 16


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the images among them in the engine's own form.

    `surplus` counts the tokens of context that images take beside their places in `tokens`.
    """

    tokens: list[int]
    media: Any = None
    surplus: int = 0

    @property
    def length(self) -> int:
        return len(self.tokens) + self.surplus


class Sight(Protocol):
    """How an engine whose model sees reads conversations; in a thread of its own, as that takes time."""

    @property
    def thread(self) -> Executor: ...
    def prompt(
        self, template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> Prompt: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A loaded model: `context_length` in tokens, `adapter` the LoRA adapter that is laid over it."""

    card: ModelCard
    engine: Engine
    vocab: Vocab
    template: ChatTemplate
    context_length: int
    sight: Sight | None = None
    adapter: str | None = None

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] | None) -> Prompt:
        """The conversation as the model was trained to read it."""
        if self.sight:
            return self.sight.prompt(self.template, messages, tools)
        return Prompt(self.vocab.prompt(self.template.render(messages, tools)))

    def job(self, prompt: Prompt, request: Request, *, index: int, limit: int | None) -> Job:
        """A job without grammar or log-probabilities yet; raises `ContextOverflow` where nothing fits."""
        if prompt.length >= self.context_length:
            param = "prompt" if isinstance(request, CompletionRequest) else "messages"
            raise ContextOverflow(limit=self.context_length, prompt=prompt.length, param=param)
        room = self.context_length - prompt.length
        return Job(
            prompt=prompt.tokens,
            media=prompt.media,
            adapter=self.adapter,
            max_tokens=room if limit is None else min(limit, room),
            sampling=self._sampling(request, index),
        )

    def _sampling(self, request: Request, index: int) -> Sampling:
        temperature = _first(request.temperature, self.card.temperature, 0.8)
        seed = secrets.randbits(32) if request.seed is None else request.seed
        return Sampling(
            temperature=temperature,
            top_p=_first(request.top_p, self.card.top_p, 1.0),
            top_k=request.top_k or 0,
            min_p=request.min_p or 0.0,
            seed=(seed + index) & 0xFFFFFFFF,
            repeat_penalty=request.repeat_penalty or 1.0,
            frequency_penalty=request.frequency_penalty or 0.0,
            presence_penalty=request.presence_penalty or 0.0,
            logit_bias=self._bias(request.logit_bias or {}),
        )

    def _bias(self, given: dict[str, float]) -> dict[int, float]:
        if wrong := [key for key in given if not key.isdecimal() or int(key) >= self.vocab.size]:
            raise InvalidRequest(
                f"`{wrong[0]}` is no token id of this model (0 to {self.vocab.size - 1})", param="logit_bias"
            )
        return {int(key): bias for key, bias in given.items()}

    async def score(self, prompt: str, continuation: str) -> float:
        """The log-probability of a continuation after a raw prompt, summed over its tokens."""
        head = self.vocab.prompt([(prompt, True)])
        tail = self.vocab.tokens_of(continuation, special=False)
        job = Job(prompt=head + tail, max_tokens=0, score_prompt=True, adapter=self.adapter)
        async with aclosing(self.engine.generate(job)) as steps:
            scores = [step.logprob or 0.0 async for step in steps if step.prompt]
        return sum(scores[len(head) :])

    def logprob(self, step: Step) -> TokenLogprob:
        """A step's token as OpenAI writes log-probabilities."""
        assert step.token is not None and step.logprob is not None
        top = [
            TopLogprob(token=self._text(t), logprob=p, bytes=list(self.vocab.pieces[t])) for t, p in step.top
        ]
        return TokenLogprob(
            token=self._text(step.token),
            logprob=step.logprob,
            bytes=list(self.vocab.pieces[step.token]),
            top_logprobs=top,
        )

    def _text(self, token: int) -> str:
        return self.vocab.pieces[token].decode("utf-8", "replace")


def check_supported(request: Request) -> None:
    """Refuse what would otherwise be ignored: unknown fields, and more choices than one request may take."""
    if request.n > MOST_CHOICES:
        raise InvalidRequest(f"n: this engine gives at most {MOST_CHOICES} choices", param="n")
    for name in request.model_extra or {}:
        if name not in HINTS:
            raise InvalidRequest(f"{name}: this engine does not know this field", param=name)


# fields of OpenAI's API that change nothing here: accounting and caching hints
HINTS = {
    "best_of",
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning_effort",
    "safety_identifier",
    "service_tier",
    "store",
    "verbosity",
}


async def merged(sources: list[AsyncGenerator[T, None]]) -> AsyncGenerator[T, None]:
    """Yield from several generators as their items come; closing this closes all of them."""
    queue: asyncio.Queue[T | None | BaseException] = asyncio.Queue()

    async def pump(source: AsyncGenerator[T, None]) -> None:
        try:
            async with aclosing(source):
                async for item in source:
                    queue.put_nowait(item)
            queue.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - handed to the reader, who raises it
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(source)) for source in sources]
    try:
        left = len(tasks)
        while left:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)
