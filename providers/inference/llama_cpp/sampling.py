"""How the next token is chosen: llama.cpp's sampler chain, a grammar's mask, and log-probabilities."""

import ctypes

import llama_cpp.llama_cpp as lib
import llguidance
import numpy as np
from numpy.typing import NDArray

from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.local.engine import Sampling

from .vocab import Vocab

Logits = NDArray[np.float32]


class Sampler:
    """A sampler chain in llama.cpp's own order, and the grammar's mask before it."""

    def __init__(self, vocab: Vocab, sampling: Sampling, matcher: llguidance.LLMatcher | None) -> None:
        self.vocab = vocab
        self.matcher = matcher
        self.chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for part in _parts(vocab.size, sampling):
            lib.llama_sampler_chain_add(self.chain, part)

    def sample(self, context: object, row: int, logits: Logits) -> int:
        """Choose from the logits of an output row; masks them in place where a grammar is set.

        Raises `InvalidRequest` where the grammar gives up, which it does on limits of its own.
        """
        if self.matcher is not None:
            bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
            allowed = np.unpackbits(bits, bitorder="little")[: len(logits)]
            logits[: len(allowed)][allowed == 0] = -np.inf
            logits[len(allowed) :] = -np.inf
        token: int = lib.llama_sampler_sample(self.chain, context, row)
        if self.matcher is None:
            return token
        self.matcher.consume_token(token)
        if self.matcher.is_error():  # it would let the answer end here, as if it were whole
            reason = self.matcher.get_error().splitlines()[0]
            raise InvalidRequest(f"the schema is too much for the grammar engine: {reason}")
        return token

    @property
    def complete(self) -> bool:
        """Whether the grammar allows nothing more."""
        return self.matcher is not None and self.matcher.is_stopped()

    def close(self) -> None:
        lib.llama_sampler_free(self.chain)


def _parts(n_vocab: int, s: Sampling) -> list[object]:
    parts: list[object] = []
    if s.logit_bias:
        entries = [lib.llama_logit_bias(token, bias) for token, bias in s.logit_bias.items()]
        array = (lib.llama_logit_bias * len(entries))(*entries)
        parts.append(lib.llama_sampler_init_logit_bias(n_vocab, len(entries), array))
    if (s.repeat_penalty, s.frequency_penalty, s.presence_penalty) != (1.0, 0.0, 0.0):
        parts.append(
            lib.llama_sampler_init_penalties(
                n_vocab, 64, s.repeat_penalty, s.frequency_penalty, s.presence_penalty
            )
        )
    if s.temperature == 0 or s.top_p == 0:
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
    return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (n_vocab,))


def logprobs(logits: Logits, token: int | None, top: int) -> tuple[float, list[tuple[int, float]]]:
    """The log-probability of a token, and the `top` most likely ones, best first."""
    shift = float(logits.max())
    total = shift + float(np.log(np.exp(logits - shift).sum()))
    best: list[tuple[int, float]] = []
    if top:
        found = np.argpartition(logits, -top)[-top:]
        ordered = found[np.argsort(-logits[found], kind="stable")]
        best = [(int(each), float(logits[each]) - total) for each in ordered]
    return (float(logits[token]) - total if token is not None else 0.0), best
