"""An MCP server that speaks the older protocol over bare ASGI, and does to its clients what it is told to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

Answer = Callable[["Request"], Awaitable[None]]
TOOL = {"name": "t", "description": "a tool", "inputSchema": {"type": "object", "properties": {}}}


class Request:
    """One HTTP request, and how to answer it."""

    def __init__(self, scope: Any, send: Any, body: bytes) -> None:
        self.headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        self.verb: str = scope["method"]
        self.path: str = scope["path"]
        self.message: dict[str, Any] = json.loads(body) if body else {}
        self._send = send

    @property
    def method(self) -> str:
        """The JSON-RPC method, or the HTTP one where there is no message."""
        found: str = self.message.get("method", self.verb)
        return found

    async def start(self, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        pairs = {"content-type": kind} | {name.replace("_", "-"): value for name, value in headers.items()}
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(k.encode(), v.encode()) for k, v in pairs.items()],
            }
        )

    async def write(self, data: bytes, *, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def reply(self, status: int = 200, body: bytes = b"", **headers: str) -> None:
        await self.start(status, **headers)
        await self.write(body, more=False)

    async def result(self, result: Any, **headers: str) -> None:
        message = {"jsonrpc": "2.0", "id": self.message["id"], "result": result}
        await self.reply(200, json.dumps(message).encode(), **headers)

    async def events(self, chunks: AsyncIterator[bytes]) -> None:
        await self.start(kind="text/event-stream")
        async for chunk in chunks:
            await self.write(chunk)


class Hostile:
    """Polite unless told otherwise: `answers` are by JSON-RPC method, or `GET` and `DELETE`."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = {name.replace("__", "/"): answer for name, answer in answers.items()}
        self.seen: list[Request] = []
        self.tools: list[dict[str, Any]] = [TOOL]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event["more_body"]:
                break
        request = Request(scope, send, body)
        self.seen.append(request)
        await self.answers.get(request.method, self._polite)(request)

    async def _polite(self, request: Request) -> None:
        if request.method == "initialize":
            server = {"name": "hostile", "version": "0"}
            capabilities = {"tools": {"listChanged": True}}
            await request.result(
                {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": server},
                mcp_session_id=f"session-{len(self.seen)}",
            )
        elif request.method == "tools/list":
            await request.result({"tools": self.tools})
        elif request.method == "tools/call":
            await request.result(says("ok"))
        else:
            await request.reply(202 if request.method.startswith("notifications/") else 405)


def says(text: str) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": text}]}


def event(message: Any) -> bytes:
    return b"event: message\ndata: " + json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n\n"


def answering(*, status: int = 200, body: bytes = b"", **headers: str) -> Answer:
    """Always the same."""

    async def answer(request: Request) -> None:
        await request.reply(status, body, **headers)

    return answer


async def silent(request: Request) -> None:
    await asyncio.sleep(60)


async def huge(request: Request) -> None:
    """100 MB of one JSON text."""
    await request.start()
    await request.write(b'{"jsonrpc":"2.0","id":%d,"result":{"content":[' % request.message["id"])
    for _ in range(1600):
        await request.write(b'{"type":"text","text":"' + b"x" * 65536 + b'"},')
    await request.write(b"]}}", more=False)


def streaming(chunk: bytes, *, count: int = 1 << 40) -> Answer:
    """An event stream of one thing, again and again."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield chunk
            await asyncio.sleep(0)

    async def answer(request: Request) -> None:
        await request.events(chunks())

    return answer
