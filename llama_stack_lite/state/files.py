"""What is known of files: their bytes lie with a provider, under the file's id."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, or_, select

from llama_stack_lite.api.files import FileObject
from llama_stack_lite.api.ids import well_formed
from llama_stack_lite.errors import NotFound

from . import documents
from .paging import Paging, page
from .store import Store
from .tables import documents as documents_table
from .tables import files

column = files.c


async def add(store: Store, file: FileObject, *, created: float, digest: str, place: str) -> None:
    """Tell of a file whose bytes `place` has kept; `created` is its `created_at` to the microsecond."""
    row = {
        "id": file.id,
        "created_at": created,
        "expires_at": file.expires_at,
        "purpose": file.purpose,
        "filename": file.filename,
        "bytes": file.bytes,
        "digest": digest,
        "place": place,
    }
    await store.write(lambda connection: connection.execute(insert(files), row))


async def get(store: Store, file_id: str) -> FileObject:
    """A file; raises `NotFound`, also once it has expired."""
    return shown(await row(store, file_id))


async def row(store: Store, file_id: str) -> Row[Any]:
    """A file's row, with its `digest` and the `place` of its bytes; raises as `get` does."""
    return await store.read(lambda connection: _row(connection, file_id))


async def listed(store: Store, asked: Paging, *, purpose: str | None = None) -> tuple[list[FileObject], bool]:
    """A page of the files, by the time they were made, and whether there are more; raises as `page` does."""
    query = select(files) if purpose is None else select(files).where(column.purpose == purpose)
    by = (column.created_at, column.id)
    found, more = await store.read(
        lambda connection: page(connection, query, column.id, by=by, asked=asked, within=unexpired())
    )
    return [shown(each) for each in found], more


async def remove(store: Store, file_id: str) -> Row[Any]:
    """Forget a file, here and in every vector store, and return what was its row; raises `NotFound`."""

    def work(connection: Connection) -> Row[Any]:
        found = _row(connection, file_id)
        _forget(connection, file_id)
        return found

    return await store.write(work)


async def expire(store: Store, *, most: int) -> Sequence[Row[Any]]:
    """Forget files that have expired, at most so many, and return what were their rows."""
    query = select(files).where(column.expires_at <= time.time()).order_by(column.expires_at).limit(most)

    def work(connection: Connection) -> Sequence[Row[Any]]:
        found = connection.execute(query).all()
        for each in found:
            _forget(connection, each.id)
        return found

    if not await store.read(lambda connection: connection.execute(query.limit(1)).first()):
        return []
    return await store.write(work)


async def known(store: Store, names: Sequence[str]) -> set[str]:
    """Those of the names that are ids of files."""
    query = select(column.id).where(column.id.in_(names))
    return set(await store.read(lambda connection: connection.scalars(query).all()))


def shown(row: Row[Any]) -> FileObject:
    expires = {} if row.expires_at is None else {"expires_at": int(row.expires_at)}
    return FileObject(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at),
        filename=row.filename,
        purpose=row.purpose,
        **expires,
    )


def unexpired() -> ColumnElement[bool]:
    """What a file must be that has not expired."""
    return or_(column.expires_at.is_(None), column.expires_at > time.time())


def _row(connection: Connection, file_id: str) -> Row[Any]:
    query: Select[Any] = select(files).where(column.id == file_id, unexpired())
    found = connection.execute(query).one_or_none() if well_formed(file_id) else None
    if found is None:
        raise NotFound("file", file_id)
    return found


def _forget(connection: Connection, file_id: str) -> None:
    connection.execute(delete(files).where(column.id == file_id))
    table = documents_table.c
    stores = select(table.store).where(table.id == file_id, ~table.raw).order_by(table.store)
    for store in connection.scalars(stores).all():
        with suppress(NotFound):  # a store that is being removed itself
            documents.remove(connection, store, [file_id])
