"""A `llama_batch` over numpy arrays, and how many rows of prompts a step may take."""

import ctypes
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

BATCH = 256  # rows of one step, at most
LEAST = 8  # rows of prompts that a step takes, however slow it is

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

    With as many readers as writers, or fewer, a step with a piece of a prompt takes less than twice as long
    as one without. More readers get more of it: each sequence has an equal share of the time.
    """

    SHARE = 0.75  # of a step without prompts; the rest is for noise
    WEIGHT = 0.2  # of the newest step

    def __init__(self) -> None:
        self.writing: dict[int, float] = {}  # seconds of a step without prompts, by its rows
        self.row: float | None = None  # seconds of a prompt's row

    def rows(self, *, readers: int, writers: int) -> int:
        """How many rows of prompts the next step may take."""
        if writers == 0:
            return BATCH
        if self.row is None or not self.writing:
            return LEAST * 4
        share = self.SHARE * max(1.0, readers / writers)
        rows = int(self._without(writers) * share / self.row)
        return max(LEAST, min(rows, BATCH - writers))

    def learn(self, seconds: float, *, writers: int, read: int) -> None:
        """Take note of a step with `read` rows of prompts."""
        if read == 0:
            self.writing[writers] = self._mean(self.writing.get(writers), seconds)
        elif writers == 0 or self.writing:
            # what was learnt of another number of writers may be longer than this step
            spent = max(seconds - (self._without(writers) if writers else 0.0), seconds * 0.1)
            self.row = self._mean(self.row, spent / read)

    def _without(self, writers: int) -> float:
        nearest = min(self.writing, key=lambda known: abs(known - writers))
        return self.writing[nearest]

    def _mean(self, old: float | None, new: float) -> float:
        return new if old is None else old + self.WEIGHT * (new - old)
