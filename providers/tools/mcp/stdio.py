"""An MCP server that is a command: its process, and one JSON-RPC message on each line."""

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import TransportStreams
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter

from llama_stack_lite.errors import StackError, Unavailable

log = logging.getLogger(__name__)

GRACE = 2.0  # seconds to end by itself once nobody speaks to it, and again after SIGTERM
GLANCE = 0.01
TAIL = 500  # characters of its last words that an error shows
INHERITED = ("HOME", "PATH")

Inbox = MemoryObjectSendStream[SessionMessage | Exception]
Outbox = MemoryObjectReceiveStream[SessionMessage]


@asynccontextmanager
async def stdio(
    command: Sequence[str], *, env: Mapping[str, str], cwd: str | None, limit: int
) -> AsyncIterator[TransportStreams]:
    """Run a command as long as the block lasts; no message of it may have more than `limit` bytes.

    Not the SDK's own `stdio_client`, which reads a line of any length and hands on more of our environment.
    Whatever the command started dies with it. Raises `Unavailable` where it cannot be started; a process
    that ends by itself sends why, as an error in the stream.
    """
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    # servers that are installed beside this one are found too, also where its environment is not activated
    inherited["PATH"] = os.pathsep.join([inherited.get("PATH", os.defpath), str(Path(sys.executable).parent)])
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=inherited | dict(env),
            cwd=cwd,
            start_new_session=True,
            limit=limit,
        )
    except OSError as error:
        raise Unavailable(f"`{command[0]}` cannot be started: {error.strerror}") from error
    inbox, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    to_server, outbox = anyio.create_memory_object_stream[SessionMessage](0)
    last_words = bytearray()
    try:
        async with from_server, to_server, anyio.create_task_group() as tasks:
            tasks.start_soon(_read, process, inbox, Path(command[0]).name, last_words)
            tasks.start_soon(_write, process, outbox)
            tasks.start_soon(_overhear, process, last_words)
            try:
                yield from_server, to_server
            finally:
                with anyio.CancelScope(shield=True):
                    await _stop(process)
                tasks.cancel_scope.cancel()
    finally:
        _signal(process, signal.SIGKILL)  # whoever cancelled this so hard that it could not stop in peace
        process._transport.close()  # type: ignore[attr-defined] # else a child that has its pipes keeps it


async def _read(process: Process, inbox: Inbox, name: str, last_words: bytearray) -> None:
    assert process.stdout
    with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
        async with inbox:
            async for line in _lines(process.stdout):
                try:
                    await inbox.send(
                        SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
                    )
                except ValueError as error:
                    await inbox.send(error)
            await inbox.send(await _ending(process, name, last_words))
    while await process.stdout.read(1 << 16):
        pass  # or it could not end, waiting to say the rest


async def _lines(stdout: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Each line, up to the end or to one that is too long."""
    with suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        while True:
            yield await stdout.readuntil(b"\n")


async def _ending(process: Process, name: str, last_words: bytearray) -> StackError:
    """Why nothing more comes of it."""
    assert process.stdout
    if not process.stdout.at_eof():
        return Unavailable(f"`{name}` wrote a message that is too long")
    await _exited(process)
    lines = last_words.decode("utf-8", "replace").strip().splitlines()
    how = "closed its output" if process.returncode is None else f"exited with {process.returncode}"
    return Unavailable(f"`{name}` {how}{': ' + lines[-1][-TAIL:] if lines else ''}")


async def _write(process: Process, outbox: Outbox) -> None:
    assert process.stdin
    async with outbox:
        with suppress(ConnectionError):
            async for each in outbox:
                line = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                process.stdin.write(line.encode() + b"\n")
                await process.stdin.drain()


async def _overhear(process: Process, last_words: bytearray) -> None:
    """Keep what it said last on stderr, which an unread pipe would make it wait to say."""
    assert process.stderr
    while heard := await process.stderr.read(4096):
        log.debug("%s", heard)
        last_words += heard
        del last_words[: -4 * TAIL]


async def _stop(process: Process) -> None:
    """As the specification has it: close its input, wait, terminate, wait, kill."""
    assert process.stdin
    process.stdin.close()
    for next_signal in (signal.SIGTERM, signal.SIGKILL):
        if await _exited(process):
            break
        _signal(process, next_signal)
    _signal(process, signal.SIGKILL)  # what it leaves behind
    await _exited(process)


async def _exited(process: Process) -> bool:
    """Whether it ends within `GRACE`; not by `wait`, which waits for all that have its pipes."""
    for _ in range(round(GRACE / GLANCE)):
        if process.returncode is not None:
            return True
        await asyncio.sleep(GLANCE)
    return False


def _signal(process: Process, number: int) -> None:
    """To its whole group, which is named after it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
