"""The blocks of a tree of HTML elements."""

import re
from collections.abc import Iterator
from typing import Any

from lxml import etree

from .document import Block, Kind
from .pieces import TABLE, table

_APART = (
    "address article aside blockquote body caption center dd details div dl dt fieldset figcaption figure "
    "form header hr legend main option p section summary table tbody td tfoot th thead title tr"
)
APART = frozenset(_APART.split())
HEADINGS = {f"h{level}": level for level in range(1, 7)}
CELLS = ("td", "th", "caption")
SPACES = re.compile(r"[ \t\n\r\f\xa0]+")


class Page:
    """Walks through elements in their order, gathering text until a block is whole."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._heading = 0
        self._lists = 0
        self._codes = 0
        self._tables = 0  # how deep in a table of data; tables that only lay out a page are as sections
        self._rows: list[list[str]] = []

    def blocks(self, root: Any) -> Iterator[Block]:
        """The blocks of an element; it takes no recursion, however deep it is."""
        for event, element in etree.iterwalk(root, events=("start", "end")):
            if not isinstance(element.tag, str):  # a comment, or the like
                text = None if event == "start" else element.tail
            elif event == "start":
                yield from self._opened(element) if not self._tables else self._opened_in_table(element.tag)
                text = element.text
            else:
                yield from (
                    self._closed(element.tag) if not self._tables else self._closed_in_table(element.tag)
                )
                text = element.tail if element is not root else None
            self._add(text or "")
        yield from self._whole()

    def _opened(self, element: Any) -> Iterator[Block]:
        tag = element.tag
        if tag == "br":
            self._line()
        elif tag == "li":
            if self._lists <= 1 and sum(map(len, self._text)) > TABLE:
                yield from self._whole()
            self._line()
            self._text.append("  " * max(0, self._lists - 1) + "- ")
        elif tag in ("ul", "ol"):
            if not self._lists:
                yield from self._whole()
            self._lists += 1
        elif tag == "pre" or tag in HEADINGS or (tag == "table" and _is_data(element)):
            yield from self._whole()
            self._codes += tag == "pre"
            self._tables += tag == "table"
            self._heading = HEADINGS.get(tag, 0)
        elif tag in APART:
            yield from self._between()

    def _closed(self, tag: str) -> Iterator[Block]:
        if tag in ("ul", "ol"):
            if self._lists == 1:
                yield from self._whole()
            self._lists = max(0, self._lists - 1)
        elif tag == "pre" or tag in HEADINGS:
            yield from self._whole()
            self._codes = max(0, self._codes - (tag == "pre"))
            self._heading = 0
        elif tag in APART:
            yield from self._between()

    def _opened_in_table(self, tag: str) -> Iterator[Block]:
        self._tables += tag == "table"
        if tag == "tr" or tag in CELLS:
            yield from self._whole()  # what stands between cells, though it should not
            self._rows += [[]] if tag == "tr" else []
        elif tag in APART or tag in ("br", "li"):
            self._add(" ")

    def _closed_in_table(self, tag: str) -> Iterator[Block]:
        if tag in ("td", "th"):
            self._rows = self._rows or [[]]
            self._rows[-1].append("".join(self._text))
            self._text.clear()
        elif tag in ("table", "caption"):
            yield from self._whole()
        if tag == "table":
            self._tables -= 1
            rows, self._rows = self._rows, []
            yield from table(rows)

    def _add(self, text: str) -> None:
        if self._codes:
            self._text.append(text)
        elif text:
            text = SPACES.sub(" ", text)
            ended = not self._text or self._text[-1][-1:] in ("", " ", "\n")
            self._text.append(text.removeprefix(" ") if ended else text)

    def _line(self) -> None:
        """Begin a line, if there is anything in this one."""
        if self._codes or (self._text and not self._text[-1].endswith(("\n", "- "))):
            self._text.append("\n")

    def _between(self) -> Iterator[Block]:
        if self._lists or self._codes:
            self._line()
        else:
            yield from self._whole()

    def _whole(self) -> Iterator[Block]:
        """The text gathered so far as a block."""
        text = "".join(self._text)
        self._text.clear()
        kind: Kind = "code" if self._codes else "list" if self._lists else "text"
        if not text.strip():
            return
        if self._codes:
            yield Block(kind, text)
        elif self._heading:
            yield Block("heading", " ".join(text.split()), level=self._heading)
        else:
            yield Block(kind, text.replace(" \n", "\n"))


def _is_data(element: Any) -> bool:
    return next(element.iterdescendants("table", "pre", "h1", "h2", "h3"), None) is None
