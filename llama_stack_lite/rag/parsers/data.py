"""JSON, JSON lines, YAML and notebooks, in pieces by their entries."""

import json
from collections.abc import Iterator
from typing import Any

from .document import Block, Document, Refused
from .pieces import PIECE, grouped, lines

DEEP = 3  # levels of entries that are cut apart


def read(document: Document) -> Iterator[Block]:
    """Entries, small ones together; what claims to be JSON and is not is kept as it is."""
    text = document.text()
    parts = _settings(text) if document.suffix in ("yaml", "yml") else None
    if parts is None:
        try:
            value = json.loads(text)
        except ValueError:
            parts = lines(text)
        except RecursionError as error:
            raise Refused("it is nested too deeply") from error
        else:
            if isinstance(value, dict) and isinstance(value.get("cells"), list) and "nbformat" in value:
                yield from _notebook(value["cells"])
                return
            parts = entries(value)
    for piece in grouped(parts):
        yield Block("code", piece)


def entries(value: Any, *, path: str = "", depth: int = 0) -> Iterator[str]:
    """The entries of an object or a list; those of a large one within, after the names that lead there."""
    if isinstance(value, dict):
        named = [(f"{path}.{name}" if path else str(name), each) for name, each in value.items()]
    else:
        named = [(path, each) for each in value] if isinstance(value, list) else [(path, value)]
    for name, each in named:
        try:
            shown = json.dumps(each, ensure_ascii=False, indent=1)
        except RecursionError as error:
            raise Refused("it is nested too deeply") from error
        if len(shown) > PIECE and depth < DEEP and isinstance(each, dict | list):
            yield from entries(each, path=name, depth=depth + 1)
        else:
            yield f"{name}: {shown}" if name else shown


def _settings(text: str) -> Iterator[str]:
    """What begins at the margin, with what is under it; never loaded, so that no alias multiplies."""
    part: list[str] = []
    for line in lines(text):
        if part and line[:1] not in ("", " ", "\t", "#", "}", "]"):
            yield "\n".join(part)
            part = []
        part.append(line)
    if part:
        yield "\n".join(part)


def _notebook(cells: list[Any]) -> Iterator[Block]:
    for cell in cells:
        source = cell.get("source", "") if isinstance(cell, dict) else ""
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        prose = isinstance(cell, dict) and cell.get("cell_type") != "code"
        if prose and text.startswith("#") and "\n" not in text.strip():
            marks = len(text) - len(text.lstrip("#"))
            yield Block("heading", text[marks:].strip(), level=min(marks, 6))
        else:
            yield Block("text" if prose else "code", text)
