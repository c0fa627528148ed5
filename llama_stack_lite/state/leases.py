"""Who works on which turn: a worker leases it, and loses it to another when it does not renew the lease."""

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, bindparam, or_, select, update

from llama_stack_lite.api.responses import ResponseFailure
from llama_stack_lite.errors import InvalidRequest

from .archive import ACTIVE, Kept, kept, row_of
from .journal import now
from .store import Store
from .tables import responses

column = responses.c

# Made once, as it is asked every second: to make it takes SQLAlchemy longer than to run it.
WAITING = (
    select(column.id)
    .where(
        column.background == bindparam("background"),
        column.status.in_(ACTIVE),
        or_(
            column.leased_until.is_(None),
            column.leased_until < now(),
            (column.status == "queued") & (column.worker == bindparam("by")),
        ),
        column.id.not_in(bindparam("without", expanding=True)),
    )
    .order_by(column.created_at)
    .limit(1)
)


async def claim(
    store: Store, worker: str, *, lease: float, background: bool = True, without: Collection[str] = ()
) -> str | None:
    """Take the lease of the turn that has waited longest, or whose worker is gone; returns its id.

    Those `without` which to look are the worker's own, in progress: they only wait for their leases' renewal.
    """
    given = {"background": background, "by": worker, "without": [*without]}
    if await store.read(lambda connection: connection.scalar(WAITING, given)) is None:
        return None

    def work(connection: Connection) -> str | None:
        found: str | None = connection.scalar(WAITING.with_for_update(skip_locked=True), given)
        if found:
            taken = {
                "status": "in_progress",
                "worker": worker,
                "leased_until": now() + lease,
                "attempts": column.attempts + 1,
            }
            connection.execute(update(responses).where(column.id == found).values(taken))
        return found

    return await store.write(work)


async def renew(store: Store, worker: str, held: Collection[str], *, lease: float) -> None:
    """Prolong the leases of a worker that it still holds."""
    change = update(responses).where(
        column.id.in_([*held]), column.worker == worker, column.status.in_(ACTIVE)
    )
    until = change.values(leased_until=now() + lease)
    await store.write(lambda connection: connection.execute(until) and None)


async def cancelled(store: Store, worker: str, held: Collection[str]) -> dict[str, bool]:
    """The turns that a worker still holds, and whether they are to be cancelled."""
    query = select(column.id, column.cancelled).where(
        column.id.in_([*held]), column.worker == worker, column.status.in_(ACTIVE)
    )
    return await store.read(lambda connection: {row.id: row.cancelled for row in connection.execute(query)})


async def release(store: Store, worker: str) -> None:
    """Let go of all turns of a worker that stops, which is not their fault."""
    mine = update(responses).where(column.worker == worker, column.background)
    begun = mine.where(column.status == "in_progress")
    waiting = mine.where(column.status == "queued")

    def work(connection: Connection) -> None:
        connection.execute(begun.values(worker=None, leased_until=None, attempts=column.attempts - 1))
        connection.execute(waiting.values(worker=None, leased_until=None))

    await store.write(work)


async def cancel(store: Store, response_id: str, *, worker: str, lease: float) -> Kept | None:
    """Ask for the end of a background turn; one that nobody works on yet becomes `worker`'s to end.

    Raises `NotFound`, and `InvalidRequest` where it is none of the background.
    """

    def work(connection: Connection) -> Kept | None:
        row = row_of(connection, response_id, lock=True)
        if not row.background:
            raise InvalidRequest(f"response `{response_id}` was not made in the background")
        if row.status not in ACTIVE:
            return None
        values: dict[str, Any] = {"cancelled": True}
        if row.status == "queued":
            values |= {"status": "in_progress", "worker": worker, "leased_until": now() + lease}
        connection.execute(update(responses).where(column.id == response_id).values(values))
        return kept(connection, row) if row.status == "queued" else None

    return await store.write(work)


async def abandon(store: Store, response_id: str, *, worker: str, why: ResponseFailure) -> None:
    """End a turn that cannot even be read."""
    mine = (column.id == response_id, column.worker == worker, column.status.in_(ACTIVE))

    def work(connection: Connection) -> None:
        if response := connection.scalar(select(column.response).where(*mine).with_for_update()):
            failed = json.dumps(json.loads(response) | {"status": "failed", "error": why.model_dump()})
            ended = {"status": "failed", "response": failed, "worker": None, "leased_until": None}
            connection.execute(update(responses).where(*mine).values(ended))

    await store.write(work)
