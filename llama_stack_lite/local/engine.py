"""The contract of an engine in this process: a job in, a step for each token out."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import llguidance


@dataclass(frozen=True, slots=True)
class Sampling:
    """One sequence's settings, already checked; `temperature` 0 is greedy."""

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0 or self.top_p == 0

    @property
    def penalizes(self) -> bool:
        """Whether tokens that were written are less likely to be written again."""
        return (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to generate. `top_logprobs` None means no log-probabilities; `score_prompt` wants the prompt's.

    `media` holds the images of the prompt, in the engine's own form; `adapter` names a LoRA adapter.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    grammar: str | None = None
    top_logprobs: int | None = None
    score_prompt: bool = False
    media: Any = None
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One token out, of the answer or (`prompt`) scored in the prompt; the last has a `finish`.

    `cached` counts the prompt's tokens that need not be read again; `more` says that the next came with it.
    """

    token: int | None = None
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None
    prompt: bool = False
    cached: int = 0
    more: bool = False


class Vocab(Protocol):
    """A model's tokens. `pieces` are their bytes, `specials` the control tokens by their text."""

    size: int
    pieces: list[bytes]
    ends: frozenset[int]
    controls: frozenset[int]
    specials: dict[str, int]

    @property
    def bos_text(self) -> str: ...
    @property
    def eos_text(self) -> str: ...

    def tokens_of(self, text: str, *, special: bool) -> list[int]:
        """Tokenise without BOS; `special` reads `<|...|>` as the control tokens they name."""
        ...

    def prompt(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Tokenise a prompt of `(text, special)` pieces, with exactly one BOS where the model wants one."""
        ...

    @property
    def constrained(self) -> llguidance.LLTokenizer:
        """The vocabulary as grammars want it."""
        ...


class Engine(Protocol):
    """Runs one model for many requests at once."""

    def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Yield steps as they are made; closing the generator stops the job.

        Raises `Busy` when too many wait, `Unavailable` when the engine broke.
        """
        ...
