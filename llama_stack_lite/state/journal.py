"""The journal of a turn: each step is kept before its effect shows."""

import asyncio
import json
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Executable, Float, bindparam, delete, func, insert, select, update
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.responses import (
    Event,
    InputText,
    Item,
    MessageItem,
    Response,
    ResponseRequest,
)
from llama_stack_lite.errors import Busy, NotFound, Unavailable

from . import conversations
from .archive import ACTIVE, ITEMS, Kept, chain, last_event, spoken
from .store import Store
from .tables import response_events, response_items, responses

JsonObject = dict[str, Any]
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

# The statements of each step are made once: to make one takes SQLAlchemy longer than to run it.
MINE = (
    responses.c.id == bindparam("of"),
    responses.c.worker == bindparam("by"),
    responses.c.attempts == bindparam("attempt"),
    responses.c.status.in_(ACTIVE),
)
HOLD = select(responses.c.id).where(*MINE).with_for_update()
SAVE = update(responses).where(*MINE)
SAVE = SAVE.values(response=bindparam("body"), leased_until=now() + bindparam("seconds", type_=Float()))
END = update(responses).where(*MINE)
END = END.values(response=bindparam("body"), status=bindparam("ending"), worker=None, leased_until=None)
OUTPUT = (response_items.c.response == bindparam("of"), response_items.c.side == "output")
ADD_ITEMS, ADD_EVENTS = insert(response_items), insert(response_events)
CHANGE_ITEM = update(response_items).where(*OUTPUT, response_items.c.position == bindparam("place"))
CHANGE_ITEM = CHANGE_ITEM.values(item=bindparam("body"))
FORGET_ITEMS = delete(response_items).where(*OUTPUT, response_items.c.position >= bindparam("place"))


class LeaseLost(Unavailable):
    """Somebody else works on the turn by now, or has ended it."""


@dataclass
class Step:
    """One write of a turn, by its worker: a change of the response's row, then items and events.

    `kept` is how many items of the output there are. A `doubtful` one comes after a write that failed, and
    that may stand all the same, where the connection was lost in its commit.
    """

    change: Executable
    values: JsonObject = field(default_factory=dict)
    new: list[JsonObject] = field(default_factory=list)
    changed: list[JsonObject] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    said: tuple[str, list[JsonObject]] | None = None  # in a conversation
    kept: int = 0
    doubtful: bool = False

    def write(self, connection: Connection) -> None:
        """Raises `LeaseLost`, and writes nothing then."""
        response_id, events = self.values["of"], self.events
        found = connection.execute(self.change, self.values)
        if not (found.first() if found.returns_rows else found.rowcount):
            raise LeaseLost(f"response `{response_id}` is no longer this server's to write")
        if self.doubtful:
            connection.execute(FORGET_ITEMS, {"of": response_id, "place": self.kept})
            last = last_event(connection, response_id)
            events = [event for event in events if event.data["sequence_number"] > last]
        if self.new:
            connection.execute(ADD_ITEMS, self.new)
        for row in self.changed:
            values = {"of": response_id, "place": row["position"], "body": row["item"]}
            connection.execute(CHANGE_ITEM, values)
        if events:
            connection.execute(ADD_EVENTS, _grouped(response_id, events))
        if self.said:
            conversation, items = self.said
            conversations.append(connection, conversation, items, rename=True)


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
        self._kept = len(kept.response.output)  # how many items of the output are
        self._doubtful = False  # whether the last write failed, and may stand all the same
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
            connection.execute(ADD_EVENTS, _grouped(response.id, events))

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
        if kept.input:
            connection.execute(ADD_ITEMS, _rows(response.id, "input", kept.input, range(len(kept.input))))

    def tell(self, event: Event) -> None:
        """Take an event of a background turn, which is kept soon; one that came before is not taken twice."""
        if event.data["sequence_number"] >= self.kept.number:
            self.kept.number = event.data["sequence_number"] + 1
            self._events.append(event)
            self.news.set()

    async def flush(self, response: Response) -> None:
        """Keep the events that came, and the items that they tell of."""
        await _through(self._write(response, Step(HOLD)))

    async def save(self, response: Response, places: list[int], events: list[Event]) -> None:
        """Keep the output up to now, items at `places` as they are now, with the events that tell of them."""
        for event in events if response.background else ():
            self.tell(event)
        step = Step(SAVE, {"body": _bare(response), "seconds": self.lease})
        await _through(self._write(response, step, places))

    async def end(self, response: Response, event: Event) -> None:
        """Keep the turn's end, and in its conversation what was said."""
        step = Step(END, {"body": _bare(response), "ending": response.status})
        if response.conversation and response.status in ("completed", "incomplete"):
            said = [*self.kept.input, *spoken(response.output)]
            step.said = response.conversation.id, conversations.prepared(said, param="input")
        await _through(self._write(response, step, range(len(response.output)), last=event))

    async def _in_order(self, work: Callable[[Connection], None]) -> None:
        async with self._order:
            await self.store.write(work)

    async def _write(
        self, response: Response, step: Step, places: Collection[int] = (), *, last: Event | None = None
    ) -> None:
        """Keep what was told, and the items that are new, done or at `places`; all of it, or nothing."""
        async with self._order:
            waiting, self._events = self._events, []
            self.news.clear()
            if last and response.background:
                last.data["sequence_number"] = self.kept.number  # an end that could not be kept had it before
                step.events = [*waiting, last]
            else:
                step.events = waiting
            if step.change is HOLD and not waiting:
                return
            step.values |= {"of": response.id, "by": self.worker, "attempt": self.kept.attempts}
            kept, count = self._kept, len(response.output)
            changed = {place for place in (*places, *_done(waiting)) if place < kept}
            step.new = _rows(response.id, "output", response.output, range(kept, count))
            step.changed = _rows(response.id, "output", response.output, changed)
            step.kept, step.doubtful = kept, self._doubtful
            try:
                await self.store.write(step.write)
            except BaseException:
                self._events[:0] = waiting
                self._doubtful = True
                self.news.set()
                raise
            self._kept, self._doubtful = count, False
            if last:
                self.kept.number += 1
            if step.events:
                self._told(response.id, step.events)


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


def _rows(response_id: str, side: str, items: Sequence[Item], places: Iterable[int]) -> list[JsonObject]:
    return [
        {
            "response": response_id,
            "side": side,
            "position": place,
            "id": items[place].id,
            "item": items[place].model_dump_json(by_alias=True),
        }
        for place in places
    ]


def _grouped(response_id: str, events: list[Event]) -> JsonObject:
    """Events as one row."""
    return {
        "response": response_id,
        "first": events[0].data["sequence_number"],
        "last": events[-1].data["sequence_number"],
        "events": "\n".join(event.to_json().decode() for event in events),
    }


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
    """The items, those with an id that came before under one of their own."""
    taken = {item.id for item in history}
    found = []
    for item in items:
        if item.id in taken:
            item = item.model_copy(update={"id": new_id(item.id.partition("_")[0][:8])})
        taken.add(item.id)
        found.append(item)
    return found
