"""Who works on which file: a worker leases it, and loses it to another when it does not renew the lease."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Float, bindparam, select, update

from llama_stack_lite.api.vector_stores import LastError

from . import documents as state
from .journal import LeaseLost, now
from .store import Store
from .tables import documents, vector_stores

T = TypeVar("T")
column = documents.c

# The statements of each step are made once: to make one takes SQLAlchemy longer than to run it.
WAITING = select(column.key).where(
    column.status == "in_progress",
    column.raw.is_(False),
    column.key.not_in(bindparam("without", expanding=True)),
    column.store.in_(select(vector_stores.c.id)),
)
# two questions, as the index on `status` and `leased_until` answers each of them without sorting
LEFT = WAITING.where(column.leased_until < now()).order_by(column.leased_until).limit(1)
NEW = WAITING.where(column.leased_until.is_(None)).order_by(column.key).limit(1)
MINE = (column.key == bindparam("of"), column.worker == bindparam("by"), column.status == "in_progress")
UNTIL = now() + bindparam("seconds", type_=Float())
TAKE = update(documents).where(column.key == bindparam("of"))
TAKE = TAKE.values(worker=bindparam("by"), leased_until=UNTIL, attempts=column.attempts + 1)
HOLD = update(documents).where(*MINE).values(leased_until=UNTIL)


@dataclass(frozen=True, slots=True)
class Work:
    """A file that `worker` holds, what is to be done with it, and the store that it goes into.

    `attempts` counts who began to work on it, this one included, since it last came forward.
    """

    key: int
    store: str
    id: str
    filename: str
    chunking: str
    version: int
    chunks: int
    parsed: bool
    attempts: int
    provider: str
    model: str
    dimension: int
    worker: str
    lease: float

    def values(self) -> dict[str, Any]:
        return {"of": self.key, "by": self.worker, "seconds": self.lease}


ABOUT = select(
    *(column[name] for name in ("key", "store", "id", "filename", "chunking", "version", "chunks")),
    column.parsed,
    column.attempts,
    *(vector_stores.c[name] for name in ("provider", "model", "dimension")),
).join_from(documents, vector_stores, column.store == vector_stores.c.id)


async def claim(store: Store, worker: str, *, lease: float, without: Collection[int] = ()) -> Work | None:
    """Take the lease of a file whose worker is gone, or of the one that has waited longest.

    Those `without` which to look are the worker's own.
    """
    given = {"without": [*without]}

    def waiting(connection: Connection, *, lock: bool = False) -> int | None:
        for query in (LEFT, NEW):
            query = query.with_for_update(skip_locked=True, of=documents) if lock else query
            if (found := connection.scalar(query, given)) is not None:
                return int(found)
        return None

    def work(connection: Connection) -> Work | None:
        if (found := waiting(connection, lock=True)) is None:
            return None
        connection.execute(TAKE, {"of": found, "by": worker, "seconds": lease})
        row = connection.execute(ABOUT.where(column.key == found)).first()
        return Work(**row._mapping, worker=worker, lease=lease) if row else None

    if await store.read(waiting) is None:
        return None
    return await store.write(work)


async def renew(store: Store, worker: str, held: Collection[int], *, lease: float) -> None:
    """Prolong the leases of a worker that it still holds."""
    mine = (column.key.in_([*held]), column.worker == worker, column.status == "in_progress")
    until = update(documents).where(*mine).values(leased_until=now() + lease)
    await store.write(lambda connection: connection.execute(until) and None)


async def kept(store: Store, worker: str, held: Collection[int]) -> set[int]:
    """Those that a worker still holds, and is to go on with."""
    mine = (column.key.in_([*held]), column.worker == worker, column.status == "in_progress")
    return await store.read(lambda connection: set(connection.scalars(select(column.key).where(*mine))))


async def step(store: Store, work: Work, write: Callable[[Connection], T], *, forward: bool = True) -> T:
    """Write something of a file that is held, and prolong its lease; raises `LeaseLost`, nothing written.

    What brings it `forward` shows that it does not stop servers.
    """
    holding = HOLD.values(attempts=1) if forward else HOLD

    def whole(connection: Connection) -> T:
        if not connection.execute(holding, work.values()).rowcount:
            raise LeaseLost(f"file `{work.id}` is no longer this server's to work on")
        return write(connection)

    return await store.write(whole)


async def fail(store: Store, work: Work, error: LastError) -> None:
    """End a file as failed, and forget what was made of it; raises `LeaseLost`."""
    ended = update(documents).where(column.key == work.key)
    ended = ended.values(status="failed", error=error.model_dump_json(), worker=None, leased_until=None)

    def write(connection: Connection) -> None:
        state.forget(connection, [work.key])
        connection.execute(ended)

    await step(store, work, write)


async def put_off(store: Store, work: Work, *, seconds: float) -> None:
    """Let go of a file, so that somebody begins again after so many seconds; its attempt does not count."""
    mine = update(documents).where(*MINE)
    change = mine.values(worker=None, leased_until=UNTIL, attempts=column.attempts - 1)
    given = {**work.values(), "seconds": seconds}
    await store.write(lambda connection: connection.execute(change, given) and None)


async def release(store: Store, worker: str) -> None:
    """Let go of all files of a worker that stops, which is not their fault."""
    mine = update(documents).where(column.worker == worker, column.status == "in_progress")
    change = mine.values(worker=None, leased_until=None, attempts=column.attempts - 1)
    await store.write(lambda connection: connection.execute(change) and None)


async def leftovers(store: Store) -> list[Work]:
    """Files that ended without success, and of which there still is something that nobody tidies up."""
    ended = column.status.in_(("failed", "cancelled")) & (column.chunks > 0) & column.raw.is_(False)
    free = column.leased_until.is_(None) | (column.leased_until < now())
    query = ABOUT.where(ended, free).limit(100)

    def work(connection: Connection) -> list[Work]:
        return [Work(**row._mapping, worker="", lease=0) for row in connection.execute(query)]

    return await store.read(work)
