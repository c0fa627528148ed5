"""What every place for files must do: subclass `FilesConformance`, and return yours from `provider()`."""

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llama_stack_lite.api.files import Files
from llama_stack_lite.errors import NotFound

PIECE = 1024 * 1024  # bytes that are read at once, at most
LARGE = bytes(range(256)) * 4 * 1024 * 9 + b"end"  # 9 MiB and a little: several parts of any upload
HOSTILE = ("..", ".", "", "../x", "a/b", "a\x00b", "x" * 300, "file\n", ":", "na\u00efve")

Check = Callable[[Any, Files], Awaitable[None]]


def awaited(check: Check) -> Callable[["FilesConformance"], None]:
    """Make a test of an async check."""

    # no functools.wraps: pytest would take the check's parameters for fixtures
    def test(self: "FilesConformance") -> None:
        asyncio.run(self.run(check))

    test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
    return test


class FilesConformance:
    """Every test opens the place anew, which may hold files of other tests, and closes it."""

    timeout = 60.0  # seconds for each test

    @asynccontextmanager
    async def provider(self) -> AsyncIterator[Files]:
        """Yield a provider of the same place each time."""
        raise NotImplementedError("yield a provider from `provider()`")
        yield

    async def run(self, check: Check) -> None:
        async with asyncio.timeout(self.timeout), self.provider() as provider:
            await check(self, provider)

    async def kept(self, provider: Files, name: str, content: bytes) -> None:
        """Put a content under a name."""
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            source = Path(file.name)
            await provider.put(name, source, digest=hashlib.sha256(content).hexdigest())
            file.seek(0)
            assert file.read() == content, "the source was changed"

    async def content(self, provider: Files, name: str) -> bytes:
        pieces = [piece async for piece in provider.read(name)]
        assert all(0 < len(piece) <= PIECE for piece in pieces)
        return b"".join(pieces)

    async def gone(self, provider: Files, name: str) -> None:
        with pytest.raises(NotFound):
            await self.content(provider, name)

    async def named(self, provider: Files, *, older: float) -> set[str]:
        return {name async for name in provider.names(older=older)}

    @awaited
    async def test_what_was_put_is_read_to_the_byte(self, provider: Files) -> None:
        for number, content in enumerate((b"x", b"\r\n\x00\xff", LARGE)):
            await self.kept(provider, f"file-bytes{number}", content)
            assert await self.content(provider, f"file-bytes{number}") == content

    @awaited
    async def test_it_is_there_for_the_next_who_opens_the_place(self, provider: Files) -> None:
        await self.kept(provider, "file-again", b"once")
        async with self.provider() as other:
            assert await self.content(other, "file-again") == b"once"

    @awaited
    async def test_what_was_removed_is_not_there(self, provider: Files) -> None:
        await self.kept(provider, "file-removed", b"gone")
        await provider.remove("file-removed")
        await self.gone(provider, "file-removed")
        await provider.remove("file-removed")
        await self.gone(provider, "file-never")

    @awaited
    async def test_a_name_is_put_again(self, provider: Files) -> None:
        for content in (b"first", b"second", b"second", b"first"):
            await self.kept(provider, "file-twice", content)
            assert await self.content(provider, "file-twice") == content

    @awaited
    async def test_names_of_one_content_end_one_by_one(self, provider: Files) -> None:
        names = [f"file-same{number}" for number in range(3)]
        for name in names:
            await self.kept(provider, name, b"the same")
        for name in names:
            assert await self.content(provider, name) == b"the same"
            await provider.remove(name)
            await self.gone(provider, name)
        await self.kept(provider, names[0], b"the same")
        assert await self.content(provider, names[0]) == b"the same"

    @awaited
    async def test_puts_and_removes_of_one_content_race(self, provider: Files) -> None:
        content = b"contended" * 1000

        async def turn(name: str) -> None:
            for _ in range(5):
                await self.kept(provider, name, content)
                assert await self.content(provider, name) == content
                await provider.remove(name)
                await self.gone(provider, name)

        await asyncio.gather(*(turn(f"file-race{number}") for number in range(6)))

    @awaited
    async def test_a_reader_may_leave(self, provider: Files) -> None:
        await self.kept(provider, "file-left", LARGE)
        reading = provider.read("file-left")
        assert LARGE.startswith(await anext(reading))
        await reading.aclose()
        assert await self.content(provider, "file-left") == LARGE

    @awaited
    async def test_names_are_listed_by_age(self, provider: Files) -> None:
        await self.kept(provider, "file-listed", b"here")
        await asyncio.sleep(1.1)  # some places count in seconds
        assert "file-listed" in await self.named(provider, older=0)
        assert "file-listed" not in await self.named(provider, older=3600)

    @awaited
    async def test_a_name_is_never_a_path(self, provider: Files) -> None:
        for name in HOSTILE:
            await self.gone(provider, name)
            with pytest.raises(NotFound):
                await self.kept(provider, name, b"out")
            with pytest.raises(NotFound):
                await provider.remove(name)
