"""Vector stores: their rows, what is in them in numbers, and how they go.

Functions of a connection, each a part of somebody's transaction.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, false, func, insert, select, update

from llama_stack_lite.api.ids import well_formed
from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.api.vector_stores import Chunking, FileCounts, StoreExpiry, VectorStore
from llama_stack_lite.errors import InvalidRequest, NotFound

from . import documents as contents
from .journal import now
from .paging import Paging, page
from .store import Store
from .tables import document_attributes, documents, dropped_chunks, dropped_stores, vector_stores
from .tables import file_batches as batches

DAY = 86_400
PIECE = 500  # chunks or documents that are forgotten in one transaction
column = vector_stores.c
EXPIRED: ColumnElement[bool] = func.coalesce(
    column.last_active_at + column.expires_days * DAY <= now(), false()
)
STORES: Select[Any] = select(vector_stores, EXPIRED.label("expired"))


async def resolve(store: Store, name: str) -> Row[Any]:
    """The store of an id, or else of a name; raises `NotFound`, `InvalidRequest` where several have it."""
    return await store.read(lambda connection: _named(connection, name))


def _named(connection: Connection, name: str) -> Row[Any]:
    if row := _row(connection, name):
        return row
    rows = connection.execute(
        STORES.where(column.name == contents.plain(name)).order_by(column.created_at).limit(11)
    ).all()
    if len(rows) > 1:
        ids = ", ".join(row.id for row in rows[:10])
        raise InvalidRequest(f"several vector stores are called `{name}`: say one by its id, {ids}")
    if not rows or not name:
        raise NotFound("vector store", name)
    return rows[0]


def get(connection: Connection, store_id: str, *, lock: bool = False) -> Row[Any]:
    """A store's row, and whether it has `expired`; raises `NotFound`."""
    row = _row(connection, store_id, lock=lock)
    if row is None:
        raise NotFound("vector store", store_id)
    return row


def usable(connection: Connection, store_id: str, *, lock: bool = False) -> Row[Any]:
    """As `get`; raises `InvalidRequest` where the store has expired."""
    row = get(connection, store_id, lock=lock)
    if row.expired:
        raise InvalidRequest(
            f"vector store `{store_id}` has expired: make another one",
            param="vector_store_id",
            code="expired",
        )
    return row


def _row(connection: Connection, store_id: str, *, lock: bool = False) -> Row[Any] | None:
    if not well_formed(store_id):
        return None
    query = STORES.where(column.id == store_id)
    return connection.execute(query.with_for_update() if lock else query).one_or_none()


def index(row: Row[Any]) -> Index:
    """The index of a store."""
    return Index(row.id, row.dimension, row.version)


# ---------------------------------------------------------------- as the API shows them


def listed(connection: Connection, asked: Paging) -> tuple[list[VectorStore], bool]:
    """A page of the stores; raises as `page` does."""
    rows, more = page(connection, STORES, column.id, by=(column.created_at, column.id), asked=asked)
    return described(connection, rows), more


def described(connection: Connection, rows: Sequence[Row[Any]]) -> list[VectorStore]:
    """Stores, each with what is in it."""
    numbers = _numbers(connection, [row.id for row in rows])
    return [_described(row, numbers[row.id]) for row in rows]


@dataclass
class _Numbers:
    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    chunks: int = 0


def _numbers(connection: Connection, ids: Iterable[str]) -> dict[str, _Numbers]:
    there = documents.c
    kind = (there.store, there.raw, there.status)
    query = select(*kind, func.count().label("count"), func.sum(there.bytes), func.sum(there.chunks))
    numbers: dict[str, _Numbers] = defaultdict(_Numbers)
    for store, raw, status, count, size, found in connection.execute(
        query.where(there.store.in_([*ids])).group_by(*kind)
    ):
        here = numbers[store]
        if not raw:
            here.files[status] += count
        if status == "completed":
            here.bytes += int(size)
            here.chunks += int(found)
    return numbers


