"""A document that is being read, and the blocks that are found in it."""

import codecs
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import BinaryIO, Literal

Kind = Literal["heading", "text", "list", "table", "code"]
Code = Literal["unsupported_file", "invalid_file"]

SAMPLE = 64 * 1024  # bytes at the start, which tell text from anything else
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before UTF-16's, which is how it starts
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a document that belongs together.

    `level` is 1 or more in headings and 0 elsewhere; `page` counts from 1 where the document has pages.
    Tables are lines of `| cell | cell |`, the first of them the header.
    """

    kind: Kind
    text: str
    level: int = 0
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a document says, in its order; `title` is what it calls itself."""

    blocks: list[Block]
    title: str | None


class Refused(Exception):
    """A document that cannot be read, with the reason as words that follow `it` or `its`."""

    def __init__(self, reason: str, *, code: Code = "invalid_file") -> None:
        super().__init__(reason)
        self.code = code


def size(count: int) -> str:
    """A number of bytes, for people."""
    for unit, factor in (("GB", 1024**3), ("MB", 1024**2), ("kB", 1024)):
        if count >= factor:
            return (
                f"{count / factor:.1f} {unit}"
                if count % factor or unit == "GB"
                else f"{count // factor} {unit}"
            )
    return f"{count} bytes"


class Document:
    """A file that is being read, of which no reader takes more than `limit` bytes of text."""

    def __init__(self, file: BinaryIO, name: str, *, limit: int) -> None:
        self.file = file
        self.limit = limit
        self.suffix = PurePath(name).suffix.lower().removeprefix(".")
        self.title: str | None = None  # readers set it

    @cached_property
    def start(self) -> bytes:
        """The first bytes of the file."""
        self.file.seek(0)
        return self.file.read(SAMPLE)

    def data(self) -> bytes:
        """All bytes of a file that is text."""
        length = self.file.seek(0, os.SEEK_END)
        if length > self.limit * (2 if _wide(self.start) else 1):
            raise self.too_long()
        self.file.seek(0)
        return self.file.read(length)

    def too_long(self) -> Refused:
        return Refused(f"its text is more than {size(self.limit)}")

    def text(self) -> str:
        """All of a file that is text, with line ends as `\\n`."""
        return self.decoded().replace("\r\n", "\n").replace("\r", "\n")

    def decoded(self, declared: str | None = None) -> str:
        """As `text`, with line ends as they are; an encoding that the text declares is second to UTF-8."""
        data = self.data()
        if wide := _wide(self.start):
            return data.decode(wide, "replace").removeprefix("\ufeff")
        for encoding in ("utf-8-sig", declared or "cp1252", "cp1252"):
            try:
                return data.decode(encoding)
            except (UnicodeError, LookupError):
                continue
        return data.decode("latin-1")

    def is_text(self) -> bool:
        """Whether people could read it; judged by its start."""
        sample = self.start
        if wide := _wide(sample):
            shown = sample[: len(sample) // 4 * 4].decode(wide, "replace")
        else:
            shown = sample.decode("utf-8", "ignore") if _is_utf8(sample) else sample.decode("latin-1")
        return len(CONTROLS.findall(shown)) <= len(shown) / 50 and shown.count("\ufffd") <= len(shown) / 50


def _is_utf8(sample: bytes) -> bool:
    """Whether it is UTF-8, its last character perhaps cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample, final=len(sample) < SAMPLE)
    except UnicodeDecodeError:
        return False
    return True


def _wide(sample: bytes) -> str | None:
    """The encoding of a text in units of two or four bytes: by its mark, or by the zeros in ASCII."""
    for mark, encoding in MARKS.items():
        if sample.startswith(mark):
            return encoding if encoding != "utf-8" else None
    even, odd = sample[0::2], sample[1::2]
    if len(sample) >= 4 and even.count(0) + odd.count(0) >= len(sample) / 4:
        if odd.count(0) > 20 * even.count(0):
            return "utf-16-le"
        if even.count(0) > 20 * odd.count(0):
            return "utf-16-be"
    return None
