"""HTTP around a handler: a body read; one stream answered whole or as events, stopped when nobody listens."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .api.inference import (
    ChatChunk,
    ChatCompletion,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Logprobs,
    ToolCallDelta,
    Usage,
    Wire,
)
from .api.pages import Named
from .api.safety import Blocked
from .client import client
from .errors import ClientGone, InvalidRequest, StackError, UpstreamError

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")
Listed = TypeVar("Listed", bound=Named)
log = logging.getLogger(__name__)

PATIENCE = 0.02  # seconds before a client that may have left is looked for
JSON_TYPE = re.compile(r" *application/([^ ;]+\+)?json *(;|$)", re.IGNORECASE)


class BodyRoute(APIRoute):
    """A handler of `(request, http)`, where `request` is the JSON body, and of what its path names.

    The body is validated straight from its bytes, and the answer written as it is. FastAPI's own way, by
    dicts and by every other kind of parameter, takes a tenth of the time of a short request.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if self.body_field is None:
            return super().get_route_handler()
        kind: Any = self.body_field.field_info.annotation
        handler = self.endpoint
        assert issubclass(kind, BaseModel)

        async def handle(http: Request) -> Response:
            found = await handler(await _body(kind, http), http, **http.path_params)
            if isinstance(found, Response):
                return found
            return Response(found.model_dump_json(), media_type="application/json")

        return handle


