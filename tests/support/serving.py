"""The server on a real socket, in a thread of the test's own process."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app


class Running:
    """A server that listens: its address, its application, and the clients to close before it stops."""

    def __init__(self, url: str, app: FastAPI) -> None:
        self.url = url
        self.app = app
        self.clients = ExitStack()


@contextmanager
def serve(config: StackConfig) -> Iterator[Running]:
    """Serve a configuration on a free loopback port until the block ends."""
    app = create_app(config)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the server did not start")
                thread.join(0.01)
            running = Running(f"http://127.0.0.1:{listener.getsockname()[1]}", app)
            with running.clients:
                yield running
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def models_home() -> Path:
    """Where tests keep the models they pull, outside the checkout, so that a second run finds them."""
    return Path(os.environ.get("LLAMA_LITE_TEST_HOME") or Path.home() / ".cache" / "llama-lite-tests")
