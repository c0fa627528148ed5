"""Files that clients send: the bytes first and the row after them, local copies, and how they end."""

import asyncio
import logging
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

from sqlalchemy import Row

from .api.files import FileExpiry, FileObject, Files, Purpose
from .errors import InvalidRequest, StackError, Unavailable
from .forms import Upload
from .stack import Stack
from .state import files

EVERY = 60.0  # seconds between looks for what has expired
ORPHANED = 86_400.0  # seconds after which bytes without a row are nobody's that is still being sent
GROUP = 500
log = logging.getLogger(__name__)


def place(stack: Stack) -> str:
    """The name of the provider that keeps new files; raises `InvalidRequest` where there is none."""
    if name := stack.config.defaults.files or next(iter(stack.files), None):
        return name
    raise InvalidRequest(
        "this server keeps no files: its distribution needs `files`, such as "
        "`files: {local: {provider: local}}`"
    )


async def keep(stack: Stack, upload: Upload, *, purpose: Purpose, expiry: FileExpiry | None) -> FileObject:
    """Keep a file; once this returns it is durable. Raises `Unavailable` where its place is full or gone."""
    name, where, now = f"file-{secrets.token_hex(24)}", place(stack), time.time()
    file = FileObject(
        id=name,
        bytes=upload.size,
        created_at=int(now),
        filename=upload.filename,
        purpose=purpose,
        **({"expires_at": int(now) + expiry.seconds} if expiry else {}),
    )
    await stack.files[where].put(name, upload.path, digest=upload.digest)
    # whoever crashes here leaves bytes without a row, which `sweep` finds
    await files.add(stack.store, file, created=now, digest=upload.digest, place=where)
    return file


def _at(stack: Stack, row: Row[Any]) -> Files:
    """The provider that has a file's bytes."""
    if row.place not in stack.files:
        raise Unavailable(
            f"file `{row.id}` is kept by `{row.place}`, which the distribution's `files` do not have now"
        )
    return stack.files[row.place]


async def remove(stack: Stack, file_id: str) -> None:
    """Forget a file, in vector stores too, then its bytes; raises `NotFound`."""
    await _drop(stack, await files.remove(stack.store, file_id))


async def _drop(stack: Stack, row: Row[Any]) -> None:
    """Remove the bytes of a file that is forgotten; where that fails they are orphans."""
    try:
        await _at(stack, row).remove(row.id)
    except StackError as error:
        log.warning("the bytes of %s stay until they are swept: %s", row.id, error)


async def content(stack: Stack, row: Row[Any]) -> AsyncGenerator[bytes, None]:
    """The bytes of a file, by its row; raises `Unavailable` where they are not all there."""
    left = row.bytes
    async with aclosing(_at(stack, row).read(row.id)) as pieces:
        async for piece in pieces:
            left -= len(piece)
            if left >= 0:
                yield piece
    if left:
        raise _damaged(row.id, row.bytes - left, row.bytes)


def _damaged(name: str, found: int, size: int) -> Unavailable:
    log.error("%s is damaged where it is kept: it has %d bytes of %d", name, found, size)
    return Unavailable(f"file `{name}` is damaged where it is kept: it has {found} bytes, and had {size}")


async def whole(stack: Stack, file_id: str, *, most: int) -> tuple[str, bytes]:
    """The name and the bytes of a file, for what takes at most so many; raises as `local_copy` does."""
    place(stack)
    row = await files.row(stack.store, file_id)
    if row.bytes > most:
        raise InvalidRequest(f"file `{file_id}` has {row.bytes} bytes, and at most {most} are taken here")
    return row.filename, b"".join([piece async for piece in content(stack, row)])


@asynccontextmanager
async def local_copy(stack: Stack, file_id: str) -> AsyncIterator[Path]:
    """A file as one of this machine, to be read only; raises `NotFound`, `Unavailable`.

    It is the very one where its provider keeps it here, else a copy that is gone with the block.
    """
    row = await files.row(stack.store, file_id)
    found = getattr(_at(stack, row), "path", None)
    if found:
        path: Path = found(row.id)
        if (size := await asyncio.to_thread(_size, path)) != row.bytes:
            raise _damaged(row.id, size, row.bytes)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="llama-lite-") as folder:
        path = Path(folder) / "file"
        await _copy(stack, row, path)
        yield path


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def _copy(stack: Stack, row: Row[Any], path: Path) -> None:
    try:
        with path.open("wb") as disk:
            async for piece in content(stack, row):
                await asyncio.to_thread(disk.write, piece)
    except OSError as error:
        raise Unavailable(f"file `{row.id}` cannot be copied to this machine: {error.strerror}") from error


async def sweep(stack: Stack) -> None:
    """Remove what has expired."""
    while gone := await files.expire(stack.store, most=GROUP):
        for row in gone:
            await _drop(stack, row)


async def sweep_orphans(stack: Stack) -> None:
    """Remove bytes whose file nobody ever told of: a crash came between."""
    for provider in stack.files.values():
        names: list[str] = []
        async for name in provider.names(older=ORPHANED):
            names.append(name)
            if len(names) == GROUP:
                await _remove_unknown(stack, provider, names)
                names = []
        await _remove_unknown(stack, provider, names)


async def _remove_unknown(stack: Stack, provider: Files, names: list[str]) -> None:
    for name in set(names) - await files.known(stack.store, names):
        await provider.remove(name)


class Sweeping:
    """The task that sweeps: what has expired each minute, orphans at start and each day."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def start(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def _run(self) -> None:
        orphans = 0.0
        while True:
            try:
                await sweep(self.stack)
                if orphans <= time.monotonic():
                    orphans = time.monotonic() + ORPHANED
                    await sweep_orphans(self.stack)
            except StackError as error:
                log.warning("old files could not be swept: %s", error)
            except Exception:
                log.exception("old files could not be swept")
            await asyncio.sleep(EVERY)

    async def aclose(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
