"""A guarded server seen from both ends: a model that says any chunk, and a socket that keeps every byte."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from llama_stack_lite.api.inference import ChatChunk, ChatRequest, Completion, CompletionRequest
from llama_stack_lite.api.models import ModelCard, ModelState
from llama_stack_lite.config import StackConfig
from llama_stack_lite.providers.safety.canary import Canary
from llama_stack_lite.server import create_app

WORD = "kingfisher"
CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
QUIET = {"messages": [{"role": "user", "content": "what flew there?"}]}


class Speaker:
    """A model that says the frames it is given, whatever is in them, and fails in the end if it is told to.

    `asked` are the requests that came to it, `closed` how many of its answers ended, in whatever way.
    """

    class Config(BaseModel):
        pause: float = 0

    def __init__(self, config: Config) -> None:
        self.pause = config.pause
        self.frames: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.asked: list[ChatRequest | CompletionRequest] = []
        self.closed = 0

    async def models(self) -> list[ModelCard]:
        return [ModelCard(id="speaker", tool_calling="remote")]

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        async with aclosing(self._said(request)) as frames:
            async for frame in frames:
                yield ChatChunk.model_validate(frame)

    async def complete(self, model: str, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
        async with aclosing(self._said(request)) as frames:
            async for frame in frames:
                yield Completion.model_validate(frame)

    async def _said(self, request: ChatRequest | CompletionRequest) -> AsyncGenerator[dict[str, Any], None]:
        self.asked.append(request)
        try:
            for frame in self.frames:
                yield frame
                await asyncio.sleep(self.pause)
            if self.error:
                raise self.error
        finally:
            self.closed += 1


class Resident(Speaker):
    """The same in this process, as it were: it may begin while its request is still judged."""

    def state(self, model: str) -> ModelState:
        return ModelState(state="loaded")


@dataclass
class Answer:
    """A response as it crossed the socket; with each message, how many turns the shield had seen by then."""

    status: int = 0
    head: bytes = b""
    pieces: list[tuple[bytes, int]] = field(default_factory=list)
    began: int = 0  # turns seen when the status line left

    @property
    def body(self) -> bytes:
        return b"".join(piece for piece, _ in self.pieces)

    @property
    def raw(self) -> str:
        """Every byte, with what JSON escapes as the characters that it stands for."""
        text = (self.head + self.body).decode()
        return text + "\n".join(json.dumps(frame, ensure_ascii=False) for frame, _ in self.frames())

    def frames(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The JSON of each event, or of the body, with the turns seen before it left."""
        for piece, seen in self.pieces:
            for block in piece.decode().split("\n\n"):
                data = block[block.find("data: ") :] if block.startswith("event: ") else block
                data = data.removeprefix("data: ")
                if data and data != "[DONE]":
                    yield json.loads(data), seen


@dataclass
class Guarded:
    """An application with its one model, its one canary, and the means to ask it over ASGI."""

    app: FastAPI

    @property
    def model(self) -> Speaker:
        found = self.app.state.stack.inference["m"]
        assert isinstance(found, Speaker)
        return found

    @property
    def canary(self) -> Canary:
        found: Canary = self.app.state.stack.safety["bird"]
        return found

    def seen(self) -> int:
        """How many turns the shield has seen, if it counts them."""
        return len(getattr(self.canary, "seen", ()))

    async def post(self, path: str, fields: dict[str, Any]) -> Answer:
        body = json.dumps({"model": "m/speaker", **fields}).encode()
        answer = Answer()
        inbox = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            if inbox:
                return inbox.pop()
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.began = self.seen()
                answer.head = b"\r\n".join(name + b": " + value for name, value in message["headers"])
            elif message["body"]:
                answer.pieces.append((message["body"], self.seen()))

        await self.app(scope(path), receive, send)
        return answer


def scope(path: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"host", b"test")]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }


def config(
    *, model: dict[str, Any] | None = None, bird: dict[str, Any] | None = None, **enforce: Any
) -> StackConfig:
    """A speaker, and a canary that looks for `WORD`, by default in all that comes in and goes out."""
    return StackConfig.model_validate(
        {
            "inference": {"m": {"provider": "tests.support.guarded:Speaker", **(model or {})}},
            "safety": {"bird": {"provider": "canary", "words": [WORD], **(bird or {})}},
            "enforce": {"input": ["bird"], "output": ["bird"], **enforce},
        }
    )


@asynccontextmanager
async def guarded(settings: StackConfig | None = None) -> AsyncIterator[Guarded]:
    app = create_app(settings or config())
    async with app.router.lifespan_context(app):
        yield Guarded(app)


def said(*texts: str, **choice: Any) -> list[dict[str, Any]]:
    """Frames of a chat that says the texts one by one, and stops."""
    frames = [{"choices": [{"index": 0, "delta": {"content": text}, **choice}]} for text in texts]
    return [*frames, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]
