"""What documents say: files read in child processes, so that no file can hurt the server."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama_stack_lite.config.sections import Documents
from llama_stack_lite.errors import InvalidRequest

Kind = Literal["heading", "text", "list", "table", "code"]


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document that belongs together; `level` counts from 1 in headings, `page` from 1."""

    kind: Kind
    text: str
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a document says, in its order."""

    blocks: list[Block]
    title: str | None


class Unreadable(InvalidRequest):
    """A file has no text that can be had: `unsupported_file`, or `invalid_file` where its kind is known."""

    def __init__(self, message: str, *, code: Literal["unsupported_file", "invalid_file"] = "invalid_file"):
        super().__init__(message)
        self.code = code


class Parsers:
    """Children that read files."""

    def __init__(self, limits: Documents) -> None:
        self._limits = limits

    async def parsed(self, path: Path, filename: str) -> Parsed:
        """What the file at `path` says; its `filename` is a hint of its kind. Raises Unreadable."""
        raise Unreadable("no")

    async def aclose(self) -> None:
        """End the children."""
