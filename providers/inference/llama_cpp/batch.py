"""A `llama_batch` over numpy arrays, and how many rows of prompts a step may take."""

import ctypes
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

BATCH = 256  # rows of one step, at most
LEAST = 4  # rows of prompts that a step takes, however slow it is

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


class Pace:
    """Learns what a step takes, so that reading prompts does not stall those who wait for their next token.

    With one reader, a step with a piece of its prompt takes less than twice as long as one without; with
    more of them it may take that many times as long, up to `LONGEST`: then most people wait to be read.
    """

    SHARE = 0.75  # of a step without prompts; the rest is for noise
    LONGEST = 0.25  # seconds; only between steps a request can come or go
    FIRST = 32  # rows of the first piece, of which nothing is known
    WEIGHT = 0.2  # of the newest step
    FRESH = 32  # steps with prompts after which one without them shows again what that takes

    def __init__(self) -> None:
        self.writing: dict[int, float] = {}  # seconds of a step without prompts, by its rows
        self.alone: float | None = None  # seconds of a prompt's row in a step without writers
        self.beside: float | None = (
            None  # and in a step with them, where rows are fewer and each takes longer
        )
        self.age = 0

    def rows(self, *, readers: int, writers: int) -> int:
        """How many rows of prompts the next step may take."""
        row = self.beside or self.alone if writers else self.alone
        if row is None:
            return self.FIRST
        if writers == 0:
            return self._bounded(self.LONGEST / row, BATCH)
        if writers not in self.writing or self.age >= self.FRESH:
            return 0
        without = self.writing[writers]
        seconds = min(without * self.SHARE * readers, max(self.LONGEST, without * self.SHARE))
        return self._bounded(seconds / row, BATCH - writers)

    def learn(self, seconds: float, *, writers: int, read: int) -> None:
        """Take note of a step with `read` rows of prompts."""
        if read == 0:
            self.writing[writers] = self._mean(self.writing.get(writers), seconds)
            self.age = 0
        elif writers == 0:
            self.alone = self._mean(self.alone, seconds / read)
        else:
            spent = max(seconds - self.writing.get(writers, 0.0), seconds * 0.1)
            self.beside = self._mean(self.beside, spent / read)
            self.age += 1

    def _bounded(self, rows: float, most: int) -> int:
        return max(LEAST, min(int(rows), most))

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else old + self.WEIGHT * (new - old)
