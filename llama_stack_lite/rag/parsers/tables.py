"""Tables as text: values separated by commas, tabs and the like."""

import csv
from collections.abc import Iterator

from .document import Block, Document, Refused
from .pieces import lines, table

SEPARATORS = ",;\t|"


def read(document: Document) -> Iterator[Block]:
    """The rows, in pieces that repeat the first."""
    text = document.text().replace("\0", "")
    csv.field_size_limit(max(document.limit, 1))
    try:
        yield from table(csv.reader(lines_kept(text), delimiter=_separator(text[:20_000])))
    except csv.Error as error:
        raise Refused(f"its table is damaged: {error}") from error


def lines_kept(text: str) -> Iterator[str]:
    """Lines with their ends, which a quoted cell may hold."""
    return (f"{line}\n" for line in lines(text))


def _separator(sample: str) -> str:
    """The separator that most lines have, and have equally often."""

    def evenness(separator: str) -> float:
        counts = [line.count(separator) for line in sample.split("\n")[:20] if line]
        common = max(counts, key=counts.count, default=0)
        return counts.count(common) / len(counts) if common else 0

    return max(SEPARATORS, key=evenness)
