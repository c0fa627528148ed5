"""One stream of chunks, answered whole or as server-sent events, and stopped when nobody listens."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from .api.inference import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Logprobs,
    ToolCallDelta,
    Usage,
)
from .errors import ClientGone, StackError, UpstreamError

T = TypeVar("T")
log = logging.getLogger(__name__)


async def whole(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Await the work, and cancel it the moment that the client hangs up (`ClientGone`)."""
    working = asyncio.ensure_future(work)
    if not await _finished_first(working, request.receive):
        raise ClientGone
    return working.result()


async def _finished_first(working: asyncio.Future[Any], receive: Receive) -> bool:
    """Whether the work ended before the client left; if not it is cancelled, and over on return."""
    leaving = asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.done()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.wait({working, leaving})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream(request: Request, events: AsyncGenerator[Any, None]) -> StreamingResponse:
    """Answer with a stream once its first event is there, so that an earlier failure keeps its status."""

    async def first_event() -> BaseModel | None:
        return await anext(events, None)

    first = await whole(request, first_event())
    headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
    return EventStream(_frames(first, events), headers=headers)


class EventStream(StreamingResponse):
    """Watches the socket while it streams, whatever the server's ASGI version promises."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], *, headers: dict[str, str]) -> None:
        super().__init__(frames, headers=headers)
        self.frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self.frames):
            sending = asyncio.ensure_future(self.stream_response(send))
            if await _finished_first(sending, receive):
                sending.result()


async def _frames(event: BaseModel | None, events: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(events):
        try:
            while event is not None:
                yield _frame(event.model_dump_json())
                event = await anext(events, None)
        except StackError as error:
            yield _frame(json.dumps(error.body()))
        except Exception:
            log.exception("a stream broke")
            yield _frame(json.dumps(StackError("internal error; the server's log has it").body()))
        yield _frame("[DONE]")


def _frame(data: str) -> bytes:
    return f"data: {data}\n\n".encode()


async def chat_completion(chunks: AsyncIterator[ChatChunk]) -> ChatCompletion:
    """Fold chunks into the completion they make."""
    choices: dict[int, _Choice] = {}
    head: dict[str, Any] = {}
    usage: Usage | None = None
    async for chunk in chunks:
        head = head or chunk.model_dump(include={"id", "created", "model", "system_fingerprint"})
        usage = chunk.usage or usage
        for choice in chunk.choices:
            choices.setdefault(choice.index, _Choice()).add(choice)
    if not choices:
        raise UpstreamError("the model's stream ended without an answer")
    return ChatCompletion(
        choices=[choices[index].whole(index) for index in sorted(choices)], usage=usage, **head
    )


class _Choice:
    def __init__(self) -> None:
        self.text: dict[str, list[str]] = {}
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: Logprobs | None = None
        self.finish: Any = None

    def add(self, choice: ChunkChoice) -> None:
        for key in ("content", "refusal", "reasoning_content"):
            if piece := choice.delta.get(key):
                self.text.setdefault(key, []).append(str(piece))
        for call in choice.delta.get("tool_calls") or []:
            self._call(call)
        if choice.logprobs:
            self.logprobs = self.logprobs or Logprobs(content=[])
            self.logprobs.content = [*(self.logprobs.content or []), *(choice.logprobs.content or [])]
        self.finish = choice.finish_reason or self.finish

    def _call(self, delta: ToolCallDelta) -> None:
        empty: dict[str, Any] = {"id": "", "function": {"name": "", "arguments": ""}}
        call = self.calls.setdefault(delta.get("index", 0), empty)
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def whole(self, index: int) -> ChatChoice:
        said = {key: "".join(pieces) for key, pieces in self.text.items()}
        calls = [self.calls[position] for position in sorted(self.calls)]
        if not (said.keys() & {"content", "refusal"} or calls):
            said["content"] = ""
        message = Answer.model_validate({**said, "tool_calls": calls or None})
        return ChatChoice(
            index=index, message=message, logprobs=self.logprobs, finish_reason=self.finish or "stop"
        )


async def text_completion(chunks: AsyncIterator[Completion]) -> Completion:
    """Fold chunks of a plain completion into one."""
    choices: dict[int, CompletionChoice] = {}
    last: Completion | None = None
    usage: Usage | None = None
    async for last in chunks:
        usage = last.usage or usage
        for piece in last.choices:
            whole = choices.setdefault(piece.index, CompletionChoice(index=piece.index))
            whole.text += piece.text
            whole.finish_reason = piece.finish_reason or whole.finish_reason
            whole.logprobs = _joined(whole.logprobs, piece.logprobs)
    if last is None or not choices:
        raise UpstreamError("the model's stream ended without an answer")
    return last.model_copy(update={"choices": [choices[i] for i in sorted(choices)], "usage": usage})


def _joined(whole: CompletionLogprobs | None, piece: CompletionLogprobs | None) -> CompletionLogprobs | None:
    if whole is None or piece is None:
        return whole or piece
    top = None
    if whole.top_logprobs is not None or piece.top_logprobs is not None:
        top = [*(whole.top_logprobs or []), *(piece.top_logprobs or [])]
    return CompletionLogprobs(
        tokens=whole.tokens + piece.tokens,
        token_logprobs=whole.token_logprobs + piece.token_logprobs,
        top_logprobs=top,
        text_offset=whole.text_offset + piece.text_offset,
    )
