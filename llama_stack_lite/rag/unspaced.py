"""Words of other alphabets, and of writing that puts no spaces between them."""

import re

UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def foreign(word: str) -> list[str]:
    """A word in small letters; of Chinese, Japanese, Thai, Lao, Khmer and Burmese each pair of characters."""
    found: list[str] = []
    last = 0
    for match in UNSPACED.finditer(word):
        found += [each.casefold() for each in [word[last : match.start()]] if each]
        run, last = match[0], match.end()
        found += [run[place : place + 2] for place in range(max(1, len(run) - 1))]
    return [*found, *([word[last:].casefold()] if word[last:] else [])]
