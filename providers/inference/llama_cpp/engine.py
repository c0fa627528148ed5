"""One thread that decodes for everybody: each step takes a token of every running sequence and,
up to a budget, a piece of the prompts that are new."""

import logging
import threading
import time
from collections.abc import AsyncGenerator
from typing import Literal

import llama_cpp.llama_cpp as lib
import llguidance
import numpy as np

from llama_stack_lite.errors import StackError, Unavailable
from llama_stack_lite.local.engine import Job, Step
from llama_stack_lite.local.line import Event, Line, Ticket
from llama_stack_lite.local.logits import logprobs

from .batch import BATCH, WORTH_PADDING, Batch, Ids, Pace, padding
from .cache import WORTH_COPYING, Cache, Slot, common
from .loading import Loaded
from .sampling import Sampler, row_of
from .threads import Threads, rest
from .vision import Tile, Tiles, boundary, decode, surplus

log = logging.getLogger(__name__)

ANY = np.zeros(BATCH, dtype=np.int32)  # tokens whose meaning does not matter


class Sequence(Ticket):
    """A job in progress; `todo` are the tokens that the next steps still have to read."""

    def __init__(self, job: Job, grammar: llguidance.LLMatcher | None) -> None:
        super().__init__(job, grammar)
        self.prompt: Ids = np.array(job.prompt, dtype=np.int32)
        self.todo = self.prompt
        self.tiles: Tiles = job.media or {}
        self.seen = 0  # rows of an image that is read in pieces
        self.made = 0
        self.cached = 0
        self.came = self.began = 0  # when it got its slot, and its first token, by the cache's clock
        self.length = 0  # what there was `left` of its prompt when it got its slot
        self.due = 0  # how many rows of all prompts were read, since the start, when its turn comes
        self.sampler: Sampler  # from the moment that it has a slot

    @property
    def reading(self) -> bool:
        return self.made == 0

    @property
    def left(self) -> int:
        """How much of its prompt is still to be read, in whole `SHORT`s: about as long is as long."""
        return -(-len(self.todo) // Pace.SHORT) * Pace.SHORT

    def hurries(self, writers: "list[Sequence]") -> bool:
        """Whether its prompt is read at full speed: where it is soon over, and where it waited while theirs,
        which were no shorter, were read."""
        waited = [self.came < writer.began and self.length <= writer.length for writer in writers]
        return self.left <= Pace.SHORT or all(waited)

    def wait(self, read: int) -> None:
        """Let shorter ones go first, until as many rows are read as it has left."""
        self.due = read + self.left

    def sees(self) -> Tile | None:
        """The image that is to be read next, whole or the rest of it."""
        return self.tiles.get(len(self.prompt) - len(self.todo)) if self.reading else None

    def text_ahead(self) -> int:
        """How many tokens there are to read before the next image."""
        at = len(self.prompt) - len(self.todo)
        return min((start for start in self.tiles if start > at), default=len(self.prompt)) - at


class Engine:
    """Continuous batching over one loaded model. All of llama.cpp is touched by one thread only."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        slots: int,
        queue: int,
        interval: float = 0.0,
        threads: Threads | None = None,
    ) -> None:
        self.loaded = loaded
        self.vocab = loaded.vocab
        self.cache = Cache(loaded.memory, slots=slots, room=loaded.context_length + 1)
        self.line: Line[Sequence] = Line(
            slots=slots, queue=queue, seat=self._seat, free=self._free, rest=rest, interval=interval
        )
        self._adapter: str | None = None
        self._batch = Batch(BATCH + slots)
        self._spare: list[tuple[Slot, int]] = []  # slots with rows that nobody asked for, and to cut them to
        self._pace = Pace()
        self._read = 0  # rows of prompts, since the start
        self._threads = threads or Threads(1, 1)
        self._thread = threading.Thread(target=self._work, name="llama.cpp", daemon=True)
        self._thread.start()

    @property
    def broken(self) -> str | None:
        return self.line.broken

    def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Yield steps as they are made; closing the generator frees the slot at the next step.

        Raises `Busy` when the queue is full, `Unavailable` when the engine broke.
        """
        return self.line.generate(job, Sequence, vocab=self.vocab)

    def close(self) -> None:
        """Stop the thread, fail what still runs, free the model."""
        self.line.shut()
        self._thread.join()

    # ------------------------------------------------------------ the engine's own thread

    def _work(self) -> None:
        self.line.run(self._step)
        self.loaded.close()

    def _active(self) -> list[tuple[Slot, Sequence]]:
        return [(slot, slot.user) for slot in self.cache.slots if slot.user]

    def _seat(self, sequence: Sequence) -> bool:
        """Give a slot with as much of the prompt as there is; False while more of it is being read."""
        job = sequence.job
        if not job.score_prompt and self._is_coming(sequence):
            return False
        self.line.flush()  # to copy a prefix may take a while
        slot, keep = self.cache.take(sequence.prompt, job.adapter)
        keep = self.cache.cut(slot, 0 if job.score_prompt else boundary(sequence.tiles, keep))
        held = {at: tile for at, tile in sequence.tiles.items() if at < keep}
        sequence.cached = keep + surplus(held)
        sequence.todo = sequence.prompt[keep:]
        sequence.sampler = Sampler(self.vocab, job.sampling, sequence.grammar)
        sequence.came, sequence.length = self.cache.now(), sequence.left
        sequence.wait(self._read)
        slot.user = sequence
        return True

    def _is_coming(self, sequence: Sequence) -> bool:
        """Whether another is just reading the same prefix: to wait and copy it is faster than to read it."""
        _, held = self.cache.best(sequence.prompt, sequence.job.adapter)
        for slot, other in self._active():
            if other.reading and slot.adapter == sequence.job.adapter:
                shared = common(other.prompt, sequence.prompt[:-1])
                if shared >= held + WORTH_COPYING and slot.length < shared:
                    return True
        return False

    def _free(self, sequence: Sequence) -> None:
        sequence.sampler.close()
        self.cache.release(next(slot for slot in self.cache.slots if slot.user is sequence))

    def _step(self) -> None:
        """Read a batch of tokens and sample after each sequence that has read all of its own."""
        started = time.perf_counter()
        active = self._turn()
        looking = any(sequence.sees() for _, sequence in active)
        out = self._see(active) if looking else []
        rows, writers, read = self._fill([each for each in active if each[0].user and not each[1].sees()])
        # nothing is kept back while a prompt is read, not between its pieces either: these make tokens late
        code = self._decode(hold=not any(sequence.reading for _, sequence in active)) if rows else 0
        for slot, first, count in rows:
            sequence = slot.user
            if code:
                out.append(self._no_room(slot))
                continue
            slot.extend(sequence.todo[:count])
            out += [(sequence, step) for step in self._sampled(slot, sequence, first, count)]
        if not looking:  # an image's rows are not a prompt's
            self._pace.learn(time.perf_counter() - started, writers=writers, read=read)
        self._read += read
        self.line.put(out)

    def _decode(self, *, hold: bool) -> int:
        """Run the batch; as `_checked` in what it returns and raises."""
        with self._threads.step(self._batch.handle.n_tokens) as threads:
            self.loaded.use_threads(threads)
            self.line.flush(due=hold)
            code = self._checked(lib.llama_decode(self.loaded.context, self._batch.handle))
            lib.llama_synchronize(self.loaded.context)
        for slot, length in self._spare:
            self.cache.cut(slot, length)
        return code

    def _checked(self, code: int) -> int:
        """What `llama_decode` returned: 0, or 1 where the cache has no room; raises where it failed."""
        if code < 0:
            raise RuntimeError(f"llama_decode failed with {code}")
        return code

    def _no_room(self, slot: Slot) -> Event:
        sequence = slot.user
        self.cache.cut(slot, 0)
        self.line.leave(sequence)
        return sequence, Unavailable("no room left in the KV cache")

    def _see(self, active: list[tuple[Slot, Sequence]]) -> list[Event]:
        """Read a piece of the image that each sequence has come to, if any."""
        self.line.flush()
        out: list[Event] = []
        _, budget = self._shares(active)
        for slot, sequence in active:
            if (tile := sequence.sees()) and budget:
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

    def _shares(self, active: list[tuple[Slot, Sequence]]) -> tuple[list[Sequence], int]:
        """Those who write already, and how many rows the others may read."""
        readers = [sequence for _, sequence in active if sequence.reading]
        writers = [sequence for _, sequence in active if not sequence.reading]
        hurry = any(sequence.hurries(writers) for sequence in readers)
        return writers, self._pace.rows(readers=len(readers), writers=len(writers), hurry=hurry)

    def _fill(self, active: list[tuple[Slot, Sequence]]) -> tuple[list[tuple[Slot, int, int]], int, int]:
        """Fill the batch in slot order, as separate KV streams want.

        Return `(slot, first row, rows)` of each sequence in it, how many of them write already, and how many
        rows are of the prompts of others.
        """
        writers, budget = self._shares(active)
        counts, room = {slot.number: 1 for slot, _ in active}, BATCH
        readers = sorted((each for each in active if each[1].reading), key=lambda each: each[1].due)
        for place, (slot, sequence) in enumerate(readers, 1):
            counts[slot.number] = self._pace.portion(
                sequence.text_ahead(), budget, start=slot.length, room=room, beside=room < BATCH
            )
            budget = max(0, budget - counts[slot.number])
            room -= counts[slot.number]
            if counts[slot.number] and any(other.left < sequence.left for _, other in readers[place:]):
                sequence.wait(self._read)  # its turn had come: one piece, and the shorter ones may go on
        return self._rows(active, counts, room), len(writers), BATCH - room

    def _rows(
        self, active: list[tuple[Slot, Sequence]], counts: dict[int, int], room: int
    ) -> list[tuple[Slot, int, int]]:
        """Put the next rows of each sequence into the batch, as few or many as by the number of its slot.

        With some more that save llama.cpp runs of its graph, and are cut again when it was run; `room` is how
        many the prompts may get.
        """
        used = [slot for slot, _ in active if counts[slot.number]]
        extra = padding(self._may_grow(used, counts), room)
        bridges = self.cache.between(used)
        extra |= {slot.number: 1 for slot in bridges}
        self._batch.clear()
        self._spare.clear()
        rows = []
        for slot in sorted([*used, *bridges], key=lambda each: each.number):
            count = counts.get(slot.number, 0)
            if count:
                rows.append((slot, self._add(slot, slot.user, count), count))
            if more := extra.get(slot.number):
                end = slot.length + count
                self._batch.add(ANY[:more], start=end, slot=slot.number, outputs="none")
                self._spare.append((slot, end))
        return rows

    def _may_grow(self, used: list[Slot], counts: dict[int, int]) -> dict[int, int]:
        """The pieces of prompts that may be read further than they go: how long they are, by slots."""
        return {
            slot.number: count
            for slot in used
            if slot.user.reading
            and self.loaded.rewinds
            and slot.length + (count := counts[slot.number]) + WORTH_PADDING < slot.room
        }

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
            self.line.leave(sequence)
            return [*steps, Step(finish="length", cached=sequence.cached)]
        try:
            step = self._token(slot, sequence, first + count - 1)
        except StackError as error:  # its grammar's, and nobody else's
            self.line.leave(sequence)
            return [*steps, error]
        if step.finish:
            self.line.leave(sequence)
        elif step.token is not None:
            sequence.todo = np.array([step.token], dtype=np.int32)
        return [*steps, step]

    def _token(self, slot: Slot, sequence: Sequence, row: int) -> Step:
        logits = row_of(self.loaded.context, row, self.vocab.size)
        wanted = sequence.job.top_logprobs
        # a grammar masks the logits in place; probabilities are the model's own, before it
        raw = logits.copy() if wanted is not None else logits
        token = sequence.sampler.sample(self.loaded.context, row, logits)
        sequence.began = sequence.began or self.cache.now()
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
