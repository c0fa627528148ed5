"""Citations: which of the passages that were found an answer is taken from, and where it says so."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from llama_stack_lite.api.responses import FileSearchItem, Item, WebSearchItem

from .search import words

MOST = 200  # passages, the latest, that an answer is compared with
SHARE = 0.7  # of a sentence's words, which the passage that it is taken from has
# what models write behind what they cite, but no link and no subscript of code: [1], [1, 2], [^1]
MARKER = re.compile(r"(?:\[\^?|【)(\d{1,4}(?:\s*[,;]\s*\^?\d{1,4})*)(?:\]|】)(?!\()")
CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)
NUMBERED = re.compile(r"^[ \t]*\d{1,3}[.)](?=\s)", re.MULTILINE)  # items of lists
SENTENCE = re.compile(r"[^\n]+?(?:[.!?…]+[\"'”’)\]*_]*(?=\s|$)|[。！？]+|(?=\n)|$)")
# fmt: off
STOP = frozenset(words(
    "a about after all also an and any are as at be because been before being but by can could did do "
    "does doing for from had has have he her here him his how i if in into is it its itself just like may "
    "me might more most must my no nor not of on only or other our out over own same shall she should so "
    "some such than that the their them then there these they this those through to too under until up us "
    "very was we were what when where which while who whom why will with would yes you your"
))
# fmt: on


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a file as the model read it, under the number that it was given."""

    number: int
    file_id: str
    filename: str
    chunk_id: str
    text: str

    def cited(self, index: int) -> dict[str, Any]:
        """OpenAI's annotation, with the chunk's id besides; `index` counts characters of the text."""
        return {
            "type": "file_citation",
            "file_id": self.file_id,
            "filename": self.filename,
            "index": index,
            "chunk_id": self.chunk_id,
        }


def passages(items: Iterable[Item]) -> list[Passage]:
    """What searches have found, in their order, as far as it has a number of its own."""
    found: dict[int, Passage] = {}
    for item in items:
        if isinstance(item, FileSearchItem):
            for number, each in item.numbered():
                texts = [str(each.get(name) or "") for name in ("file_id", "filename", "chunk_id", "text")]
                found.setdefault(number, Passage(number, *texts))
    return list(found.values())[-MOST:]


def numbers(items: Iterable[Item]) -> Iterator[int]:
    """The numbers that are taken, by files and by pages of the web."""
    for item in items:
        if isinstance(item, FileSearchItem):
            yield from (number for number, _ in item.numbered())
        elif isinstance(item, WebSearchItem):
            yield len(item.results or [])


def citations(text: str, passages: Sequence[Passage], *, unclear: int = 0) -> list[dict[str, Any]]:
    """The annotations of a text, in their order: by the marks that it has, else by its words.

    Marks count up to the number `unclear` could mean something else. What no passage has is not cited.
    """
    plain = _without(CODE, text)
    known = {each.number: each for each in passages if each.number > unclear}
    return list(_marked(plain, known)) or list(_alike(_without(NUMBERED, _without(MARKER, plain)), passages))


def _without(pattern: re.Pattern[str], text: str) -> str:
    """The text with blanks in the place of what matches, so that all else stays where it is."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def _marked(text: str, known: dict[int, Passage]) -> Iterator[dict[str, Any]]:
    """A citation behind each mark, for each of its numbers that is a passage's."""
    for mark in MARKER.finditer(text):
        for number in dict.fromkeys(map(int, re.findall(r"\d+", mark[1]))):
            if number in known:
                yield known[number].cited(mark.end())


def _alike(text: str, passages: Sequence[Passage]) -> Iterator[dict[str, Any]]:
    """A citation behind each sentence that is in the words of a passage."""
    if not passages:
        return
    for sentence in SENTENCE.finditer(text):
        said = sentence[0].rstrip()
        if best := _source(_content(said), passages):
            yield best.cited(sentence.start() + len(said))


def _source(said: Sequence[str], passages: Sequence[Passage]) -> Passage | None:
    """The passage that a sentence with these words is taken from; the first of those that fit as well."""
    best: tuple[tuple[float, int], Passage] | None = None
    for passage in passages:
        known = _read(passage.text)
        if (fit := _fit(said, known)) and (best is None or fit > best[0]):
            best = fit, passage
    if best and len(set(said)) == 1 and sum(said[0] in _read(each.text).words for each in passages) > 1:
        return None  # a word that is everywhere
    return best[1] if best else None


@dataclass(frozen=True, slots=True)
class _Known:
    words: frozenset[str]
    pairs: frozenset[tuple[str, str]]  # of words that follow each other


@lru_cache(512)
def _read(text: str) -> _Known:
    said = _content(text)
    return _Known(frozenset(said), frozenset(pairwise(said)))


def _content(text: str) -> list[str]:
    """The words that say something."""
    return [word for word in words(text) if word not in STOP]


def _fit(said: Sequence[str], known: _Known) -> tuple[float, int] | None:
    """How much of a sentence a passage has, and how many words in a row; None where that is too little.

    A number that the passage does not have is news, whatever else the sentence says.
    """
    different = set(said)
    if not different or any(any(map(str.isdigit, word)) for word in different - known.words):
        return None
    share = len(different & known.words) / len(different)
    longest = run = int(bool(different & known.words))
    for pair in pairwise(said):
        run = run + 1 if pair in known.pairs else 1
        longest = max(longest, run)
    if share < SHARE or longest < min(2, len(different)):
        return None
    return share, longest
