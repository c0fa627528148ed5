"""The files of a vector store, alone and in batches.

Functions of a connection, each a part of somebody's transaction.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, select, update

from llama_stack_lite.api.ids import new_id, well_formed
from llama_stack_lite.api.vector_stores import (
    Attributes,
    FileBatch,
    FileCounts,
    LastError,
    Status,
    StoreFileRequest,
    VectorStoreFile,
)
from llama_stack_lite.errors import InvalidRequest, NotFound

from . import documents as contents
from . import vector_stores
from .files import unexpired
from .journal import now
from .paging import Paging, page
from .tables import chunks, documents, file_batches, files

column = documents.c


def attach(
    connection: Connection,
    store: Row[Any],
    given: Mapping[str, StoreFileRequest],
    *,
    batch: str | None = None,
) -> None:
    """Put files into a store, whose row is locked, each named by where it stands in the request.

    Raises `InvalidRequest` for the first that there is not.
    """
    known = _known(connection, [each.file_id for each in given.values()])
    for place, each in given.items():
        if each.file_id not in known:
            raise InvalidRequest(f"{place}: there is no file `{each.file_id}`", param=place)
    for file_id, each in {each.file_id: each for each in given.values()}.items():
        contents.add(
            connection,
            store.id,
            id=file_id,
            filename=known[file_id].filename,
            attributes=each.attributes,
            chunking=vector_stores.written(each.chunking_strategy)
            if each.chunking_strategy
            else store.chunking,
            size=known[file_id].bytes,
            batch=batch,
        )
    vector_stores.touch(connection, store.id)


def _known(connection: Connection, ids: Sequence[str]) -> dict[str, Row[Any]]:
    found: dict[str, Row[Any]] = {}
    for piece in contents.pieces([each for each in ids if well_formed(each)]):
        rows = connection.execute(select(files).where(files.c.id.in_(piece), unexpired()))
        found |= {row.id: row for row in rows}
    return found


def get(connection: Connection, store_id: str, file_id: str) -> tuple[Row[Any], Row[Any]]:
    """The rows of a store, and of a file in it; raises `NotFound`."""
    store = vector_stores.get(connection, store_id)
    row = None
    if well_formed(file_id):
        row = connection.execute(select(documents).where(_of(store_id), column.id == file_id)).one_or_none()
    if row is None:
        raise NotFound("file", file_id, why=f"not in vector store `{store_id}`")
    return store, row


def file(connection: Connection, store_id: str, file_id: str) -> VectorStoreFile:
    """A file of a store; raises `NotFound`."""
    return _described(*get(connection, store_id, file_id))


def listed(
    connection: Connection, store_id: str, asked: Paging, *, status: Status | None, batch: str | None = None
) -> tuple[list[VectorStoreFile], bool]:
    """A page of a store's files, or of a batch's; raises `NotFound`, and as `page` does."""
    store = vector_stores.get(connection, store_id)
    within = _of(store_id)
    if batch is not None:
        within &= column.batch == _batch(connection, store_id, batch).id
    query = select(documents) if status is None else select(documents).where(column.status == status)
    rows, more = page(connection, query, column.id, by=(column.key,), asked=asked, within=within)
    return [_described(store, row) for row in rows], more


def change(connection: Connection, store_id: str, file_id: str, attributes: Attributes) -> VectorStoreFile:
    """Put attributes in the place of a file's; raises `NotFound`, and as `usable` does."""
    vector_stores.usable(connection, store_id, lock=True)
    _, row = get(connection, store_id, file_id)
    contents.set_attributes(connection, row.key, attributes)
    return file(connection, store_id, file_id)


def detach(connection: Connection, store_id: str, file_id: str) -> tuple[Row[Any], list[int]]:
    """Take a file out of a store: the store's row, and the keys that its index has to forget.

    Raises `NotFound`.
    """
    vector_stores.get(connection, store_id, lock=True)
    get(connection, store_id, file_id)
    keys = contents.remove(connection, store_id, [file_id])
    return vector_stores.get(connection, store_id), keys


