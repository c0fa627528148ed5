"""Source code and settings, split where something new begins at the margin."""

from collections.abc import Iterator

from .document import Block, Document
from .pieces import grouped, lines

CLOSING = (")", "]", "}", "end", "else", "elif", "except", "finally", "catch", "fi", "done", "esac")


def read(document: Document) -> Iterator[Block]:
    """Definitions of the outermost level, small ones together."""
    for piece in grouped(definitions(document.text()), glue="\n\n"):
        yield Block("code", piece)


def definitions(text: str) -> Iterator[str]:
    """Runs of lines; a line at the margin that follows a blank one begins the next."""
    part: list[str] = []
    blank = False
    for line in lines(text):
        if not line or line.isspace():
            blank = True
            continue
        if blank and part:
            if not line[0].isspace() and not line.startswith(CLOSING):
                yield "\n".join(part)
                part = []
            else:
                part.append("")
        part.append(line.rstrip())
        blank = False
    if part:
        yield "\n".join(part)