async def _body(kind: type[B], http: Request) -> B:
    # what a web page of another origin may send without asking is never taken for JSON
    if not JSON_TYPE.match(http.headers.get("content-type", "")):
        raise InvalidRequest("the body must come as JSON, with `content-type: application/json`")
    try:
        raw = await http.body()
    except ClientDisconnect as error:
        raise ClientGone from error
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        is_json = error.errors()[0]["type"] != "json_invalid"
        errors = [each | {"loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors, body=from_json(raw) if is_json else None) from error


class Listening:
    """Cancels its block once the client has hung up, which then ends in `ClientGone`.

    It begins to listen after a moment: most blocks that are short cost no task that way.
    """

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.gone = False
        self.listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> None:
        self.working = asyncio.current_task()
        self.timer = asyncio.get_running_loop().call_later(PATIENCE, self._begin)

    def _begin(self) -> None:
        self.listener = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self.working:
            self.working.cancel()

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.timer.cancel()
        if self.listener:
            self.listener.cancel()
        # whoever else cancels this task means more than this block
        if self.gone and kind is asyncio.CancelledError and self.working and not self.working.uncancel():
            raise ClientGone


async def whole(request: Request, work: Awaitable[T]) -> T:
    """Await the work in the client's name, and cancel it once the client hangs up (`ClientGone`)."""
    client.set(_name(request))
    async with Listening(request.receive):
        return await work


def _name(request: Request) -> str:
    """Who waits is told apart by address and key: neither alone does it behind proxies, or without keys."""
    address = request.client.host if request.client else ""
    return f"{address} {request.headers.get('authorization') or request.headers.get('x-api-key', '')}"


async def completion(request: Request, work: Awaitable[Wire]) -> Response:
    """Answer with a completion. It is ours, so it is not validated once more on its way out."""
    return Response((await whole(request, work)).to_json(), media_type="application/json")


class Event(Protocol):
    """What streams are made of: JSON, of a `type`."""

    type: str

    def to_json(self) -> bytes: ...


def _data(event: Wire) -> bytes:
    return b"data: " + event.to_json() + b"\n\n"


def named(event: Event) -> bytes:
    """A frame that tells the event's `type` beside its data, as all APIs but chat do."""
    return b"event: " + event.type.encode() + b"\ndata: " + event.to_json() + b"\n\n"


def _failure(error: StackError) -> bytes:
    return f"data: {json.dumps(error.body())}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Frames:
    """How an API writes its streams: an event, a failure after the first event, and what ends them."""

    event: Callable[[Any], bytes] = _data
    failure: Callable[[StackError], bytes] = _failure
    end: bytes = b"data: [DONE]\n\n"


CHAT = Frames()


async def stream(request: Request, events: AsyncGenerator[Any, None], frames: Frames = CHAT) -> "EventStream":
    """Answer with a stream once its first event is there, so that an earlier failure keeps its status."""
    first = await whole(request, anext(events, None))
    return EventStream(first, events, frames)


class EventStream(Response):
    """Server-sent events, until the last one or until the client hangs up."""

    media_type = "text/event-stream"

    def __init__(self, first: Any, events: AsyncGenerator[Any, None], frames: Frames) -> None:
        self.first = first
        self.events = events
        self.frames = frames
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        async with aclosing(self.events), aclosing(self._written()) as frames:
            with suppress(ClientGone):
                async with Listening(receive):
                    await send(start)
                    async for frame in frames:
                        await send({"type": "http.response.body", "body": frame, "more_body": True})
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _written(self) -> AsyncGenerator[bytes, None]:
        event, write = self.first, self.frames.event
        try:
            while event is not None:
                yield write(event)
                event = await anext(self.events, None)
        except StackError as error:
            yield self.frames.failure(error)
        except Exception:
            log.exception("a stream broke")
            yield self.frames.failure(StackError("internal error; the server's log has it"))
        if self.frames.end:
            yield self.frames.end


def page(found: list[Listed], *, limit: int, after: str | None) -> tuple[list[Listed], bool]:
    """At most `limit` of them behind the one called `after`, and whether there are more."""
    if after is not None:
        places = [number for number, each in enumerate(found) if each.id == after]
        if not places:
            raise InvalidRequest(f"after: there is no `{after}` in this list", param="after")
        found = found[places[0] + 1 :]
    return found[:limit], len(found) > limit


async def last(events: AsyncGenerator[Any, None]) -> dict[str, Any]:
    """The response that the last event of a turn carries."""
    async with aclosing(events):
        async for event in events:
            final = event
    found: dict[str, Any] = final.data["response"]
    return found


async def chat_completion(chunks: AsyncIterator[ChatChunk]) -> ChatCompletion:
    """Fold chunks into the completion they make."""
    choices: dict[int, _Choice] = {}
    first: ChatChunk | None = None
    usage: Usage | None = None
    async for chunk in chunks:
        first = first or chunk
        usage = chunk.usage or usage
        for choice in chunk.choices:
            choices.setdefault(choice.index, _Choice()).add(choice)
    if first is None or not choices:
        raise UpstreamError("the model's stream ended without an answer")
    return ChatCompletion.model_validate(
        {
            "id": first.id,
            "created": first.created,
            "model": first.model,
            "choices": [choices[index].whole(index) for index in sorted(choices)],
            "usage": usage,
            "system_fingerprint": first.system_fingerprint,
        }
    )


class _Choice:
    def __init__(self) -> None:
        self.text: dict[str, list[str]] = {}
        self.calls: dict[int, dict[str, Any]] = {}
        self.logprobs: Logprobs | None = None
        self.finish: Any = None
        self.stop: str | None = None
        self.safety: Blocked | None = None

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
        self.stop = choice.stop_reason or self.stop
        self.safety = choice.safety or self.safety

    def _call(self, delta: ToolCallDelta) -> None:
        empty: dict[str, Any] = {"id": "", "function": {"name": "", "arguments": ""}}
        call = self.calls.setdefault(delta.get("index", 0), empty)
        call["id"] = delta.get("id") or call["id"]
        function = delta.get("function") or {}
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""

    def whole(self, index: int) -> dict[str, Any]:
        said = {key: "".join(pieces) for key, pieces in self.text.items()}
        calls = [self.calls[position] for position in sorted(self.calls)]
        if not (said.keys() & {"content", "refusal"} or calls):
            said["content"] = ""
        message = {**said, "tool_calls": calls or None}
        return {
            "index": index,
            "message": message,
            "logprobs": self.logprobs,
            "finish_reason": self.finish or "stop",
            "stop_reason": self.stop,
            "safety": self.safety,
        }


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
            whole.refusal, whole.safety = piece.refusal or whole.refusal, piece.safety or whole.safety
            whole.logprobs = CompletionLogprobs.joined(whole.logprobs, piece.logprobs)
    if last is None or not choices:
        raise UpstreamError("the model's stream ended without an answer")
    return last.model_copy(update={"choices": [choices[i] for i in sorted(choices)], "usage": usage})
