"""Responses as they were kept: read, gone on from, forgotten."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, select

from llama_stack_lite.api.ids import well_formed
from llama_stack_lite.api.responses import Event, Item, Response, ResponseRequest
from llama_stack_lite.errors import InvalidRequest, NotFound

from .store import Store
from .tables import response_events, response_items, responses

ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])
LONGEST_CHAIN = 1000  # responses, each the previous one of the next
HIGHEST = 2**31 - 2  # more than the number of any event; databases take none that is much higher
ACTIVE = ("queued", "in_progress")


@dataclass
class Kept:
    """A response as it was kept, with its input and the session of its tools.

    `number` is that of its next event; `attempts` counts the workers that began with it. A `secret` one
    needs keys that came with its request, and are not kept.
    """

    response: Response
    request: ResponseRequest
    input: list[Item]
    session: str
    secret: bool = False
    number: int = 0
    attempts: int = 0
    cancelled: bool = False

    @property
    def resumed(self) -> bool:
        """Whether more has been told of it than that it was made, and queued."""
        return self.number > 2


async def get(store: Store, response_id: str) -> Kept:
    """A response as it is now; raises `NotFound`."""
    return await store.read(lambda connection: kept(connection, row_of(connection, response_id)))


def row_of(connection: Connection, response_id: str, *, lock: bool = False) -> Row[Any]:
    """The row of a response, locked if it is to be changed; raises `NotFound`."""
    row = None
    if well_formed(response_id):
        query = select(responses).where(responses.c.id == response_id)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound("response", response_id)
    return row


def kept(connection: Connection, row: Row[Any]) -> Kept:
    """A row with its items."""
    asked = json.loads(row.request)
    output = _items(connection, row.id, "output")
    response = Response.model_validate_json(row.response).model_copy(
        update={"output": output, "status": row.status}
    )
    return Kept(
        response=response,
        request=ResponseRequest.model_validate(asked["request"]),
        input=_items(connection, row.id, "input"),
        session=asked["session"],
        secret=asked["secret"],
        number=last_event(connection, row.id) + 1,
        attempts=row.attempts,
        cancelled=row.cancelled,
    )


def _items(connection: Connection, response_id: str, side: str) -> list[Item]:
    table = response_items
    query = select(table.c.item).where(table.c.response == response_id, table.c.side == side)
    rows = connection.scalars(query.order_by(table.c.position))
    return ITEMS.validate_python([json.loads(row) for row in rows])


def last_event(connection: Connection, response_id: str) -> int:
    """The number of the last event that is kept; -1 where none is."""
    table = response_events
    query = (
        select(table.c.last).where(table.c.response == response_id).order_by(table.c.first.desc()).limit(1)
    )
    found: int | None = connection.scalar(query)
    return -1 if found is None else found


def chain(connection: Connection, response_id: str) -> tuple[list[Item], str]:
    """All that was said up to the end of a response, and its session; raises as `journal.history`."""
    items: list[list[Item]] = []
    session, current = "", response_id
    while current:
        try:
            row = row_of(connection, current)
        except NotFound as error:
            error.param, error.code = "previous_response_id", "previous_response_not_found"
            raise
        if row.conversation:
            raise InvalidRequest(
                f"response `{current}` belongs to a conversation: send `conversation: {row.conversation}`",
                param="previous_response_id",
            )
        if row.status in ACTIVE:
            raise InvalidRequest(f"response `{current}` has not ended yet", param="previous_response_id")
        session = json.loads(row.request)["session"]
        items.append([*_items(connection, row.id, "input"), *spoken(_items(connection, row.id, "output"))])
        current = row.previous
        if len(items) > LONGEST_CHAIN:
            raise InvalidRequest(
                f"more than {LONGEST_CHAIN} responses come before; use a conversation",
                param="previous_response_id",
            )
    return [item for part in reversed(items) for item in part], session


def spoken(output: Sequence[Item]) -> list[Item]:
    """An output as later turns read it: without what was cut off when a server stopped, and said again."""
    last = len(output) - 1
    cut = {place for place, item in enumerate(output) if getattr(item, "status", None) == "incomplete"}
    return [item for place, item in enumerate(output) if place == last or place not in cut]


async def item(store: Store, item_id: str) -> Item | None:
    """An item of any response, by its id."""
    query = select(response_items.c.item).where(response_items.c.id == item_id).limit(1)
    found = await store.read(lambda connection: connection.scalar(query))
    return ITEMS.validate_python([json.loads(found)])[0] if found else None


async def remove(store: Store, response_id: str) -> None:
    """Forget a response, its items and events; raises `NotFound`, `InvalidRequest` while it is worked on."""

    def work(connection: Connection) -> None:
        if row_of(connection, response_id, lock=True).status in ACTIVE:
            raise InvalidRequest(f"response `{response_id}` has not ended yet: cancel it first")
        for table in (response_items, response_events):
            connection.execute(delete(table).where(table.c.response == response_id))
        connection.execute(delete(responses).where(responses.c.id == response_id))

    await store.write(work)


async def events(store: Store, response_id: str, after: int) -> tuple[list[Event], bool]:
    """The events of a background response with numbers above `after`, and whether it has ended by them.

    Raises `NotFound`.
    """
    after = min(after, HIGHEST)
    table = response_events
    asked = select(responses.c.status).where(responses.c.id == response_id)
    known = select(func.max(table.c.first)).where(table.c.response == response_id, table.c.first <= after + 1)
    wanted = select(table.c.events).where(
        table.c.response == response_id, table.c.first >= func.coalesce(known.scalar_subquery(), 0)
    )

    def work(connection: Connection) -> tuple[str | None, list[str]]:
        return connection.scalar(asked), list(connection.scalars(wanted.order_by(table.c.first)))

    status, rows = await store.read(work)
    if status is None:
        raise NotFound("response", response_id)
    found = [json.loads(line) for row in rows for line in row.split("\n")]
    new = [Event(data["type"], data) for data in found if data["sequence_number"] > after]
    return new, status not in ACTIVE


async def marks(store: Store, ids: list[str]) -> dict[str, tuple[str, int]]:
    """How far responses have come: their status, and a number that grows with their events."""
    table = response_events
    last = select(func.max(table.c.first)).where(table.c.response == responses.c.id).scalar_subquery()
    query = select(responses.c.id, responses.c.status, last).where(responses.c.id.in_(ids))
    return await store.read(
        lambda connection: {found: (status, first) for found, status, first in connection.execute(query)}
    )
