"""A document by its structure: pieces under their headings, gathered into drafts of chunks."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .parsing import Block
from .splitting import Measured, Span, between, cut, levels

BREAK = "\n\n"
BREAK_TOKENS = 1  # of what stands between two pieces, at most as a rule; many tokenizers read none
LONGEST = 1 << 15  # characters of a piece that is measured at once
LINE = 400  # characters of a table's first row, at most, in such pieces
HEADINGS = 4  # the part of a chunk's size that is the most for its headings
SMALL = 4  # a chunk of less than this part of the size goes on into the next section
TINY = 8  # one of less than this part is put to the one before


@dataclass(frozen=True, slots=True, eq=False)
class Heading:
    text: str
    level: int
    tokens: int


Path = tuple[Heading, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A block, or a part of a long one, which `glue` stood before where it was cut off.

    A part of a table has the table's `head`, to be said again. A heading is the last of its own `path`.
    """

    text: str
    kind: str
    page: int | None
    level: int = 0
    tokens: int = 0
    path: Path = ()
    heading: Heading | None = None
    head: str = ""
    glue: str | None = None


def pieces(block: Block) -> list[Piece]:
    """A block as it is, or in parts where it is too long to be measured at once."""
    whole = Piece(block.text, block.kind, block.page, block.level)
    return _parts(whole, Measured(block.text, range(len(block.text))), list(_stretches(block.text)), LINE)


