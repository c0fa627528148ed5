"""Documents of a vector store: their chunks, vectors and words, found together or not at all.

Functions of a connection, each a part of somebody's transaction. Whoever locks a store's row and a document's
locks the store's first.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, column, delete, func, insert, select, table, text, update
from sqlalchemy.sql.expression import TableClause

from llama_stack_lite.api.ids import token
from llama_stack_lite.api.vector_stores import FileCounts
from llama_stack_lite.errors import Conflict, NotFound

from .tables import chunks, document_attributes, documents, dropped_chunks, vector_stores, vectors

if TYPE_CHECKING:
    from llama_stack_lite.rag.chunking import Chunk

T = TypeVar("T")

PIECE = 500  # values of one statement: databases bound their number
POSITIONS, LAST = 256, 16_383  # of a word in a tsvector: how many at most, and the highest
LONGEST = 2_000  # bytes of a word that PostgreSQL takes
FLOAT = 4  # bytes
NEW: dict[str, Any] = {
    "status": "in_progress",
    "attributes": "{}",
    "chunks": 0,
    "embedded": 0,
    "parsed": False,
    "attempts": 0,
}
ADD_WORDS = {
    "sqlite": text("INSERT INTO keywords(rowid, store, terms) VALUES (:key, :store, :terms)"),
    "postgresql": text(
        "INSERT INTO keywords(key, terms, length) VALUES (:key, CAST(:vector AS tsvector), :length)"
    ),
}
WORDS: dict[str, TableClause] = {
    "sqlite": table("keywords", column("rowid")),
    "postgresql": table("keywords", column("key")),
}


def add(
    connection: Connection,
    store: str,
    *,
    id: str,
    filename: str,
    attributes: Mapping[str, str | bool | float],
    chunking: str,
    size: int,
    batch: str | None = None,
    raw: bool = False,
) -> int:
    """Put a document into a store, `in_progress`; returns its key.

    A file that is there already, and is done or being worked on with the same `chunking` (JSON), stays as it
    is but for its attributes and batch; all else of that id is forgotten, and starts anew. Raises `NotFound`
    where there is no such store.
    """
    version = locked(connection, store)
    there = documents.c
    found = connection.execute(
        select(there.key, there.status, there.chunking, there.raw).where(there.store == store, there.id == id)
    ).first()
    alike = found and not found.raw and not raw and found.chunking == chunking
    if found and alike and found.status in ("completed", "in_progress"):
        set_attributes(connection, found.key, attributes)
        change = update(documents).where(there.key == found.key)
        connection.execute(change.values(batch=batch, filename=plain(filename)))
        return int(found.key)
    if found:
        remove(connection, store, [id])
        version = locked(connection, store)
    row = {
        **NEW,
        "store": store,
        "id": id,
        "raw": raw,
        "created_at": time.time(),
        "version": version,
        "filename": plain(filename),
        "chunking": chunking,
        "batch": batch,
        "bytes": size,
    }
    key: int = connection.execute(insert(documents).values(row).returning(there.key)).scalar_one()
    set_attributes(connection, key, attributes)
    return key


def set_attributes(
    connection: Connection, document: int, attributes: Mapping[str, str | bool | float]
) -> None:
    """Put attributes in the place of what there was."""
    change = update(documents).where(documents.c.key == document)
    connection.execute(change.values(attributes=json.dumps(dict(attributes))))
    connection.execute(delete(document_attributes).where(document_attributes.c.document == document))
    if rows := [attribute_row(document, name, value) for name, value in attributes.items()]:
        connection.execute(insert(document_attributes), rows)


def attribute_row(document: int, name: str, value: str | bool | float) -> dict[str, Any]:
    """A row of `document_attributes`."""
    row = {"document": document, "name": plain(name), "text": None, "number": None}
    if isinstance(value, str):
        return {**row, "kind": "s", "text": plain(value)}
    return {**row, "kind": "b" if isinstance(value, bool) else "n", "number": float(value)}


def add_chunks(
    connection: Connection, store: str, document: int, found: Sequence["Chunk"], terms: Sequence[str]
) -> list[int]:
    """Put chunks behind those that a document has, each with its words (`rag.search.words`); their keys.

    The size of the document is that of its chunks' texts from now on, in bytes of UTF-8.
    """
    start, size = connection.execute(
        select(documents.c.chunks, documents.c.bytes).where(documents.c.key == document)
    ).one()
    rows: list[dict[str, Any]] = [
        {
            "document": document,
            "position": position,
            "text": plain(chunk.text),
            "headings": json.dumps(chunk.headings),
            "context": chunk.context and plain(chunk.context),
            "page": chunk.page,
            "tokens": chunk.tokens,
        }
        for position, chunk in enumerate(found, start)
    ]
    keys: list[int] = []
    adding = insert(chunks).returning(chunks.c.key, sort_by_parameter_order=True)
    for piece in pieces(rows):
        keys += connection.execute(adding, piece).scalars()
    if keys:
        add_words(connection, store, keys, terms)
    written = sum(len(row["text"].encode()) for row in rows) + (size if start else 0)
    change = update(documents).where(documents.c.key == document)
    connection.execute(change.values(chunks=start + len(rows), bytes=written))
    return keys


def add_words(connection: Connection, store: str, keys: Sequence[int], terms: Sequence[str]) -> None:
    """Let chunks be searched by their words."""
    dialect, mark = connection.dialect.name, token(store)
    rows: list[dict[str, Any]] = []
    for key, words in zip(keys, terms, strict=True):
        found = plain(words).split()
        row = {"key": key, "store": mark, "terms": " ".join(found)}
        if dialect == "postgresql":
            row = {"key": key, "vector": tsvector([*found, mark]), "length": len(found)}
        rows.append(row)
    connection.execute(ADD_WORDS[dialect], rows)


def tsvector(words: Sequence[str]) -> str:
    """Words in PostgreSQL's own notation, each with its places.

    Not by `to_tsvector`, whose parser has its own idea of words, and none of what few locales know.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words, 1):
        if len(word.encode()) <= LONGEST:
            places.setdefault(word, []).append(min(place, LAST))
    quoted = {word: word.replace("\\", "\\\\").replace("'", "''") for word in places}
    return " ".join(
        f"'{quoted[word]}':{','.join(map(str, found[:POSITIONS]))}" for word, found in places.items()
    )


