"""What a query finds in vector stores: by vectors, by keywords, or by both."""

import re
from functools import lru_cache

import snowballstemmer

WORD = re.compile(r"[^\W_]+")
# where a name that programmers write falls apart: `parseHTML5Doc` into parse, HTML5, Doc
HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")
# writing without spaces between words: found by pairs of characters
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """The words of a text in the one form in which keyword searches compare them, in their order.

    Small letters, English endings cut off, names such as `readFile` and `read_file` in parts too.
    """
    found: list[str] = []
    for match in WORD.finditer(text):
        word = match[0]
        found += _forms(word) if word.isascii() else _foreign(word)
    return found


@lru_cache(65_536)
def _forms(word: str) -> list[str]:
    parts = HUMP.findall(word) if not (word.islower() or word.isupper()) else []
    whole = _stem(word.lower())
    return [whole, *(_stem(part.lower()) for part in parts)] if len(parts) > 1 else [whole]


def _foreign(word: str) -> list[str]:
    found: list[str] = []
    last = 0
    for match in UNSPACED.finditer(word):
        found += [each.casefold() for each in [word[last : match.start()]] if each]
        run, last = match[0], match.end()
        found += [run[place : place + 2] for place in range(max(1, len(run) - 1))]
    return [*found, *([word[last:].casefold()] if word[last:] else [])]


_english = snowballstemmer.stemmer("english")


def _stem(word: str) -> str:
    stem: str = _english.stemWord(word)
    return stem
