"""Server-sent events: bytes in, the data of whole events out."""

from __future__ import annotations

import re

END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # of a line: text may hold all else that `splitlines` splits at


class Decoder:
    """Fed with bytes as they come; an event may be spread over many pieces, and a piece may hold many."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[str]:
        """The data of each event that ends in this piece."""
        *lines, self._rest = END.split(self._rest + piece)
        found = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                found.append(b"\n".join(self._data).decode())
                self._data = []
        return found
