"""A GGUF's vocabulary: text to tokens, and tokens to bytes."""

import ctypes
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import llama_cpp.llama_cpp as lib
import llguidance

from llama_stack_lite.local.places import from_pieces


class Vocab:
    """The tokenizer inside a loaded model; safe to use from any thread, as llama.cpp's is."""

    def __init__(self, model: Any) -> None:
        self.handle = lib.llama_model_get_vocab(model)
        self.size: int = lib.llama_vocab_n_tokens(self.handle)
        self.bos: int = lib.llama_vocab_bos(self.handle)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.handle) and self.bos >= 0
        tokens = range(self.size)
        self.pieces: list[bytes] = [self._piece(token) for token in tokens]
        self.ends = frozenset(token for token in tokens if lib.llama_vocab_is_eog(self.handle, token))
        self.controls = frozenset(token for token in tokens if lib.llama_vocab_is_control(self.handle, token))
        self.specials = {self.text_of(token): token for token in sorted(self.controls) if self.pieces[token]}

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = lib.llama_token_to_piece(self.handle, token, buffer, 256, 0, True)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = lib.llama_token_to_piece(self.handle, token, buffer, -length, 0, True)
        return buffer.raw[:length]

    def text_of(self, token: int) -> str:
        """The text of a token such as BOS; nothing for a token that the model does not have."""
        return self.pieces[token].decode("utf-8", "replace") if token >= 0 else ""

    @property
    def bos_text(self) -> str:
        return self.text_of(self.bos)

    @property
    def eos_text(self) -> str:
        return self.text_of(lib.llama_vocab_eos(self.handle))

    def tokens_of(self, text: str, *, special: bool, ends: bool = False) -> list[int]:
        """Tokenise; `special` reads `<|...|>` as the control tokens they name.

        `ends` puts the tokens around it that the model wants around a text, such as BOS.
        """
        data = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace").encode()
        room = len(data) + 8
        buffer = (lib.llama_token * room)()
        count = lib.llama_tokenize(self.handle, data, len(data), buffer, room, ends, special)
        if count < 0:
            buffer = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self.handle, data, len(data), buffer, -count, ends, special)
        return list(buffer[:count])

    def starts(self, text: str) -> list[int]:
        """Where in a text its tokens begin, in characters, with the tokens that the model wants around it."""
        tokens = self.tokens_of(text, special=False, ends=True)
        pieces = [b"" if token in self.controls else self.pieces[token] for token in tokens]
        return from_pieces(pieces, text)

    def prompt(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Tokenise a prompt of `(text, special)` pieces, with exactly one BOS where the model wants one."""
        tokens: list[int] = []
        for text, special in pieces:
            tokens += self.tokens_of(text, special=special)
        if self.adds_bos and tokens[:1] != [self.bos]:
            tokens.insert(0, self.bos)
        return tokens

    @cached_property
    def constrained(self) -> llguidance.LLTokenizer:
        """The vocabulary as llguidance wants it, made on first use: 0.1 to 1 s."""
        # a byte that no text holds marks control tokens, so that no grammar mistakes them for their spelling
        marked = [b"\xff" + p if token in self.controls else p for token, p in enumerate(self.pieces)]
        tokenizer: llguidance.LLTokenizer = llguidance.LLTokenizer.from_llamacpp(  # type: ignore[attr-defined]
            tokens=marked,
            vocab_ptr=self.handle,
            tokenize_fptr=ctypes.cast(lib._lib.llama_tokenize, ctypes.c_void_p).value,
            eos_token=sorted(self.ends) or [lib.llama_vocab_eos(self.handle)],
            slices=None,
        )
        return tokenizer
