"""Plain text and reStructuredText: paragraphs, underlined headings, blocks of code."""

import re
from collections.abc import Iterator

from .document import Block, Document
from .pieces import lines

UNDERLINE = re.compile(r"([=\-~^\"'`#*+.:_])\1{2,}\s*")
TITLE = 120  # characters of a heading at most


def read(document: Document) -> Iterator[Block]:
    """Paragraphs; an indented one that follows `::` or a code directive is code."""
    levels: list[str] = []
    code = False
    for paragraph in paragraphs(document.text()):
        code = code and paragraph[0][:1].isspace()
        yield from [Block("code", "\n".join(paragraph))] if code else _split(paragraph, levels)
        code = code or _opens_code(paragraph)


def paragraphs(text: str) -> Iterator[list[str]]:
    """The lines between blank lines."""
    paragraph: list[str] = []
    for line in lines(text.replace("\f", "\n\n")):
        if line and not line.isspace():
            paragraph.append(line)
        elif paragraph:
            yield paragraph
            paragraph = []
    if paragraph:
        yield paragraph


def _split(paragraph: list[str], levels: list[str]) -> Iterator[Block]:
    """A paragraph, and the heading that it starts with; levels are in the order of their first use."""
    over = len(paragraph) > 2 and _is_heading(paragraph[1], paragraph[2]) and _rule(paragraph[0])
    above = 1 if over and paragraph[0].strip() == paragraph[2].strip() else 0
    if len(paragraph) > above + 1 and _is_heading(paragraph[above], paragraph[above + 1]):
        style = paragraph[above + 1][0] * (above + 1)
        if style not in levels:
            levels.append(style)
        yield Block("heading", paragraph[above].strip(), level=min(levels.index(style) + 1, 6))
        paragraph = paragraph[above + 2 :]
    if paragraph:
        yield Block("text", "\n".join(paragraph))


def _rule(line: str) -> bool:
    return len(line) <= 2 * TITLE and UNDERLINE.fullmatch(line) is not None


def _is_heading(title: str, line: str) -> bool:
    return (
        len(title) <= TITLE
        and _rule(line)
        and abs(len(line.strip()) - len(title.strip())) <= 3
        and not _rule(title)
    )


def _opens_code(paragraph: list[str]) -> bool:
    last = paragraph[-1].rstrip()
    return last.endswith("::") or paragraph[0].startswith((".. code", ".. sourcecode", ".. literalinclude"))
