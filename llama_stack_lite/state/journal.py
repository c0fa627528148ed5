"""The journal of a turn: each step is kept before its effect shows."""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

from sqlalchemy import Connection, Float, delete, func, insert, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.responses import Event, InputText, Item, MessageItem, Response, ResponseRequest
from llama_stack_lite.errors import Busy, NotFound, Unavailable

from . import conversations
from .archive import ACTIVE, ITEMS, Kept, chain, last_event, spoken
from .store import Store
from .tables import response_events, response_items, responses

QUEUE = 7_209_151_021  # the advisory lock under which PostgreSQL counts those that wait; any number will do


class now(FunctionElement[float]):
    """The database's clock, in seconds since 1970: servers need not agree on the time."""

    name = "now"
    type = Float()
    inherit_cache = True


@compiles(now, "sqlite")
def _on_sqlite(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _on_postgresql(*_: object, **__: object) -> str:
    return "extract(epoch FROM clock_timestamp())::float8"


Told = Callable[[str, list[Event]], None]


class LeaseLost(Unavailable):
    """Somebody else works on the turn by now, or has ended it."""


class Record:
    """The journal of one turn; only who holds the turn's lease may write it.

    Writes follow one another, each to its end even if its caller is cancelled; events that could not be
    written are written with the next ones. `told` hears of those that are on disk.
    """

    def __init__(self, store: Store, kept: Kept, *, worker: str, lease: float, told: Told) -> None:
        self.store = store
        self.kept = kept
        self.worker = worker
        self.lease = lease
        self.news = asyncio.Event()  # set while events of a background turn wait to be kept
        self._told = told
        self._events: list[Event] = []  # those that wait
        self._places: set[int] = set()  # of the output, whose items are kept
        self._order = asyncio.Lock()

    async def begin(self, response: Response) -> None:
        """Keep that the turn has begun."""

        def work(connection: Connection) -> None:
            self._insert(connection, response, status="in_progress", leased=True)

        await _through(self._in_order(work))

    def withhold(self, why: str) -> None:
        """Keep nothing of what the request says, but why."""
        kept = self.kept
        kept.input = [MessageItem(role="user", content=[InputText(type="input_text", text=why)])]
        kept.request = ResponseRequest(model=kept.request.model, background=kept.request.background)

    async def queue(self, response: Response, events: list[Event], *, most: int) -> None:
        """Keep a turn that is to be worked on later; a secret one only by this worker.

        Raises `Busy` where too many wait, and keeps nothing then.
        """

        def work(connection: Connection) -> None:
            if connection.dialect.name == "postgresql":  # SQLite lets one write at a time
                connection.execute(select(func.pg_advisory_xact_lock(QUEUE)))
            waiting = select(func.count()).where(responses.c.status == "queued")
            if (connection.scalar(waiting) or 0) >= most:
                raise Busy(f"{most} background responses wait already", retry_after="5", code="queue_full")
            self._insert(connection, response, status="queued", leased=self.kept.secret)
            _add_events(connection, response.id, events)

        await _through(self._in_order(work))

    def _insert(self, connection: Connection, response: Response, *, status: str, leased: bool) -> None:
        kept = self.kept
        asked = {"session": kept.session, "request": _plain(kept.request), "secret": kept.secret}
        row = {
            "id": response.id,
            "created_at": time.time(),
            "status": status,
            "background": response.background,
            "previous": response.previous_response_id,
            "conversation": response.conversation and response.conversation.id,
            "request": json.dumps(asked),
            "response": _bare(response),
            "worker": self.worker if leased else None,
            "leased_until": now() + self.lease if leased else None,
            "attempts": 0,
            "cancelled": False,
        }
        connection.execute(insert(responses).values(row))
        _put_items(connection, _rows(response.id, "input", kept.input))

    def tell(self, event: Event) -> None:
        """Take an event of a background turn, which is kept soon; one that came before is not taken twice."""
        if event.data["sequence_number"] >= self.kept.number:
            self.kept.number = event.data["sequence_number"] + 1
            self._events.append(event)
            self.news.set()

    async def flush(self, response: Response) -> None:
        """Keep the events that came, and the items that they tell of."""
        await _through(self._write(response, []))

    async def save(self, response: Response, places: list[int], events: list[Event]) -> None:
        """Keep the output up to now, items at `places` as they are now, with the events that tell of them."""
        for event in events if response.background else ():
            self.tell(event)
        values = {"response": _bare(response), "leased_until": now() + self.lease}
        await _through(self._write(response, places, values=values))

    async def end(self, response: Response, event: Event) -> None:
        """Keep the turn's end, and in its conversation what was said."""
        values = {
            "response": _bare(response),
            "status": response.status,
            "worker": None,
            "leased_until": None,
        }
        await _through(self._write(response, range(len(response.output)), last=event, values=values))

    async def _in_order(self, work: Callable[[Connection], None]) -> None:
        async with self._order:
            await self.store.write(work)

    async def _write(
        self,
        response: Response,
        places: Collection[int],
        *,
        last: Event | None = None,
        values: dict[str, Any] | None = None,
    ) -> None:
        """Keep what was told, items that are new, done or at `places`, and the row's values; or nothing."""
        async with self._order:
            waiting, self._events = self._events, []
            self.news.clear()
            told = waiting
            if last and response.background:
                last.data["sequence_number"] = self.kept.number  # an end that could not be kept had it before
                told = [*waiting, last]
            if not told and values is None:
                return
            kept = self._places - {*places, *_done(told)}
            rows = _rows(response.id, "output", response.output, without=kept)
            try:
                await self.store.write(lambda connection: self._put(connection, response, rows, told, values))
            except BaseException:
                self._events[:0] = waiting
                self.news.set()
                raise
            self._places |= {row["position"] for row in rows}
            if last:
                self.kept.number += 1
            if told:
                self._told(response.id, told)

    def _put(
        self,
        connection: Connection,
        response: Response,
        rows: list[dict[str, Any]],
        told: list[Event],
        values: dict[str, Any] | None,
    ) -> None:
        self._hold(connection, response.id, values)
        _put_items(connection, rows)
        _add_events(connection, response.id, told)
        if values and response.conversation and response.status in ("completed", "incomplete"):
            said = conversations.prepared([*self.kept.input, *spoken(response.output)], param="input")
            # somebody else may have said the same meanwhile
            conversations.append(connection, response.conversation.id, said, rename=True)

    def _hold(self, connection: Connection, response_id: str, values: dict[str, Any] | None) -> None:
        """Write the response's row, or lock it, if its lease is still this worker's."""
        mine = (
            responses.c.id == response_id,
            responses.c.worker == self.worker,
            responses.c.attempts == self.kept.attempts,
            responses.c.status.in_(ACTIVE),
        )
        if values is None:
            held = connection.scalar(select(responses.c.id).where(*mine).with_for_update()) is not None
        else:
            held = connection.execute(update(responses).where(*mine).values(values)).rowcount > 0
        if not held:
            raise LeaseLost(f"response `{response_id}` is no longer this server's to write")


async def _through(write: Coroutine[Any, Any, None]) -> None:
    """Write to the end, even if the caller is cancelled meanwhile: else what comes next might overtake it."""
    task = asyncio.create_task(write)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody else asks for it
        raise


def _done(events: list[Event]) -> set[int]:
    return {event.data["output_index"] for event in events if event.type == "response.output_item.done"}


def _plain(request: ResponseRequest) -> dict[str, Any]:
    """The request without its input, which is kept as items, and without anybody's secrets."""
    return request.model_dump(mode="json", by_alias=True, exclude={"input"}, exclude_unset=True)


def _bare(response: Response) -> str:
    return response.model_dump_json(by_alias=True, exclude={"output"})


def _rows(
    response_id: str, side: str, items: Sequence[Item], *, without: Collection[int] = ()
) -> list[dict[str, Any]]:
    return [
        {
            "response": response_id,
            "side": side,
            "position": position,
            "id": item.id,
            "item": item.model_dump_json(by_alias=True),
        }
        for position, item in enumerate(items)
        if position not in without
    ]


def _put_items(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Keep items, each in the place of what it was before."""
    if rows:
        table, places = response_items, [row["position"] for row in rows]
        here = (table.c.response == rows[0]["response"], table.c.side == rows[0]["side"])
        connection.execute(delete(table).where(*here, table.c.position.in_(places)))
        connection.execute(insert(table), rows)


def _add_events(connection: Connection, response_id: str, events: list[Event]) -> None:
    last = last_event(connection, response_id) if events else -1
    # of a commit that was lost on its way, nobody knew whether it stood
    new = [event for event in events if event.data["sequence_number"] > last]
    if new:
        row = {
            "response": response_id,
            "first": new[0].data["sequence_number"],
            "last": new[-1].data["sequence_number"],
            "events": "\n".join(event.to_json().decode() for event in new),
        }
        connection.execute(insert(response_events), row)


async def history(store: Store, request: ResponseRequest) -> tuple[list[Item], str | None]:
    """What came before a request, and the session that it belongs to; None where it begins one.

    Raises `NotFound`, and `InvalidRequest` where the previous response is not there to go on from.
    """
    if conversation := request.conversation_id():
        try:
            return ITEMS.validate_python(await conversations.items(store, conversation)), conversation
        except NotFound as error:
            error.param = "conversation"
            raise
    if request.previous_response_id is None:
        return [], None
    return await store.read(lambda connection: chain(connection, request.previous_response_id or ""))


def told_apart(items: Sequence[Item], history: Sequence[Item]) -> list[Item]:
    """The items, those with an id that the history has under one of their own."""
    taken = {item.id for item in history}
    return [
        item.model_copy(update={"id": new_id(item.id.partition("_")[0][:8])}) if item.id in taken else item
        for item in items
    ]
