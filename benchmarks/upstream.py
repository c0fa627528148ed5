"""A trivial upstream and two bare pass-throughs in front of it, for `gateway.py` to measure against."""

import asyncio
import json
import multiprocessing
import re
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse

LOOPBACK = "127.0.0.1"
PASSED_ON = ("authorization", "content-type")


class Upstream(asyncio.Protocol):
    """Answers chat completions, whole or streamed, over a connection that stays open."""

    def __init__(self) -> None:
        self.received = b""
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        for task in self.tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, separator, rest = self.received.partition(b"\r\n\r\n")
        length = int(found[1]) if (found := re.search(rb"(?i)content-length: *(\d+)", head)) else 0
        if separator and len(rest) >= length:
            self.received = rest[length:]
            self.answer(rest[:length])

    def answer(self, body: bytes) -> None:
        if not body:
            self.transport.write(whole_response({"data": [{"id": "echo", "object": "model"}]}))
            return
        request = json.loads(body)
        prompt = request["messages"][-1]["content"]
        asked = dict(pair.split("=") for pair in prompt.split())
        chunks, pause = int(asked["chunks"]), asked.get("pause")
        if not request.get("stream"):
            self.transport.write(whole_answer(chunks))
        elif pause is None:
            frames = b"".join(frame(index) for index in range(chunks))
            self.transport.write(STREAM_HEAD + chunked(frames + LAST_FRAMES) + chunked(b""))
        else:
            task = asyncio.get_running_loop().create_task(self.stream(chunks, float(pause)))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def stream(self, chunks: int, pause: float) -> None:
        self.transport.write(STREAM_HEAD)
        for index in range(chunks):
            await asyncio.sleep(pause)
            self.transport.write(chunked(frame(index)))
        self.transport.write(chunked(LAST_FRAMES) + chunked(b""))


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
USAGE = {"prompt_tokens": 4, "completion_tokens": 16, "total_tokens": 4 + 16}


def whole_response(body: Any) -> bytes:
    raw = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw


def whole_answer(chunks: int) -> bytes:
    message = {"role": "assistant", "content": f"{time.monotonic_ns()} " * chunks}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "echo"}
    return whole_response({**head, "choices": [choice], "usage": USAGE})


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def frame_of(**fields: Any) -> bytes:
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "echo"}
    return b"data: " + json.dumps(head | fields).encode() + b"\n\n"


def choices_of(delta: dict[str, str], reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]


FIRST_FRAME = frame_of(choices=choices_of({"role": "assistant", "content": "TIME "}))
NEXT_FRAME = frame_of(choices=choices_of({"content": "TIME "}))
LAST_FRAMES = (
    frame_of(choices=choices_of({}, "stop")) + frame_of(choices=[], usage=USAGE) + b"data: [DONE]\n\n"
)


def frame(index: int) -> bytes:
    return (NEXT_FRAME if index else FIRST_FRAME).replace(b"TIME", b"%d" % time.monotonic_ns())


def run_upstream(listener: socket.socket, _: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Upstream, sock=listener)
        await server.serve_forever()

    asyncio.run(main())


def run_aiohttp(listener: socket.socket, upstream: str) -> None:
    app = FastAPI()
    clients: list[aiohttp.ClientSession] = []

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        if not clients:
            clients.append(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)))
        body = await request.body()
        reply = await clients[0].post(f"{upstream}/chat/completions", data=body, headers=kept(request))
        if "event-stream" not in reply.content_type:
            raw = await reply.read()
            return Response(raw, status_code=reply.status, media_type=reply.content_type)

        async def blocks() -> AsyncGenerator[bytes, None]:
            async with reply:
                async for block in reply.content.iter_any():
                    yield block

        return StreamingResponse(blocks(), status_code=reply.status, media_type=reply.content_type)

    serve(app, listener)


def run_httpx(listener: socket.socket, upstream: str) -> None:
    app = FastAPI()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    client = httpx.AsyncClient(limits=limits, timeout=60)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.body()
        asked = client.build_request(
            "POST", f"{upstream}/chat/completions", content=body, headers=kept(request)
        )
        reply = await client.send(asked, stream=True)
        kind = reply.headers["content-type"]
        if "event-stream" not in kind:
            return Response(await reply.aread(), status_code=reply.status_code, media_type=kind)

        async def blocks() -> AsyncGenerator[bytes, None]:
            async for block in reply.aiter_raw():
                yield block
            await reply.aclose()

        return StreamingResponse(blocks(), status_code=reply.status_code, media_type=kind)

    serve(app, listener)


def kept(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name in PASSED_ON}


def serve(app: FastAPI, listener: socket.socket) -> None:
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    asyncio.run(server.serve(sockets=[listener]))


@contextmanager
def process(run: Callable[[socket.socket, str], None], *, upstream: str = "", port: int = 0) -> Iterator[str]:
    """Run a server of this file in its own process; yields its address up to and with `/v1`."""
    # asyncio switches Nagle's algorithm off only where the protocol is named
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((LOOPBACK, port))
        listener.listen()
        child = multiprocessing.get_context("spawn").Process(
            target=run, args=(listener, upstream), daemon=True
        )
        child.start()
        try:
            yield f"http://{LOOPBACK}:{listener.getsockname()[1]}/v1"
        finally:
            child.kill()
            child.join()
