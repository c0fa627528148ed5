"""What a turn works with: the tools it may use, and the journal that keeps it."""

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from llama_stack_lite.api.responses import Call, Event, Response


class Tools(Protocol):
    """The tools of one turn."""

    offer: dict[str, Any]  # the fields of a chat request that offer them
    clients: frozenset[str]  # the functions that the client runs

    @property
    def waiting(self) -> bool:
        """Whether a call waits for somebody's approval."""
        ...

    def prepared(self) -> AsyncGenerator[Event, None]:
        """What comes before the model is asked: servers' lists, and calls that have been approved."""
        ...

    def listed(self) -> AsyncGenerator[Event, None]:
        """The servers' lists alone; nothing is called."""
        ...

    def run(self, calls: list[Call]) -> AsyncGenerator[Event, None]:
        """Run the calls, side by side."""
        ...

    async def aclose(self) -> None: ...


class Journal(Protocol):
    """Where a turn is kept, each step before its effect shows."""

    async def begin(self, response: Response) -> None: ...

    def withhold(self, why: str) -> None:
        """Keep nothing of what the request says, but why."""
        ...

    async def save(self, response: Response, places: list[int], events: list[Event]) -> None:
        """Keep the items of the output at those places, and the events that tell of them."""
        ...

    async def end(self, response: Response, event: Event) -> None: ...
