"""Where a text may be cut: between paragraphs, sentences, rows and lines, words, and at last characters."""

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Span = tuple[int, int]  # the first character, and the one behind the last
Levels = Sequence[re.Pattern[str]]  # a text is cut where one of them ends, the first being the best

PARAGRAPH = re.compile(r"\n[ \t]*(?:\n[ \t]*)*\n")
SENTENCE = re.compile(r"[.!?…][\"'”’»)\]]*\s++(?![a-z])|[。！？]++[”’」』）]*")
LINE = re.compile(r"\n")
WORD = re.compile(r"\s+")

PROSE: Levels = (PARAGRAPH, SENTENCE, LINE, WORD)
ROWS: Levels = (LINE, WORD)
INDENT = re.compile(r"^[ \t]*(?=\S)", re.MULTILINE)
NEAR = 8  # tokens by which a window may be shorter, or begin earlier, so that no word is cut


@dataclass(frozen=True, slots=True)
class Measured:
    """A text, and where its tokens begin."""

    text: str
    starts: Sequence[int]

    def count(self, span: Span) -> int:
        return bisect_left(self.starts, span[1]) - bisect_left(self.starts, span[0])


def levels(kind: str, text: str) -> Levels:
    """The ways to cut a block of that kind; code and lists are cut before the lines of least indent."""
    if kind == "table":
        return ROWS
    if kind not in ("code", "list"):
        return PROSE
    least = min((len(match[0]) for match in INDENT.finditer(text)), default=0)
    low = rf"\n(?=[ \t]{{0,{least}}}[^\s)\]}}])"
    if kind == "code":
        return re.compile(rf"\n[ \t]*{low}"), re.compile(low), PARAGRAPH, LINE, WORD
    return re.compile(low), LINE, SENTENCE, WORD


def cut(measured: Measured, room: int, ways: Levels, within: Span | None = None) -> list[Span]:
    """Spans of at most `room` tokens that make up the text; each is as long as the best places allow."""
    begin, end = within or (0, len(measured.text))
    if measured.count((begin, end)) <= room:
        return [(begin, end)]
    if not ways:
        return list(_by_characters(measured, room, begin, end))
    done: list[Span] = []
    last = begin
    for edge in _edges(ways[0], measured.text, begin, end):
        if measured.count((begin, edge)) > room:
            if last > begin:
                done.append((begin, last))
                begin = last
            if measured.count((begin, edge)) > room:
                *whole, (begin, _) = cut(measured, room, ways[1:], (begin, edge))
                done += whole
        last = edge
    return [*done, (begin, end)]


def _edges(way: re.Pattern[str], text: str, begin: int, end: int) -> Iterator[int]:
    for match in way.finditer(text, begin, end):
        if begin < match.end() < end:
            yield match.end()
    yield end


def _by_characters(measured: Measured, room: int, begin: int, end: int) -> Iterator[Span]:
    text, starts = measured.text, measured.starts
    while (index := bisect_left(starts, begin) + room) < len(starts) and starts[index] < end:
        # a character that is longer than the room is cut all the same: the room is what the model can read
        place = between(text, starts[index], begin) or max(starts[index], begin + 1)
        yield begin, place
        begin = place
    yield begin, end


def between(text: str, place: int, after: int) -> int | None:
    """The last place in `(after, place]` that is between two characters as readers see them."""
    while place > after:
        if not _joined(text, place):
            return place
        place -= 1
    return None


def _joined(text: str, place: int) -> bool:
    """Whether what meets here is one character: letter and accent, the parts of an emoji, a flag, a syllable.

    The usual cases of Unicode's grapheme clusters, which Python does not know.
    """
    if place >= len(text):
        return False
    before, here = text[place - 1], text[place]
    if here < "\u0300":
        return before == "\r" and here == "\n"
    if before == "\u200d" or here == "\u200d" or unicodedata.category(here) in ("Mn", "Me", "Mc"):
        return True
    if "\U0001f3fb" <= here <= "\U0001f3ff" or "\U000e0020" <= here <= "\U000e007f":
        return True  # skin tones, and the tags that spell a flag
    if _is_letter_of_flag(here):
        length = 0
        while length < place and _is_letter_of_flag(text[place - 1 - length]):
            length += 1
        return length % 2 == 1
    return "\u1160" <= here <= "\u11ff"  # vowels and ends of Korean syllables


def _is_letter_of_flag(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def windows(measured: Measured, size: int, overlap: int) -> Iterator[Span]:
    """Spans of at most `size` tokens over the whole text, each sharing `overlap` with the one before.

    They are cut where tokens begin; a short word stays whole, for which a window gives way by a few tokens.
    """
    text, starts = measured.text, measured.starts
    near = min(NEAR, (size - overlap) // 4)
    first = begin = 0
    while first + size < len(starts):
        end = _between_words(measured, first + size, near, begin)
        yield begin, end
        after = bisect_left(starts, end)
        begin = _between_words(measured, after - overlap, near, begin) if overlap else end
        first = bisect_left(starts, begin)
    if starts:
        yield begin, len(text)


def _between_words(measured: Measured, index: int, near: int, after: int) -> int:
    """Where the token begins, or one just before it that is not inside a word; always behind `after`."""
    text, starts = measured.text, measured.starts
    places = [starts[each] for each in range(index, max(index - near, 0), -1) if starts[each] > after]
    for place in places:
        if text[place - 1].isspace() or text[place].isspace():
            return place
    for place in places:
        if not (text[place - 1].isalnum() and text[place].isalnum()) and not _joined(text, place):
            return place
    return between(text, starts[index], after) or max(starts[index], after + 1)
