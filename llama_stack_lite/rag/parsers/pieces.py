"""Long things in pieces: lines, groups of small parts, tables whose header is repeated."""

from collections.abc import Iterable, Iterator, Sequence

from .document import Block

PIECE = 1500  # characters that small parts are gathered to
TABLE = 4000  # characters of a table after which its header is said again


def lines(text: str) -> Iterator[str]:
    """The lines of a text without their ends; one by one, for a text may be nothing but line ends."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    if start < len(text):
        yield text[start:]


def grouped(parts: Iterable[str], *, glue: str = "\n") -> Iterator[str]:
    """Small parts that follow each other, together."""
    group: list[str] = []
    length = 0
    for part in parts:
        if group and length + len(part) > PIECE:
            yield glue.join(group)
            group, length = [], 0
        group.append(part)
        length += len(part) + len(glue)
    if group:
        yield glue.join(group)


def table(rows: Iterable[Sequence[object]], *, page: int | None = None) -> Iterator[Block]:
    """Rows of cells as tables, the first row being the header of all."""
    head: str | None = None
    piece: list[str] = []
    length = 0
    for row in rows:
        line = _line(row)
        if not line:
            continue
        if head is not None and length + len(line) > TABLE:
            yield Block("table", "\n".join(piece), page=page)
            piece = [head] if len(head) < TABLE / 4 else []
            length = sum(map(len, piece))
        head = line if head is None else head
        piece.append(line)
        length += len(line) + 1
    if piece:
        yield Block("table", "\n".join(piece), page=page)


def _line(row: Sequence[object]) -> str:
    cells = ["" if cell is None else " ".join(str(cell).split()) for cell in row]
    while cells and not cells[-1]:
        cells.pop()
    return f"| {' | '.join(cells)} |" if cells else ""
