"""Chunks that come without files: taken in, all of a request at one moment, and taken out again."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.vector_io import DeleteRequest, InsertRequest, RawChunk
from llama_stack_lite.errors import InvalidRequest, StackError
from llama_stack_lite.safety.texts import strings
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import documents as contents
from llama_stack_lite.state import raw_chunks, vector_stores
from llama_stack_lite.state.raw_chunks import Hidden

from .embedding import checked
from .filing import WRITTEN, refused, remove_from_index
from .search import words
from .stores import embedding_model
from .tokens import Tokens

SKIPPED = frozenset({"embedding", "chunk_id"})  # what is no text of a chunk


async def insert(stack: Stack, request: InsertRequest) -> list[str]:
    """Put chunks into a store, in the place of those that have their ids; returns the ids.

    All of them can be found from the same moment on, or, where this raises, none.
    """
    store_id = request.vector_store_id
    store = await stack.store.read(lambda connection: vector_stores.usable(connection, store_id))
    ids = _ids(request.chunks)
    await _judge(stack, request.chunks)
    taking = _Taking(stack, store, dict(zip(ids, request.chunks, strict=True)))
    try:
        await taking.take()
    except (StackError, asyncio.CancelledError):
        await asyncio.shield(taking.undo())
        raise
    return ids


async def remove(stack: Stack, request: DeleteRequest) -> list[str]:
    """Take chunks out of a store; returns the ids of those that there were."""
    store_id = request.vector_store_id

    def work(connection: Connection) -> tuple[Row[Any], list[str], list[int]]:
        store = vector_stores.usable(connection, store_id, lock=True)
        found = [id for id, raw in raw_chunks.kinds(connection, store_id, request.chunk_ids).items() if raw]
        return store, found, contents.remove(connection, store_id, found)

    store, found, keys = await stack.store.write(work)
    await remove_from_index(stack, store.provider, vector_stores.index(store), keys)
    return [id for id in dict.fromkeys(request.chunk_ids) if id in found]


class _Taking:
    """Chunks on their way into a store: written under ids that nobody knows, then shown under their own."""

    def __init__(self, stack: Stack, store: Row[Any], given: dict[str, RawChunk]) -> None:
        self.stack = stack
        self.store = store
        self.given = given
        self.hidden = [new_id("hidden") for _ in given]

    async def take(self) -> None:
        stack, store, given = self.stack, self.store, [*self.given.values()]
        counts = await _measured(stack, store, given)
        vectors = await _vectors(stack, store, given)
        terms = await asyncio.to_thread(lambda: [" ".join(words(chunk.content)) for chunk in given])
        hidden = [
            Hidden(id, called, chunk.metadata, contents.plain(chunk.content), tokens, said)
            for id, (called, chunk), tokens, said in zip(
                self.hidden, self.given.items(), counts, terms, strict=True
            )
        ]
        documents: list[int] = []
        for start in range(0, len(given), WRITTEN):
            piece = slice(start, start + WRITTEN)
            documents += await self._hide(hidden[piece], b"".join(vectors[piece]))
        shown = dict(zip(self.given, documents, strict=True))
        replaced = await stack.store.write(lambda connection: raw_chunks.show(connection, store.id, shown))
        await remove_from_index(stack, store.provider, vector_stores.index(store), replaced)

    async def _hide(self, given: list[Hidden], vectors: bytes) -> list[int]:
        """Write some of them, and let the index take them in; the keys of their documents."""
        stack, store = self.stack, self.store
        documents, keys = await stack.store.write(
            lambda connection: raw_chunks.hide(connection, store.id, given, vectors)
        )
        await stack.vector_io[store.provider].add(vector_stores.index(store), keys, vectors)
        return documents

    async def undo(self) -> None:
        """Forget what was not shown; what this cannot do, `upkeep` does later."""
        store = self.store
        try:
            keys = await self.stack.store.write(
                lambda connection: contents.remove(connection, store.id, self.hidden)
            )
        except StackError:
            return
        await remove_from_index(self.stack, store.provider, vector_stores.index(store), keys)


def _ids(given: Sequence[RawChunk]) -> list[str]:
    ids = [chunk.chunk_id or new_id("chunk") for chunk in given]
    for number, id in enumerate(ids):
        if id in ids[:number]:
            place = f"chunks[{number}].chunk_id"
            raise InvalidRequest(f"{place}: `{id}` is the id of another chunk too", param=place)
    return ids


async def _judge(stack: Stack, given: Sequence[RawChunk]) -> None:
    """Raise `InvalidRequest` for the first that a shield refuses, `GuardFailed` where one cannot judge."""
    if found := await refused(stack, ("\n".join(strings(chunk, skip=SKIPPED)) for chunk in given)):
        number, blocked = found
        raise InvalidRequest(blocked.refusal(), param=f"chunks[{number}]", code="content_filter")


async def _measured(stack: Stack, store: Row[Any], given: Sequence[RawChunk]) -> list[int]:
    """How many tokens each has; raises `InvalidRequest` for one that its model cannot read whole."""
    tokens = await Tokens.of(embedding_model(stack, store))
    counts = await tokens.counted([chunk.content for chunk in given])
    for number, (chunk, count) in enumerate(zip(given, counts, strict=True)):
        if chunk.embedding is None and tokens.limit and count > tokens.limit:
            place = f"chunks[{number}].content"
            raise InvalidRequest(
                f"{place}: has {count} tokens and `{store.model}` reads at most {tokens.limit}: split it",
                param=place,
                code="context_length_exceeded",
            )
    return counts


async def _vectors(stack: Stack, store: Row[Any], given: Sequence[RawChunk]) -> list[bytes]:
    """The vectors of chunks, of length 1: those that came with them, and for the others the model's."""
    rows = [_given(number, chunk, store.dimension) for number, chunk in enumerate(given)]
    left = [number for number, row in enumerate(rows) if row is None]
    if left:
        model = embedding_model(stack, store)
        texts = [(model.card.passage_prefix or "") + given[number].content for number in left]
        made = await stack.ingestion.embedder.vectors(model, texts, dimension=store.dimension)
        size = store.dimension * contents.FLOAT
        for place, number in enumerate(left):
            rows[number] = made[place * size : (place + 1) * size]
    return [row for row in rows if row is not None]


def _given(number: int, chunk: RawChunk, dimension: int) -> bytes | None:
    if chunk.embedding is None:
        return None
    longest = max(map(abs, chunk.embedding), default=0)
    # a float32 has less room than the numbers of JSON
    scaled = [value / longest for value in chunk.embedding] if longest else chunk.embedding
    rows = checked([scaled], 1, dimension) if math.isfinite(longest) else None
    if rows is None:
        place = f"chunks[{number}].embedding"
        raise InvalidRequest(
            f"{place}: the vectors of this store have {dimension} finite numbers, and are not 0", param=place
        )
    return rows[0]
