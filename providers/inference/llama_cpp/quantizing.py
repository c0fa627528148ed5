"""Models in another quantization, made by llama.cpp's own quantizer in a process of its own."""

import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import llama_cpp.llama_cpp as lib

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import InvalidRequest, StackError, did_you_mean
from llama_stack_lite.models import check_room, folder_of, locked, publish

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]

PROGRAM = Path(__file__).with_name("quantizer.py")
NAME = re.compile(r"LLAMA_FTYPE_(?:MOSTLY|ALL)_(\w+)")
TYPES: dict[str, int] = {
    found[1].lower(): value for name, value in vars(lib).items() if (found := NAME.fullmatch(name))
}
WHOLE = {"f32", "f16", "bf16"}  # types that are not quantized

SIZE = re.compile(r"quant size += +([\d.]+) MiB")
TENSOR = re.compile(r"\[ *(\d+)/ *(\d+)\]")
SOURCE_TYPE = re.compile(r"- type +(\w+): +\d+ tensors")
FALLBACK = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")


def quantize(source: Path, target: Path, kind: str, progress: Progress = lambda *_: None) -> list[str]:
    """Write a GGUF file in another type, such as `q8_0`; return what is worth knowing of the result.

    `progress(done, total)` counts tensors. Nothing is left at `target` when this fails or is interrupted.
    Raises `InvalidRequest` for a type that llama.cpp does not know, `StackError` where the disk is too small
    or llama.cpp gives up, with its own last words.
    """
    number = _number(kind)
    said = _Said(target, progress)
    with subprocess.Popen(
        [sys.executable, "-P", str(PROGRAM), str(source), str(target), str(number)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"GGML_NO_BACKTRACE": "1"},
        text=True,
        errors="replace",
    ) as child:
        try:
            assert child.stderr
            for line in child.stderr:
                said.hear(line.strip())
            if child.wait():
                raise StackError(f"llama.cpp cannot make {kind} of {source}: {said.last_words()}")
        except BaseException:
            child.kill()
            child.wait()
            target.unlink(missing_ok=True)
            raise
    return said.remarks(kind)


def prepared(card: ModelCard, source: Path) -> Path:
    """The file to load: the card's own, or where the card says `requantize`, one made of it and kept.

    It is made again when the source is another. Where it cannot be made (a full disk, a folder that cannot be
    written) that is logged, and the source is good enough.
    """
    if card.requantize is None:
        return source
    target = folder_of(card.id) / f"{source.stem}.{card.requantize}.gguf"
    try:
        if not _is_made_of(source, target):
            _make(card, card.requantize, source, target)
    except (OSError, StackError) as error:
        log.warning("%s is used as it is, and not as %s: %s", card.id, card.requantize, error)
        return source
    return target


def _is_made_of(source: Path, target: Path) -> bool:
    """Whether a file was made of this source: it was given its time."""
    return target.is_file() and target.stat().st_mtime_ns == source.stat().st_mtime_ns


def _make(card: ModelCard, kind: str, source: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.part")
    with locked(card.id):
        if _is_made_of(source, target):  # by another process, meanwhile
            return
        log.info("making %s of %s, once", kind, source.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        times = source.stat()
        quantize(source, part, kind)
        os.utime(part, ns=(times.st_atime_ns, times.st_mtime_ns))
        publish(part, target)


def _number(kind: str) -> int:
    if kind.lower() not in TYPES:
        raise InvalidRequest(
            f"There is no quantization `{kind}`{did_you_mean(kind.lower(), TYPES)}; "
            f"llama.cpp has {', '.join(TYPES)}",
            param="type",
        )
    return TYPES[kind.lower()]


class _Said:
    """What the quantizer says: first what the result will be, then each tensor, last why it gave up."""

    def __init__(self, target: Path, progress: Progress) -> None:
        self.target = target
        self.progress = progress
        self.lines: deque[str] = deque(maxlen=2)
        self.size: int | None = None
        self.source_types: dict[str, None] = {}
        self.fallback: tuple[int, int] | None = None

    def hear(self, line: str) -> None:
        if not line.strip("="):
            return
        self.lines.append(line)
        if found := TENSOR.match(line):
            if self.size is not None:
                self.progress(int(found[1]), int(found[2]))
        elif found := SOURCE_TYPE.search(line):
            self.source_types[found[1].lower()] = None
        elif found := FALLBACK.search(line):
            self.fallback = int(found[1]), int(found[2])
        elif self.size is None and (found := SIZE.search(line)):
            self.size = int(float(found[1]) * 2**20)
            check_room(self.target.parent, self.size)

    def last_words(self) -> str:
        return " / ".join(self.lines) or "it gave no reason"

    def remarks(self, kind: str) -> list[str]:
        remarks = []
        if lossy := [name for name in self.source_types if name not in WHOLE]:
            remarks.append(
                f"The source is quantized already ({', '.join(lossy)}): what that lost stays lost, and a "
                "smaller type loses more than it would from an F16 or BF16 file."
            )
        if self.fallback:
            remarks.append(
                f"{self.fallback[0]} of {self.fallback[1]} tensors do not fit the blocks of {kind}, and "
                "have a type of more bits."
            )
        return remarks
