"""HTTP calls to an application in this process: httpx's own transport holds a stream back until it ends."""

import asyncio
from collections.abc import AsyncIterator

import httpx
from starlette.types import ASGIApp, Message, Scope


class InProcess(httpx.AsyncBaseTransport):
    """Call an ASGI application; a response is handed on as it is made, and closing it hangs up."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        exchange = _Exchange(await request.aread())
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.split(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": ("127.0.0.1", 0),
            "root_path": "",
        }
        exchange.call = asyncio.create_task(self._run(scope, exchange))
        try:
            head = await exchange.next()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(head["status"], headers=head["headers"], stream=exchange)

    async def _run(self, scope: Scope, exchange: "_Exchange") -> None:
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.messages.put_nowait(None)


class _Exchange(httpx.AsyncByteStream):
    """One request and its response."""

    call: asyncio.Task[None]

    def __init__(self, body: bytes) -> None:
        self.messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._closed = asyncio.Event()

    async def receive(self) -> Message:
        if self._requests:
            return self._requests.pop()
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.put_nowait(message)

    async def next(self) -> Message:
        """The application's next message; raises what the application raised, or `ReadError`."""
        message = await self.messages.get()
        if message is None:
            await self.call
            raise httpx.ReadError("the application ended without a whole response")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.next()
            yield message.get("body", b"")
            more = message.get("more_body", False)

    async def aclose(self) -> None:
        self._closed.set()
        await asyncio.wait({self.call}, timeout=1)
        self.call.cancel()
        await asyncio.gather(self.call, return_exceptions=True)
