"""Events of background turns, for all who read along: told where a turn runs here, else looked up."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from llama_stack_lite.api.responses import Event
from llama_stack_lite.api.responses.response import ENDED
from llama_stack_lite.errors import StackError
from llama_stack_lite.state import archive
from llama_stack_lite.state.store import Store

LOOK_EVERY = 0.5  # seconds between two looks for what other servers have kept
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Feed:
    """What readers of one turn wait for; `latest` are the events that were kept last in this process."""

    readers: int = 0
    latest: list[Event] = field(default_factory=list)
    mark: tuple[str, int] | None = None  # how far it had come when it was looked up last
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def after(self, number: int) -> tuple[list[Event], bool] | None:
        """The events above a number, and whether the turn has ended; None where the database has to say."""
        if not self.latest or self.latest[0].data["sequence_number"] > number + 1:
            return None
        return [event for event in self.latest if event.data["sequence_number"] > number], self._ended()

    def _ended(self) -> bool:
        return self.latest[-1].data.get("response", {}).get("status") in ENDED

    def found(self, mark: tuple[str, int] | None) -> None:
        """Take how far the turn has come by the database; where that is further, memory is of no use."""
        if self.latest and mark:
            status, first = mark
            if first <= self.latest[-1].data["sequence_number"] and (status not in ENDED or self._ended()):
                return
        self.latest = []
        if mark != self.mark:
            self.mark = mark
            self.wake()


class Feeds:
    """The feeds of the turns that somebody reads; nothing is held for the others."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._feeds: dict[str, Feed] = {}

    def put(self, response_id: str, events: list[Event]) -> None:
        """Tell readers of events that are on disk."""
        if events and (feed := self._feeds.get(response_id)):
            feed.latest = events
            feed.wake()

    async def read(self, response_id: str, *, after: int = -1) -> AsyncGenerator[Event, None]:
        """The events of a turn with numbers above `after`, as they come, to the last one."""
        feed = self._feeds.setdefault(response_id, Feed())
        feed.readers += 1
        try:
            while True:
                changed = feed.changed
                events, ended = feed.after(after) or await archive.events(self.store, response_id, after)
                for event in events:
                    after = event.data["sequence_number"]
                    yield event
                if ended:
                    return
                await changed.wait()
        finally:
            feed.readers -= 1
            if not feed.readers:
                del self._feeds[response_id]

    async def look(self) -> None:
        """Wake the readers of turns that have changed, by one query for all of them, again and again."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if self._feeds:
                try:
                    marks = await archive.marks(self.store, [*self._feeds])
                except StackError as error:
                    log.error("streams of background responses wait: %s", error)
                    continue
                for response_id, feed in self._feeds.items():
                    feed.found(marks.get(response_id))
