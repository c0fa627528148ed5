"""The KV cache as slots: which tokens each holds, and how a new prompt continues from what is there."""

from collections.abc import Iterator
from itertools import count, pairwise, takewhile
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np

from .batch import PAGE, Ids

REWRITTEN = 80  # tokens at the end of a slot that may be lost to a prompt that shares the rest
WORTH_COPYING = 32  # tokens; a copy moves the whole slot, which takes as long as reading about so many
WORTH_BRIDGING = 4  # slots; a row for each takes less than to run the graph once more


class Slot:
    """A place in the cache for one sequence. `user` is whoever fills it now, `used` when that last ended."""

    def __init__(self, number: int, room: int) -> None:
        self.number = number
        self.length = 0
        self.used = 0
        self.adapter: str | None = None
        self.user: Any = None
        self.room = room
        self._tokens = np.empty(room, dtype=np.int32)

    @property
    def tokens(self) -> Ids:
        return self._tokens[: self.length]

    def extend(self, tokens: Ids) -> None:
        self._tokens[self.length : self.length + len(tokens)] = tokens
        self.length += len(tokens)


def common(one: Ids, other: Ids) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    first = int(differ.argmax()) if length else 0
    return first if length and differ[first] else length


def _line(number: int, numbers: set[int]) -> Iterator[int]:
    """The unbroken line of some numbers that one of them is in."""
    yield from takewhile(numbers.__contains__, count(number))
    yield from takewhile(numbers.__contains__, count(number - 1, -1))


class Cache:
    """All slots of one context. Only the engine's thread may use it."""

    def __init__(self, memory: Any, *, slots: int, room: int) -> None:
        self.memory = memory
        self.slots = [Slot(number, room) for number in range(slots)]
        self._clock = 0
        self._uncuttable = False  # whether a slot was emptied because only its end could not be cut

    def free(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.user is None]

    def best(self, prompt: Ids, adapter: str | None) -> tuple[Slot | None, int]:
        """The slot that holds most of a prompt's beginning, and how much; one token is left to read."""
        found: Slot | None = None
        most = 0
        for slot in self.slots:
            if slot.length and slot.adapter == adapter:
                shared = common(slot.tokens, prompt[:-1])
                if shared > most or (shared == most and found and found.user and not slot.user):
                    found, most = slot, shared
        return found, most

    def take(self, prompt: Ids, adapter: str | None) -> tuple[Slot, int]:
        """Choose a free slot, and let it hold as much of the prompt as any slot does; return how much."""
        source, shared = self.best(prompt, adapter)
        slot = self._cheapest()
        if source and source.user is None and self._may_go_on(source, shared, oldest=slot):
            slot = source
        elif source and source is not slot and shared >= WORTH_COPYING:
            self._copy(source, slot)
        else:
            shared = common(slot.tokens, prompt[:-1]) if slot.adapter == adapter else 0
        slot.adapter = adapter
        return slot, self.cut(slot, shared)

    def _cheapest(self) -> Slot:
        """The free slot that was of use the longest ago; or one as good as that, beside others in use,
        or else where most others fit beside it.

        llama.cpp runs its graph once for each unbroken line of slots.
        """
        free = sorted(self.free(), key=lambda each: each.used)
        older = free[: (len(free) + 1) // 2]
        busy = {slot.number for slot in self.slots if slot.user is not None}
        open_to = busy | {slot.number for slot in older}

        def worth(slot: Slot) -> tuple[int, int]:
            beside = len(busy & {slot.number - 1, slot.number + 1})
            return beside, sum(1 for _ in _line(slot.number, open_to))

        return max(older, key=worth)

    def between(self, used: list[Slot]) -> list[Slot]:
        """Free slots in the gaps, as far as these are narrow, between slots that have rows in a step.

        With a row for each the line is unbroken, and llama.cpp runs its graph once. Then they have to be cut.
        """
        # attention goes over as many tokens for all as for the longest of them, and over whole pages
        deepest = max([PAGE - 1, *(slot.length for slot in used)])
        found: list[Slot] = []
        for one, other in pairwise(used):
            gap = self.slots[one.number + 1 : other.number]
            if len(gap) <= WORTH_BRIDGING and all(self._may_bridge(slot, deepest) for slot in gap):
                found += gap
        return found

    def _may_bridge(self, slot: Slot, deepest: int) -> bool:
        fits = slot.length <= deepest and slot.length < slot.room - 1
        return slot.user is None and fits and (slot.length == 0 or not self._uncuttable)

    def _may_go_on(self, source: Slot, shared: int, *, oldest: Slot) -> bool:
        """Whether a prompt may take the place of the tokens that it does not share with a slot.

        It may where they are few: the same conversation has gone on. And where it would cost more to lose
        what only the oldest slot holds, such as the one copy of another policy or system prompt.
        """
        lost = source.length - shared
        if lost <= min(REWRITTEN, shared):
            return True
        others = [common(oldest.tokens, slot.tokens) for slot in self.slots if slot is not oldest]
        return shared >= WORTH_COPYING and 2 * lost < oldest.length - max(others, default=0)

    def cut(self, slot: Slot, length: int) -> int:
        """Forget all but the first tokens; a cache that cannot be cut is emptied. Return what is left."""
        if not lib.llama_memory_seq_rm(self.memory, slot.number, length, -1):
            lib.llama_memory_seq_rm(self.memory, slot.number, -1, -1)
            length = 0
            self._uncuttable = True
        slot.length = min(slot.length, length)
        return slot.length

    def release(self, slot: Slot) -> None:
        slot.user = None
        self.touch(slot)

    def touch(self, slot: Slot) -> None:
        """Note that a slot is of use, so that others go before it."""
        slot.used = self.now()

    def now(self) -> int:
        """A clock that ticks when it is read."""
        self._clock += 1
        return self._clock

    def _copy(self, source: Slot, target: Slot) -> None:
        lib.llama_memory_seq_rm(self.memory, target.number, -1, -1)
        # caches with a stream for each sequence take whole copies only
        lib.llama_memory_seq_cp(self.memory, source.number, target.number, -1, -1)
        target.length = 0
        target.extend(source.tokens)
        if source.user is None:
            self.touch(source)
