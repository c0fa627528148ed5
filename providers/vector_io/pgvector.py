"""Vectors in PostgreSQL, by its extension pgvector: a table for each vector store, and HNSW in it."""

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.errors import ConfigError, Unavailable, UpstreamError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import vectors as kept
from llama_stack_lite.state.database import engine_of
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.vectors import Matrix

Found = list[tuple[int, float]]
Run = Callable[[Callable[[Connection], Any]], Awaitable[Any]]

OLDEST = (0, 8)  # the first pgvector whose HNSW goes on until there are as many as asked for
WIDE = 500  # rows that are asked for beyond which all are looked at
HALVES, MOST = 2000, 4000  # dimensions up to which the index has single precision, or half, or is none
BREADTH = 100  # nodes of the graph that a search keeps in view, 1000 at most
MISSING = "42P01"  # PostgreSQL's code for a table that is not there
SHORT = re.compile(r"\w{1,48}", re.ASCII)
COPY_HEAD, COPY_END = b"PGCOPY\n\xff\r\n\0" + bytes(8), b"\xff\xff"


class PGVector:
    """A table of keys and vectors for each store; one that was lost is made of the database's vectors."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        url: SecretStr | None = Field(
            None, description="of a PostgreSQL; by default the distribution's own, which `storage` names"
        )
        exact: int = Field(5000, ge=0, description="vectors of a store up to which all are looked at")

    def __init__(self, config: Config, stack: Stack) -> None:
        """Raises `ConfigError` where there is no PostgreSQL, or no pgvector in it."""
        self.stack = stack
        self._own = Store(_engine(config.url.get_secret_value())) if config.url else None
        self.store = self._own or stack.store
        self.exact = config.exact
        self._known: set[str] = set()  # tables that are there
        self._linked: set[str] = set()  # those with an HNSW index
        self._making = asyncio.Lock()
        _prepare(self.store.engine)

    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        rows = kept.matrix(index, vectors, count=len(keys))
        await self._run(index, self.store.write, partial(_upsert, index=index, keys=keys, rows=rows))
        await self._link(index)

    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        await self._run(index, self.store.write, partial(_delete, index=index, keys=keys))

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        point = kept.row(index, vector)
        if among is None:
            search = partial(_nearest, index=index, vector=point, limit=limit)
        else:
            search = partial(_among, index=index, vector=point, limit=limit, keys=among)
        found: list[tuple[int, float]] = await self._run(index, self.store.read, search)
        if not found and among is None and await kept.count(self.stack.store, index.store):
            await self._fill(index)  # somebody emptied it
            found = await self._run(index, self.store.read, search)
        return found

    async def drop(self, index: Index) -> None:
        self._known.discard(index.store)
        self._linked.discard(index.store)
        await self._explained(self.store.write, partial(_drop, index=index))

    async def aclose(self) -> None:
        if self._own:
            await self._own.aclose()

    # ------------------------------------------------------------ tables

    async def _run(self, index: Index, run: Run, work: Callable[[Connection], Any]) -> Any:
        """Work on a table that is there, and whole; also where it had been lost since it was seen."""
        for _ in range(2):
            await self._ready(index)
            with suppress(_Missing):
                return await self._explained(run, work)
            self._known.discard(index.store)
            self._linked.discard(index.store)
        raise Unavailable(f"the table of vector store `{index.store}` is dropped again and again")

    async def _ready(self, index: Index) -> None:
        """See that the table is there, with at least as many vectors as can be found."""
        if index.store in self._known:
            return
        async with self._making:
            count = await kept.count(self.stack.store, index.store)
            if not await self._explained(self.store.read, partial(_has, index=index, count=count)):
                await self._fill(index)
            self._known.add(index.store)

    async def _fill(self, index: Index) -> None:
        """Make the table where it is missing, and put all into it that the database has."""
        await self._explained(self.store.write, partial(_create, index=index))
        async for keys, rows in kept.everything(self.stack.store, index):
            await self._explained(self.store.write, partial(_upsert, index=index, keys=keys, rows=rows))
        await self._link(index)

    async def _link(self, index: Index) -> None:
        """Make the HNSW index once there are many: to make it of many takes a tenth of growing it."""
        if index.store in self._linked or index.dimension > MOST:
            return
        if await self._explained(self.store.read, partial(_more, index=index, than=self.exact)):
            await self._explained(self.store.write, partial(_make_hnsw, index=index))
            self._linked.add(index.store)

    async def _explained(self, run: Run, work: Callable[[Connection], Any]) -> Any:
        try:
            return await run(work)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) == MISSING:
                raise _Missing from error
            reason = " ".join(str(error.orig).split())
            raise UpstreamError(f"pgvector cannot do that: {reason}") from error


class _Missing(Exception):
    """The table is not there."""


# ------------------------------------------------------------ at start


def _engine(url: str) -> Engine:
    engine = engine_of(url)
    if engine.dialect.name != "postgresql":
        engine.dispose()
        raise ConfigError(
            "pgvector: `url` names no PostgreSQL; it looks like postgresql://user@host/database"
        )
    return engine


def _prepare(engine: Engine) -> None:
    """See that pgvector is there, or have it made; raises `ConfigError`."""
    if engine.dialect.name != "postgresql":
        raise ConfigError(
            "pgvector: `storage` is no PostgreSQL: name one there, or in this provider's `url`; "
            "with SQLite, `faiss` needs no other server"
        )
    try:
        with engine.begin() as connection:
            version = _version(connection)
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        place = engine.url.set(query={}).render_as_string(hide_password=True)
        raise ConfigError(
            f"pgvector: {place} cannot be used: {reason} (the server needs the extension pgvector, and a "
            "user who may make extensions has to run CREATE EXTENSION vector there once)"
        ) from error
    if version < OLDEST:
        raise ConfigError(f"pgvector: 0.8 or newer is needed; the server has {'.'.join(map(str, version))}")


def _version(connection: Connection) -> tuple[int, ...]:
    find = text("SELECT extversion FROM pg_extension WHERE extname = 'vector'")
    if (found := connection.scalar(find)) is None:
        connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('llama-lite:pgvector'))"))
        connection.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        found = connection.scalar(find)
    return tuple(int(part) for part in str(found).split(".")[:2])


# ------------------------------------------------------------ statements


def _table(index: Index) -> str:
    """The quoted name of a store's table: names are cut at 63 bytes, so that long ones are digests."""
    name = (
        index.store if SHORT.fullmatch(index.store) else hashlib.sha256(index.store.encode()).hexdigest()[:48]
    )
    return f'"vectors_{name}"'


