"""Files on this machine's disk: each content once, under its digest, and a hard link to it for every name."""

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.ids import well_formed
from llama_stack_lite.config import home
from llama_stack_lite.errors import ConfigError, NotFound, Unavailable
from llama_stack_lite.stack import Stack

PIECE = 1024 * 1024  # bytes
GROUP = 500


class Local:
    """The file system counts the names of a content, so that no `remove` can race with a `put`.

    `by-digest/ab/<digest>` is a content, `by-name/cd/<name>` another link to it, `incoming/` what is not
    whole yet. A content that is found damaged when it comes again is replaced.
    """

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        folder: Path | None = Field(
            None, description="by default `<distribution>/files` below $LLAMA_LITE_HOME; replicas share one"
        )

    def __init__(self, config: Config, *, stack: Stack) -> None:
        self.folder = (config.folder or home() / stack.config.name / "files").expanduser().absolute()
        self.incoming = self.folder / "incoming"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.incoming.mkdir(exist_ok=True)
        except OSError as error:
            raise ConfigError(f"files: {self.folder} cannot be written: {error.strerror}") from error

    async def put(self, name: str, source: Path, *, digest: str) -> None:
        try:
            await asyncio.to_thread(self._put, self.path(name), source, digest)
        except OSError as error:
            raise Unavailable(f"the file cannot be kept in {self.folder}: {error.strerror}") from error

    async def read(self, name: str) -> AsyncGenerator[bytes, None]:
        try:
            with await asyncio.to_thread(self.path(name).open, "rb") as file:
                while piece := await asyncio.to_thread(file.read, PIECE):
                    yield piece
        except FileNotFoundError as error:
            raise NotFound("file", name) from error
        except OSError as error:
            raise Unavailable(f"file `{name}` cannot be read: {error.strerror}") from error

    async def remove(self, name: str) -> None:
        try:
            with suppress(FileNotFoundError):
                await asyncio.to_thread(self._remove, self.path(name))
        except OSError as error:
            raise Unavailable(f"file `{name}` cannot be removed: {error.strerror}") from error

    async def names(self, *, older: float) -> AsyncIterator[str]:
        """Also removes what crashes left: contents without a name, and files that never became whole."""
        before = time.time() - older
        await asyncio.to_thread(self._tidy, before)
        found = self._older("by-name/*/*", before)
        while group := await asyncio.to_thread(lambda: [path.name for path in islice(found, GROUP)]):
            for name in group:
                yield name

    def path(self, name: str) -> Path:
        """Where a file lies; raises `NotFound` for what is no name."""
        if not well_formed(name) or not name.strip(".:"):
            raise NotFound("file", name)
        return self.folder / "by-name" / name[-2:] / name

    def _put(self, path: Path, source: Path, digest: str) -> None:
        content = self.folder / "by-digest" / digest[:2] / digest
        for parent in (content.parent, path.parent):
            _make(parent)
        with tempfile.TemporaryDirectory(dir=self.incoming) as folder:
            ready = Path(folder) / "file"
            if not self._linked(content, ready, digest):
                _copy(source, ready)
                os.link(ready, ready.with_name("content"))
                ready.with_name("content").replace(content)
                _sync(content.parent)
            with self._letting_go(path):
                ready.replace(path)
            _sync(path.parent)

    def _linked(self, content: Path, link: Path, digest: str) -> bool:
        """Make another link to a content, if it is there and whole."""
        try:
            os.link(content, link)
        except OSError:  # it is not there, or has as many links as a file may have
            return False
        with link.open("rb") as file:
            whole = _digest(file) == digest
        if not whole:
            link.unlink()
        return whole

    def _remove(self, path: Path) -> None:
        with self._letting_go(path):
            path.unlink(missing_ok=True)
        if path.parent.exists():
            _sync(path.parent)

    @contextmanager
    def _letting_go(self, path: Path) -> Iterator[None]:
        """Remove the content that a name has had, once no other name has it."""
        if not path.exists():
            yield
            return
        with path.open("rb") as file:
            yield
            if os.fstat(file.fileno()).st_nlink == 1:  # only the content's own is left
                digest = _digest(file)
                (self.folder / "by-digest" / digest[:2] / digest).unlink(missing_ok=True)

    def _older(self, pattern: str, before: float) -> Iterator[Path]:
        for path in self.folder.glob(pattern):
            with suppress(FileNotFoundError):
                if path.stat().st_ctime < before:
                    yield path

    def _tidy(self, before: float) -> None:
        for path in self._older("by-digest/*/*", before):
            with suppress(FileNotFoundError):
                if path.stat().st_nlink == 1:
                    path.unlink()
        for path in self._older("incoming/*", before):
            shutil.rmtree(path, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("xb") as written:
        shutil.copyfileobj(read, written, PIECE)
        written.flush()
        os.fsync(written.fileno())


def _digest(file: IO[bytes]) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _make(folder: Path) -> None:
    """Make a folder below the place's own that survives a loss of power."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)
        _sync(folder.parent.parent)


def _sync(folder: Path) -> None:
    """Bring a folder's entries to disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
