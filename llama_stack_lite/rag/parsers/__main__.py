"""The child that reads documents: it is asked for one file at a time, and answers in frames.

A question is a line of JSON: `path`, `name`, and the limits `text`, `memory` (bytes) and `seconds` (of CPU).
A frame is four bytes of length and JSON: lists of blocks, then one object, the title or the reason for none.
"""

import ctypes
import json
import logging
import os
import re
import resource
import signal
import stat
import struct
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from math import ceil
from typing import Any, BinaryIO

from .document import Block, Document, Refused, size
from .kinds import reader, unzipped

FILES = 200  # after which a child has had its time, lest leaks of libraries add up
GROWN = 256 * 1024 * 1024  # bytes that a file may leave behind in a child that goes on
FRAME = 64 * 1024  # characters; the server reads one in half a millisecond
LONGEST = 100_000  # characters of a block
LEAST = 64  # bytes that a block counts at least: it takes more than its text
# control characters, halves of characters; soft hyphens and marks of byte order, which no word is found with
UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\xad\ufeff\ud800-\udfff]")
# how libraries written in C say that they were refused memory
STARVED = re.compile(
    r"out of memory|allocation fail|(cannot|failed to) allocate|bad.?alloc|Error -4 |unknown error .*line 0",
    re.I,
)
OCR = "it is an image: pip install 'llama-stack-lite[ocr]' for the server to read its text"
PR_SET_PDEATHSIG = 1


class Answer:
    """Blocks on their way to the server, which are counted."""

    def __init__(self, out: BinaryIO, limit: int) -> None:
        self._out = out
        self._limit = limit
        self._left = limit
        self._blocks: list[tuple[str, str, int, int | None]] = []
        self._length = 0
        self.heading: str | None = None  # the one that it begins with

    def add(self, block: Block) -> None:
        text = UNSEEN.sub("", block.text)
        text = text.strip("\n").rstrip() if block.kind == "code" else text.strip()
        if not text or text.isspace():
            return
        if block.kind == "heading" and not self.has_text():
            self.heading = text
        for piece in _cut(text):
            self._left -= max(LEAST, len(piece.encode()))
            if self._left < 0:
                raise Refused(f"its text is more than {size(self._limit)}")
            self._blocks.append((block.kind, piece, block.level, block.page))
            self._length += len(piece)
            if self._length > FRAME or len(self._blocks) > FRAME / LEAST:
                self.send()

    def send(self) -> None:
        self._frame(self._blocks)
        self._blocks, self._length = [], 0

    def end(self, **said: object) -> None:
        self._frame(said)
        self._out.flush()

    def has_text(self) -> bool:
        return self._left < self._limit

    def _frame(self, value: object) -> None:
        data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        self._out.write(struct.pack("!I", len(data)) + data)


def _cut(text: str) -> Iterator[str]:
    """A text in pieces, at line ends or spaces where it can be."""
    start = 0
    while len(text) - start > LONGEST:
        end = start + LONGEST
        found = text.rfind("\n", start + LONGEST // 2, end)
        found = found if found >= 0 else text.rfind(" ", start + LONGEST // 2, end)
        end = found + 1 if found >= 0 else end
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _answer(asked: dict[str, Any], out: BinaryIO, *, last: bool) -> bool:
    """Read one file; whether this child may read another."""
    answer = Answer(out, asked["text"])
    before = _address_space()
    starved = False
    try:
        title = _read(asked, answer)
        answer.send()
        said: dict[str, Any] = {"title": title}
    except Refused as error:
        said = {"code": error.code, "reason": str(error)}
    except RecursionError:
        said = {"code": "invalid_file", "reason": "it is nested too deeply"}
    except Exception as error:  # noqa: BLE001 - libraries raise anything over a damaged file; it is answered
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        starved = isinstance(error, MemoryError) or STARVED.search(cause) is not None
        reason = f"it is damaged, or no kind that can be read ({cause})"
        if starved:
            reason = f"it took more than {size(asked['memory'])} of memory to read"
        said = {"code": "invalid_file", "reason": reason}
    # what could not be made for want of memory may be missing somewhere
    sound = not last and not starved and _address_space() - before < GROWN
    answer.end(**said, sound=sound)
    return sound


def _read(asked: dict[str, Any], answer: Answer) -> str | None:
    with _opened(asked["path"]) as file:
        if not os.fstat(file.fileno()).st_size:
            raise Refused("it holds no text")
        _confine(asked)
        document = unzipped(Document(file, asked["name"], limit=asked["text"]), asked["name"])
        family = reader(document)
        try:
            module = import_module(f"{__package__}.{family}")
        except ModuleNotFoundError as error:
            raise Refused(OCR if family == "images" else _missing(error), code="unsupported_file") from error
        _confine(asked)
        for block in module.read(document):
            answer.add(block)
    if not answer.has_text():
        raise Refused("it holds no text")
    return UNSEEN.sub("", document.title or answer.heading or "").strip() or None


def _missing(error: ModuleNotFoundError) -> str:
    return f"its kind needs {error.name}: pip install 'llama-stack-lite[documents]'"


def _opened(path: str) -> BinaryIO:
    """A regular file, and nothing else: no device, no pipe that would never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"it cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused("it is no regular file")
    return os.fdopen(descriptor, "rb")


def _confine(asked: dict[str, Any]) -> None:
    """Room for one file beyond what this process has used; only the soft limits, which can be moved up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = ceil(used.ru_utime + used.ru_stime + asked["seconds"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
    if taken := _address_space():
        resource.setrlimit(resource.RLIMIT_AS, (taken + asked["memory"], resource.RLIM_INFINITY))


def _address_space() -> int:
    """Bytes of address space that this process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _prepare() -> BinaryIO:
    """Become a process that can do little, and ends with the server; returns where answers go."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):  # it was over before that
        sys.exit()
    os.nice(10)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 64)):
        resource.setrlimit(limit, (value, value))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    return out


def main() -> None:
    """Answer until nobody asks any more."""
    out = _prepare()
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if not _answer(json.loads(line), out, last=number >= FILES):
            break


if __name__ == "__main__":
    main()
