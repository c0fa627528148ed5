"""Workers that make files searchable: they lease them, and go on with those of servers that are gone."""

import asyncio
import logging
import time
from collections import Counter as Counts
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Self

from prometheus_client import Counter

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.vector_stores import ErrorCode, LastError
from llama_stack_lite.errors import Conflict, InvalidRequest, StackError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import document_leases as leases
from llama_stack_lite.state.document_leases import Work
from llama_stack_lite.state.journal import LeaseLost

from .embedding import Embedder
from .filing import Filing
from .parsing import Parsers
from .upkeep import expire

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0  # seconds between two looks for files that wait, and for those that are cancelled
GRACE = 3.0  # seconds for a lease that is being taken when the server stops
TIDY_EVERY = 60.0  # seconds between two looks for what nobody needs any more
AGAIN_AFTER = (1.0, 5.0, 25.0)  # seconds before a file is tried again which the server is to blame for
AHEAD = 8  # files, for each one that is being read, whose chunks are being embedded, many files' together
ENDED = Counter("llama_lite_ingested_files", "Files whose ingestion has ended.", ["status"])  # adds `_total`


class Ingestion:
    """Works on the files that vector stores wait for: `documents.workers` are read at once.

    They make way as soon as their chunks are kept, so that there is always enough to embed together.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.limits = stack.config.documents
        self.worker = new_id("worker")
        self.parsers = Parsers(self.limits)
        self.embedder = Embedder()
        self._working: dict[int, asyncio.Task[None]] = {}
        self._reading: set[int] = set()  # those of them that have no chunks yet
        self._tries: Counts[int] = Counts()  # how often the server was to blame
        self._wake = asyncio.Event()
        self._stopping = False
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> Self:
        """Begin to look for files that wait, to keep the leases of those in progress, and to tidy up."""
        loops = (self._claiming(), self._minding(), self._tidying())
        self._loops = [asyncio.create_task(each) for each in loops]
        return self

    def wake(self) -> None:
        """There is new work."""
        self._wake.set()

    async def aclose(self) -> None:
        """Stop; what is not done, another server goes on with, or the next start."""
        self._stopping = True
        self._wake.set()
        await asyncio.wait(self._loops[:1], timeout=GRACE)  # a lease that is being taken is let go below
        tasks = [*self._loops, *self._working.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.embedder.aclose()
        await self.parsers.aclose()
        with suppress(StackError):
            await leases.release(self.stack.store, self.worker)

    # ------------------------------------------------------------ what goes on all the time

    async def _claiming(self) -> None:
        """Take what waits, as long as there is a worker for it."""
        while not self._stopping:
            self._wake.clear()
            await self._logged(self._claim, "files wait")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY):
                    await self._wake.wait()

    async def _claim(self) -> None:
        while not self._stopping and self._free():
            work = await leases.claim(
                self.stack.store, self.worker, lease=self.limits.lease, without=self._working
            )
            if work is None:
                return
            if not work.parsed:
                self._reading.add(work.key)
            task = asyncio.create_task(self._work(work))
            self._working[work.key] = task
            task.add_done_callback(lambda _, key=work.key: self._left(key))  # type: ignore[misc]

    def _free(self) -> bool:
        workers = self.limits.workers
        return len(self._reading) < workers and len(self._working) < workers * (1 + AHEAD)

    def _left(self, key: int) -> None:
        del self._working[key]
        self._read(key)

    def _read(self, key: int) -> None:
        """A file has made way for the next one."""
        self._reading.discard(key)
        self._wake.set()

    async def _minding(self) -> None:
        """Keep the leases, and stop work on files that are cancelled, gone, or somebody else's."""
        renewed = 0.0
        every = self.limits.lease / 4
        store = self.stack.store

        async def mind() -> None:
            nonlocal renewed
            if not (held := {*self._working}):
                return
            if time.monotonic() - renewed >= every:
                await leases.renew(store, self.worker, held, lease=self.limits.lease)
                renewed = time.monotonic()
            for key in held - await leases.kept(store, self.worker, held):
                if (task := self._working.get(key)) and not task.cancelling():
                    task.cancel()

        while True:
            await asyncio.sleep(min(LOOK_EVERY, every))
            await self._logged(mind, "leases could not be renewed")

    async def _tidying(self) -> None:
        """Forget what expired, and what is left of files that nobody will find."""
        while True:
            await self._logged(lambda: expire(self.stack), "expired vector stores stay")
            await self._logged(self._sweep, "chunks of files that failed stay")
            await asyncio.sleep(TIDY_EVERY)

    async def _sweep(self) -> None:
        for work in await leases.leftovers(self.stack.store):
            await Filing(self.stack, work).clear(indexed=True)

    async def _logged(self, run: Callable[[], Awaitable[None]], trouble: str) -> None:
        try:
            await run()
        except StackError as error:
            log.error("%s: %s", trouble, error)
        except Exception:
            log.exception("%s", trouble)

    # ------------------------------------------------------------ one file

    async def _work(self, work: Work) -> None:
        """Work on a file to its end, from where it was left."""
        filing, began = Filing(self.stack, work), time.monotonic()
        try:
            await self._through(filing)
        except asyncio.CancelledError:
            await self._logged(filing.clear, f"something of file {work.id} stays")
            raise
        except (LeaseLost, Conflict) as error:
            log.info("%s", error)
            await self._logged(filing.clear, f"something of file {work.id} stays")
        except Exception as error:  # noqa: BLE001 - told in the file's `last_error`, and logged
            await self._failed(filing, error)
        else:
            ENDED.labels("completed").inc()
            took = time.monotonic() - began
            log.info("file %s (%s): %d chunks in %.2f s", work.id, work.filename, len(filing.keys), took)
            self._tries.pop(work.key, None)

    async def _through(self, filing: Filing) -> None:
        work = filing.work
        if work.attempts > self.limits.attempts:
            raise GivenUp(f"the server stopped {work.attempts - 1} times while it worked on this file")
        if not work.parsed:
            await filing.prepare(self.parsers)
            self._read(work.key)
        await filing.embed(self.embedder)
        await filing.publish()

    async def _failed(self, filing: Filing, error: Exception) -> None:
        """End a file as failed; or try again later where that may help, as it is not the file's fault."""
        work = filing.work
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        code, message = blamed(error)
        if code == "server_error" and not isinstance(error, GivenUp):
            if not isinstance(error, StackError):
                log.error("file %s (%s) cannot be worked on", work.id, work.filename, exc_info=error)
            tried = self._tries[work.key]
            self._tries[work.key] += 1
            if tried < len(AGAIN_AFTER):
                wait = AGAIN_AFTER[tried]
                log.warning("file %s (%s) in %.0f s again: %s", work.id, work.filename, wait, message)
                return await self._insist(lambda: leases.put_off(self.stack.store, work, seconds=wait))
        failure = LastError(code=code, message=message)
        await self._insist(lambda: leases.fail(self.stack.store, work, failure))
        await self._logged(filing.clear, f"something of file {work.id} stays")
        self._tries.pop(work.key, None)
        ENDED.labels("failed").inc()
        log.warning("file %s (%s) failed: %s", work.id, work.filename, message)

    async def _insist(self, write: Callable[[], Awaitable[None]]) -> None:
        """Write as soon as the database takes it; until then the file is nobody else's to try."""
        while True:
            try:
                return await write()
            except LeaseLost as error:
                return log.info("%s", error)
            except StackError as error:
                log.error("the state of a file cannot be kept now: %s", error)
                await asyncio.sleep(LOOK_EVERY)


INTERNAL = "internal error; the server's log has it"


class GivenUp(StackError):
    """Nobody will try again."""


def blamed(error: Exception) -> tuple[ErrorCode, str]:
    """Whose fault an error is, in OpenAI's word, and what users read of it."""
    if isinstance(error, InvalidRequest):
        return "unsupported_file" if error.code == "unsupported_file" else "invalid_file", str(error)
    return "server_error", str(error) if isinstance(error, StackError) else INTERNAL
