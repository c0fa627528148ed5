"""The index of one vector store: in memory, in its files, and following the database."""

import asyncio
import ctypes
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.state import vectors as kept
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.vectors import Matrix

from .files import Corrupt, Entry, Log, entries, put_aside, read_graph, write_graph
from .vectors import PIECE, Found, Vectors

T = TypeVar("T")
LIBC = ctypes.CDLL(None)
NEWEST = 256  # keys whose vectors are compared with the database's at start
WORKERS = ThreadPoolExecutor(3, "faiss")  # few: each has a heap of its own, which does not shrink
SPARE = 1000  # nodes and entries that may be of no use any more, beside a quarter of all
log = logging.getLogger(__name__)


class Mirror:
    """Vectors of one store, as of a `version` of it; asked for a later one, it reads from the database.

    Changes come one after the other, and are in the log before they are in memory. Searches run side by side,
    and between the pieces of a change. Without a log, where another process has it or the disk failed, all is
    read from the database at the next start.
    """

    def __init__(self, database: Store, index: Index, path: Path, *, exact: int) -> None:
        self.index = index
        self.path = path
        self.exact = exact
        self.users = 0
        self.version = 0
        self.vectors = self._empty()
        self._database = database
        self._ready = False
        self._log: Log | None = None
        self._saved = 0  # nodes of the graph that is on disk
        self._changing = asyncio.Lock()
        self._door = Door()
        self._touched: set[int] | None = None  # keys that changed while all are written anew
        self._renewal: asyncio.Task[None] | None = None

    @property
    def _graph_path(self) -> Path:
        return self.path.with_suffix(".graph")

    # ------------------------------------------------------------ what a provider does

    async def add(self, keys: Sequence[int], rows: Matrix) -> None:
        async with self._changing:
            await self._write(entries(keys, rows))
            await self._take(keys, rows)
            await self._tidy()

    async def remove(self, keys: Sequence[int]) -> None:
        async with self._changing:
            there = [key for key in keys if key in self.vectors]
            await self._write(entries(there))
            await self._forget(there)
            await self._tidy()

    async def nearest(self, vector: Matrix, *, limit: int, among: Sequence[int] | None) -> Found:
        async with self._door.reading():
            if among is None:
                search = partial(self.vectors.nearest, vector, limit=limit)
            else:
                search = partial(self.vectors.among, vector, among, limit=limit)
            return search() if self.vectors.quick(among) else await finished(search)

    async def follow(self, version: int) -> None:
        """Be at that version of the store, or a later one."""
        if self._ready and self.version >= version:
            return
        async with self._changing:
            if not self._ready:
                await self._open()
            await self._catch_up(version)
            await self._tidy()

    async def release(self) -> None:
        """Let go of the memory and of the files, until the next call of `follow`."""
        self._ready = False
        if self._renewal:
            self._renewal.cancel()
            await asyncio.wait([self._renewal])
        async with self._changing, self._door.writing():
            await self._save_graph(at_least=1)
            self._close_log()
            self.vectors, self.version = self._empty(), 0

    async def drop(self) -> None:
        """Forget all, on disk too."""
        await self.release()
        with suppress(BlockingIOError):
            found = await asyncio.to_thread(Log, self.path, self.index.dimension)
            await asyncio.to_thread(_unlink, self.path, self._graph_path)
            found.close()

    # ------------------------------------------------------------ start

    def _empty(self) -> Vectors:
        return Vectors(self.index.dimension, exact=self.exact)

    async def _open(self) -> None:
        """Read the files, and from the database what is not in them."""
        await finished(self._load)
        if not await self._agrees():
            log.warning("%s is not of the database as it is now: it is made anew", self.path)
            await finished(partial(self._load, anew=True))
        await self._catch_up(0)
        self._ready = True

    def _load(self, *, anew: bool = False) -> None:
        try:
            if anew:
                _unlink(self.path, self._graph_path)
            try:
                self._read_log()
            except Corrupt as error:
                put_aside(self.path, error)
                _unlink(self._graph_path)
                self._read_log()
        except BlockingIOError:
            log.info("another process keeps %s: the index is in memory only", self.path)
        except OSError as error:
            self._detach(error)

    def _read_log(self) -> None:
        self.vectors, self.version, self._saved = self._empty(), 0, 0
        self._close_log()
        self._log = Log(self.path, self.index.dimension)
        _unlink(self.path.with_suffix(".new"))
        for entry in self._log.entries():
            if entry.version is not None:
                self.version = entry.version
            elif entry.rows is not None:
                self.vectors.add(entry.keys, entry.rows)
            else:
                self.vectors.remove(entry.keys)
        if self.vectors.nodes > self.exact:
            self._read_graph(self._log)

    def _read_graph(self, log: Log) -> None:
        try:
            graph = read_graph(self._graph_path, of=log.name, nodes=self.vectors.nodes)
        except Corrupt as error:
            put_aside(self._graph_path, error)
            graph = None
        if graph is not None:
            self._saved = graph.ntotal
            self.vectors.attach(graph)
        elif graph := self.vectors.linked():
            self.vectors.adopt(graph)

    async def _agrees(self) -> bool:
        """Whether what was read is of the database: not so if that was put back to what it was before."""
        if self.version > await kept.version(self._database, self.index.store):
            return False
        newest = sorted(self.vectors)[-NEWEST:]
        keys, rows = await kept.rows(self._database, self.index, newest)
        return bool(np.array_equal(rows, self.vectors.rows(keys)))

    # ------------------------------------------------------------ changes

    async def _catch_up(self, version: int) -> None:
        if self._ready and self.version >= version:
            return
        database, store = self._database, self.index.store
        now = max(version, await kept.version(database, store))
        if self.version >= now:
            return
        async for gone in kept.dropped(database, store, since=self.version):
            await self._note(entries(gone))
            await self._forget(gone)
        async for keys in kept.completed(database, store, since=self.version):
            missing = [key for key in keys if key not in self.vectors]
            for start in range(0, len(missing), kept.PIECE):
                found, rows = await kept.rows(database, self.index, missing[start : start + kept.PIECE])
                await self._note(entries(found, rows))
                await self._take(found, rows)
        self.version = now
        await self._note([Entry((), version=self.version)])

    async def _write(self, found: list[Entry]) -> None:
        """Have changes on disk; raises `Unavailable` where that cannot be, and they shall not be made."""
        if self._log and found:
            log = self._log
            try:
                await finished(lambda: log.append(found, sync=True))
            except OSError as error:
                raise Unavailable(f"the index cannot be written to disk: {error.strerror}") from error

    async def _note(self, found: list[Entry]) -> None:
        """Write changes that the database knows anyway: no search waits for the disk, or fails by it."""
        if self._log and found:
            log = self._log
            try:
                await finished(lambda: log.append(found, sync=False))
            except OSError as error:
                self._detach(error)

    def _detach(self, error: OSError) -> None:
        log.warning("%s cannot be used (%s): the index is in memory only", self.path, error.strerror)
        self._close_log()

    def _close_log(self) -> None:
        if self._log:
            self._log.close()
        self._log = None

    async def _take(self, keys: Sequence[int], rows: Matrix) -> None:
        if self._touched is not None:
            self._touched.update(keys)
        for start in range(0, len(keys), PIECE):
            some, piece = keys[start : start + PIECE], rows[start : start + PIECE]
            async with self._door.writing():
                await finished(partial(self.vectors.add, some, piece))
        if graph := await finished(self.vectors.linked):
            async with self._door.writing():
                self.vectors.adopt(graph)

    async def _forget(self, keys: Iterable[int]) -> None:
        if self._touched is not None:
            self._touched.update(keys)
        async with self._door.writing():
            self.vectors.remove(keys)

    # ------------------------------------------------------------ upkeep

    async def _tidy(self) -> None:
        """Keep the graph on disk, and write all anew where a quarter is of no use any more."""
        await self._save_graph(at_least=self._saved // 10 + SPARE)
        spare = len(self.vectors) // 3 + SPARE
        useless = max(self.vectors.wasted, self._log.added - len(self.vectors) if self._log else 0)
        if useless > spare and self._renewal is None:
            self._renewal = asyncio.create_task(self._renew())

    async def _save_graph(self, *, at_least: int) -> None:
        """Write the graph to disk where it has so many nodes more than there."""
        graph, log = self.vectors.graph, self._log
        if graph is None or log is None or graph.ntotal < self._saved + at_least:
            return
        try:
            await finished(lambda: write_graph(self._graph_path, graph, of=log.name))
            await finished(_give_back)
            self._saved = graph.ntotal
        except OSError as error:
            _warn_of_graph(self._graph_path, error)

    async def _renew(self) -> None:
        """Make memory and files anew, of what is of use; searches and changes go on meanwhile."""
        self._touched = set()
        fresh = Mirror(self._database, self.index, self.path, exact=self.exact)
        try:
            if self._log:
                new = self.path.with_suffix(".new")
                await finished(lambda: _unlink(new))
                fresh._log = await finished(lambda: _begun(new, self.index.dimension))
            async with self._door.reading():
                keys = list(self.vectors)
            await self._copy(fresh, keys)
            async with self._changing:
                await self._replace(fresh)
        except (OSError, Unavailable) as error:
            log.warning("%s cannot be written anew: %s", self.path, error)
        finally:
            self._touched = self._renewal = None
            if fresh._log and fresh._log is not self._log:
                fresh._log.close()

    async def _copy(self, fresh: "Mirror", keys: Sequence[int]) -> None:
        for start in range(0, len(keys), kept.PIECE):
            async with self._door.reading():
                some = [key for key in keys[start : start + kept.PIECE] if key in self.vectors]
                rows = self.vectors.rows(some)
            await fresh._write(entries(some, rows))
            await fresh._take(some, rows)

    async def _replace(self, fresh: "Mirror") -> None:
        """Go on with what was made anew, after the last changes."""
        touched = list(self._touched or ())
        await fresh._write(entries(touched))
        await fresh._forget(touched)
        await self._copy(fresh, touched)
        await fresh._write([Entry((), version=self.version)])
        async with self._door.writing():
            if self._log and fresh._log:
                new, old = fresh._log, self._log
                await finished(lambda: new.move(self.path))
                old.close()
                self._log = new
            self.vectors, self._saved = fresh.vectors, 0
        await self._save_graph(at_least=1)


class Door:
    """Lets in many readers at once, or one writer, in the order in which they come."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._readers = 0
        self._left = asyncio.Event()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        async with self._turn:
            self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self._left.set()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async with self._turn:
            while self._readers:
                self._left.clear()
                await self._left.wait()
            yield


async def finished(work: Callable[[], T]) -> T:
    """Run a function in a thread; even where this is cancelled, it is over when this returns."""
    task = asyncio.get_running_loop().run_in_executor(WORKERS, work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        task.exception()  # nobody is left to be told of one
        raise


def _give_back() -> None:
    """Let go of what was freed, of which glibc keeps a heap for each thread."""
    if trim := getattr(LIBC, "malloc_trim", None):
        trim(0)


def _begun(path: Path, dimension: int) -> Log:
    log = Log(path, dimension)
    list(log.entries())
    return log


def _unlink(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _warn_of_graph(path: Path, error: OSError) -> None:
    log.warning("%s cannot be written (%s): the next start takes longer", path, error.strerror)
