"""One file on its way into a vector store: read, cut, judged, embedded, and only then found."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import TypeVar

from pydantic import TypeAdapter
from sqlalchemy import Connection, select, update

from llama_stack_lite import enforcement
from llama_stack_lite.api.safety import Blocked
from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.api.vector_stores import Chunking
from llama_stack_lite.errors import InvalidRequest, NotFound, StackError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import document_leases as leases
from llama_stack_lite.state import documents as state
from llama_stack_lite.state.document_leases import Work
from llama_stack_lite.state.tables import chunks, documents, dropped_chunks, vector_stores, vectors
from llama_stack_lite.uploads import local_copy

from .chunking import Chunk, chunked, passages
from .embedding import BATCH, Embedder
from .parsing import Parsed, Parsers, Unreadable
from .search import words

T = TypeVar("T")
log = logging.getLogger(__name__)

JUDGED = 8  # chunks that shields judge at once
WRITTEN = 200  # chunks of one write: others write to the same database
INDEXED = 1_000  # vectors that an index takes in at once
AHEAD = 2 + 1  # batches of one file that are asked for before the first is written: all lanes, and the next
CHUNKING: TypeAdapter[Chunking] = TypeAdapter(Chunking)


class Filing:
    """The steps of one file. Each can be done again, and `begin`s where the last one that was kept ended.

    Every write holds the lease: `LeaseLost` says that the file is somebody else's, cancelled or gone.
    """

    def __init__(self, stack: Stack, work: Work) -> None:
        self.stack = stack
        self.work = work
        self.keys: list[int] = []  # of its chunks
        self._indexing = False  # whether the index may have them

    async def _step(self, write: Callable[[Connection], T]) -> T:
        return await leases.step(self.stack.store, self.work, write)

    # ------------------------------------------------------------ from bytes to chunks

    async def prepare(self, parsers: Parsers) -> None:
        """Read the file, cut it into chunks, let shields judge them, and keep them, with their words.

        Raises `InvalidRequest` for what is the file's own fault: it would fail again.
        """
        work, stack = self.work, self.stack
        await self._forget()
        model = stack.model(work.model, "embedding")
        parsed = await self._parsed(parsers)
        found = await chunked(stack, model, parsed, CHUNKING.validate_json(work.chunking))
        if not found:
            raise Unreadable("there is no text in it")
        await self._judge(found)
        for start in range(0, len(found), WRITTEN):
            await self._keep(found[start : start + WRITTEN], last=start + WRITTEN >= len(found))

    async def _parsed(self, parsers: Parsers) -> Parsed:
        try:
            async with local_copy(self.stack, self.work.id) as path:
                return await parsers.parsed(path, self.work.filename)
        except NotFound as error:
            raise Unreadable("it was deleted") from error

    async def _forget(self) -> None:
        """What an earlier attempt left, and what an index still has of the file that this one replaces."""
        work = self.work
        if work.chunks:
            await self._step(lambda connection: state.forget(connection, [work.key]))
        gone = select(dropped_chunks.c.key).where(
            dropped_chunks.c.store == work.store, dropped_chunks.c.version == work.version
        )
        keys = await self.stack.store.read(lambda connection: [*connection.scalars(gone)])
        await remove_from_index(self.stack, work.provider, await self._index(), keys)

    async def _judge(self, found: Sequence[Chunk]) -> None:
        """Raise `InvalidRequest` where a shield refuses a chunk; `GuardFailed` where one cannot judge."""
        if refusal := await refused(self.stack, (self._told(chunk) for chunk in found)):
            raise InvalidRequest(refusal[1].refusal())

    def _told(self, chunk: Chunk) -> str:
        """All of a chunk that a model may read one day."""
        return "\n".join([self.work.filename, *chunk.headings, chunk.embedded()])

    async def _keep(self, found: Sequence[Chunk], *, last: bool) -> None:
        work = self.work
        terms = await asyncio.to_thread(lambda: [" ".join(words(chunk.embedded())) for chunk in found])
        parsed = update(documents).where(documents.c.key == work.key).values(parsed=True)

        def write(connection: Connection) -> None:
            state.add_chunks(connection, work.store, work.key, found, terms)
            if last:
                connection.execute(parsed)

        await self._step(write)

    # ------------------------------------------------------------ from chunks to vectors

    async def embed(self, embedder: Embedder) -> None:
        """Embed the chunks that have no vector yet, batch by batch; each that is kept is progress."""
        store, document = self.stack.store, chunks.c.document == self.work.key
        every = select(chunks.c.key, vectors.c.key.label("done")).where(document).order_by(chunks.c.position)
        every = every.outerjoin(vectors, vectors.c.key == chunks.c.key)
        rows = await store.read(lambda connection: connection.execute(every).all())
        self.keys = [row.key for row in rows]
        left = [row.key for row in rows if row.done is None]
        batches = [left[start : start + BATCH] for start in range(0, len(left), BATCH)]
        under_way: list[tuple[list[int], asyncio.Task[bytes]]] = []
        try:
            for keys in batches:
                under_way.append((keys, asyncio.create_task(self._embedded(embedder, keys))))
                if len(under_way) == AHEAD:
                    await self._put(*under_way.pop(0), done=len(rows))
            while under_way:
                await self._put(*under_way.pop(0), done=len(rows))
        finally:
            for _, task in under_way:
                task.cancel()
            await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)

    async def _embedded(self, embedder: Embedder, keys: list[int]) -> bytes:
        model = self.stack.model(self.work.model, "embedding")
        query = select(chunks).where(chunks.c.key.in_(keys)).order_by(chunks.c.position)
        rows = await self.stack.store.read(lambda connection: connection.execute(query).all())
        if len(rows) != len(keys):
            raise StackError("chunks of this file were removed while it was being worked on")
        found = [Chunk(row.text, json.loads(row.headings), row.page, row.tokens, row.context) for row in rows]
        return await embedder.vectors(model, passages(model, found), dimension=self.work.dimension)

    async def _put(self, keys: list[int], task: "asyncio.Task[bytes]", *, done: int) -> None:
        given, work = await task, self.work
        forward = update(documents).where(documents.c.key == work.key)
        forward = forward.values(embedded=documents.c.embedded + len(keys))

        def write(connection: Connection) -> None:
            state.put_vectors(connection, keys, given, work.dimension)
            connection.execute(forward)

        await self._step(write)

    # ------------------------------------------------------------ to be found

    async def publish(self) -> None:
        """Put the vectors into the index, then let the whole file be found at one moment."""
        work, index = self.work, await self._index()
        provider = self.stack.vector_io[work.provider]
        self._indexing = True
        for start in range(0, len(self.keys), INDEXED):
            keys = self.keys[start : start + INDEXED]
            await provider.add(index, keys, await self._vectors(keys))
        await self.stack.store.write(
            lambda connection: state.publish(connection, work.store, work.key, worker=work.worker)
        )

    async def _vectors(self, keys: list[int]) -> bytes:
        query = select(vectors.c.key, vectors.c.vector).where(vectors.c.key.in_(keys))
        found = await self.stack.store.read(
            lambda connection: {row.key: row.vector for row in connection.execute(query)}
        )
        if len(found) != len(keys):
            raise StackError("vectors of this file were removed while it was being worked on")
        return b"".join(found[key] for key in keys)

    async def _index(self) -> Index:
        query = select(vector_stores.c.version).where(vector_stores.c.id == self.work.store)
        version = await self.stack.store.read(lambda connection: connection.scalar(query))
        return Index(self.work.store, self.work.dimension, version or 0)

    async def clear(self, *, indexed: bool = False) -> None:
        """Forget what was made of a file that is cancelled, failed or gone; else leave all as it is.

        The index too, where it may know the file: only `indexed` says that of another worker's.
        """
        work = self.work
        about = select(documents.c.status).where(documents.c.key == work.key)
        theirs = select(chunks.c.key).where(chunks.c.document == work.key)

        def found(connection: Connection) -> tuple[str | None, list[int]]:
            return connection.scalar(about), [*connection.scalars(theirs)]

        status, keys = await self.stack.store.read(found)
        if status in ("in_progress", "completed"):
            return
        if self._indexing or indexed:
            await remove_from_index(self.stack, work.provider, await self._index(), keys or self.keys)
        if keys:
            await self.stack.store.write(lambda connection: state.forget(connection, [work.key]) and None)


async def remove_from_index(stack: Stack, provider: str, index: Index, keys: Sequence[int]) -> None:
    """Forget keys that nobody can find; where the index cannot be reached they stay, and stay hidden."""
    if keys and provider in stack.vector_io:
        with suppress(StackError):
            await stack.vector_io[provider].remove(index, keys)


async def refused(stack: Stack, texts: Iterable[str]) -> tuple[int, Blocked] | None:
    """The number of the first text that a shield refuses to take in, and what it found.

    No text is made where nothing is judged.

    Raises `GuardFailed` where one cannot judge.
    """
    if not (await stack.judge.watch(())).shields("upload"):
        return None
    left = enumerate(texts)
    while piece := [*islice(left, JUDGED)]:
        verdicts = await asyncio.gather(*(enforcement.judged(stack, "upload", text) for _, text in piece))
        for (number, _), blocked in zip(piece, verdicts, strict=True):
            if blocked:
                return number, blocked
    return None