def _has(connection: Connection, *, index: Index, count: int) -> bool:
    """Whether the table is there, with so many rows."""
    if connection.scalar(text("SELECT to_regclass(:name)"), {"name": _table(index)}) is None:
        return False
    return int(connection.scalar(text(f"SELECT count(*) FROM {_table(index)}")) or 0) >= count


def _create(connection: Connection, *, index: Index) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": _table(index)})
    columns = f"key bigint PRIMARY KEY, embedding vector({index.dimension}) NOT NULL"
    connection.execute(text(f"CREATE TABLE IF NOT EXISTS {_table(index)} ({columns})"))


def _more(connection: Connection, *, index: Index, than: int) -> bool:
    count = text(f"SELECT count(*) FROM (SELECT FROM {_table(index)} LIMIT :most) AS first")
    return int(connection.scalar(count, {"most": than + 1}) or 0) > than


def _hnsw(index: Index) -> str:
    return _table(index).replace('"vectors_', '"hnsw_')


def _make_hnsw(connection: Connection, *, index: Index) -> None:
    connection.execute(text("SELECT pg_advisory_xact_lock(hashtext(:name))"), {"name": _table(index)})
    column, kind = _indexed(index)
    of = f"{_table(index)} USING hnsw (({column}) {kind}_cosine_ops)"
    connection.execute(text(f"CREATE INDEX IF NOT EXISTS {_hnsw(index)} ON {of}"))


def _indexed(index: Index) -> tuple[str, str]:
    """What is in the HNSW index, and its type."""
    if index.dimension <= HALVES:
        return "embedding", "vector"
    return f"embedding::halfvec({index.dimension})", "halfvec"


