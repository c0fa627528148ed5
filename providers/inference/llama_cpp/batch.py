"""A `llama_batch` over numpy arrays, and how many rows of prompts a step may take."""

import ctypes
import math
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

BATCH = 256  # rows of prompts in one step, at most; a row of every other slot comes besides
PAGE = 256  # tokens of the cache: llama.cpp rounds up to as many what it attends to
LEAST = 4  # rows of prompts that a step takes, however slow it is
WORTH_PADDING = 8  # rows; as many take less than to run the graph once more

Ids = NDArray[np.int32]


class Batch:
    """Rows of several sequences, filled by slices."""

    def __init__(self, rows: int) -> None:
        self.tokens = np.zeros(rows, dtype=np.int32)
        self.positions = np.zeros(rows, dtype=np.int32)
        self.slots = np.zeros(rows, dtype=np.int32)
        self.outputs = np.zeros(rows, dtype=np.int8)
        self._one = np.ones(rows, dtype=np.int32)
        base = self.slots.ctypes.data
        pointer = ctypes.POINTER(lib.llama_seq_id)
        self._slot_pointers = (pointer * rows)(*[ctypes.cast(base + 4 * i, pointer) for i in range(rows)])
        self.handle: Any = lib.llama_batch(
            n_tokens=0,
            token=self.tokens.ctypes.data_as(ctypes.POINTER(lib.llama_token)),
            pos=self.positions.ctypes.data_as(ctypes.POINTER(lib.llama_pos)),
            n_seq_id=self._one.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._slot_pointers,
            logits=self.outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        self.handle.n_tokens = 0

    def add(self, tokens: Ids, *, start: int, slot: int, outputs: Literal["none", "last", "all"]) -> int:
        """Append rows at positions from `start` on; return the number of the first."""
        first: int = self.handle.n_tokens
        rows = slice(first, first + len(tokens))
        self.tokens[rows] = tokens
        self.positions[rows] = np.arange(start, start + len(tokens))
        self.slots[rows] = slot
        self.outputs[rows] = outputs == "all"
        if outputs == "last":
            self.outputs[rows.stop - 1] = 1
        self.handle.n_tokens = rows.stop
        return first


def padding(lengths: dict[int, int], room: int) -> dict[int, int]:
    """How many rows to add to pieces of about the same length, so that they have the same one.

    llama.cpp runs its graph for as many rows of each sequence as the shortest of them has left, and again.
    Both are by the slots' numbers; `room` is how many rows may be added. No piece gets more than
    `WORTH_PADDING`.
    """
    level: list[int] = []  # slots whose pieces have, with what is added, the length of the last
    added: dict[int, int] = {}
    for slot, length in sorted(lengths.items(), key=lambda each: each[1]):
        if level:
            missing = length - lengths[level[-1]]
            in_all = length - lengths[level[0]]  # what the shortest of them then has
            if missing * len(level) > min(WORTH_PADDING, room) or in_all > WORTH_PADDING:
                level = []
            elif missing:
                room -= missing * len(level)
                added |= {each: added.get(each, 0) + missing for each in level}
        level.append(slot)
    return added


def _even(rows: float) -> float:
    """The nearest power of two.

    llama.cpp looks through whole pages of its cache: a prompt takes 3 % longer in pieces of 128 rows
    than of 256, in shorter ones or others 4 to 10 (`python -m benchmarks.engine --cuts`).
    """
    return 2.0 ** round(math.log2(rows))


class Pace:
    """Learns what a step takes, so that reading prompts does not stall those who wait for their next token.

    While one long prompt is read, a step with a piece of it takes less than twice as long as one without.
    Where that leaves room for a few rows only, each of which takes several times as long as one of many,
    a long piece goes into one step of `RARE` instead: of a hundred tokens three are late, and none of the
    others. The more prompts wait, the longer steps may be, as most people then wait for these. There is
    hurry where a prompt, or its end, is short, so that it is over in a few steps, and where it waited while
    those of all who write were read, which were no shorter. No piece takes much more than `LONGEST`, or twice
    that beside others: only between steps a request can come or go.
    """

    SHARE = 0.75  # of a step without prompts; the rest is for noise
    LONGEST = 0.25  # seconds
    SHORT = 128  # tokens
    WORTH = 16  # rows in every step, of fewer of which none goes into most steps
    RARE = 30  # steps
    BULK = 32  # rows from which on a piece shows what a row costs; of fewer, what a piece costs besides
    WEIGHT = 0.2  # of the newest step
    FRESH = 32  # steps with prompts after which one without them shows again what that takes

    def __init__(self) -> None:
        self.writing: dict[int, float] = {}  # seconds of a step without prompts, by its rows
        self.row: float | None = None  # seconds of a prompt's row
        self.piece = 0.0  # seconds of a piece beside its rows
        self.age = 0
        self.since = 0  # steps without prompts since the last piece

    def rows(self, *, readers: int, writers: int, hurry: bool = False) -> int:
        """How many rows of prompts the next step may take; in a hurry, whoever else waits for it."""
        if self.row is None:
            return self.BULK
        if hurry or writers == 0:
            # never so few that they would not show when a row has come to take less again; and of one that is
            # not alone twice as many, as those who start together write together, and end sooner
            seconds = self.LONGEST * (2 if readers + writers > 1 else 1)
            return self._bounded(_even(max(self.BULK, seconds / self.row)))
        if writers not in self.writing or self.age >= self.FRESH:
            return 0
        share = self.writing[writers] * self.SHARE
        seconds = min(share * readers**2, max(self.LONGEST, share))
        rows = (seconds - self.piece) / self.row
        many = self.LONGEST / self.row
        if rows < self.WORTH and many >= self.BULK:
            if self.since * readers**2 < self.RARE:
                return 0
            rows = many
        return self._bounded(rows)

    def portion(self, ahead: int, budget: int, *, start: int, room: int, beside: bool) -> int:
        """How many of the rows that a prompt has `ahead` go into a step; `beside` others all of them or none.

        llama.cpp runs its graph for each length of pieces. A prompt's end is not put off for few tokens, and
        no page of the cache is begun for few; `start` is where they will be.
        """
        rows = min(ahead if ahead <= budget * 1.25 else budget, room)
        if rows < ahead:
            over = (start + rows) % PAGE
            rows -= over if over < rows / 2 else 0
        return 0 if beside and rows < ahead else rows

    def learn(self, seconds: float, *, writers: int, read: int) -> None:
        """Take note of a step with `read` rows of prompts."""
        if not read:
            self.writing[writers] = self._mean(self.writing.get(writers), seconds)
            self.age = 0
            self.since += 1
            return
        self.since = 0
        self.age += writers > 0
        spent = max(seconds - self.writing.get(writers, 0.0), seconds / 10)
        if read >= self.BULK or self.row is None or spent < 0.9 * read * self.row:
            self.row = self._mean(self.row, spent / read)
        elif writers:
            self.piece = self._mean(self.piece, max(0.0, spent - read * self.row))

    def _bounded(self, rows: float) -> int:
        return max(LEAST, min(int(rows), BATCH))

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else old + self.WEIGHT * (new - old)
