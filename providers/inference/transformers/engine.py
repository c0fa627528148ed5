"""One thread that runs the model for everybody: each step reads a piece of a prompt that is new, and a
token of every sequence that is being written."""

import logging
import threading
from collections.abc import AsyncGenerator
from typing import Literal

import llguidance
import numpy as np
import torch
from transformers import PreTrainedModel

from llama_stack_lite.errors import StackError, Unavailable
from llama_stack_lite.local.engine import Job, Step
from llama_stack_lite.local.line import Event, Line, Ticket
from llama_stack_lite.local.logits import Logits, logprobs

from .cache import memory_of
from .sampling import Sampler
from .vocab import Vocab

log = logging.getLogger(__name__)

PIECE = 512  # tokens of a prompt that a step reads
SHARED = 64  # the same where others wait for their next token


class Sequence(Ticket):
    """A job in progress: `todo` is what is unread of its prompt, and then its newest token."""

    def __init__(self, job: Job, grammar: llguidance.LLMatcher | None) -> None:
        super().__init__(job, grammar)
        self.todo = list(job.prompt)
        self.made = 0
        self.sampler = Sampler(job.sampling, grammar)

    @property
    def reading(self) -> bool:
        return self.made == 0


class Engine:
    """Continuous batching over one loaded model, which one thread touches."""

    def __init__(
        self,
        model: PreTrainedModel,
        vocab: Vocab,
        *,
        context_length: int,
        slots: int,
        queue: int,
        interval: float = 0.0,
    ) -> None:
        self.vocab = vocab
        self.context_length = context_length
        self.memory = memory_of(model)
        self.line: Line[Sequence] = Line(slots=slots, queue=queue, free=self.memory.free, interval=interval)
        self._thread = threading.Thread(target=self._work, name="transformers", daemon=True)
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
        """Stop the thread, and fail what still runs."""
        self.line.shut()
        self._thread.join()

    # ------------------------------------------------------------ the engine's own thread

    @torch.inference_mode()
    def _work(self) -> None:
        self.line.run(self._step)

    def _step(self) -> None:
        if any(sequence.reading for sequence in self.line.running):
            self.line.flush()  # nothing is kept back while a prompt is read
            self.line.put(self._read())
        self.line.flush(due=True)
        self.line.put(self._write())

    def _read(self) -> list[Event]:
        """A piece of one prompt: the shortest, which waits for nobody's long one."""
        readers = [sequence for sequence in self.line.running if sequence.reading]
        sequence = min(readers, key=lambda each: len(each.todo))
        piece = sequence.todo[: self._piece(sequence, alone=len(readers) == len(self.line.running))]
        scored = sequence.job.score_prompt
        try:
            rows = self.memory.read(sequence, piece, media=sequence.job.media or {}, every=scored)
        except torch.OutOfMemoryError as error:
            log.error("no memory for a prompt of %d tokens: %s", len(sequence.job.prompt), error)
            return self._fail(sequence, Unavailable("there is no memory left for this prompt now"))
        logits = _array(rows)
        events: list[Event] = []
        if scored:
            events += [(sequence, step) for step in self._scores(sequence, logits)]
        sequence.todo = sequence.todo[len(piece) :]
        if sequence.todo:
            return events
        if sequence.job.max_tokens == 0:
            self.line.leave(sequence)
            return [*events, (sequence, Step(finish="length"))]
        return [*events, *self._said(sequence, logits[-1])]

    def _piece(self, sequence: Sequence, *, alone: bool) -> int:
        """How many tokens to read next."""
        if sequence.job.media:
            return len(sequence.todo)
        return PIECE if alone else SHARED

    def _write(self) -> list[Event]:
        """A token for every sequence that has read its prompt."""
        writers = [sequence for sequence in self.line.running if not sequence.reading]
        if not writers:
            return []
        rows = _array(self.memory.write({sequence: sequence.todo[0] for sequence in writers}))
        found = [self._said(sequence, logits) for sequence, logits in zip(writers, rows, strict=True)]
        return [event for events in found for event in events]

    def _said(self, sequence: Sequence, logits: Logits) -> list[Event]:
        """The next token after a row of logits."""
        try:
            step = self._token(sequence, logits)
        except StackError as error:  # its grammar's, and nobody else's
            return self._fail(sequence, error)
        if step.finish:
            self.line.leave(sequence)
        elif step.token is not None:
            sequence.todo = [step.token]
        return [(sequence, step)]

    def _token(self, sequence: Sequence, logits: Logits) -> Step:
        wanted = sequence.job.top_logprobs
        # sampling changes the row; probabilities are the model's own, before it
        raw = logits.copy() if wanted is not None else logits
        token = sequence.sampler.sample(logits)
        sequence.made += 1
        if token in self.vocab.ends:
            return Step(finish="stop")
        logprob, top = logprobs(raw, token, wanted) if wanted is not None else (None, [])
        finish: Literal["stop", "length"] | None = None
        if sequence.sampler.complete:
            finish = "stop"
        elif self._is_full(sequence):
            finish = "length"
        return Step(token, logprob, top, finish)

    def _is_full(self, sequence: Sequence) -> bool:
        job, made = sequence.job, sequence.made
        return made >= job.max_tokens or len(job.prompt) + made > self.context_length

    def _scores(self, sequence: Sequence, logits: Logits) -> list[Step]:
        """The log-probability of each prompt token that follows one of the rows just read."""
        todo, top = sequence.todo, sequence.job.top_logprobs or 0
        steps = [Step(todo[0], prompt=True)] if len(todo) == len(sequence.job.prompt) else []
        following = todo[1 : len(logits) + 1]
        for token, row in zip(following, logits, strict=False):  # nothing follows the prompt's last row
            steps.append(Step(token, *logprobs(row, token, top), prompt=True))
        return steps

    def _fail(self, sequence: Sequence, error: StackError) -> list[Event]:
        self.line.leave(sequence)
        return [(sequence, error)]


def _array(rows: torch.Tensor) -> Logits:
    """Logits on the CPU, as numbers of 32 bits."""
    found: Logits = rows.float().cpu().numpy()
    return found if found.flags.writeable else np.array(found)
