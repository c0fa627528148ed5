"""The client: one object with all calls of a server, over HTTP or in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, TypeVar

import httpx

from .calls import Resource, W_co, ask, call
from .in_process import App, InProcess, InThread
from .objects import Embeddings, Health, Moderations
from .options import Json
from .resources import Agents, Chat, Conversations, Models, Prompts, Responses, Shields
from .wires import Awaiting, Blocking

C = TypeVar("C", bound="Client")
A = TypeVar("A", bound="AsyncClient")
URL = "http://127.0.0.1:8321"
TIMEOUT = 600.0  # seconds: a long prompt on a slow machine may take minutes to its first token


class API(Resource[W_co]):
    """All calls of a server, whichever way they are made."""

    def __init__(self, wire: W_co) -> None:
        super().__init__(wire)
        self.chat: Chat[W_co] = Chat(wire)
        self.responses: Responses[W_co] = Responses(wire)
        self.conversations: Conversations[W_co] = Conversations(wire)
        self.prompts: Prompts[W_co] = Prompts(wire)
        self.agents: Agents[W_co] = Agents(wire)
        self.models: Models[W_co] = Models(wire)
        self.shields: Shields[W_co] = Shields(wire)

    @call
    async def embeddings(
        self, input: str | Sequence[str], *, model: str, dimensions: int | None = None
    ) -> Embeddings:
        """One vector for each text."""
        asked = {"input": input, "model": model, "dimensions": dimensions}
        return await ask(self.wire, "POST", "/v1/embeddings", Embeddings, body=asked)

    @call
    async def moderations(
        self, input: str | Sequence[str] | Sequence[Json], *, model: str | None = None
    ) -> Moderations:
        """What a shield, named by `model`, finds in each text."""
        asked = {"input": input, "model": model}
        return await ask(self.wire, "POST", "/v1/moderations", Moderations, body=asked)

    @call
    async def health(self) -> Health:
        """Answers once the server takes requests."""
        return await ask(self.wire, "GET", "/v1/health", Health)


class Client(API[Blocking]):
    """Calls that block.

    `app` is an ASGI application to run in this process, in the place of a server at `base_url`: it is started
    here, and stopped by `close`, so use the client in a `with`. `timeout` is in seconds, between two signs of
    life of the server. `retries` is how often a request is sent again that the server has not begun to
    work on.
    """

    def __init__(
        self,
        base_url: str = URL,
        *,
        api_key: str | None = None,
        app: App | None = None,
        timeout: float | httpx.Timeout = TIMEOUT,
        retries: int = 2,
    ) -> None:
        transport = InThread(app) if app else None
        self.http = httpx.Client(transport=transport, **_settings(base_url, api_key, timeout))
        super().__init__(Blocking(self.http, retries))

    def close(self) -> None:
        self.http.close()

    def __enter__(self: C) -> C:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(API[Awaiting]):
    """The same calls, awaited; an `app` is started by the first of them, and stopped by `aclose`."""

    def __init__(
        self,
        base_url: str = URL,
        *,
        api_key: str | None = None,
        app: App | None = None,
        timeout: float | httpx.Timeout = TIMEOUT,
        retries: int = 2,
    ) -> None:
        transport = InProcess(app) if app else None
        self.http = httpx.AsyncClient(transport=transport, **_settings(base_url, api_key, timeout))
        super().__init__(Awaiting(self.http, retries))

    async def aclose(self) -> None:
        await self.http.aclose()

    async def __aenter__(self: A) -> A:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class _Settings(TypedDict):
    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout


def _settings(base_url: str, api_key: str | None, timeout: float | httpx.Timeout) -> _Settings:
    """What both kinds of httpx's client are told; a base URL may end with the `/v1` that SDKs want."""
    return {
        "base_url": base_url.rstrip("/").removesuffix("/v1"),
        "headers": {"authorization": f"Bearer {api_key}"} if api_key else {},
        "timeout": timeout
        if isinstance(timeout, httpx.Timeout)
        else httpx.Timeout(timeout, connect=min(timeout, 10)),
    }
