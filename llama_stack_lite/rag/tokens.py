"""Texts measured as the model that embeds them reads them."""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, Self, TypeVar

from llama_stack_lite.stack import Model

T = TypeVar("T")

SLICE = 1 << 18  # characters measured by one call: little memory, and the thread is soon free for others
BYTES = 3  # of UTF-8 that are taken for a token where nobody can say; English has 4 to 5, other writing 3


class Tokens:
    """How many tokens a model reads of a text, and where they begin.

    `ends` counts what it reads besides each text: special tokens, and the prefix that its card puts before
    passages. Where its provider cannot say (no `token_starts`), every `BYTES` bytes count as one token.
    """

    ends: int
    _before: int  # special tokens, and behind a text
    _after: int

    def __init__(self, model: Model) -> None:
        self.model = model
        self.limit = model.card.context_length
        self.prefix = model.card.passage_prefix or ""

    @classmethod
    async def of(cls, model: Model) -> Self:
        found = cls(model)
        empty, prefixed, one = await found._asked(["", found.prefix, "a"])
        found.ends = len(prefixed)
        found._after = one.count(1)
        found._before = len(empty) - found._after
        return found

    async def starts(self, texts: Sequence[str]) -> list[list[int]]:
        """Where in each text its own tokens begin, in characters."""
        found = []
        for part in sliced(texts):
            for row in await self._asked(part):
                found.append(row[self._before : len(row) - self._after])
        return found

    async def counted(self, texts: Sequence[str]) -> list[int]:
        """All that is read of each text, with the prefix."""
        found = []
        for part in sliced(texts):
            found += [len(row) for row in await self._asked([self.prefix + text for text in part])]
        return found

    async def _asked(self, texts: list[str]) -> list[list[int]]:
        if hasattr(self.model.provider, "token_starts"):
            return await self.model.provider.token_starts(self.model.name, texts)
        return await asyncio.to_thread(lambda: [_estimated(text) for text in texts])


def sliced(given: Iterable[T], length: Callable[[Any], int] = len) -> Iterator[list[T]]:
    """What is given in lists of about `SLICE` characters."""
    part: list[T] = []
    size = 0
    for each in given:
        if part and size + length(each) > SLICE:
            yield part
            part, size = [], 0
        part.append(each)
        size += length(each)
    if part:
        yield part


def _estimated(text: str) -> list[int]:
    if text.isascii():
        own = list(range(0, len(text), BYTES))
    else:
        sizes = accumulate(len(char.encode("utf-8", "replace")) for char in text)
        ends = [0, *(-(-size // BYTES) for size in sizes)]
        own = [
            place
            for place, (one, next_) in enumerate(zip(ends, ends[1:], strict=False))
            for _ in range(next_ - one)
        ]
    return [0, *own, len(text)]
