"""Chunks without files: each a document of its own, many of which are written at once.

Functions of a connection, each a part of somebody's transaction.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from llama_stack_lite.errors import InvalidRequest

from . import documents as contents
from . import vector_stores
from .documents import publish
from .tables import chunks, document_attributes, documents

RAW = '{"type":"raw"}'
column = documents.c
RENAME = update(documents).where(column.key == bindparam("of")).values(id=bindparam("called"))


@dataclass(frozen=True, slots=True)
class Hidden:
    """A chunk that nobody can find yet: `id` is known to nobody, and `called` the one that it will have."""

    id: str
    called: str
    attributes: Mapping[str, str | bool | float]
    text: str
    tokens: int
    terms: str


def hide(
    connection: Connection, store_id: str, given: Sequence[Hidden], given_vectors: bytes
) -> tuple[list[int], list[int]]:
    """Write chunks so that nobody finds them; the keys of their documents, and of the chunks.

    Raises as `vector_stores.usable` does.
    """
    store = vector_stores.usable(connection, store_id, lock=True)
    adding = insert(documents).returning(column.key, sort_by_parameter_order=True)
    added = list(connection.scalars(adding, [_document(store_id, store.version, each) for each in given]))
    attributes = [
        contents.attribute_row(document, name, value)
        for document, each in zip(added, given, strict=True)
        for name, value in each.attributes.items()
    ]
    if attributes:
        connection.execute(insert(document_attributes), attributes)
    rows = [_chunk(document, each) for document, each in zip(added, given, strict=True)]
    keys = list(
        connection.scalars(insert(chunks).returning(chunks.c.key, sort_by_parameter_order=True), rows)
    )
    contents.add_words(connection, store_id, keys, [each.terms for each in given])
    contents.put_vectors(connection, keys, given_vectors, store.dimension)
    return added, keys


def _document(store_id: str, version: int, given: Hidden) -> dict[str, Any]:
    return {
        "store": store_id,
        "id": given.id,
        "raw": True,
        "created_at": time.time(),
        "status": "in_progress",
        "version": version,
        "filename": given.called,
        "attributes": json.dumps(dict(given.attributes)),
        "chunking": RAW,
        "bytes": len(given.text.encode()),
        "chunks": 1,
        "embedded": 0,
        "parsed": True,
        "attempts": 0,
    }


def _chunk(document: int, given: Hidden) -> dict[str, Any]:
    return {
        "document": document,
        "position": 0,
        "text": given.text,
        "headings": "[]",
        "tokens": given.tokens,
    }


def show(connection: Connection, store_id: str, given: Mapping[str, int]) -> list[int]:
    """Let hidden documents be found, each by its id, in the place of what had that; the keys of this.

    Raises `InvalidRequest` where an id is a file's, and as `vector_stores.usable` does.
    """
    vector_stores.usable(connection, store_id, lock=True)
    there = kinds(connection, store_id, [*given])
    for number, id in enumerate(given):
        if not there.get(id, True):
            place = f"chunks[{number}].chunk_id"
            raise InvalidRequest(f"{place}: `{id}` is a file of this store", param=place)
    replaced = contents.remove(connection, store_id, [*there])
    connection.execute(RENAME, [{"of": document, "called": id} for id, document in given.items()])
    publish(connection, store_id, *given.values())
    vector_stores.touch(connection, store_id)
    return replaced


def kinds(connection: Connection, store_id: str, ids: Sequence[str]) -> dict[str, bool]:
    """Those of the ids that a store has, and whether each is of a raw chunk."""
    found: dict[str, bool] = {}
    for piece in contents.pieces(ids):
        query = select(column.id, column.raw).where(column.store == store_id, column.id.in_(piece))
        found |= {row.id: row.raw for row in connection.execute(query)}
    return found
