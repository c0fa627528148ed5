"""The door to every model: all generation of every route passes here, judged on its way in and out."""

import logging
import random
import time
import traceback
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AsyncExitStack, aclosing
from typing import TypeVar

from . import images
from .api.agents import PREFIX
from .api.inference import (
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionRequest,
    Delta,
    Sampling,
    Usage,
)
from .api.safety import Blocked, Touchpoint, Turn
from .errors import GuardFailed, InvalidRequest, StackError
from .safety import texts
from .safety.holding import begun, held
from .safety.judge import Heard, Watch
from .safety.speech import Answers
from .safety.texts import Said
from .stack import Model, Stack

C = TypeVar("C", ChatChunk, Completion)
log = logging.getLogger(__name__)


async def chat(stack: Stack, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
    """Answer a chat request, chunk by chunk; closing the generator stops the model.

    What a shield refuses is an answer too: `finish_reason: content_filter`, with `refusal` and `safety`.
    Raises `GuardFailed` where a shield could not judge.
    """
    model = stack.model(request.model, "chat")
    request = await _with_images(stack, model, request)
    chunks = model.provider.chat(model.name, request)
    if watch := await _watch(stack, request):
        said, conversations = _conversations(request)
        turns = conversations[-1]
        answers = Answers(watch, count=request.n, context=lambda _: turns, refused=_refused_chat)
        chunks = _judged(answers, chunks, request, said, conversations, early=model.in_process)
    signed = _signature("chatcmpl", model.id)
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.choices or request.wants_usage():
                yield signed(chunk)


def answered(stack: Stack, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
    """Answer a chat request by its model, or by the agent that it names; as `chat` in all else.

    An agent asks its model by `chat`, as often as it needs to.
    """
    if request.model.startswith(PREFIX):
        found: AsyncGenerator[ChatChunk, None] = stack.agents_of(request.model).answered(request)
        return found
    return chat(stack, request)


async def complete(stack: Stack, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
    """Continue plain prompts, chunk by chunk; as `chat` in all else."""
    model = stack.model(request.model, "chat")
    if not hasattr(model.provider, "complete"):
        raise InvalidRequest(f"`{model.id}` takes conversations only: /v1/chat/completions", param="model")
    chunks = model.provider.complete(model.name, request)
    if watch := await _watch(stack, request):
        said = texts.prompts(request)
        turns = [[Heard.of(each.turn)] for each in said]
        answers = Answers(
            watch,
            count=request.n * len(said),
            context=lambda index: turns[index // request.n],
            refused=_refused_text,
        )
        chunks = _judged(answers, chunks, request, said, turns, early=model.in_process)
    signed = _signature("cmpl", model.id)
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.choices or request.wants_usage():
                yield signed(chunk)


async def asked(stack: Stack, request: ChatRequest) -> Blocked | None:
    """What a shield finds in a request, without asking the model."""
    if not (watch := await _watch(stack, request)):
        return None
    request = await _with_images(stack, stack.model(request.model, "chat"), request)
    return await _asked(watch, request, *_conversations(request))


async def _with_images(stack: Stack, model: Model, request: ChatRequest) -> ChatRequest:
    """The request as a model in this process sees it: with the images that it only names."""
    if model.in_process and model.card.vision and request.links_images():
        return await images.fetched(stack, request)
    return request


def _conversations(request: ChatRequest) -> tuple[list[Said], list[list[Heard]]]:
    """What a request says, turn by turn, and each turn with those before it."""
    said = texts.chat(request)
    turns = [Heard.of(each.turn) for each in said]
    return said, [turns[: end + 1] for end in range(len(turns))]


async def judged(
    stack: Stack,
    touchpoint: Touchpoint,
    text: str,
    *,
    guardrails: Iterable[str] = (),
    unseen: str | None = None,
) -> Blocked | None:
    """What a shield found in a text that is on its way to a model or a client beside their messages.

    `unseen` names what is there besides, which no shield can read; raises as `Watch.blocked`.
    """
    watch = await stack.judge.watch(guardrails)
    return await watch.blocked(touchpoint, [Heard.of(Turn(role="tool", text=text))], unseen=unseen)


async def _watch(stack: Stack, request: Sampling) -> Watch | None:
    """Who judges the request and its answer; None where nobody does."""
    if stack.judge.chatting or request.guardrails:
        return await stack.judge.watch(request.guardrails) or None
    return None


async def _judged(
    answers: Answers[C],
    chunks: AsyncGenerator[C, None],
    request: Sampling,
    said: list[Said],
    conversations: list[list[Heard]],
    *,
    early: bool,
) -> AsyncGenerator[C, None]:
    """The chunks that shields let pass; a model is not asked before all of its request has passed.

    Only one in this process may begin `early`, while its request is judged: nothing leaves by that.
    """
    async with AsyncExitStack() as stack:
        if early:
            chunks = await stack.enter_async_context(begun(chunks))
        if blocked := await _asked(answers.watch, request, said, conversations):
            for index in range(answers.count):
                yield (refusal := answers.refused(index, blocked, True))
            yield refusal.model_copy(update={"choices": [], "usage": Usage()})
            return
        window = answers.watch.judge.enforce.window if request.stream else None
        passed = held(chunks, judged=answers.judged, tokens=answers.tokens, window=window)
        try:
            async with aclosing(passed):
                async for chunk in passed:
                    yield chunk
        except GuardFailed:
            raise
        except Exception as error:  # noqa: BLE001 - told or logged, without what it may quote
            raise await _told(answers.watch, error) from None


async def _told(watch: Watch, error: Exception) -> StackError:
    """What may be told of a model's failure: a server's words for it may quote the answer."""
    if not isinstance(error, StackError):
        detail = f": {error}" if watch.judge.enforce.log_text else ""
        where = "".join(traceback.format_tb(error.__traceback__))
        log.error("a stream broke: %s%s\n%s", type(error).__name__, detail, where)
        return StackError("internal error; the server's log has it")
    text = "\n".join(each for each in (str(error), error.param, error.code) if each)
    if blocked := await watch.blocked("output", [Heard.of(Turn(role="assistant", text=text))]):
        error.args, error.param, error.code = (blocked.refusal(),), None, type(error).code
    return error


async def _asked(
    watch: Watch, request: Sampling, said: list[Said], conversations: list[list[Heard]]
) -> Blocked | None:
    """What a shield found in a request: beside its messages, or in one of them."""
    aside = texts.aside(request)
    if aside and (blocked := await watch.blocked("input", [Heard.of(aside)])):
        return blocked
    for each, turns in zip(said, conversations, strict=True):
        if blocked := await watch.blocked(each.touchpoint, turns, unseen=each.unseen):
            return blocked
    return None


def _signature(kind: str, model: str) -> Callable[[C], C]:
    """What puts chunks under the name of one answer, which no other answer has."""
    # it is no secret, so it need not come from the system's entropy
    answer_id, now = f"{kind}-{random.getrandbits(128):032x}", int(time.time())

    def signed(chunk: C) -> C:
        chunk.id, chunk.created, chunk.model = answer_id, chunk.created or now, model
        return chunk

    return signed


def _refused_chat(index: int, blocked: Blocked, first: bool) -> ChatChunk:
    delta: Delta = {"refusal": blocked.refusal()}
    if first:
        delta["role"] = "assistant"
    choice = ChunkChoice(index=index, delta=delta, finish_reason="content_filter", safety=blocked)
    return ChatChunk(choices=[choice])


def _refused_text(index: int, blocked: Blocked, first: bool) -> Completion:
    choice = CompletionChoice(
        index=index, finish_reason="content_filter", refusal=blocked.refusal(), safety=blocked
    )
    return Completion(choices=[choice])
