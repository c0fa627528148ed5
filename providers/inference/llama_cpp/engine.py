"""One thread that decodes for everybody: each step takes a token of every running sequence and,
up to a budget, a piece of the prompts that are new."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from typing import Literal

import llama_cpp.llama_cpp as lib
import llguidance
import numpy as np

from llama_stack_lite.client import client
from llama_stack_lite.errors import Busy, StackError, Unavailable
from llama_stack_lite.local.engine import Job, Step
from llama_stack_lite.prompting.constraints import matcher

from .batch import BATCH, Batch, Ids, Pace
from .cache import WORTH_COPYING, Cache, Slot, common
from .loading import Loaded
from .sampling import Sampler, logprobs, row_of
from .vision import Tile, Tiles, boundary, decode, surplus

log = logging.getLogger(__name__)


class Sequence:
    """A job in progress; `todo` are the tokens that the next steps still have to read."""

    def __init__(self, job: Job, grammar: llguidance.LLMatcher | None) -> None:
        self.job = job
        self.grammar = grammar
        self.client = client.get()
        self.prompt: Ids = np.array(job.prompt, dtype=np.int32)
        self.todo = self.prompt
        self.tiles: Tiles = job.media or {}
        self.seen = 0  # rows of an image that is read in pieces
        self.made = 0
        self.cached = 0
        self.cancelled = False
        self.sampler: Sampler | None = None
        self.loop = asyncio.get_running_loop()
        self.steps: asyncio.Queue[Step | StackError] = asyncio.Queue()

    @property
    def reading(self) -> bool:
        return self.made == 0

    def sees(self) -> Tile | None:
        """The image that is to be read next, whole or the rest of it."""
        return self.tiles.get(len(self.prompt) - len(self.todo)) if self.reading else None

    def text_ahead(self) -> int:
        """How many tokens there are to read before the next image."""
        at = len(self.prompt) - len(self.todo)
        return min((start for start in self.tiles if start > at), default=len(self.prompt)) - at


class Engine:
    """Continuous batching over one loaded model. All of llama.cpp is touched by one thread only."""

    def __init__(self, loaded: Loaded, *, slots: int, queue: int) -> None:
        self.loaded = loaded
        self.vocab = loaded.vocab
        self.queue = queue
        self.cache = Cache(loaded.memory, slots=slots, room=loaded.context_length + 1)
        self.waiting: list[Sequence] = []
        self.broken: str | None = None
        self._adapter: str | None = None
        self._served: Counter[str] = Counter()  # when each client was last given a slot
        self._closing = False
        self._wake = threading.Condition()
        self._batch = Batch(BATCH)
        self._pace = Pace()
        self._thread = threading.Thread(target=self._work, name="llama.cpp", daemon=True)
        self._thread.start()

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Yield steps as they are made; closing the generator frees the slot at the next step.

        Raises `Busy` when the queue is full, `Unavailable` when the engine broke.
        """
        grammar = await asyncio.to_thread(matcher, job.grammar, self.vocab) if job.grammar else None
        sequence = Sequence(job, grammar)
        self._submit(sequence)
        try:
            while True:
                step = await sequence.steps.get()
                if isinstance(step, StackError):
                    raise step
                yield step
                if step.finish:
                    return
        finally:
            sequence.cancelled = True
            with self._wake:
                self._wake.notify()

    def _submit(self, sequence: Sequence) -> None:
        with self._wake:
            if self.broken or self._closing:
                raise Unavailable(f"the model is not running: {self.broken or 'it is being closed'}")
            self.waiting.append(sequence)
            if len(self.waiting) > self.queue + len(self.cache.free()):
                greediest = self._greediest()
                self.waiting.remove(greediest)
                busy = Busy(f"{len(self.waiting)} requests wait for this model already")
                if greediest is sequence:
                    raise busy
                _deliver([(greediest, busy)])
            self._wake.notify()

    def _greediest(self) -> Sequence:
        """The newest of those that wait for the client who has most of them waiting."""
        waiting = Counter(each.client for each in self.waiting)
        return max(reversed(self.waiting), key=lambda each: waiting[each.client])

    def close(self) -> None:
        """Stop the thread, fail what still runs, free the model."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    # ------------------------------------------------------------ the engine's own thread

    def _work(self) -> None:
        try:
            while self._next_work():
                self._step()
        except Exception as error:
            log.exception("the llama.cpp engine broke")
            self.broken = str(error) or type(error).__name__
        self._fail_all(Unavailable(f"the model stopped: {self.broken or 'the server is closing'}"))
        self.loaded.close()

    def _next_work(self) -> bool:
        """Drop what was cancelled, give slots to what waits, sleep while there is nothing to do."""
        with self._wake:
            while not self._closing:
                self._drop_cancelled()
                self._admit()
                if any(slot.user for slot in self.cache.slots):
                    return True
                self._wake.wait()
            return False

    def _drop_cancelled(self) -> None:
        self.waiting = [each for each in self.waiting if not each.cancelled]
        for slot, sequence in self._active():
            if sequence.cancelled:
                self._release(slot)
        known = {each.client for each in self.waiting} | {each.client for _, each in self._active()}
        self._served = Counter({name: when for name, when in self._served.items() if name in known})

    def _active(self) -> list[tuple[Slot, Sequence]]:
        return [(slot, slot.user) for slot in self.cache.slots if slot.user]

    def _admit(self) -> None:
        for sequence in self._in_turn():
            if not self.cache.free():
                return
            if self._is_coming(sequence):
                continue
            self.waiting.remove(sequence)
            self._served[sequence.client] = self.cache.now()
            slot, keep = self.cache.take(sequence.prompt, sequence.job.adapter)
            keep = self.cache.cut(slot, 0 if sequence.job.score_prompt else boundary(sequence.tiles, keep))
            held = {at: tile for at, tile in sequence.tiles.items() if at < keep}
            sequence.cached = keep + surplus(held)
            sequence.todo = sequence.prompt[keep:]
            sequence.sampler = Sampler(self.vocab, sequence.job.sampling, sequence.grammar)
            slot.user = sequence

    def _in_turn(self) -> Iterator[Sequence]:
        """Who waits: first of the clients with the fewest running, then of those not served for longest."""
        left = list(self.waiting)
        while left:
            running = Counter(sequence.client for _, sequence in self._active())
            yield (sequence := min(left, key=lambda each: (running[each.client], self._served[each.client])))
            left.remove(sequence)

    def _is_coming(self, sequence: Sequence) -> bool:
        """Whether another is just reading the same prefix: to wait and copy it is faster than to read it."""
        if sequence.job.score_prompt:
            return False
        _, held = self.cache.best(sequence.prompt, sequence.job.adapter)
        for slot, other in self._active():
            if other.reading and slot.adapter == sequence.job.adapter:
                shared = common(other.prompt, sequence.prompt[:-1])
                if shared >= held + WORTH_COPYING and slot.length < shared:
                    return True
        return False

    def _release(self, slot: Slot) -> None:
        slot.user.sampler.close()
        self.cache.release(slot)

    def _step(self) -> None:
        """Read a batch of tokens and sample after each sequence that has read all of its own."""
        started = time.perf_counter()
        active = self._turn()
        out = self._see(active)
        rows, writers = self._fill([each for each in active if each[0].user and not each[1].sees()])
        code = self._checked(lib.llama_decode(self.loaded.context, self._batch.handle)) if rows else 0
        for slot, first, count in rows:
            sequence: Sequence = slot.user
            if code:
                out.append(self._no_room(slot))
                continue
            slot.extend(sequence.todo[:count])
            out += [(sequence, step) for step in self._sampled(slot, sequence, first, count)]
        self._pace.learn(
            time.perf_counter() - started, writers=writers, read=self._batch.handle.n_tokens - writers
        )
        _deliver(out)

    def _checked(self, code: int) -> int:
        """What `llama_decode` returned: 0, or 1 where the cache has no room; raises where it failed."""
        if code < 0:
            raise RuntimeError(f"llama_decode failed with {code}")
        return code

    def _no_room(self, slot: Slot) -> tuple[Sequence, StackError]:
        sequence: Sequence = slot.user
        self.cache.cut(slot, 0)
        self._release(slot)
        return sequence, Unavailable("no room left in the KV cache")

    def _see(self, active: list[tuple[Slot, Sequence]]) -> list[tuple[Sequence, Step | StackError]]:
        """Read a piece of the image that each sequence has come to, if any."""
        out: list[tuple[Sequence, Step | StackError]] = []
        writers = sum(1 for _, sequence in active if not sequence.reading)
        budget = self._pace.rows(readers=len(active) - writers, writers=writers)
        for slot, sequence in active:
            if tile := sequence.sees():
                count = tile.rows_from(sequence.seen, budget)
                place = {"position": slot.length, "sequence": slot.number, "start": sequence.seen}
                if self._checked(decode(self.loaded.context, tile, count=count, **place)):
                    out.append(self._no_room(slot))
                    continue
                sequence.seen += count
                if sequence.seen == tile.rows:
                    slot.extend(sequence.todo[: tile.span])
                    sequence.todo, sequence.seen = sequence.todo[tile.span :], 0
        return out

    def _fill(self, active: list[tuple[Slot, Sequence]]) -> tuple[list[tuple[Slot, int, int]], int]:
        """Fill the batch in slot order, as separate KV streams want.

        Return `(slot, first row, rows)` of each sequence in it, and how many of them write already.
        """
        writers = sum(1 for _, sequence in active if not sequence.reading)
        budget = self._pace.rows(readers=len(active) - writers, writers=writers)
        counts = {slot.number: 1 for slot, _ in active}
        # the shortest first: it waits for nobody's long prompt, and the long one hardly notices
        readers = [(slot, sequence) for slot, sequence in active if sequence.reading]
        for slot, sequence in sorted(readers, key=lambda each: len(each[1].todo)):
            counts[slot.number] = min(sequence.text_ahead(), budget)
            budget -= counts[slot.number]
        self._batch.clear()
        rows = [
            (slot, self._add(slot, sequence, counts[slot.number]), counts[slot.number])
            for slot, sequence in active
            if counts[slot.number]
        ]
        return rows, writers

    def _add(self, slot: Slot, sequence: Sequence, count: int) -> int:
        outputs: Literal["none", "last", "all"] = "last" if count == len(sequence.todo) else "none"
        if sequence.job.score_prompt and sequence.reading:
            outputs = "all"
        return self._batch.add(sequence.todo[:count], start=slot.length, slot=slot.number, outputs=outputs)

    def _turn(self) -> list[tuple[Slot, Sequence]]:
        """Those whose turn it is: a step runs under one LoRA adapter, and the next under the next one."""
        active = self._active()
        adapters = sorted({slot.adapter or "" for slot, _ in active})
        later = [adapter for adapter in adapters if adapter > (self._adapter or "")]
        adapter = (later or adapters)[0] or None
        if adapter != self._adapter:
            self.loaded.use_adapter(adapter)
            self._adapter = adapter
        return [(slot, sequence) for slot, sequence in active if slot.adapter == adapter]

    def _sampled(self, slot: Slot, sequence: Sequence, first: int, count: int) -> list[Step | StackError]:
        """What a sequence gives after the rows it has just read: scores, and perhaps its next token."""
        steps: list[Step | StackError] = []
        if sequence.job.score_prompt and sequence.reading:
            steps += self._scores(sequence, first, count)
        sequence.todo = sequence.todo[count:]
        if len(sequence.todo):
            return steps
        if sequence.job.max_tokens == 0:
            self._release(slot)
            return [*steps, Step(finish="length", cached=sequence.cached)]
        try:
            step = self._token(slot, sequence, first + count - 1)
        except StackError as error:  # its grammar's, and nobody else's
            self._release(slot)
            return [*steps, error]
        if step.finish:
            self._release(slot)
        elif step.token is not None:
            sequence.todo = np.array([step.token], dtype=np.int32)
        return [*steps, step]

    def _token(self, slot: Slot, sequence: Sequence, row: int) -> Step:
        assert sequence.sampler
        logits = row_of(self.loaded.context, row, self.vocab.size)
        wanted = sequence.job.top_logprobs
        # a grammar masks the logits in place; probabilities are the model's own, before it
        raw = logits.copy() if wanted is not None else logits
        token = sequence.sampler.sample(self.loaded.context, row, logits)
        sequence.made += 1
        if token in self.vocab.ends:
            return Step(finish="stop", cached=sequence.cached)
        logprob, top = logprobs(raw, token, wanted) if wanted is not None else (None, [])
        finish: Literal["stop", "length"] | None = None
        if sequence.sampler.complete:
            finish = "stop"
        elif sequence.made >= sequence.job.max_tokens or slot.length >= self.loaded.context_length:
            finish = "length"
        return Step(token, logprob, top, finish, cached=sequence.cached)

    def _scores(self, sequence: Sequence, first: int, count: int) -> list[Step]:
        """The log-probability of each prompt token that follows one of the rows just read."""
        done = len(sequence.prompt) - len(sequence.todo)
        steps = [Step(sequence.job.prompt[0], prompt=True)] if done == 0 else []
        for offset in range(min(count, len(sequence.todo) - 1)):
            logits = row_of(self.loaded.context, first + offset, self.vocab.size)
            token = int(sequence.todo[offset + 1])
            steps.append(Step(token, *logprobs(logits, token, sequence.job.top_logprobs or 0), prompt=True))
        return steps

    def _fail_all(self, error: StackError) -> None:
        with self._wake:
            self._closing = True
            left = self.waiting + [sequence for _, sequence in self._active()]
            for slot, _ in self._active():
                self._release(slot)
            self.waiting = []
        _deliver([(sequence, error) for sequence in left])


def _deliver(events: list[tuple[Sequence, Step | StackError]]) -> None:
    """Hand the events of one step to their event loops: one call for each loop, not for each token."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[Sequence, Step | StackError]]] = {}
    for sequence, step in events:
        loops.setdefault(sequence.loop, []).append((sequence, step))
    for loop, mine in loops.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_put, mine)


def _put(events: list[tuple[Sequence, Step | StackError]]) -> None:
    for sequence, step in events:
        sequence.steps.put_nowait(step)
