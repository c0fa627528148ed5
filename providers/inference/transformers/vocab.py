"""A Hugging Face tokenizer as engines want it: text to tokens, and tokens to bytes."""

from collections.abc import Iterable
from functools import cached_property

import llguidance
import llguidance.hf
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

# tokens that end a turn or a text, by the names that makers give them
ENDS = (
    *("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|im_end|>", "<|endoftext|>"),
    *("<|end|>", "<|eot|>", "<|return|>", "<end_of_turn>", "<turn|>", "</s>", "<eos>"),
)


class Vocab:
    """The tokenizer of a model whose logits have `size` places; safe to use from any thread.

    `ends` are the tokens that its generation settings name, beside those that are known by their names.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, *, size: int, ends: Iterable[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.size = size
        # whether control tokens are meant is a setting of the tokenizer, so there are two
        self._special = _copy(tokenizer.backend_tokenizer)
        self._plain = _copy(tokenizer.backend_tokenizer)
        self._plain.encode_special_tokens = True
        added = tokenizer.added_tokens_decoder
        self.controls = frozenset(token for token, known in added.items() if known.special)
        self.specials = {added[token].content: token for token in sorted(self.controls)}
        named = {self.specials[text] for text in ENDS if text in self.specials}
        own = {tokenizer.eos_token_id} - {None}
        self.ends: frozenset[int] = frozenset({*ends, *named, *own})
        self.pieces = self._pieces()
        self.bos: int | None = tokenizer.bos_token_id
        self.adds_bos = self.bos is not None and self._special.encode("").ids[:1] == [self.bos]

    def _pieces(self) -> list[bytes]:
        """Every token's bytes; none for what is beyond the tokenizer's own tokens."""
        known = min(len(self.tokenizer), self.constrained.vocab_size)
        pieces: list[bytes] = [self.constrained.decode_bytes([token]) for token in range(known)]
        pieces += [b""] * (self.size - known)
        for text, token in self.specials.items():
            if token < len(pieces):
                pieces[token] = text.encode()
        return pieces

    @property
    def bos_text(self) -> str:
        return self.tokenizer.bos_token or ""

    @property
    def eos_text(self) -> str:
        return self.tokenizer.eos_token or ""

    def tokens_of(self, text: str, *, special: bool) -> list[int]:
        """Tokenise without BOS; `special` reads `<|...|>` as the control tokens they name."""
        data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        tokenizer = self._special if special else self._plain
        found: list[int] = tokenizer.encode(data, add_special_tokens=False).ids
        return found

    def prompt(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Tokenise a prompt of `(text, special)` pieces, with exactly one BOS where the model wants one."""
        tokens: list[int] = []
        for text, special in pieces:
            tokens += self.tokens_of(text, special=special)
        if self.adds_bos and self.bos is not None and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)
        return tokens

    @cached_property
    def constrained(self) -> llguidance.LLTokenizer:
        """The vocabulary as grammars want it; takes about a second for 128,000 tokens."""
        ends = sorted(self.ends) or None
        size = max(self.size, len(self.tokenizer))
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=size, eos_token=ends)


def _copy(tokenizer: Tokenizer) -> Tokenizer:
    found = Tokenizer.from_str(tokenizer.to_str())
    found.no_truncation()
    found.no_padding()
    return found
