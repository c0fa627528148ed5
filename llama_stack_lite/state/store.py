"""The database: every write awaited until it is on disk, and on SQLite many of them share one commit."""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import (
    DatabaseError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from llama_stack_lite.errors import Unavailable

from .database import CONNECTIONS, READING, WRITING
from .migrations import upgrade

T = TypeVar("T")
Work = Callable[[Connection], T]
Job = tuple[Work[Any], "asyncio.Future[Any]"]
Outcome = tuple[Any, BaseException | None]  # what a function returned, or raised
READERS = 4  # connections that read SQLite, beside the one that writes
GROUP = 256  # writes that share one commit at most
DEADLOCKS = ("40001", "40P01")  # PostgreSQL's codes for two that stood in each other's way
STOPPING = "the server is stopping"
log = logging.getLogger(__name__)


class Store:
    """Runs functions of a SQLAlchemy connection, each in a transaction of its own, off the event loop.

    A function neither commits nor rolls back; where it raises, nothing that it wrote stands, and the error
    is its caller's. On PostgreSQL they run side by side, and one that was sure not to be committed may run
    a second time: after a deadlock, or where the connection had been lost. SQLite has one writer: those who
    wait for it share its next commit, as that, not the writing, is what takes the time.

    Raises `Unavailable` where the database cannot be reached, or cannot write.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._writer = _Writer(engine) if engine.dialect.name == "sqlite" else None
        self._threads = ThreadPoolExecutor(READERS if self._writer else CONNECTIONS, "store")
        self._closed = False

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connect, and bring the tables up to date; raises `ConfigError` where that cannot be."""
        return cls(await asyncio.to_thread(upgrade, url))

    async def read(self, work: Work[T]) -> T:
        """Run a function that only reads; all that it reads is of one moment."""
        return await self._in_thread(work, {} if self._writer else READING)

    async def write(self, work: Work[T]) -> T:
        """Run a function that writes; returns once what it wrote is committed to disk.

        It is written even if the caller is cancelled meanwhile.
        """
        if self._writer is None:
            return await asyncio.shield(self._in_thread(work, WRITING))
        return await self._writer.submit(work)

    def _in_thread(self, work: Work[T], options: dict[str, Any]) -> "asyncio.Future[T]":
        if self._closed:
            raise Unavailable(STOPPING)
        return asyncio.get_running_loop().run_in_executor(self._threads, self._run, work, options)

    def _run(self, work: Work[T], options: dict[str, Any]) -> T:
        try:
            try:
                return self._once(work, options)
            except DBAPIError as error:
                if not _undone(error):
                    raise
                return self._once(work, options)
        except (SQLAlchemyError, StopIteration) as error:
            if (told := _explained(error)) is not error:
                raise told from error
            raise

    def _once(self, work: Work[T], options: dict[str, Any]) -> T:
        with self.engine.connect().execution_options(**options) as connection:
            transaction = connection.begin()
            result = work(connection)
            try:
                transaction.commit()
            except DBAPIError as error:
                if error.connection_invalidated:  # nobody knows whether it came through
                    raise Unavailable("the database was lost in a commit, which may stand or not") from error
                raise
            return result

    async def aclose(self) -> None:
        """Finish what was begun, then close; may be called twice."""
        self._closed = True
        if self._writer:
            await asyncio.to_thread(self._writer.close)
        await asyncio.to_thread(self._threads.shutdown)
        self.engine.dispose()


def _undone(error: DBAPIError) -> bool:
    """Whether nothing was committed for a reason that a second try may not meet."""
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in DEADLOCKS


def _explained(error: BaseException) -> BaseException:
    """What callers are told: a database that fails is `Unavailable`, all else is their own error."""
    if isinstance(error, OperationalError | InterfaceError | InternalError | PoolTimeout) or (
        type(error) is DatabaseError  # the driver's word for a file that is damaged
    ):
        log.error("the database failed: %s", " ".join(str(getattr(error, "orig", error)).split()))
        return Unavailable("the server cannot reach or write its database now; its log says why")
    if isinstance(error, StopIteration):  # no future takes one
        return RuntimeError("a function given to the store raised StopIteration")
    return error


class _Writer:
    """The one thread that writes to SQLite."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="store-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Work[T]) -> "asyncio.Future[T]":
        """Queue a function; raises `Unavailable` once `close` was called."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._closed:
                raise Unavailable(STOPPING)
            self._waiting.append((work, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Write what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _groups(self) -> Iterator[list[Job]]:
        """All that wait, whenever somebody does: while one group is committed the next one gathers."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), GROUP))]
            if not group:
                return
            yield group

    def _loop(self) -> None:
        for group in self._groups():
            outcomes = self._commit([work for work, _ in group])
            settled = [(future, outcome) for (_, future), outcome in zip(group, outcomes, strict=True)]
            for loop in {future.get_loop() for _, future in group}:
                with suppress(RuntimeError):  # a loop that is closed has nobody left to be told
                    loop.call_soon_threadsafe(
                        _settle, [each for each in settled if each[0].get_loop() is loop]
                    )

    def _commit(self, group: list[Work[Any]]) -> list[Outcome]:
        try:
            with self._engine.connect().execution_options(**WRITING) as connection, connection.begin():
                return [_tried(connection, work) for work in group]
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited: nothing of the group stands
            return [(None, _explained(error))] * len(group)


def _tried(connection: Connection, work: Work[Any]) -> Outcome:
    """Run one function of a group, so that what it wrote can be taken back without the others.

    The savepoints are not SQLAlchemy's, which cost as much as three inserts.
    """
    raw: Any = connection.connection.driver_connection
    raw.execute("SAVEPOINT one")
    outcome: Outcome
    try:
        outcome = work(connection), None
    except BaseException as error:
        if not raw.in_transaction:  # a full disk, for one, makes SQLite roll back the whole group
            raise
        raw.execute("ROLLBACK TO one")
        outcome = None, _explained(error)
    raw.execute("RELEASE one")
    return outcome


def _settle(settled: list[tuple["asyncio.Future[Any]", Outcome]]) -> None:
    for future, (result, failure) in settled:
        if future.done():  # its caller was cancelled
            continue
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)
