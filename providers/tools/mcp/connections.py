"""The connections to one MCP server: whose is which, how many, and for how long."""

import asyncio
import time
from collections.abc import Callable, Sequence

from llama_stack_lite.errors import Unavailable

from .connection import Connection, Open

STABLE = 30.0  # seconds after which an end is no sign of trouble any more
LONGEST_REST = 30.0  # seconds between two attempts
NOBODY = ""  # the session of what is asked for no conversation: which tools there are


class Connections:
    """Opens a connection when one is asked for, and closes it `idle` seconds after its last call.

    Where they are not `shared`, each session has its own. One that dies soon is opened again at once, then
    after ever longer rests. `protocols` are ways to connect, tried in order.
    """

    def __init__(
        self,
        protocols: Sequence[Open],
        *,
        where: str,
        shared: bool,
        most: int,
        idle: float | None,
        changed: Callable[[], None],
    ) -> None:
        self.protocols = protocols
        self.where = where
        self.shared = shared
        self.most = most
        self.idle = idle
        self._changed = changed
        self._open: dict[str, Connection] = {}
        self._all: set[Connection] = set()
        self._failures = 0
        self._rests_until = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def of(self, session: str) -> Connection:
        """The connection for a session; raises `Unavailable` while there can be none."""
        key = NOBODY if self.shared else session
        found = self._open.get(key) or self._adopted(key)
        if found is None or not found.usable:
            found = self._opened(key)
        if self.idle is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self.idle, self._tidy)
        return found

    def _adopted(self, session: str) -> Connection | None:
        """The connection that listed the tools becomes a session's: it has seen nothing of another."""
        found = self._open.get(NOBODY)
        if found and not found.calls:
            self._open[session] = self._open.pop(NOBODY)
            return found
        return None

    def _opened(self, session: str) -> Connection:
        if (rest := self._rests_until - time.monotonic()) > 0:
            raise Unavailable(
                f"{self.where} has failed {self._failures} times; it is tried again in {rest:.0f} s"
            )
        if sum(each.usable for each in self._all) >= self.most:
            self._make_room()
        opened = Connection(self.protocols, where=self.where, changed=self._changed, ended=self._ended)
        self._open[session] = opened
        self._all.add(opened)
        return opened

    def _make_room(self) -> None:
        unused = [each for each in self._all if each.usable and not each.calls]
        if not unused:
            raise Unavailable(f"{self.where} has {self.most} connections, all of them busy")
        min(unused, key=lambda each: each.used).close()

    def _ended(self, connection: Connection) -> None:
        self._all.discard(connection)
        self._open = {key: each for key, each in self._open.items() if each is not connection}
        if connection.failure is None or time.monotonic() - connection.began > STABLE:
            self._failures = 0
            return
        self._failures += 1
        if self.shared and self._failures > 1:
            self._rests_until = time.monotonic() + min(2.0 ** (self._failures - 2), LONGEST_REST)

    def _tidy(self) -> None:
        """Close what nobody has used for long; look again when the next one may be."""
        assert self.idle is not None
        now = time.monotonic()
        for each in self._all:
            if not each.calls and now - each.used >= self.idle:
                each.close()
        left = [each.used for each in self._all if each.usable]
        wait = max(min(left) + self.idle - now, 0.1) if left else None
        self._timer = asyncio.get_running_loop().call_later(wait, self._tidy) if wait else None

    async def aclose(self) -> None:
        if self._timer:
            self._timer.cancel()
        await asyncio.gather(*(each.closed() for each in list(self._all)))
