"""A server on loopback that writes whatever bytes a test wants an upstream to write."""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"


@dataclass
class Exchange:
    """A request as it arrived, and the socket to answer on."""

    path: str
    headers: dict[str, str]
    body: Any
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def left(self) -> None:
        """Wait until the client hangs up."""
        with suppress(ConnectionError):
            await self.reader.read(1)

    def reset(self) -> None:
        """Cut the connection as a crashed machine does, by a TCP reset."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Answer = Callable[[Exchange], Awaitable[None]]


class Upstream:
    """What came in, over how many connections."""

    def __init__(self, answer: Answer, *, keep_alive: bool) -> None:
        self.answer = answer
        self.keep_alive = keep_alive
        self.url = ""
        self.requests: list[Exchange] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while exchange := await _read(reader, writer):
                self.requests.append(exchange)
                await self.answer(exchange)
                if not self.keep_alive:
                    break
        writer.close()


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Exchange:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    pairs = [line.split(": ", 1) for line in head[1:] if line]
    headers = {name.lower(): value for name, value in pairs}
    raw = await reader.readexactly(int(headers.get("content-length", 0)))
    return Exchange(head[0].split()[1], headers, json.loads(raw) if raw else None, reader, writer)


@asynccontextmanager
async def upstream(answer: Answer, *, keep_alive: bool = False) -> AsyncIterator[Upstream]:
    """Run an upstream in the test's own loop."""
    found = Upstream(answer, keep_alive=keep_alive)
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield found
    finally:
        server.close()
        for exchange in found.requests:
            exchange.writer.close()


def reply(status: int, body: bytes, *headers: str) -> bytes:
    """A whole response, as raw HTTP."""
    lines = [f"HTTP/1.1 {status} -", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "\r\n"]).encode() + body
