"""Calls of an ASGI application in this process, which is started with the first of them.

httpx's own transport for that holds a stream back until it has ended; this one hands it on as it is made.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar

import httpx

from .errors import ClientError

T = TypeVar("T")
Message = MutableMapping[str, Any]
App = Callable[..., Coroutine[Any, Any, None]]
"""An ASGI application, such as `create_app(config)` of llama-stack-lite."""
GRACE = 1  # seconds that the application has to notice that somebody hung up


class InProcess(httpx.AsyncBaseTransport):
    """Runs the application's lifespan around all that it is asked."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._starting = asyncio.Lock()
        self._lifespan: _Lifespan | None = None

    async def start(self) -> None:
        """Start the application; raises what it raises."""
        async with self._starting:
            if self._lifespan is None:
                lifespan = _Lifespan(self._app)
                await lifespan.start()
                self._lifespan = lifespan

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.start()
        scope = {
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
        timeout = request.extensions.get("timeout", {}).get("read")
        exchange = _Exchange(self._app, scope, await request.aread(), timeout)
        try:
            head = await exchange.next()
        except BaseException:
            await exchange.aclose()
            raise
        return httpx.Response(head["status"], headers=head["headers"], stream=exchange)

    async def aclose(self) -> None:
        if self._lifespan:
            lifespan, self._lifespan = self._lifespan, None
            await lifespan.stop()


class _Lifespan:
    """An application between its start and its end."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._told: asyncio.Queue[Message] = asyncio.Queue()
        self._answers: asyncio.Queue[Message] = asyncio.Queue()

    async def start(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        self._run = asyncio.create_task(self._app(scope, self._told.get, self._answers.put))
        await self._tell("lifespan.startup")

    async def stop(self) -> None:
        await self._tell("lifespan.shutdown")
        await self._run

    async def _tell(self, type: str) -> None:
        await self._told.put({"type": type})
        answer = asyncio.create_task(self._answers.get())
        await asyncio.wait({answer, self._run}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done() and answer.result()["type"] == f"{type}.complete":
            return
        answer.cancel()
        await self._run  # raises what the application raised
        raise ClientError(f"the application did not answer {type} with {type}.complete")


class _Exchange(httpx.AsyncByteStream):
    """One request and its answer."""

    def __init__(self, app: App, scope: Message, body: bytes, timeout: float | None) -> None:
        self._request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._closed = asyncio.Event()
        self._timeout = timeout
        self._call = asyncio.create_task(self._run(app, scope))

    async def _run(self, app: App, scope: Message) -> None:
        try:
            await app(scope, self._receive, self._messages.put)
        finally:
            self._messages.put_nowait(None)

    async def _receive(self) -> Message:
        if self._request:
            return self._request.pop()
        await self._closed.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> Message:
        """The application's next message; raises what the application raised."""
        try:
            message = await asyncio.wait_for(self._messages.get(), self._timeout)
        except asyncio.TimeoutError as error:
            raise httpx.ReadTimeout("the application took too long") from error
        if message is None:
            await self._call
            raise httpx.ReadError("the application ended without a whole answer")
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            message = await self.next()
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def aclose(self) -> None:
        self._closed.set()
        await asyncio.wait({self._call}, timeout=GRACE)
        self._call.cancel()
        await asyncio.gather(self._call, return_exceptions=True)


class InThread(httpx.BaseTransport):
    """The same for calls that block: the application runs in a thread of its own, from now on."""

    def __init__(self, app: App) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="llama-stack-lite", daemon=True)
        self._thread.start()
        try:
            self._inner = self.wait(_made(app))
        except BaseException:
            self._end()
            raise

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    @property
    def runs(self) -> bool:
        return self._thread.is_alive()

    def wait(self, call: Coroutine[Any, Any, T]) -> T:
        """What a coroutine returns, run in the application's loop."""
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        answer = self.wait(self._inner.handle_async_request(request))
        assert isinstance(answer.stream, httpx.AsyncByteStream)
        stream = _Threaded(self, answer.stream)
        return httpx.Response(answer.status_code, headers=answer.headers, stream=stream)

    def close(self) -> None:
        if self.runs:
            with suppress(ClientError):
                self.wait(self._inner.aclose())
            self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


async def _made(app: App) -> InProcess:
    transport = InProcess(app)
    await transport.start()
    return transport


class _Threaded(httpx.SyncByteStream):
    """A body that is made in another thread."""

    def __init__(self, transport: InThread, inner: httpx.AsyncByteStream) -> None:
        self._transport = transport
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        pieces = self._inner.__aiter__()
        with suppress(StopAsyncIteration):
            while True:
                yield self._transport.wait(_next(pieces))

    def close(self) -> None:
        if self._transport.runs:
            self._transport.wait(self._inner.aclose())


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    return await pieces.__anext__()