def _drop(connection: Connection, *, index: Index) -> None:
    connection.execute(text(f"DROP TABLE IF EXISTS {_table(index)}"))


def _delete(connection: Connection, *, index: Index, keys: Sequence[int]) -> None:
    forget = text(f"DELETE FROM {_table(index)} WHERE key = ANY(CAST(:keys AS bigint[]))")
    connection.execute(forget, {"keys": [*keys]})


def _upsert(connection: Connection, *, index: Index, keys: Sequence[int], rows: Matrix) -> None:
    """Copy the rows beside the table, and from there in the place of those with the same key."""
    last = {key: place for place, key in enumerate(keys)}
    connection.execute(text("CREATE TEMP TABLE coming (key bigint, embedding vector) ON COMMIT DROP"))
    raw: Any = connection.connection.driver_connection
    with raw.cursor() as cursor, cursor.copy("COPY coming FROM STDIN (FORMAT binary)") as copy:
        copy.write(_copied([*last], rows[[*last.values()]], index.dimension))
    connection.execute(
        text(
            f"INSERT INTO {_table(index)} SELECT key, embedding FROM coming ORDER BY key "
            "ON CONFLICT (key) DO UPDATE SET embedding = excluded.embedding"
        )
    )


def _copied(keys: Sequence[int], rows: Matrix, dimension: int) -> bytes:
    """Rows as PostgreSQL's COPY takes them: two fields, each after its size, all of them big-endian."""
    row = np.dtype(
        [
            ("fields", ">i2"),
            ("key_size", ">i4"),
            ("key", ">i8"),
            ("vector_size", ">i4"),
            ("dimension", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (dimension,)),
        ]
    )
    found = np.zeros(len(keys), row)
    found["fields"], found["key_size"], found["vector_size"] = 2, 8, 4 + 4 * dimension
    found["key"], found["dimension"], found["vector"] = keys, dimension, rows
    return COPY_HEAD + found.tobytes() + COPY_END


# ------------------------------------------------------------ searches


def _nearest(connection: Connection, *, index: Index, vector: Matrix, limit: int) -> Found:
    """By the HNSW index, where there is one; by looking at all, where that finds too few."""
    linked = connection.scalar(text("SELECT to_regclass(:name) IS NOT NULL"), {"name": _hnsw(index)})
    if linked and limit <= WIDE:
        found = _walk(connection, index, vector, limit)
        if len(found) == limit:
            return found
    return _look(connection, f"SELECT key, embedding FROM {_table(index)}", vector, limit)


def _walk(connection: Connection, index: Index, vector: Matrix, limit: int) -> Found:
    column, kind = _indexed(index)
    ask = limit if kind == "vector" else 2 * limit  # half-precision may change places
    connection.execute(text(f"SET LOCAL hnsw.ef_search = {max(BREADTH, min(1000, 2 * ask))}"))
    connection.execute(text("SET LOCAL hnsw.iterative_scan = strict_order"))
    near = f"ORDER BY {column} <=> CAST(:vector AS {kind}({index.dimension})) LIMIT {ask}"
    return _look(connection, f"SELECT key, embedding FROM {_table(index)} {near}", vector, limit)


def _among(connection: Connection, *, index: Index, vector: Matrix, limit: int, keys: Sequence[int]) -> Found:
    given = f"SELECT key, embedding FROM {_table(index)} WHERE key = ANY(CAST(:keys AS bigint[]))"
    return _look(connection, given, vector, limit, keys=[*keys])


def _look(connection: Connection, given: str, vector: Matrix, limit: int, **values: Any) -> Found:
    """The best of what a query gives, by looking at each: MATERIALIZED keeps the HNSW index out of that."""
    query = text(
        f"WITH given AS MATERIALIZED ({given}), scored AS MATERIALIZED "
        "(SELECT key, embedding <=> CAST(:vector AS vector) AS distance FROM given) "
        "SELECT key, 1 - distance FROM scored ORDER BY distance LIMIT :limit"
    )
    literal = "[" + ",".join(map(repr, vector.tolist())) + "]"
    rows = connection.execute(query, {"vector": literal, "limit": max(limit, 0), **values})
    return [(key, min(1.0, max(-1.0, score))) for key, score in rows]