def texts(
    connection: Connection, store_id: str, file_id: str, *, start: int, limit: int
) -> tuple[list[str], bool]:
    """The texts of a file's chunks from one on, in their order, and whether there are more.

    Raises `NotFound`, and `InvalidRequest` while the file is not `completed`.
    """
    _, row = get(connection, store_id, file_id)
    if row.status != "completed":
        raise InvalidRequest(
            f"file `{file_id}` is `{row.status}`: only the text of one that is `completed` is here"
        )
    query = select(chunks.c.text).where(chunks.c.document == row.key, chunks.c.position >= start)
    found = connection.scalars(query.order_by(chunks.c.position).limit(limit + 1)).all()
    return list(found[:limit]), len(found) > limit


def _of(store_id: str) -> ColumnElement[bool]:
    return (column.store == store_id) & column.raw.is_(False)


def _described(store: Row[Any], row: Row[Any]) -> VectorStoreFile:
    done = row.status == "completed"
    size = row.bytes + row.chunks * store.dimension * contents.FLOAT
    return VectorStoreFile(
        id=row.id,
        created_at=int(row.created_at),
        vector_store_id=store.id,
        status=row.status,
        last_error=row.error and LastError.model_validate_json(row.error),
        usage_bytes=size if done else 0,
        attributes=json.loads(row.attributes),
        chunking_strategy=_official(json.loads(row.chunking)),
        chunks=row.chunks if done else 0,
        progress=1 if done else row.embedded / row.chunks if row.parsed and row.chunks else 0,
    )


def _official(chunking: dict[str, Any]) -> dict[str, Any]:
    """A strategy as OpenAI's types know it: but for `static`, it is an `other` one."""
    return chunking if chunking["type"] == "static" else {"type": "other", "strategy": chunking}


# ---------------------------------------------------------------- batches


def add_batch(connection: Connection, store_id: str, given: Mapping[str, StoreFileRequest]) -> FileBatch:
    """Put files into a store as one batch; raises as `attach` does, and where the store cannot be used."""
    store = vector_stores.usable(connection, store_id, lock=True)
    batch_id = new_id("vsfb")
    row = {"id": batch_id, "store": store_id, "created_at": now(), "cancelled": False}
    connection.execute(insert(file_batches).values(row))
    attach(connection, store, given, batch=batch_id)
    return batch(connection, store_id, batch_id)


def batch(connection: Connection, store_id: str, batch_id: str) -> FileBatch:
    """A batch and how far it is; raises `NotFound`."""
    vector_stores.get(connection, store_id)
    row = _batch(connection, store_id, batch_id)
    counts = contents.counts(connection, batch=batch_id)
    return FileBatch(
        id=row.id,
        created_at=int(row.created_at),
        vector_store_id=store_id,
        status="cancelled" if row.cancelled else _status(counts),
        file_counts=counts,
    )


def cancel(connection: Connection, store_id: str, batch_id: str) -> FileBatch:
    """Cancel what is in progress of a batch; one that is done stays as it is. Raises `NotFound`."""
    vector_stores.get(connection, store_id, lock=True)
    row = _batch(connection, store_id, batch_id)
    if contents.counts(connection, batch=batch_id).in_progress:
        cancelled = update(file_batches).where(file_batches.c.id == row.id).values(cancelled=True)
        connection.execute(cancelled)
        vector_stores.stop(connection, column.batch == row.id)
    return batch(connection, store_id, batch_id)


def _batch(connection: Connection, store_id: str, batch_id: str) -> Row[Any]:
    there = file_batches.c
    row = None
    if well_formed(batch_id):
        query = select(file_batches).where(there.id == batch_id, there.store == store_id)
        row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound("file batch", batch_id, why=f"not of vector store `{store_id}`")
    return row


def _status(counts: FileCounts) -> Status:
    if counts.in_progress:
        return "in_progress"
    return "failed" if counts.failed and counts.failed == counts.total else "completed"
