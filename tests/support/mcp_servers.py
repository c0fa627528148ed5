"""MCP servers: an honest one of the SDK's own, as a process or over HTTP, and what it takes to listen."""

import asyncio
import os
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from mcp.server import MCPServer
from mcp.server.mcpserver import Context, Image
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import BlobResourceContents, EmbeddedResource, ResourceLink, TextResourceContents
from pydantic import BaseModel

from .tiny_vision import image_file

App = Callable[[Any, Any, Any], Awaitable[None]]
COMMAND = [sys.executable, "-m", "tests.support.mcp_servers"]


class Weather(BaseModel):
    degrees: float


class Consent(BaseModel):
    yes: bool


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def fail() -> str:
    raise ToolError("the kitchen burns")


def weather() -> Weather:
    return Weather(degrees=21.5)


def picture() -> list[Any]:
    return ["Here it is:", Image(data=image_file("red"), format="png")]


def files() -> list[Any]:
    """What else an answer may hold."""
    text = TextResourceContents(uri="file:///a.txt", text="all of it")
    blob = BlobResourceContents(uri="file:///b.bin", blob="AAAA")
    link = ResourceLink(name="c", uri="file:///c.txt", description="the third")
    return [*(EmbeddedResource(resource=each) for each in (text, blob)), link]


def big(size: int) -> str:
    return "x" * size


async def wait(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


async def grow(name: str, context: Context) -> str:
    """Add a tool, and tell of it in the words of both protocols."""
    context.mcp_server.add_tool(add, name=name, structured_output=False)
    await context.notify_tools_changed()
    await context.session.send_tool_list_changed()
    return "grown"


async def ask(context: Context) -> str:
    return (await context.elicit("May I?", Consent)).action


def environment() -> str:
    return " ".join(sorted(os.environ))


def die() -> str:
    sys.stderr.write("hit by a cosmic ray\n")
    sys.stderr.flush()
    os._exit(7)


def honest() -> MCPServer:
    """A server with tools for each kind of answer there is."""
    server = MCPServer("bench", log_level="CRITICAL")
    for tool in (add, fail, picture, files, big, wait, grow, ask, environment, die):
        server.add_tool(tool, structured_output=False)
    server.add_tool(weather)
    server.add_tool(environment, name="files/read.all", structured_output=False)
    return server


def older(app: App) -> App:
    """The same server, as if the protocol had never become younger than sessions and handshakes."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if (b"mcp-method", b"server/discover") not in scope.get("headers", []):
            return await app(scope, receive, send)
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"no such method"})

    return answer


@contextmanager
def listening(app: App) -> Iterator[str]:
    """Serve an ASGI application on a free loopback port; gives its URL."""
    config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    # said to be TCP, or asyncio does not switch off Nagle's algorithm, which costs 40 ms an answer
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the server did not start")
                thread.join(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


if __name__ == "__main__":
    honest().run()
