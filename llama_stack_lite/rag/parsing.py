"""What documents say: files read in child processes, so that no file can hurt the server."""

import asyncio
import json
import os
import signal
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_stack_lite.config.sections import Documents
from llama_stack_lite.errors import InvalidRequest, Unavailable

from .parsers.document import Block, Code, Parsed

__all__ = ["Block", "Parsed", "Parsers", "Unreadable"]

LONGEST = 4 * 1024 * 1024  # bytes of a frame: a child that sends a longer one is no longer itself
# of this process's environment, nothing but what Python needs to find what it imports
KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ", "TMPDIR")
# libraries reserve address space for each thread, and children share the machine with models
ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OPENCV_FOR_THREADS_NUM": "1",
}


class Unreadable(InvalidRequest):
    """A file whose text cannot be had: `unsupported_file`, or `invalid_file` where it alone is at fault."""

    def __init__(self, reason: str, *, code: Code = "invalid_file") -> None:
        super().__init__(f"The file cannot be read: {reason}.", code=code)


class Ended(Exception):
    """A child's process ended, or was ended, before it had answered."""


@dataclass(eq=False)
class Child:
    """A process that reads one file at a time; `sound` until it must be replaced."""

    process: asyncio.subprocess.Process
    sound: bool = True

    @classmethod
    async def started(cls) -> "Child":
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            # -P: nothing is imported from this folder
            *(sys.executable, "-P", "-m", "llama_stack_lite.rag.parsers", str(os.getpid())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,  # what breaks may quote what it was given
            env=kept | ENVIRONMENT,
            start_new_session=True,
        )
        return cls(process)

    async def read(self, asked: dict[str, Any], *, limit: int) -> Parsed:
        """What a file says; `limit` in bytes of all frames. Raises Unreadable, Ended."""
        self.sound = False  # unless its answer is read to the end
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            await self.process.stdin.drain()
            blocks: list[Block] = []
            while isinstance(frame := await self._frame(limit), list):
                blocks += [Block(*block) for block in frame]
                limit -= sum(len(block[1]) for block in frame)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            raise Ended from error
        self.sound = frame["sound"]
        if reason := frame.get("reason"):
            raise Unreadable(reason, code=frame["code"])
        return Parsed(blocks, frame["title"])

    async def _frame(self, limit: int) -> Any:
        assert self.process.stdout
        (length,) = struct.unpack("!I", await self.process.stdout.readexactly(4))
        if length > LONGEST or limit < 0:
            self.process.kill()
            raise Ended
        return json.loads(await self.process.stdout.readexactly(length))

    async def end(self) -> int:
        """Kill it, if it lives; returns how it ended, as `Popen.returncode` says it."""
        with suppress(ProcessLookupError):
            self.process.kill()
        return await self.process.wait()


class Parsers:
    """Children that read files, as many at once as there are workers; each is started when it is needed."""

    def __init__(self, limits: Documents) -> None:
        self._limits = limits
        self._places = asyncio.Semaphore(max(1, limits.workers))
        self._children: set[Child] = set()
        self._idle: list[Child] = []
        self._closed = False

    async def parsed(self, path: Path, filename: str) -> Parsed:
        """What the file at `path` says; `filename` tells its kind where its content leaves that open.

        Raises `Unreadable`, with the reason in words. Where this is cancelled, the child ends at once.
        """
        limits = self._limits
        asked = {
            "path": os.fspath(path),
            "name": filename,
            "text": limits.max_text_bytes,
            "memory": limits.parse_memory,
            "seconds": limits.parse_seconds,
        }
        async with self._places:
            child = await self._child()
            try:
                async with asyncio.timeout(2 * limits.parse_seconds):
                    return await child.read(asked, limit=limits.max_text_bytes)
            except TimeoutError:
                raise Unreadable(self._too_slow()) from None
            except Ended:
                raise self._death(await child.process.wait()) from None
            finally:
                if child.sound and not self._closed:
                    self._idle.append(child)
                else:
                    self._children.discard(child)
                    await child.end()

    async def aclose(self) -> None:
        """End the children; files that they are reading fail with `Unavailable`."""
        self._closed = True
        for child in list(self._children):
            await child.end()

    async def _child(self) -> Child:
        if self._closed:
            raise Unavailable("The server is going down: no more files are read.")
        while self._idle:
            child = self._idle.pop()
            if child.process.returncode is None:
                return child
            self._children.discard(child)
        child = await Child.started()
        self._children.add(child)
        return child

    def _too_slow(self) -> str:
        return f"it took more than {self._limits.parse_seconds:g} s to read"

    def _death(self, status: int) -> Unreadable | Unavailable:
        """Why a child ended amid a file."""
        if self._closed:
            return Unavailable("The server is going down: the file was not read.")
        if status == -signal.SIGXCPU:
            return Unreadable(self._too_slow())
        if status == -signal.SIGKILL:
            return Unreadable("the system ended its reader, which may be for want of memory")
        return Unreadable(f"it made its reader end ({_named(status)})")


def _named(status: int) -> str:
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"status {status}"
