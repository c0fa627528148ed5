"""The line before an engine: who waits for a slot and in which order, and the way of the steps back."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Generic, TypeVar

import llguidance

from llama_stack_lite.client import client
from llama_stack_lite.errors import Busy, StackError, Unavailable
from llama_stack_lite.prompting.constraints import matcher

from .engine import Job, Step, Vocab

SHARE = 0.005  # seconds of the interval, at least, for each that runs: what they cost together has a bound
LONGEST = 0.1  # seconds, where many run
SOON = 0.003  # seconds: about what the event loop takes for a request
TOGETHER = 0.05  # seconds that the first of several waits for the others, at most
log = logging.getLogger(__name__)


class Ticket:
    """A job in line, with its grammar: who asked, and the queue on their event loop that takes its steps."""

    def __init__(self, job: Job, grammar: llguidance.LLMatcher | None) -> None:
        self.job = job
        self.grammar = grammar
        self.client = client.get()
        self.cancelled = False
        self.due = 0.0  # when its next steps may leave, by `time.monotonic`
        self.loop = asyncio.get_running_loop()
        self.steps: asyncio.Queue[Delivery] = asyncio.Queue()


T = TypeVar("T", bound=Ticket)
Event = tuple[Ticket, Step | StackError]
Delivery = list[Step | StackError]


class Line(Generic[T]):
    """Lets `slots` tickets in at a time, fair between clients, and `queue` more wait.

    Any event loop may `generate`; all else is for the engine's one thread. There `seat` is called for
    each ticket whose turn it is, and may say False to let it wait, `free` for each that leaves, and `rest`
    when there is nothing to do.

    Steps of one ticket that are made within `interval` seconds leave together: each departure costs the
    event loop, the socket and the client some time of the cores that compute.
    """

    def __init__(
        self,
        *,
        slots: int,
        queue: int,
        free: Callable[[T], None],
        seat: Callable[[T], bool] = lambda _: True,
        rest: Callable[[], None] = lambda: None,
        interval: float = 0.0,
    ) -> None:
        self.slots = slots
        self.queue = queue
        self.interval = interval
        self.running: list[T] = []
        self.waiting: list[T] = []
        self.broken: str | None = None
        self._made: dict[Ticket, Delivery] = {}
        self._several = False  # whether more than one ran since there was nothing to do
        self._free = free
        self._seat = seat
        self.rest = rest
        self._turns = 0
        self._served: Counter[str] = Counter()  # the turn in which each client was last let in
        self._closing = False
        self._wake = threading.Condition()

    async def generate(self, job: Job, kind: type[T], *, vocab: Vocab) -> AsyncGenerator[Step, None]:
        """Take a ticket of that kind and yield its steps; closing the generator frees its slot at the next.

        Raises `Busy` when too many wait, `Unavailable` when the engine broke.
        """
        grammar = await asyncio.to_thread(matcher, job.grammar, vocab) if job.grammar else None
        ticket = kind(job, grammar)
        self._join(ticket)
        try:
            while True:
                delivery = await ticket.steps.get()
                for step, after in zip_longest(delivery, delivery[1:]):
                    if isinstance(step, StackError):
                        raise step
                    yield replace(step, more=True) if isinstance(after, Step) else step
                    if step.finish:
                        return
        finally:
            ticket.cancelled = True
            with self._wake:
                self._wake.notify()

    def _join(self, ticket: T) -> None:
        with self._wake:
            if self.broken or self._closing:
                raise Unavailable(f"the model is not running: {self.broken or 'it is being closed'}")
            self.waiting.append(ticket)
            if len(self.waiting) > self.queue + self.slots - len(self.running):
                greediest = self._greediest()
                self.waiting.remove(greediest)
                busy = Busy(f"{len(self.waiting)} requests wait for this model already")
                if greediest is ticket:
                    raise busy
                deliver({greediest: [busy]})
            self._wake.notify()

    def _greediest(self) -> T:
        """The newest of those that wait for the client who has most of them waiting."""
        waiting = Counter(each.client for each in self.waiting)
        return max(reversed(self.waiting), key=lambda each: waiting[each.client])

    def shut(self) -> None:
        """Let nobody in any more, and wake the engine; from any thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()

    # ------------------------------------------------------------ the engine's own thread

    def run(self, step: Callable[[], None]) -> None:
        """Make step after step until the line is shut, or until one fails: then everybody is failed."""
        try:
            while self._move():
                step()
        except Exception as error:
            log.exception("the engine broke")
            self.broken = " ".join(str(error).split())[:300] or type(error).__name__
        self._end()

    def _move(self) -> bool:
        """Drop who has left, let in who is next, sleep while there is nothing to do; False at the end."""
        with self._wake:
            while not self._closing:
                self.waiting = [each for each in self.waiting if not each.cancelled]
                for ticket in [each for each in self.running if each.cancelled]:
                    self.leave(ticket)
                if self.waiting:
                    self._admit()
                if self.running:
                    return True
                self.flush()
                self.rest()
                self._wake.wait()
                if self._several and self.waiting:
                    self._gather()
            return False

    def _gather(self) -> None:
        """Wait for those who come with the first, as they did the last time: they then read together.

        Else the first reads alone while the others' requests take its cores, and the last write alone.
        """
        end = time.monotonic() + TOGETHER
        while len(self.waiting) < self.slots and time.monotonic() < end and self._wake.wait(SOON):
            pass
        self._several = False

    def _admit(self) -> None:
        """First those of the clients that have the fewest running, then of those not served for longest."""
        left = list(self.waiting)
        while left and len(self.running) < self.slots:
            running = Counter(each.client for each in self.running)
            ticket = min(left, key=lambda each: (running[each.client], self._served[each.client]))
            left.remove(ticket)
            if self._seat(ticket):
                self.waiting.remove(ticket)
                self.running.append(ticket)
                self._turns += 1
                self._served[ticket.client] = self._turns
        self._several |= len(self.running) > 1
        known = {each.client for each in (*self.waiting, *self.running)}
        self._served = Counter({name: turn for name, turn in self._served.items() if name in known})

    def put(self, events: list[Event]) -> None:
        """Take what a step made, until `flush`."""
        for ticket, step in events:
            self._made.setdefault(ticket, []).append(step)

    def flush(self, *, due: bool = False) -> None:
        """Deliver what was made, or of it what is `due`; right before the next step computes without the GIL.

        Any earlier the event loop wakes up, takes the GIL between two lines of the engine, and a step waits
        for all that is written to sockets.
        """
        now = time.monotonic()
        leaving = {
            ticket: steps
            for ticket, steps in self._made.items()
            if not due or now >= ticket.due or _ends(steps[-1])
        }
        for ticket in leaving:
            ticket.due = now + self._interval()
            del self._made[ticket]
        deliver(leaving)

    def _interval(self) -> float:
        """Seconds between two departures of one ticket: longer where many run, unless each step leaves."""
        many = min(SHARE * len(self.running), LONGEST)
        return self.interval and max(self.interval, many)

    def leave(self, ticket: T) -> None:
        """A slot is free again."""
        self.running.remove(ticket)
        self._free(ticket)

    def _end(self) -> None:
        """Fail all who still run or wait: the engine stops, `broken` or closed."""
        error = Unavailable(f"the model stopped: {self.broken or 'the server is closing'}")
        with self._wake:
            self._closing = True
            left = [*self.waiting, *self.running]
            for ticket in list(self.running):
                self.leave(ticket)
            self.waiting = []
        self.put([(ticket, error) for ticket in left])
        self.flush()


def _ends(step: Step | StackError) -> bool:
    return isinstance(step, StackError) or step.finish is not None


def deliver(made: dict[Ticket, Delivery]) -> None:
    """Hand steps to the event loops of their tickets: one call for each loop, not for each token."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Delivery]]] = {}
    for ticket, steps in made.items():
        loops.setdefault(ticket.loop, []).append((ticket, steps))
    for loop, mine in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put, mine)


def _put(made: list[tuple[Ticket, Delivery]]) -> None:
    for ticket, steps in made:
        ticket.steps.put_nowait(steps)