def _described(row: Row[Any], numbers: _Numbers) -> VectorStore:
    expires_at = None if row.expires_days is None else int(row.last_active_at + row.expires_days * DAY)
    working = "in_progress" if numbers.files["in_progress"] else "completed"
    return VectorStore(
        id=row.id,
        created_at=int(row.created_at),
        name=row.name,
        description=row.description,
        usage_bytes=numbers.bytes + numbers.chunks * row.dimension * contents.FLOAT,
        file_counts=FileCounts(**numbers.files, total=numbers.files.total()),
        status="expired" if row.expired else working,
        expires_after=row.expires_days and StoreExpiry(anchor="last_active_at", days=row.expires_days),
        expires_at=expires_at,
        last_active_at=int(row.last_active_at),
        metadata=json.loads(row.metadata),
        embedding_model=row.model,
        embedding_dimension=row.dimension,
        provider=row.provider,
    )


# ---------------------------------------------------------------- changes


def written(chunking: Chunking) -> str:
    """A strategy as it is kept; equal ones are equal texts."""
    return chunking.model_dump_json(exclude_none=True)


def add(connection: Connection, row: dict[str, Any]) -> Row[Any]:
    """Keep a new store; what is left out of the row is as of now."""
    clock = {"last_active_at": now(), "version": 0}
    connection.execute(insert(vector_stores).values(clock | row))
    return get(connection, row["id"])


def change(connection: Connection, store_id: str, values: dict[str, Any]) -> Row[Any]:
    """Change columns of a store; raises `NotFound`, and `InvalidRequest` where it has expired."""
    usable(connection, store_id, lock=True)
    if values:
        connection.execute(update(vector_stores).where(column.id == store_id).values(values))
    return get(connection, store_id)


def touch(connection: Connection, store_id: str) -> None:
    """A store is used: only after this does the time begin after which it expires."""
    connection.execute(update(vector_stores).where(column.id == store_id).values(last_active_at=now()))


def drop(connection: Connection, store_id: str) -> Row[Any]:
    """Take a store from the list; what was in it stays to be cleared. Raises `NotFound`."""
    row = get(connection, store_id, lock=True)
    kept = {name: getattr(row, name) for name in ("id", "provider", "dimension", "version")}
    connection.execute(insert(dropped_stores), kept)
    connection.execute(delete(vector_stores).where(column.id == store_id))
    stop(connection, documents.c.store == store_id)
    return row


def stop(connection: Connection, which: ColumnElement[bool]) -> None:
    """Cancel what is in progress of some documents: whoever works on one has lost its lease."""
    there = documents.c
    cancelled = update(documents).where(which, there.status == "in_progress", there.raw.is_(False))
    connection.execute(cancelled.values(status="cancelled", worker=None, leased_until=None))


def clear(connection: Connection, store_id: str) -> bool:
    """Forget a part of what is in a store that nobody can search any more; whether there may be more."""
    there = documents.c
    if found := connection.execute(_piece(store_id)).all():
        whole = [row.key for row in found]
        contents.forget(connection, whole)
        connection.execute(delete(document_attributes).where(document_attributes.c.document.in_(whole)))
        connection.execute(delete(documents).where(there.key.in_(whole)))
        return True
    connection.execute(delete(batches).where(batches.c.store == store_id))
    connection.execute(delete(dropped_chunks).where(dropped_chunks.c.store == store_id))
    return False


def _piece(store_id: str) -> Select[Any]:
    """As many documents as make one piece; at least one."""
    there = documents.c
    of_store = select(there.key, there.chunks).where(there.store == store_id).order_by(there.key).limit(PIECE)
    first = of_store.subquery()
    before = func.sum(first.c.chunks).over(order_by=first.c.key) - first.c.chunks
    counted = select(first.c.key, before.label("before")).subquery()
    return select(counted.c.key).where(counted.c.before < PIECE).order_by(counted.c.key)


def dropped(connection: Connection) -> Sequence[Row[Any]]:
    """The stores that were dropped, and are not cleared to the end."""
    return connection.execute(select(dropped_stores)).all()


def cleared(connection: Connection, store_id: str) -> None:
    """Nothing is left of a dropped store, and nothing is to be done for it."""
    connection.execute(delete(dropped_stores).where(dropped_stores.c.id == store_id))


def expired(connection: Connection) -> Sequence[Row[Any]]:
    """The stores that have expired, and are not empty yet."""
    some = select(documents.c.key).where(documents.c.store == column.id).exists()
    return connection.execute(STORES.where(EXPIRED, some)).all()
