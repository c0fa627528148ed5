"""A connection to an MCP server, owned by one task: what was opened in a task is closed in it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from contextvars import Context
from typing import Any, Self, TypeVar

import anyio
import httpx2
from mcp import Client, ClientSession, MCPError
from mcp.client._transport import ReadStream, TransportStreams
from mcp.client.subscriptions import ListenNotSupportedError, SubscriptionLost
from mcp.shared.message import SessionMessage
from mcp_types import CONNECTION_CLOSED, Implementation, JSONRPCNotification, JSONRPCRequest
from pydantic import BaseModel, TypeAdapter, ValidationError

from llama_stack_lite.errors import StackError, Unavailable, UpstreamError

from .http import Allowance, Wire

R = TypeVar("R", bound=BaseModel)
Open = Callable[[Wire], AbstractAsyncContextManager[TransportStreams]]

log = logging.getLogger(__name__)
# it logs whatever servers send, tracebacks and all; what matters of it is in our errors
logging.getLogger("mcp.client").setLevel(logging.CRITICAL)
logging.getLogger("client").setLevel(logging.CRITICAL)

US = Implementation(name="llama-stack-lite", version="0")
LONGEST = 500  # characters of a server's own words in an error
CLOSING = 6.0  # seconds for a server to say goodbye; a process needs up to four
MESSAGES = 10_000  # in ten seconds, of which each question counts as
QUESTION = 100
CHANGED = "notifications/tools/list_changed"
# progress, log messages and the like are for nobody
HEEDED = {CHANGED, "notifications/subscriptions/acknowledged", "notifications/cancelled"}
NOT_SPOKEN = {400, 404, 405, 406, 410, 415, 501}  # what servers of the older protocol answer the newer one
GONE = 404  # what a server answers that no longer knows our session
HINTS = {401: " (is `authorization` right?)", 403: " (is `authorization` right?)"}


class Expired(UpstreamError):
    """The server has forgotten the session, and so did nothing; a new connection can be asked instead."""


class Connection:
    """Opened at once by the first of several protocols that the server speaks; `where` names the server.

    `changed` is called when the list of tools has changed, `ended` when the connection is over.
    """

    def __init__(
        self,
        protocols: Sequence[Open],
        *,
        where: str,
        changed: Callable[[], None],
        ended: Callable[["Connection"], None],
    ) -> None:
        self.where = where
        self.failure: StackError | None = None
        self.calls = 0
        self.began = self.used = self.heard = time.monotonic()
        self.wire = Wire()
        self._changed = changed
        self._over = asyncio.Event()
        self._messages = Allowance(MESSAGES)
        self._retired = self._closed = False
        self._session: asyncio.Future[ClientSession] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(protocols))
        self._task.add_done_callback(lambda _: ended(self))

    @property
    def usable(self) -> bool:
        is_over = self._session.done() and self._over.is_set()
        return not (self._retired or self._closed or is_over or self._task.done())

    async def request(self, request: Any, kind: type[R] | TypeAdapter[R]) -> R:
        """What the server answers; raises `StackError`s only, and has no end of its own.

        Whoever leaves is let go at once: telling the server of it can take as long as the server likes.
        """
        self.calls += 1
        task = asyncio.create_task(self._ask(request, kind))
        task.add_done_callback(self._asked)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _ask(self, request: Any, kind: type[R] | TypeAdapter[R]) -> R:
        try:
            session = await asyncio.shield(self._session)
            return await session.send_request(request, kind)
        except StackError:
            raise
        except Exception as error:
            if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED and not self.failure:
                await asyncio.wait([self._task], timeout=1)  # it knows why
            raise self._explained(error) from error

    def _asked(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # nobody may be waiting
        self.calls -= 1
        self.used = time.monotonic()
        if self._retired and not self.calls:
            self.close()

    def retire(self) -> None:
        """Close it when the calls that are under way have ended."""
        self._retired = True
        if not self.calls:
            self.close()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if not self._session.done():  # it still waits for the server's greeting
                self._task.cancel()
            self._end()

    def _end(self) -> None:
        """Let the task leave what it has opened, and make it, where the server does not let it go."""
        self._over.set()
        if self._closed or self._session.done():
            asyncio.get_running_loop().call_later(CLOSING, self._task.cancel)

    async def closed(self) -> None:
        self.close()
        await asyncio.wait([self._task])

    async def _run(self, protocols: Sequence[Open]) -> None:
        try:
            for number, protocol in enumerate(protocols):
                self.wire, self._over = Wire(), asyncio.Event()
                try:
                    await self._converse(protocol)
                    break
                except Exception as error:  # noqa: BLE001 - told to whoever asks, or logged
                    is_last = number == len(protocols) - 1 or self._session.done()
                    if is_last or self.wire.status not in NOT_SPOKEN:
                        self._fail(self._explained(error))
                        break
        finally:
            self._refuse(Unavailable(f"the connection to {self.where} is closed"))

    def _fail(self, error: StackError) -> None:
        self.failure = self.failure or error
        self._refuse(self.failure)

    def _refuse(self, error: StackError) -> None:
        """Tell whoever waits for the session that there will be none."""
        if not self._session.done():
            self._session.set_exception(error)
            self._session.exception()  # nobody may be waiting

    async def _converse(self, protocol: Open) -> None:
        async with (
            Client(self._watched(protocol), cache=None, client_info=US) as client,
            anyio.create_task_group() as tasks,
        ):
            if not self._session.done():  # it may have gone wrong in the same moment
                self._session.set_result(client.session)
            tasks.start_soon(_subscribe, client)
            await self._over.wait()
            tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def _watched(self, protocol: Open) -> AsyncIterator[TransportStreams]:
        async with protocol(self.wire) as (incoming, outgoing):
            yield Watched(incoming, self._keeps, self._end), outgoing

    def _keeps(self, item: SessionMessage | Exception) -> bool:
        """Whether the session is to see something that came; raises `EndOfStream` where it is too much."""
        self.heard = time.monotonic()
        if isinstance(item, StackError):
            self._fail(item)
        is_question = isinstance(item, SessionMessage) and isinstance(item.message, JSONRPCRequest)
        if not self._messages.spend(QUESTION if is_question else 1):
            self._fail(UpstreamError(f"{self.where} sends more messages than anybody can read"))
            raise anyio.EndOfStream
        if isinstance(item, Exception):
            return False
        if isinstance(item.message, JSONRPCNotification):
            if item.message.method == CHANGED:
                self._changed()
            return item.message.method in HEEDED
        return True

    def _explained(self, error: Exception) -> StackError:
        """What may be told of an error, and what can be done about it."""
        leaves = list(_leaves(error))
        known = [each for each in leaves if isinstance(each, StackError)]
        if failure := self.failure or self.wire.failure or next(iter(known), None):
            return failure
        status = self.wire.status
        if isinstance(leaves[0], httpx2.HTTPStatusError):
            status = leaves[0].response.status_code
        if status == GONE and self._session.done():
            self.retire()
            return Expired(f"{self.where} no longer knows this session")
        if status >= 300 and isinstance(leaves[0], MCPError | httpx2.HTTPStatusError):
            said = f": {leaves[0].message[:LONGEST]}" if isinstance(leaves[0], MCPError) else ""
            return UpstreamError(f"{self.where} answered {status}{HINTS.get(status, said)}")
        return self._said(leaves[0])

    def _said(self, leaf: BaseException) -> StackError:
        if isinstance(leaf, MCPError):
            if leaf.code == CONNECTION_CLOSED:
                return Unavailable(f"{self.where} closed the connection")
            return UpstreamError(f"{self.where} answered with an error: {leaf.message[:LONGEST]}")
        if isinstance(leaf, httpx2.SSEError):
            return UpstreamError(f"{self.where} sent events that cannot be read: {leaf}")
        if isinstance(leaf, httpx2.TransportError):
            return Unavailable(f"{self.where} cannot be reached ({type(leaf).__name__})")
        if isinstance(leaf, ValidationError):
            return UpstreamError(f"{self.where} answered something that is no MCP")
        log.warning("the connection to %s broke", self.where, exc_info=leaf)
        return UpstreamError(f"the connection to {self.where} broke ({type(leaf).__name__})")


async def _subscribe(client: Client) -> None:
    """Ask to be told of changes, which servers of the newer protocol do not tell otherwise."""
    with suppress(ListenNotSupportedError, SubscriptionLost, MCPError):
        async with client.listen(tools_list_changed=True):
            await anyio.sleep_forever()


class Watched:
    """What comes from a server, without what the session has no use for; when it ends, `ended` is called."""

    def __init__(
        self,
        inner: ReadStream[SessionMessage | Exception],
        keeps: Callable[[SessionMessage | Exception], bool],
        ended: Callable[[], None],
    ) -> None:
        self.inner = inner
        self.keeps = keeps
        self.ended = ended

    @property
    def last_context(self) -> Context | None:
        found: Context | None = getattr(self.inner, "last_context", None)
        return found

    async def receive(self) -> SessionMessage | Exception:
        try:
            while not self.keeps(item := await self.inner.receive()):
                pass
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self.ended()
            raise
        return item

    async def aclose(self) -> None:
        await self.inner.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
