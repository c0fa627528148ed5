"""Bytes of tokens to text as it streams: UTF-8 may span tokens, and a stop string may span chunks."""

import codecs


class TextStream:
    """Bytes in, text out; what could begin a stop string is held back until it is known not to."""

    def __init__(self, stops: list[str]) -> None:
        self.stops = stops
        self.stop: str | None = None  # the one that came
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    @property
    def stopped(self) -> bool:
        return self.stop is not None

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """Return the text that may leave now; after a stop string nothing does."""
        if self.stopped:
            return ""
        self._held += self._utf8.decode(data, final)
        hits = [(at, stop) for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if hits:
            keep, self.stop = min(hits)
        else:
            keep = len(self._held) if final else len(self._held) - self._open_stop()
        text, self._held = self._held[:keep], self._held[keep:]
        return text

    def _open_stop(self) -> int:
        """The length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self.stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self.stops):
                return length
        return 0
