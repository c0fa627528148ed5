"""MCP servers over HTTP: a client for each connection, which counts what comes and knows where it may go."""

import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import httpx2
from mcp.client._transport import TransportStreams
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from llama_stack_lite.errors import StackError, UpstreamError
from llama_stack_lite.reach import Reach, first_reached

Protocol = Literal["streamable_http", "sse"]

PORTS = {"http": 80, "https": 443}
CONNECT = 10.0  # seconds


class Allowance:
    """So much in each `window` of seconds; what a server sends beyond it is no conversation any more."""

    def __init__(self, most: int, *, window: float = 10) -> None:
        self.most = most
        self.window = window
        self.spent = 0
        self.ends = 0.0

    def spend(self, amount: int) -> bool:
        """Whether there was room for it."""
        if (now := time.monotonic()) > self.ends:
            self.spent, self.ends = 0, now + self.window
        self.spent += amount
        return self.spent <= self.most


@dataclass
class Wire:
    """What HTTP said of a connection: its last status, and why it was cut off."""

    status: int = 200
    failure: StackError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server's address and what it is sent; with `reach`, only where that lets it go.

    `limit` is in bytes: of one answer, and four times that of all that comes in ten seconds. `where` is
    what errors call the server.
    """

    url: str
    where: str
    headers: Mapping[str, str]
    limit: int
    reach: Reach | None = None

    def open(self, protocol: Protocol, wire: Wire) -> AbstractAsyncContextManager[TransportStreams]:
        """The transport's two streams; redirects stay within the URL's origin, as the SDK sees to."""
        return _streamable(self, wire) if protocol == "streamable_http" else _sse(self, wire)

    def client(self, wire: Wire) -> httpx2.AsyncClient:
        allowance = Allowance(4 * self.limit)

        def too_much() -> StackError:
            wire.failure = UpstreamError(f"{self.where} sent more bytes than a result may have")
            return wire.failure

        async def measure(response: httpx2.Response) -> None:
            wire.status = response.status_code
            if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
                raise UpstreamError(f"{self.where} compresses its answers, though nobody asked for that")
            is_stream = (
                response.headers.get("content-type", "").lower().startswith("text/event-stream")
                and response.status_code == 200
                and response.request.method != "DELETE"  # whose answer is read to its end
            )
            most = None if is_stream else self.limit
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = Counted(response.stream, most, allowance, too_much)

        return httpx2.AsyncClient(
            headers={**self.headers, "accept-encoding": "identity"},
            timeout=httpx2.Timeout(CONNECT, read=None),  # each call has its own end, and streams have none
            transport=Pinned(self.reach) if self.reach else None,
            verify=_trusted(),
            trust_env=self.reach is None,
            event_hooks={"response": [measure]},
        )


@asynccontextmanager
async def _streamable(endpoint: Endpoint, wire: Wire) -> AsyncIterator[TransportStreams]:
    async with (
        endpoint.client(wire) as client,
        streamable_http_client(
            endpoint.url, http_client=client, max_sse_event_size=endpoint.limit
        ) as streams,
    ):
        yield streams


def _sse(endpoint: Endpoint, wire: Wire) -> AbstractAsyncContextManager[TransportStreams]:
    def client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        return endpoint.client(wire)

    return sse_client(endpoint.url, httpx_client_factory=client)


class Counted(httpx2.AsyncByteStream):
    """A body that ends in an error where it is more than `most` bytes, or than the connection's allowance."""

    def __init__(
        self,
        inner: httpx2.AsyncByteStream,
        most: int | None,
        allowance: Allowance,
        too_much: Callable[[], StackError],
    ) -> None:
        self.inner = inner
        self.most = most
        self.allowance = allowance
        self.too_much = too_much

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self.inner:
            size += len(chunk)
            if (self.most is not None and size > self.most) or not self.allowance.spend(len(chunk)):
                raise self.too_much()
            yield chunk

    async def aclose(self) -> None:
        await self.inner.aclose()


class Pinned(httpx2.AsyncBaseTransport):
    """Connects to the very addresses that `reach` checked, once for the whole connection."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.known: dict[tuple[str, int], list[str]] = {}
        self.inner = httpx2.AsyncHTTPTransport(verify=_trusted(), trust_env=False)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url, name = request.url, request.url.raw_host.decode("ascii")
        place = name, url.port or PORTS[url.scheme]
        if place not in self.known:
            self.known[place] = await self.reach.addresses(*place, param="server_url")

        async def ask(address: str) -> httpx2.Response:
            pinned = httpx2.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions | {"sni_hostname": name.removesuffix(".")},
            )
            return await self.inner.handle_async_request(pinned)

        unreached = (httpx2.ConnectError, httpx2.ConnectTimeout)
        return await first_reached(self.known[place], ask, unreached=unreached)

    async def aclose(self) -> None:
        await self.inner.aclose()


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted; reading them takes longer than a request."""
    return httpx2.create_ssl_context()
