"""How the next token is chosen: llama.cpp's sampler chain, after a grammar's mask and the request's bias."""

import ctypes

import llama_cpp.llama_cpp as lib
import llguidance
import numpy as np

from llama_stack_lite.local.engine import Sampling
from llama_stack_lite.local.logits import Logits, accept, add_bias, mask

from .vocab import Vocab


class Sampler:
    """A sampler chain in llama.cpp's own order; the grammar's mask and the bias before it."""

    def __init__(self, vocab: Vocab, sampling: Sampling, matcher: llguidance.LLMatcher | None) -> None:
        self.vocab = vocab
        self.matcher = matcher
        self.bias = sampling.logit_bias
        # what llama.cpp finds too, after it has made a list of all logits: ten times as slow
        self.highest = sampling.greedy and not sampling.penalizes
        self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in _parts(vocab.size, sampling):
            lib.llama_sampler_chain_add(self.chain, part)

    def sample(self, context: object, row: int, logits: Logits) -> int:
        """Choose from the logits of an output row, which a grammar or a bias changes in place.

        Raises as `accept` does.
        """
        if self.matcher is not None:
            mask(logits, self.matcher)
        add_bias(logits, self.bias)
        token: int = (
            int(logits.argmax()) if self.highest else lib.llama_sampler_sample(self.chain, context, row)
        )
        if self.matcher is not None:
            accept(token, self.matcher)
        return token

    @property
    def complete(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.matcher is not None and self.matcher.is_stopped()

    def close(self) -> None:
        lib.llama_sampler_free(self.chain)


def _parts(n_vocab: int, s: Sampling) -> list[object]:
    parts: list[object] = []
    if s.penalizes:
        parts.append(
            lib.llama_sampler_init_penalties(
                n_vocab, 64, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
            )
        )
    if s.greedy:
        return [*parts, lib.llama_sampler_init_greedy()]
    if s.top_k:
        parts.append(lib.llama_sampler_init_top_k(s.top_k))
    if s.top_p < 1:
        parts.append(lib.llama_sampler_init_top_p(s.top_p, 1))
    if s.min_p:
        parts.append(lib.llama_sampler_init_min_p(s.min_p, 1))
    parts.append(lib.llama_sampler_init_temp(s.temperature))
    return [*parts, lib.llama_sampler_init_dist(s.seed & 0xFFFFFFFF)]


def row_of(context: object, row: int, n_vocab: int) -> Logits:
    """A view, not a copy, of the logits of an output row of the last batch."""
    pointer = lib.llama_get_logits_ith(context, row)
    if not pointer:
        raise RuntimeError(f"llama.cpp gave no logits for row {row}")
    address = ctypes.addressof(pointer.contents)
    return np.frombuffer(memoryview((ctypes.c_float * n_vocab).from_address(address)), np.float32)