def _stretches(text: str) -> Iterator[Span]:
    begin = 0
    while len(text) - begin > LONGEST:
        most = begin + LONGEST
        found = [text.rfind(end, begin, most) + len(end) for end in (BREAK, "\n", " ")]
        far = [place for place in found if place - begin > LONGEST // 2]
        end = far[0] if far else between(text, most, begin) or most
        yield begin, end
        begin = end
    yield begin, len(text)


def _parts(piece: Piece, measured: Measured, spans: list[Span], room: int) -> list[Piece]:
    """The spans of a piece without the blanks around them; those that are nothing else are left out.

    A table's `head` has at most `room`, in what is measured.
    """
    text, end = piece.text, 0
    head = piece.head or _head(piece, measured, room)
    found: list[Piece] = []
    for begin, stop in spans:
        said = text[begin:stop].rstrip()
        said = said.lstrip("\r\n") if piece.kind in ("code", "table") else said.lstrip()
        if said:
            start = text.index(said, begin)
            part = replace(piece, text=said, tokens=measured.count((begin, stop)))
            found.append(replace(part, glue=text[end:start], head=head) if found else part)
            end = start + len(said)
    return found


def _head(table: Piece, measured: Measured, room: int) -> str:
    """The first row of a table, and the line under it; nothing where it is too long to be said again."""
    if table.kind != "table":
        return ""
    rows = table.text[: 2 * LINE].split("\n", 2)
    lines = 2 if len(rows) > 1 and rows[1] and not set(rows[1]) - set("|-:+= \t") else 1
    head = "".join(f"{row}\n" for row in rows[:lines])
    return head if measured.count((0, len(head))) <= room else ""


@dataclass(frozen=True, slots=True)
class Draft:
    """A chunk before it is measured as a whole; its context has at most `room` tokens."""

    pieces: Sequence[Piece]
    room: int

    @property
    def tokens(self) -> int:
        return sum(piece.tokens + BREAK_TOKENS for piece in self.pieces)

    def text(self) -> str:
        first, *others = self.pieces
        said, before = [first.head + first.text], first
        for piece in others:
            listed = piece.kind == before.kind == "list"
            glue = piece.glue if piece.glue is not None else "\n" if listed else BREAK
            said.append(glue + piece.text)
            before = piece
        return "".join(said)

    def path(self) -> Path:
        """The headings that all of it stands under."""
        paths = [piece.path for piece in self.pieces if not piece.heading] or [self.pieces[0].path]
        shared = paths[0]
        for path in paths[1:]:
            shared = tuple(one for one, other in zip(shared, path, strict=False) if one is other)
        return shared

    def context(self) -> str | None:
        """The headings that its own text does not say."""
        return " > ".join(heading.text for heading in fitted(self._unsaid(), self.room)) or None

    def cost(self) -> int:
        """The tokens of its context and its text, near enough."""
        return _cost(fitted(self._unsaid(), self.room)) + self.tokens

    def _unsaid(self) -> Path:
        said = [piece.heading for piece in self.pieces]
        return tuple(heading for heading in self.path() if heading not in said)

    def halves(self) -> "list[Draft]":
        """Two drafts of about one length, neither ending in a heading; itself where it cannot be cut."""
        given, half, tokens = list(self.pieces), self.tokens / 2, 0
        only_headings = all(piece.heading for piece in given)
        places: list[tuple[float, int]] = []
        for index, piece in enumerate(given[:-1], 1):
            tokens += piece.tokens + BREAK_TOKENS
            if only_headings or not piece.heading:
                places.append((abs(half - tokens), index))
        if places:
            _, index = min(places)
            return [Draft(given[:index], self.room), Draft(given[index:], self.room)]
        *before, last = given
        first, *rest = _halved(last)
        return [Draft([*before, first], self.room), *(Draft([part], self.room) for part in rest)]


def _halved(piece: Piece) -> list[Piece]:
    """By characters, which are all that is known of it without asking again."""
    length = len(piece.text)
    if len(piece.head) > length:
        piece = replace(piece, head="")
    measured = Measured(piece.text, range(length))
    spans = cut(measured, max(1, math.ceil(length / 2)), levels(piece.kind, piece.text))
    parts = _parts(piece, measured, spans, length // HEADINGS)
    return [replace(part, tokens=math.ceil(len(part.text) * piece.tokens / length)) for part in parts]


def fitted(path: Path, room: int) -> Path:
    """The path in at most `room` tokens: a long one loses what is just below its root, then that."""
    kept = list(path)
    while len(kept) > 1 and _cost(kept) > room:
        kept.pop(1 if len(kept) > 2 else 0)
    return tuple(kept)


def _cost(path: Sequence[Heading]) -> int:
    return sum(heading.tokens + 1 for heading in path)


class Outline:
    """Takes a document's pieces in their order, and makes drafts of at most `size` tokens of them."""

    def __init__(self, size: int) -> None:
        self.size = max(HEADINGS, size)
        self.room = self.size // HEADINGS
        self._path: Path = ()
        self._pending: list[Piece] = []
        self._units: list[list[Piece]] = []  # a piece each, behind the headings just before it

    def entitle(self, title: str, tokens: int) -> None:
        """What everything stands under; to be told first."""
        if tokens < self.room:
            self._path = (Heading(title, 0, tokens),)

    def add(self, piece: Piece, starts: Sequence[int]) -> None:
        """Take a piece whose tokens begin at `starts`."""
        tokens = len(starts)
        if piece.kind == "heading" and tokens < self.room:
            self._descend(replace(piece, tokens=tokens))
            return
        measured = Measured(piece.text, starts)
        whole = replace(piece, path=self._path, tokens=tokens)
        spare = self.size - Draft([*self._pending, replace(whole, tokens=0)], self.room).cost()
        if piece.kind == "table":
            spare -= measured.count((0, len(piece.head or _head(piece, measured, self.room))))
        room = max(spare, self.room)
        if tokens > room:
            # equal parts read better than full ones and a rest
            room = min(room, math.ceil(tokens / math.ceil(tokens / room) * 1.1))
        spans = cut(measured, room, levels(piece.kind, piece.text))
        for part in _parts(whole, measured, spans, self.room):
            self._units.append([*self._pending, part])
            self._pending = []

    def _descend(self, piece: Piece) -> None:
        heading = Heading(piece.text, max(1, piece.level), piece.tokens)
        if not self._units and not self._pending:
            # a document that says its title itself does not stand under it twice
            same = [each.text.strip().casefold() == heading.text.casefold() for each in self._path]
            self._path = () if all(same) else self._path
        above = tuple(each for each in self._path if each.level < heading.level)
        self._path = (*above, heading)
        if sum(each.tokens + BREAK_TOKENS for each in self._pending) > self.size // 2:
            self._flush()  # so many without a text between them are a text themselves
        self._pending.append(replace(piece, path=self._path, heading=heading))

    def _flush(self) -> None:
        if self._pending:
            self._units.append(self._pending)
            self._pending = []

    def drafts(self) -> list[Draft]:
        self._flush()
        drafts = list(self._gathered())
        kept: list[Draft] = []
        for draft in drafts:
            joined = Draft([*kept[-1].pieces, *draft.pieces], self.room) if kept else draft
            is_tiny = draft.tokens * TINY < self.size or all(piece.heading for piece in draft.pieces)
            if kept and is_tiny and joined.cost() <= self.size:
                kept[-1] = joined
            else:
                kept.append(draft)
        return kept

    def _gathered(self) -> Iterator[Draft]:
        """As many units as fit; a section that does not is divided into parts of about one length."""
        left = self._left()
        current: list[Piece] = []
        used = aim = 0
        for unit, rest in zip(self._units, left, strict=True):
            tokens = sum(piece.tokens + BREAK_TOKENS for piece in unit)
            opens = unit[0].heading is not None
            full = used + tokens > self.size
            enough = used * SMALL >= self.size if opens else used + tokens / 2 > aim
            if current and (full or enough):
                yield Draft(current, self.room)
                current = []
            if not current:
                used = Draft(unit, self.room).cost() - tokens
            if not current or opens:
                aim = math.ceil((used + rest) / math.ceil((used + rest) / self.size))
            current.extend(unit)
            used += tokens
        if current:
            yield Draft(current, self.room)

    def _left(self) -> list[int]:
        """The tokens of each unit and those after it, up to the next heading."""
        left: list[int] = []
        total = 0
        for unit in reversed(self._units):
            total += sum(piece.tokens + BREAK_TOKENS for piece in unit)
            left.append(total)
            if unit[0].heading:
                total = 0
        return left[::-1]