def put_vectors(connection: Connection, keys: Sequence[int], given: bytes, dimension: int) -> None:
    """Keep the vectors of chunks: little-endian float32 of length 1, a row of `dimension` for each key."""
    size = dimension * FLOAT
    rows = [
        {"key": key, "vector": given[place * size : (place + 1) * size]} for place, key in enumerate(keys)
    ]
    for piece in pieces(rows):
        connection.execute(delete(vectors).where(vectors.c.key.in_([row["key"] for row in piece])))
        connection.execute(insert(vectors), piece)


def publish(connection: Connection, store: str, *given: int, worker: str | None = None) -> int:
    """Let documents be found, all that they have, from the store's next version on, which is returned.

    They are in progress, and leased to `worker` where that is said; raises `Conflict` where they are not (any
    more), `NotFound` where the store is gone.
    """
    version = raised(connection, store)
    there = documents.c
    for piece in pieces(given):
        mine = (there.key.in_(piece), there.status == "in_progress", there.worker == worker)
        done = update(documents).where(*mine)
        done = done.values(
            status="completed",
            version=version,
            embedded=there.chunks,
            parsed=True,
            error=None,
            worker=None,
            leased_until=None,
        )
        if connection.execute(done).rowcount != len(piece):
            raise Conflict("a document was taken out of its store while it was being put into it")
    return version


def remove(connection: Connection, store: str, ids: Sequence[str]) -> list[int]:
    """Take documents out of a store, with all that they have; returns the keys of their chunks.

    Those that could be found are told to indexes as dropped. Raises `NotFound` where there is no such store.
    """
    locked(connection, store)
    there = documents.c
    keys: list[int] = []
    dropped: list[int] = []
    for piece in pieces(ids):
        found = connection.execute(
            select(there.key, there.status).where(there.store == store, there.id.in_(piece)).with_for_update()
        ).all()
        done = [row.key for row in found if row.status == "completed"]
        forgotten = forget(connection, done)
        dropped += forgotten
        keys += forgotten + forget(connection, [row.key for row in found if row.status != "completed"])
        gone = [row.key for row in found]
        connection.execute(delete(document_attributes).where(document_attributes.c.document.in_(gone)))
        connection.execute(delete(documents).where(there.key.in_(gone)))
    if dropped:
        version = raised(connection, store)
        rows = [{"store": store, "version": version, "key": key} for key in dropped]
        connection.execute(insert(dropped_chunks), rows)
    return keys


def forget(connection: Connection, given: Sequence[int]) -> list[int]:
    """Remove the chunks of documents, their vectors and words; returns the chunks' keys.

    Nobody is told: it is for documents that nobody can find, or whose store is gone.
    """
    indexed = WORDS[connection.dialect.name]
    (rowid,) = indexed.c
    keys: list[int] = []
    for piece in pieces(given):
        theirs = select(chunks.c.key).where(chunks.c.document.in_(piece))
        keys += connection.scalars(theirs)
        connection.execute(delete(vectors).where(vectors.c.key.in_(theirs)))
        connection.execute(delete(indexed).where(rowid.in_(theirs)))
        connection.execute(delete(chunks).where(chunks.c.document.in_(piece)))
        change = update(documents).where(documents.c.key.in_(piece))
        connection.execute(change.values(chunks=0, embedded=0, parsed=False))
    return keys


def counts(connection: Connection, *, store: str | None = None, batch: str | None = None) -> FileCounts:
    """How many files of a store, or of a batch, are in each status."""
    there = documents.c
    query = select(there.status, func.count()).where(there.raw.is_(False)).group_by(there.status)
    if store is not None:
        query = query.where(there.store == store)
    if batch is not None:
        query = query.where(there.batch == batch)
    found = Counter({row[0]: row[1] for row in connection.execute(query)})
    return FileCounts(**found, total=found.total())


def locked(connection: Connection, store: str) -> int:
    """Hold a store's row to the transaction's end; its version. Raises `NotFound`."""
    there = vector_stores.c
    return _found(store, connection.scalar(select(there.version).where(there.id == store).with_for_update()))


def raised(connection: Connection, store: str) -> int:
    """The next version of a store, for what is changed in this transaction. Raises `NotFound`."""
    there = vector_stores.c
    change = update(vector_stores).where(there.id == store).values(version=there.version + 1)
    return _found(store, connection.execute(change.returning(there.version)).scalar())


def _found(store: str, version: int | None) -> int:
    if version is None:
        raise NotFound("vector store", store)
    return version


def plain(given: str) -> str:
    """A text as every database takes it: without NUL, and without halves of characters."""
    return given.replace("\0", "").encode(errors="replace").decode()


def pieces(given: Sequence[T]) -> Iterator[Sequence[T]]:
    """So much of a sequence at a time as one statement takes."""
    for start in range(0, len(given), PIECE):
        yield given[start : start + PIECE]
