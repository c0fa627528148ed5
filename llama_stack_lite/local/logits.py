"""What every sampler does with logits: a mask and a bias before the choice, log-probabilities after it."""

from collections.abc import Mapping

import llguidance
import numpy as np
from numpy.typing import NDArray

from llama_stack_lite.errors import InvalidRequest

Logits = NDArray[np.float32]


def mask(logits: Logits, matcher: llguidance.LLMatcher) -> None:
    """Leave, in place, only the tokens that a grammar allows next."""
    bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
    allowed = np.unpackbits(bits, bitorder="little")[: len(logits)]
    logits[: len(allowed)][allowed == 0] = -np.inf
    logits[len(allowed) :] = -np.inf


def add_bias(logits: Logits, bias: Mapping[int, float]) -> None:
    """Add, in place, to the logits of some tokens; those that the model does not have are left out."""
    for token, more in bias.items():
        if token < len(logits):
            logits[token] += more


def accept(token: int, matcher: llguidance.LLMatcher) -> None:
    """Take a token; raises `InvalidRequest` where the grammar gives up, as it does on limits of its own."""
    matcher.consume_token(token)
    if matcher.is_error():  # it would let the answer end here, as if it were whole
        reason = matcher.get_error().splitlines()[0]
        raise InvalidRequest(f"the schema is too much for the grammar engine: {reason}")


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
