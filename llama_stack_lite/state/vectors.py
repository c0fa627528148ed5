"""The vectors as the database keeps them, from which every index can be made, or brought up to date."""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Row, Select, func, select

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.errors import InvalidRequest

from .store import Store
from .tables import chunks, documents, dropped_chunks, vector_stores, vectors

Place = tuple[int, int]  # a version, and a key of that version
Matrix = NDArray[np.float32]
PIECE = 1024  # rows that are read at once
LAST = 2**62  # larger than any key
UNIT = 0.01  # what a length may differ from 1 by


async def version(database: Store, store: str) -> int:
    """The version of a vector store; 0 where there is none."""
    query = select(vector_stores.c.version).where(vector_stores.c.id == store)
    return await database.read(lambda connection: connection.scalar(query)) or 0


async def completed(database: Store, store: str, *, since: int) -> AsyncIterator[list[int]]:
    """The keys of chunks that can be found since a later version than that one, in pieces."""
    after: Place | None = (since, LAST)
    while after:
        keys, after = await database.read(partial(_completed, store=store, after=after))
        if keys:
            yield keys


def _completed(connection: Connection, *, store: str, after: Place) -> tuple[list[int], Place | None]:
    """The keys of the next documents' chunks, and the last of these documents; None for it at the end."""
    column = documents.c
    here = (column.store == store) & _beyond(after, column.version, column.key)
    query = select(column.version, column.key, column.chunks).where(here, column.status == "completed")
    found: list[int] = []
    total, last = 0, None
    for row in connection.execute(query.order_by(column.version, column.key).limit(PIECE)):
        found.append(row.key)
        total, last = total + row.chunks, (row.version, row.key)
        if total >= PIECE:
            break
    keys = select(chunks.c.key).where(chunks.c.document.in_(found)).order_by(chunks.c.key)
    return list(connection.scalars(keys)) if found else [], last


async def dropped(database: Store, store: str, *, since: int) -> AsyncIterator[list[int]]:
    """The keys of chunks that can be found no more since a later version than that one, in pieces."""
    column, after = dropped_chunks.c, (since, LAST)
    while True:
        here = (column.store == store) & _beyond(after, column.version, column.key)
        query = select(column.version, column.key).where(here).order_by(column.version, column.key)
        found = await database.read(partial(_all, query=query.limit(PIECE)))
        if not found:
            return
        after = (found[-1].version, found[-1].key)
        yield [each.key for each in found]


def _all(connection: Connection, *, query: Select[Any]) -> Sequence[Row[Any]]:
    return connection.execute(query).all()


def _beyond(after: Place, version: ColumnElement[int], key: ColumnElement[int]) -> ColumnElement[bool]:
    """What comes later than a place, as a range that the table's index knows."""
    return (version >= after[0]) & ((version > after[0]) | (key > after[1]))


async def rows(database: Store, index: Index, keys: Sequence[int]) -> tuple[list[int], Matrix]:
    """The vectors of keys, and of which keys there are any: float32, a row for each."""
    query = select(vectors.c.key, vectors.c.vector).where(vectors.c.key.in_([*keys])).order_by(vectors.c.key)
    found = await database.read(partial(_all, query=query))
    whole = [each for each in found if len(each.vector) == 4 * index.dimension]
    data = b"".join(each.vector for each in whole)
    return [each.key for each in whole], matrix(index, data, count=len(whole))


async def count(database: Store, store: str) -> int:
    """How many vectors there are in a vector store that can be found."""
    query = select(func.sum(documents.c.chunks))
    query = query.where(documents.c.store == store, documents.c.status == "completed")
    return int(await database.read(lambda connection: connection.scalar(query)) or 0)


async def everything(database: Store, index: Index) -> AsyncIterator[tuple[list[int], Matrix]]:
    """All that can be found in a vector store, in pieces: keys, and a row for each."""
    async for keys in completed(database, index.store, since=-1):
        for start in range(0, len(keys), PIECE):
            yield await rows(database, index, keys[start : start + PIECE])


def matrix(index: Index, data: bytes, *, count: int) -> Matrix:
    """Bytes as so many rows of length 1; raises `InvalidRequest` where they are not."""
    if len(data) != 4 * index.dimension * count:
        raise InvalidRequest(
            f"vectors of `{index.store}` have {index.dimension} dimensions, and {count} of them "
            f"{4 * index.dimension * count} bytes: these are {len(data)}"
        )
    found = np.frombuffer(data, "<f4").reshape(count, index.dimension)
    if not (np.abs(np.einsum("ij,ij->i", found, found) - 1) < UNIT).all():  # nor where it is no number
        raise InvalidRequest("a vector's length is not 1")
    return found


def row(index: Index, vector: Sequence[float]) -> Matrix:
    """A vector of length 1 as a row; raises `InvalidRequest` where it is none."""
    if len(vector) != index.dimension:
        raise InvalidRequest(
            f"vectors of `{index.store}` have {index.dimension} dimensions, and this one has {len(vector)}"
        )
    found: Matrix = matrix(index, np.asarray(vector, "<f4").tobytes(), count=1)[0]
    return found
