"""Servers for the client's tests: on loopback, or in this process, always with a scripted model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app
from llama_stack_lite_client import AsyncClient, Client
from tests.support.serving import serve

Configured = Callable[..., StackConfig]
AnyClient = Any  # a Client or an AsyncClient, whose answers `value` awaits where that has to be
WAYS = ["blocking over HTTP", "blocking in process", "awaited over HTTP", "awaited in process"]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """A configuration whose model `m` answers with these replies, and which keeps state."""

    def make(*replies: Any, **sections: Any) -> StackConfig:
        inference = {"provider": "scripted", "models": ["m"], "embedding_models": ["e"], "replies": replies}
        config = {"inference": {"test": inference}, "storage": f"sqlite:///{tmp_path}/state.db"}
        return StackConfig.model_validate(config | {"defaults": {"model": "test/m"}} | sections)

    return make


@pytest.fixture
def local(configured: Configured) -> Iterator[Callable[..., Client]]:
    """Clients of an application in this process, closed with the test."""
    clients: list[Client] = []

    def make(*replies: Any, **sections: Any) -> Client:
        clients.append(Client(app=create_app(configured(*replies, **sections))))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


@asynccontextmanager
async def served(way: str, config: StackConfig) -> AsyncIterator[tuple[AnyClient, FastAPI]]:
    """A client that reaches a server of that configuration in one of the `WAYS`, and the server."""
    where: dict[str, Any]
    with ExitStack() as stack:
        if way.endswith("HTTP"):
            running = stack.enter_context(serve(config))
            app, where = running.app, {"base_url": running.url}
        else:
            app = create_app(config)
            where = {"app": app}
        if way.startswith("blocking"):
            yield stack.enter_context(Client(**where)), app
        else:
            async with AsyncClient(**where) as client:
                yield client, app


@asynccontextmanager
async def reached(way: str, config: StackConfig) -> AsyncIterator[AnyClient]:
    async with served(way, config) as (client, _):
        yield client


async def value(given: Any) -> Any:
    """What a call returned, of either kind of client."""
    return await given if isinstance(given, Awaitable) else given


async def every(stream: Any) -> list[Any]:
    """All that a stream yields, of either kind of client."""
    return [item async for item in each_of(stream)]


async def each_of(stream: Any) -> AsyncIterator[Any]:
    if hasattr(stream, "__anext__"):
        async for item in stream:
            yield item
    else:
        for item in stream:
            yield item


def scripted(app: FastAPI) -> Any:
    """The model's provider of an application that runs: it has the requests that came to it."""
    return app.state.stack.inference["test"]
