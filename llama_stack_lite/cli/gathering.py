"""Which files of some paths are documents, and why the others are left out."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from llama_stack_lite.errors import StackError

# not text, and yet documents
DOCUMENTS = {".pdf", ".docx", ".pptx", ".xlsx"}
SNIFFED = 8192  # bytes of a file that show whether it is text


@dataclass(frozen=True, slots=True)
class Document:
    """A file to ingest; `size` in bytes."""

    path: Path
    size: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a folder is taken: shell patterns for names, or for paths below the folder; bytes at most."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    max_bytes: int = 64 * 1024 * 1024

    def reason(self, path: Path, name: str) -> str | None:
        """Why a file of a folder is left out, where it is."""
        if _matches(name, self.exclude):
            return "excluded"
        if self.include and not _matches(name, self.include):
            return "not included"
        if path.stat().st_size > self.max_bytes:
            return f"larger than {self.max_bytes // 2**20} MB"
        if not self.include and path.suffix.lower() not in DOCUMENTS and _is_binary(path):
            return "binary"
        return None


def gather(paths: Sequence[Path], choice: Choice) -> tuple[list[Document], list[LeftOut]]:
    """The documents, each once, and what was left out; what is named itself is taken whatever it is.

    Raises `StackError` for a path that is not there, or is neither file nor folder.
    """
    taken: dict[Path, Document] = {}
    left: list[LeftOut] = []
    for given in paths:
        root = Path(os.path.abspath(given))
        if root.is_file():
            taken[root] = Document(root, root.stat().st_size)
        elif root.is_dir():
            for path, reason in _below(root, choice):
                if reason:
                    left.append(LeftOut(path, reason))
                else:
                    taken[path] = Document(path, path.stat().st_size)
        else:
            raise StackError(f"{given} is no file and no folder")
    return list(taken.values()), [each for each in left if each.path not in taken]


def _below(root: Path, choice: Choice) -> Iterator[tuple[Path, str | None]]:
    """The files of a folder in order; links to folders are not followed, as they may lead in circles."""
    for place, folders, names in os.walk(root):
        hidden = [name for name in folders if name.startswith(".")]
        folders[:] = sorted(set(folders) - set(hidden))
        yield from ((Path(place, name), "hidden") for name in hidden)
        for name in sorted(names):
            path = Path(place, name)
            yield path, _reason(path, path.relative_to(root).as_posix(), choice)


def _reason(path: Path, name: str, choice: Choice) -> str | None:
    if path.name.startswith("."):
        return "hidden"
    try:
        if not path.is_file():
            return "no regular file"
        if not path.stat().st_size:
            return "empty"
        return choice.reason(path, name)
    except OSError as error:
        return error.strerror or str(error)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    last = name.rpartition("/")[2]
    return any(fnmatch(name, pattern) or fnmatch(last, pattern) for pattern in patterns)


def _is_binary(path: Path) -> bool:
    """Whether the file begins as no text does: with a NUL that UTF-16 does not explain."""
    with path.open("rb") as file:
        start = file.read(SNIFFED)
    return b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff"))
