"""One thread that decodes for everybody: each step takes a token of every running sequence and,
up to a budget, a piece of the prompts that are new."""

import asyncio
import ctypes
import logging
import threading
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Literal

import llama_cpp.llama_cpp as lib
import llguidance
import numpy as np

from llama_stack_lite.errors import Busy, InvalidRequest, StackError, Unavailable

from .loading import Loaded
from .sampling import Sampler, Sampling, logprobs, row_of

log = logging.getLogger(__name__)

BATCH = 256  # rows of one step, at most
SHARED_BATCH = 64  # rows while others wait for their next token: a longer step would stall them


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to generate. `top_logprobs` None means no log-probabilities; `score_prompt` wants the prompt's."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    grammar: str | None = None
    top_logprobs: int | None = None
    score_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One token out, of the answer or (`prompt`) scored in the prompt; the last has a `finish`."""

    token: int | None = None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    prompt: bool = False
    cached: int = 0


class Sequence:
    """A job in progress; `todo` are the tokens that the next steps still have to read."""

    def __init__(self, job: Job, matcher: llguidance.LLMatcher | None) -> None:
        self.job = job
        self.matcher = matcher
        self.todo = list(job.prompt)
        self.made = 0
        self.cached = 0
        self.cancelled = False
        self.sampler: Sampler | None = None
        self.loop = asyncio.get_running_loop()
        self.steps: asyncio.Queue[Step | StackError] = asyncio.Queue()

    @property
    def reading(self) -> bool:
        return self.made == 0


@dataclass(slots=True)
class Slot:
    """A place in the KV cache: the tokens that it holds, and who is using it."""

    number: int
    tokens: list[int] = field(default_factory=list)
    sequence: Sequence | None = None
    used: int = 0

    def shared(self, prompt: list[int]) -> int:
        """How many tokens of a prompt are in the cache already; one is always left to read."""
        limit = min(len(self.tokens), len(prompt) - 1)
        return next((i for i in range(limit) if self.tokens[i] != prompt[i]), limit)


class Engine:
    """Continuous batching over one loaded model. All of llama.cpp is touched by one thread only."""

    def __init__(self, loaded: Loaded, *, slots: int, queue: int) -> None:
        self.loaded = loaded
        self.vocab = loaded.vocab
        self.queue = queue
        self.slots = [Slot(number) for number in range(slots)]
        self.waiting: deque[Sequence] = deque()
        self.broken: str | None = None
        self._clock = 0
        self._closing = False
        self._wake = threading.Condition()
        self._batch = Batch(BATCH)
        self._thread = threading.Thread(target=self._work, name="llama.cpp", daemon=True)
        self._thread.start()

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Yield steps as they are made; closing the generator frees the slot at the next step.

        Raises `Busy` when the queue is full, `Unavailable` when the engine broke.
        """
        matcher = await asyncio.to_thread(self._matcher, job.grammar) if job.grammar else None
        sequence = Sequence(job, matcher)
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

    def _matcher(self, grammar: str) -> llguidance.LLMatcher:
        matcher = llguidance.LLMatcher(self.vocab.constrained, grammar)
        if matcher.is_error():
            reason = matcher.get_error().splitlines()[0]
            raise InvalidRequest(f"the schema cannot be honoured: {reason}", param="response_format")
        return matcher

    def _submit(self, sequence: Sequence) -> None:
        with self._wake:
            if self.broken or self._closing:
                raise Unavailable(f"the model is not running: {self.broken or 'it is being closed'}")
            if len(self.waiting) >= self.queue:
                raise Busy(f"{len(self.waiting)} requests wait for this model already")
            self.waiting.append(sequence)
            self._wake.notify()

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
                if any(slot.sequence for slot in self.slots):
                    return True
                self._wake.wait()
            return False

    def _drop_cancelled(self) -> None:
        self.waiting = deque(each for each in self.waiting if not each.cancelled)
        for slot in self.slots:
            if slot.sequence and slot.sequence.cancelled:
                self._release(slot)

    def _admit(self) -> None:
        while self.waiting and (free := [slot for slot in self.slots if slot.sequence is None]):
            sequence = self.waiting.popleft()
            prompt = sequence.job.prompt
            slot = max(free, key=lambda each: (each.shared(prompt), -each.used))
            keep = 0 if sequence.job.score_prompt else slot.shared(prompt)
            # a recurrent or sliding-window cache refuses a partial cut: then all is read again
            if not lib.llama_memory_seq_rm(self.loaded.memory, slot.number, keep, -1):
                lib.llama_memory_seq_rm(self.loaded.memory, slot.number, -1, -1)
                keep = 0
            slot.tokens = slot.tokens[:keep]
            sequence.cached = keep
            sequence.todo = prompt[keep:]
            sequence.sampler = Sampler(self.vocab, sequence.job.sampling, sequence.matcher)
            slot.sequence = sequence

    def _release(self, slot: Slot) -> None:
        assert slot.sequence and slot.sequence.sampler
        slot.sequence.sampler.close()
        slot.sequence = None
        self._clock += 1
        slot.used = self._clock

    def _step(self) -> None:
        """Read a batch of tokens and sample after each sequence that has read all of its own."""
        rows = self._fill()
        code = lib.llama_decode(self.loaded.context, self._batch.handle)
        if code < 0:
            raise RuntimeError(f"llama_decode failed with {code}")
        out: list[tuple[Sequence, Step | StackError]] = []
        for slot, first, count in rows:
            sequence = slot.sequence
            assert sequence
            if code:
                out.append((sequence, Unavailable("no room left in the KV cache")))
                lib.llama_memory_seq_rm(self.loaded.memory, slot.number, -1, -1)
                slot.tokens = []
                self._release(slot)
                continue
            slot.tokens += sequence.todo[:count]
            out += [(sequence, step) for step in self._sampled(slot, sequence, first, count)]
        _deliver(out)

    def _fill(self) -> list[tuple[Slot, int, int]]:
        """Fill the batch in slot order, as separate KV streams want; return `(slot, first row, rows)`."""
        active = [slot for slot in self.slots if slot.sequence]
        decoding = sum(1 for slot in active if slot.sequence and not slot.sequence.reading)
        budget = (SHARED_BATCH if decoding else BATCH) - decoding
        rows: list[tuple[Slot, int, int]] = []
        self._batch.clear()
        for slot in active:
            sequence = slot.sequence
            assert sequence
            count = min(len(sequence.todo), budget) if sequence.reading else 1
            if count == 0:
                continue
            budget -= count if sequence.reading else 0
            whole = count == len(sequence.todo)
            first = self._batch.add(
                sequence.todo[:count],
                start=len(slot.tokens),
                slot=slot.number,
                outputs="all"
                if sequence.job.score_prompt and sequence.reading
                else "last"
                if whole
                else "none",
            )
            rows.append((slot, first, count))
        return rows

    def _sampled(self, slot: Slot, sequence: Sequence, first: int, count: int) -> list[Step | StackError]:
        """What a sequence gives after the rows it has just read: scores, and perhaps its next token."""
        steps: list[Step | StackError] = []
        if sequence.job.score_prompt and sequence.reading:
            steps += self._scores(sequence, first, count)
        sequence.todo = sequence.todo[count:]
        if sequence.todo:
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
            sequence.todo = [step.token]
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
        elif sequence.made >= sequence.job.max_tokens or len(slot.tokens) >= self.loaded.context_length:
            finish = "length"
        return Step(token, logprob, top, finish, cached=sequence.cached)

    def _scores(self, sequence: Sequence, first: int, count: int) -> list[Step]:
        """The log-probability of each prompt token that follows one of the rows just read."""
        done = len(sequence.job.prompt) - len(sequence.todo)
        steps = [Step(sequence.job.prompt[0], prompt=True)] if done == 0 else []
        for offset in range(min(count, len(sequence.todo) - 1)):
            logits = row_of(self.loaded.context, first + offset, self.vocab.size)
            token = sequence.todo[offset + 1]
            steps.append(Step(token, *logprobs(logits, token, sequence.job.top_logprobs or 0), prompt=True))
        return steps

    def _fail_all(self, error: StackError) -> None:
        with self._wake:
            self._closing = True
            left = list(self.waiting) + [slot.sequence for slot in self.slots if slot.sequence]
            for slot in self.slots:
                if slot.sequence:
                    self._release(slot)
            self.waiting.clear()
        _deliver([(sequence, error) for sequence in left])


class Batch:
    """A `llama_batch` over numpy arrays, filled by slices."""

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

    def add(
        self, tokens: list[int], *, start: int, slot: int, outputs: Literal["none", "last", "all"]
    ) -> int:
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
