"""How the next token is chosen: the chain that llama.cpp's samplers make, on a row of logits."""

from collections import Counter, deque

import llguidance
import numpy as np
from numpy.typing import NDArray

from llama_stack_lite.local.engine import Sampling
from llama_stack_lite.local.logits import Logits, accept, add_bias, mask

Tokens = NDArray[np.intp]

WINDOW = 64  # the newest tokens, which penalties go by


class Sampler:
    """Bias, penalties, top-k, top-p, min-p, temperature, and under them all the grammar's mask."""

    def __init__(self, sampling: Sampling, matcher: llguidance.LLMatcher | None) -> None:
        self.sampling = sampling
        self.matcher = matcher
        self._random = np.random.default_rng(sampling.seed)
        self._recent: deque[int] = deque(maxlen=WINDOW)

    def sample(self, logits: Logits) -> int:
        """Choose from a row of logits, which is changed in place; raises as `accept` does."""
        if self.matcher is not None:
            mask(logits, self.matcher)
        self._weigh(logits)
        token = self._chosen(logits)
        self._recent.append(token)
        if self.matcher is not None:
            accept(token, self.matcher)
        return token

    @property
    def complete(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.matcher is not None and self.matcher.is_stopped()

    def _weigh(self, logits: Logits) -> None:
        s = self.sampling
        add_bias(logits, s.logit_bias)
        if not s.penalizes:
            return
        for token, count in Counter(self._recent).items():
            logits[token] *= s.repeat_penalty if logits[token] <= 0 else 1 / s.repeat_penalty
            logits[token] -= count * s.frequency_penalty + s.presence_penalty

    def _chosen(self, logits: Logits) -> int:
        s = self.sampling
        if s.greedy:
            return int(logits.argmax())
        tokens = _best(logits, s.top_k) if s.top_k else _sorted(logits, s.temperature)
        chances = np.exp(logits[tokens] - logits[tokens[0]], dtype=np.float64)
        if s.top_p < 1:
            mass = np.cumsum(chances) / chances.sum()
            chances = chances[: int(np.searchsorted(mass, s.top_p)) + 1]
        chances = chances[chances >= s.min_p]  # the first is 1
        heated = np.cumsum(chances ** (1 / s.temperature))
        return int(tokens[int(np.searchsorted(heated, self._random.random() * heated[-1], side="right"))])


def _best(logits: Logits, count: int) -> Tokens:
    """The `count` most likely tokens, best first."""
    found = np.argpartition(logits, -count)[-count:] if count < len(logits) else np.arange(len(logits))
    return found[np.argsort(-logits[found], kind="stable")]


def _sorted(logits: Logits, temperature: float) -> Tokens:
    """All tokens that have any chance worth a name, e^-40 of the best's, best first."""
    found = np.flatnonzero(logits >= logits.max() - 40 * max(1.0, temperature))
    return found[np.argsort(-logits[found], kind="stable")]
