"""The events of one response, over as many connections as it takes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from .calls import backoff, frames
from .errors import ConnectionFailed, streamed
from .items import ENDS, Event, ResponseEvent, event
from .wires import Wire

Frames = AsyncGenerator[dict[str, Any], None]


class Following:
    """Goes on behind the last event that came, as long as the server keeps the response's events.

    It does that for responses of the background, and `response_id` is known of those alone.
    """

    def __init__(self, wire: Wire, *, response_id: str | None = None, after: int = -1) -> None:
        self.wire = wire
        self.response_id = response_id
        self.after = after
        self.ended = False

    def again(self) -> Frames:
        """The events behind the last one, over a new connection."""
        query = {"stream": True, "starting_after": self.after if self.after >= 0 else None}
        return frames(self.wire, "GET", f"/v1/responses/{self.response_id}", query=query)

    async def events(self, opened: Frames) -> AsyncGenerator[Event, None]:
        """The events to the last one; raises `ConnectionFailed` where it cannot go on."""
        broken = 0
        while not self.ended:
            before = self.after
            try:
                async with aclosing(self._heard(opened)) as events:
                    async for each in events:
                        yield each
            except ConnectionFailed:
                broken = broken + 1 if self.after == before else 1
                if not self.ended and (self.response_id is None or broken > self.wire.retries):
                    raise
            if not self.ended:
                await self.wire.sleep(backoff(broken - 1))
                opened = self.again()

    async def _heard(self, opened: Frames) -> AsyncGenerator[Event, None]:
        """The events of one connection, without those that came before."""
        async with aclosing(opened) as found:
            async for fields in found:
                if fields.get("type") == "error":
                    raise streamed(fields)
                each = event(fields)
                if isinstance(each, ResponseEvent) and each.response.background:
                    self.response_id = each.response.id
                self.ended = self.ended or each.type in ENDS
                if each.sequence_number > self.after:
                    self.after = each.sequence_number
                    yield each
        if not self.ended:
            raise ConnectionFailed("the stream broke off before the response had ended")
