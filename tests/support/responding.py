"""A server that keeps its state, asked for responses over ASGI; every answer is checked by OpenAI's types."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import BaseModel

from llama_stack_lite.api.inference import ChatChunk, ChatRequest, FunctionDefinition
from llama_stack_lite.api.tools import ToolKind, ToolResult
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ContextOverflow
from llama_stack_lite.providers.inference.scripted import Scripted
from llama_stack_lite.server import create_app
from tests.support import official

PAIR = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


class Sums:
    """Two functions of this server; `made` are the calls that came to them."""

    kind: ToolKind = "mcp"

    class Config(BaseModel):
        pass

    def __init__(self, config: Config) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []

    async def tools(self) -> list[FunctionDefinition]:
        return [
            FunctionDefinition(name=name, description=f"{name} two numbers", parameters=PAIR)
            for name in ("add", "multiply")
        ]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        self.made.append((name, arguments))
        a, b = arguments["a"], arguments["b"]
        return ToolResult(text=str(a + b if name == "add" else a * b))


class Searches:
    """A search that finds one page."""

    kind: ToolKind = "web_search"

    class Config(BaseModel):
        pass

    def __init__(self, config: Config) -> None:
        pass

    async def tools(self) -> list[FunctionDefinition]:
        query = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
        return [FunctionDefinition(name="web_search", description="search", parameters=query)]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        page = {"title": "Birds", "url": "https://birds.example/", "snippet": "They fly."}
        action = {"type": "search", "query": arguments["query"]}
        sources = [{"type": "url", "url": page["url"]}]
        details = {"action": action | {"sources": sources}, "results": [page]}
        return ToolResult(text="[1] Birds https://birds.example/\nThey fly.", details=details)


class Narrow(Scripted):  # type: ignore[misc]
    """Scripted, and it reads at most eight words."""

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        words = await self.count(model, request)
        if words > 8:
            raise ContextOverflow(limit=8, prompt=words)
        async for chunk in super().chat(model, request):
            yield chunk


class Broken(Scripted):  # type: ignore[misc]
    """Scripted, and it breaks behind its first word, in a way that nobody foresaw."""

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        async for chunk in super().chat(model, request):
            yield chunk
            raise RuntimeError("a mistake in a provider")


class Responding:
    """The application, and the means to ask it."""

    def __init__(self, app: FastAPI, http: httpx.AsyncClient) -> None:
        self.app = app
        self.http = http

    @property
    def scripted(self) -> Scripted:
        found: Scripted = self.app.state.stack.inference["test"]
        return found

    @property
    def sums(self) -> Sums:
        found: Sums = self.app.state.stack.tools["sums"]
        return found

    def asked(self) -> list[list[dict[str, Any]]]:
        """The messages of each request that came to the model."""
        return [
            [message.model_dump(exclude_none=True) for message in request.messages]
            for request in self.scripted.requests
        ]

    async def post(self, path: str = "", **fields: Any) -> httpx.Response:
        return await self.http.post(f"/v1/responses{path}", json={"model": "test/scripted", **fields})

    async def whole(self, **fields: Any) -> dict[str, Any]:
        """A whole response, which is kept as it was told."""
        reply = await self.post(**fields)
        assert reply.status_code == 200, reply.text
        found = official.response(reply.json())
        if fields.get("store") is not False and not fields.get("background"):
            await self.same(found, fields.get("include") or [])
        return found

    async def stream(self, **fields: Any) -> list[dict[str, Any]]:
        """The events of a streamed response, whose last one tells what is kept."""
        found = official.streamed(await self.post(stream=True, **fields))
        if fields.get("store") is not False:
            await self.same(found[-1]["response"], fields.get("include") or [])
        return found

    async def same(self, response: dict[str, Any], include: list[str]) -> None:
        kept = await self.http.get(f"/v1/responses/{response['id']}", params={"include": include})
        assert kept.status_code == 200 and kept.json() == response

    async def both(self, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The same twice, whole and streamed."""
        return await self.whole(**fields), (await self.stream(**fields))[-1]["response"]

    async def refused(self, path: str = "", **fields: Any) -> dict[str, Any]:
        """The error that a bad request is answered with; the model was not asked."""
        before = len(self.scripted.requests)
        reply = await self.post(path, **fields)
        assert 400 <= reply.status_code < 500, (reply.status_code, reply.text)
        assert len(self.scripted.requests) == before
        found: dict[str, Any] = reply.json()["error"]
        assert set(found) == {"message", "type", "param", "code"}
        return found | {"status": reply.status_code}


def config(folder: Path, *replies: Any, provider: str = "scripted", **sections: Any) -> StackConfig:
    tools = {"sums": {"provider": f"{__name__}:Sums"}, "web": {"provider": f"{__name__}:Searches"}}
    model = {"provider": provider, "replies": list(replies)}
    return StackConfig.model_validate(
        {"inference": {"test": model}, "tools": tools, "storage": f"sqlite:///{folder}/state.db", **sections}
    )


@asynccontextmanager
async def responding(settings: StackConfig) -> AsyncIterator[Responding]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=20) as http,
    ):
        yield Responding(app, http)


def run(settings: StackConfig, work: Callable[[Responding], Awaitable[None]]) -> None:
    """Do the work with a server of these settings."""

    async def main() -> None:
        async with responding(settings) as server:
            await work(server)

    asyncio.run(main())


def texts(response: dict[str, Any]) -> list[str]:
    """What a response says."""
    return [
        part.get("text", part.get("refusal"))
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
    ]
