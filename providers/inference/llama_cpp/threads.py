"""How many threads a step runs on: all cores or one less, whichever was faster lately."""

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

FIRST = 8  # steps until the other number is tried; twice as many each time that it proves slower
LAST = 512  # steps between two trials, at most
TRIAL = 3  # steps of a trial, of which the one in the middle counts: the first has to wake a thread
WORSE = 1.5  # times the mean: a step that ends a trial
BETTER = 0.9  # of the time: what a trial has to gain
STALLED = 2.0  # times the mean: a step that shows, with the next one, that the cores are busy now
STOPPED = 4.0  # times the mean, of stalled steps in a row together: the other number is tried at once
CHEAP = 31  # rows of a step that may be slower for a trial's sake alone
WEIGHT = 0.2  # of the newest step
PAUSE = 0.1  # seconds between two steps of an engine that is at work


@dataclass
class _Choice:
    """For steps of about the same size: the number of threads in use, and the one that might be faster."""

    used: int
    other: int
    mean: float | None = None  # seconds a row on those in use
    wait: int = 1  # steps until the other is tried
    patience: int = FIRST
    stalled: list[float] = field(default_factory=list)  # seconds a row of the last steps, in a row
    trial: list[float] = field(default_factory=list)

    def pick(self) -> int:
        return self.other if self.wait == 0 else self.used

    def learn(self, threads: int, cost: float, *, curious: bool) -> None:
        """Take note of a step; only the `curious` try the other number without need more than once."""
        if self.mean is None:
            self.mean = cost
        elif threads == self.used:
            self._compare(self.mean, cost)
            self.wait = max(0, self.wait - 1) if curious or self.patience == FIRST else self.wait
        else:
            self.trial.append(cost)
            if len(self.trial) == TRIAL or cost > WORSE * self.mean:
                self._judge(self.mean)

    def _compare(self, mean: float, cost: float) -> None:
        """Update the mean; it begins anew where steps have come to take much longer."""
        if cost <= STALLED * mean:
            self.stalled.clear()
            self.mean = mean + WEIGHT * (cost - mean)
        else:
            self.stalled.append(cost)
            if sum(self.stalled) > STOPPED * mean:
                self.mean, self.wait = statistics.mean(self.stalled), 0
                self.stalled.clear()

    def _judge(self, mean: float) -> None:
        """End the trial."""
        cost = statistics.median(self.trial)
        if cost < BETTER * mean:
            self.used, self.other, self.mean, self.patience = self.other, self.used, cost, FIRST
        else:
            self.patience = min(2 * self.patience, LAST)
        self.wait = self.patience
        self.trial.clear()


class Threads:
    """Learns by trying, for each size of step.

    All cores read prompts and write for many almost twice as fast as one of two. But ggml's threads spin at
    barriers: while anything else is busy on one of their cores, each step waits for it, and takes many times
    as long. Which of the two it is can only be seen by doing it; what is known without is that two engines of
    this process, such as a model and its guard, must not both want all cores.
    """

    _engines: ClassVar["WeakSet[Threads]"] = WeakSet()

    def __init__(self, few: int, most: int) -> None:
        self.few, self.most = few, most
        self.busy = 0.0  # until when, by the monotonic clock
        self._choices: dict[int, _Choice] = {}
        self._engines.add(self)

    @contextmanager
    def step(self, rows: int) -> Iterator[int]:
        """How many threads the step in the block, of so many rows, shall run on; learns what it takes."""
        started = time.monotonic()
        alone = all(other.busy <= started for other in self._engines if other is not self)
        threads = self.pick(rows) if alone else self.few
        self.busy = math.inf
        try:
            yield threads
        finally:
            ended = time.monotonic()
            self.busy = ended + PAUSE
        if alone and self.few < self.most:
            self.learn(ended - started, rows=rows, threads=threads)

    def pick(self, rows: int) -> int:
        """As `step`, for an engine that is alone."""
        return self._choice(rows).pick() if self.few < self.most else self.few

    def learn(self, seconds: float, *, rows: int, threads: int) -> None:
        """Take note of a step."""
        # a long one on one thread costs much; it is tried where short ones have shown that cores are busy
        curious = rows <= CHEAP or any(choice.used == self.few for choice in self._choices.values())
        self._choice(rows).learn(threads, seconds / rows, curious=curious)

    def _choice(self, rows: int) -> _Choice:
        size = round(math.log2(rows))
        if size not in self._choices:
            self._choices[size] = _Choice(self.most, self.few)
        return self._choices[size]

    def __str__(self) -> str:
        return str(self.few) if self.few == self.most else f"{self.few} or {self.most}"


def rest() -> None:
    """End the threads that ggml has computed with for the calling one; its next step starts them again.

    While all of a process are more than its cores, GNU's OpenMP lets those at a barrier sleep instead of
    spin, and each step of any model takes 1.5 times as long. It counts those that have nothing to do too.
    """
    if pause := _pause():
        pause(1)


@cache
def _pause() -> Callable[[int], int] | None:
    """`omp_pause_resource_all`, where ggml was built with GNU's OpenMP."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        return library.omp_pause_resource_all
    except (OSError, AttributeError):
        return None


def cores() -> int:
    """The physical cores of this machine."""
    topology = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    found = {path.read_text(encoding="ascii") for path in topology}
    return len(found) or os.cpu_count() or 1


def default_threads() -> int:
    """One less than the cores: what stalls nothing."""
    return max(1, cores() - 1)
