"""One container: a sandbox with files and an interpreter, asked over a socket, one request at a time."""

import asyncio
import errno
import subprocess
import time
from dataclasses import dataclass

from pydantic import BaseModel, TypeAdapter, ValidationError

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.errors import InvalidRequest, NotFound, Unavailable

from .sandbox import HEAD, START_SECONDS, Off, Sandbox, checked, end

PATIENCE = 5.0  # seconds that a sandbox may take beyond its own limits
SLACK = 65536  # bytes of an answer beside what was asked for
ENTRY = 2000  # bytes that a file may take in a list
FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}

Listing = TypeAdapter(list[tuple[str, int, int]])


class Gone(Unavailable):
    """A container has come to an end, and all that was in it."""

    def __init__(self) -> None:
        super().__init__("the container has ended; its variables and files are gone")


class Refused(Exception):
    """A sandbox could not do as asked, for the reason that an errno names."""


class Outcome(BaseModel):
    """How code ended (`done`, `raised`, or why it was stopped), and whether its variables are kept."""

    how: str
    kept: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class File:
    """A file in a work folder: its name, its length in bytes, when it was last written (Unix seconds)."""

    name: str
    size: int
    written: int


class Container:
    """A sandbox from its first use to `close`; `closed` is also where it ended by a fault."""

    def __init__(self, sandbox: Sandbox, *, name: str) -> None:
        self.id = new_id("cntr")
        self.name = name
        self.created_at = self.used_at = time.time()
        self.uploaded: set[str] = set()
        self.closed = False
        self.waiting = 0  # requests that wait, or are worked on
        self.sandbox = sandbox
        self._lock = asyncio.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    async def run(self, code: str) -> tuple[Outcome, str]:
        """Run code where the last one ran; the second is what it wrote. Cancelled, it stops the code."""
        limits = self.sandbox.limits
        payload, seconds = code.encode(errors="replace"), limits["timeout"] + PATIENCE
        answer = await self._ask(b"c", payload, most=int(limits["output"]), seconds=seconds)
        header, _, output = answer.partition(b"\n")
        try:
            return Outcome.model_validate_json(header), output.decode(errors="replace")
        except ValidationError:
            raise self._gone() from None

    async def files(self) -> list[File]:
        """The files that lie in the work folder itself, by name: none of its folders, and no links."""
        answer = await self._ask(b"l", b"", most=ENTRY * int(self.sandbox.limits["files"]))
        try:
            return sorted(
                (File(*entry) for entry in Listing.validate_json(answer)), key=lambda file: file.name
            )
        except ValidationError:
            raise self._gone() from None

    async def write(self, name: str, data: bytes) -> None:
        """Put a file into the work folder, in the place of one of the same name."""
        await self._ask(b"w", _bytes(name) + b"\0" + data, name=name)
        self.uploaded.add(name)

    async def read(self, name: str) -> bytes:
        return await self._ask(b"r", _bytes(name), name=name, most=int(self.sandbox.limits["bytes"]))

    async def remove(self, name: str) -> None:
        await self._ask(b"x", _bytes(name), name=name)
        self.uploaded.discard(name)

    def close(self) -> None:
        """End everything in the sandbox at once."""
        self.closed = True
        if self._process is not None:
            self._writer.close()
            end(self._process)
            self._process = None

    async def _ask(
        self, kind: bytes, payload: bytes, *, name: str = "", most: int = 0, seconds: float = 2 * PATIENCE
    ) -> bytes:
        """The answer to one request, of `most` bytes; a sandbox that is silent or talks nonsense is closed.

        Raises `NotFound` or `InvalidRequest` for what cannot be done with the file `name`, and `Gone`.
        """
        self.waiting += 1
        try:
            async with self._lock:
                if self.closed:
                    raise Gone
                if self._process is None:
                    await self._start()
                async with asyncio.timeout(seconds):
                    return await self._exchange(kind, payload, most)
        except Refused as error:
            raise _reason(error.args[0], name) from None
        except (OSError, EOFError) as error:  # a TimeoutError is an OSError
            raise self._gone() from error
        finally:
            self.waiting -= 1
            self.used_at = time.time()

    async def _start(self) -> None:
        """Make the sandbox, and see that it is shut; raises `Unavailable`."""
        try:
            self._process, channel = self.sandbox.start()
            self._reader, self._writer = await asyncio.open_connection(sock=channel, limit=2**20)
            async with asyncio.timeout(START_SECONDS):
                checked(await self._answer(SLACK))
        except (Off, Refused, OSError, EOFError) as error:
            self.close()
            raise Unavailable(f"no sandbox can be started: {error or type(error).__name__}") from error
        except BaseException:
            self.close()
            raise

    async def _exchange(self, kind: bytes, payload: bytes, most: int) -> bytes:
        self._writer.write(HEAD.pack(kind, len(payload)) + payload)
        answering = asyncio.ensure_future(self._answer(most))
        try:
            return await asyncio.shield(answering)
        except asyncio.CancelledError:
            # a second message stops the code; its answer is taken, so that the next one is that of the next
            self._writer.write(HEAD.pack(b"s", 0))
            await asyncio.wait([answering], timeout=PATIENCE)
            raise
        finally:
            if not answering.done():
                answering.cancel()
                self.close()

    async def _answer(self, most: int) -> bytes:
        kind, length = HEAD.unpack(await self._reader.readexactly(HEAD.size))
        if length > most + SLACK:
            raise EOFError("an answer longer than any should be")
        payload = await self._reader.readexactly(length)
        if kind == b"e":
            raise Refused(int(payload))
        return payload

    def _gone(self) -> Gone:
        self.close()
        return Gone()


def _bytes(name: str) -> bytes:
    """A file's name as the file system has it; raises `InvalidRequest` for what is no name."""
    raw = name.encode(errors="replace")
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(raw) > 255:
        raise InvalidRequest("a file's name is at most 255 bytes, without `/`", param="file")
    return raw


def _reason(number: int, name: str) -> Exception:
    if number in FULL:
        return InvalidRequest("the container has no room for the file", param="file")
    return NotFound("file", name)
