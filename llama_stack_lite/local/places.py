"""Where in a text its tokens begin, for tokenizers that say it and for those that do not."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

REACH = 64  # characters within which a token that was written otherwise is looked for


def from_offsets(offsets: Sequence[tuple[int, int]], length: int) -> list[int]:
    """The first characters of tokens, ascending; a special token has the empty offsets `(0, 0)`."""
    starts = [start for start, _ in offsets]
    place = len(starts)
    while place and offsets[place - 1] == (0, 0):
        place -= 1
        starts[place] = length
    return list(accumulate(starts, max))


def from_pieces(pieces: Sequence[bytes], text: str) -> list[int]:
    """The first characters of tokens that stand for these bytes, ascending; special tokens have none.

    Exact where the pieces are the text, with or without a space before it; near where the tokenizer has
    changed the text, as BERT's has, which reads small letters without accents.
    """
    data = text.encode("utf-8", "replace")
    joined = b"".join(pieces)
    shift = len(joined) - len(data)
    if shift in (0, 1) and joined.endswith(data):
        ends = list(accumulate(len(char.encode("utf-8", "replace")) for char in text))
        places = accumulate((len(piece) for piece in pieces[:-1]), initial=-shift)
        return [bisect_right(ends, max(0, place)) for place in places]
    return _found(pieces, text)


def _found(pieces: Sequence[bytes], text: str) -> list[int]:
    folded = text if text.isascii() else "".join(map(_plain, text))
    folded = folded.lower() if folded.isascii() else "".join(map(_small, folded))
    starts, place = [], 0
    for piece in pieces:
        wanted = piece.decode("utf-8", "replace").strip().lower()
        found = folded.find(wanted, place, place + REACH + len(wanted)) if wanted else place
        starts.append(max(found, place))
        place = found + len(wanted) if found >= 0 else place
    return starts


def _plain(char: str) -> str:
    return unicodedata.normalize("NFD", char)[0]


def _small(char: str) -> str:
    small = char.lower()
    return small if len(small) == 1 else char
