"""Web search by a SearXNG server, which asks other engines (https://docs.searxng.org)."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.web_search import TOOL, Address, Engine, Query, Result, answer, result

REASONS = {403: "its settings do not let it answer in JSON (`search.formats`)"}


class Page(BaseModel):
    title: str | None = None
    url: str
    content: str | None = None


class Reply(BaseModel):
    results: list[Page]


class SearXNG:
    """One tool, `web_search`. The server must list `json` among its `search.formats`."""

    kind: Literal["web_search"] = "web_search"

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        base_url: Address = Field(description="the server, such as http://127.0.0.1:8888")
        timeout: float = Field(15, gt=0, description="seconds for one search")
        language: str | None = Field(None, description="by default the server's own, such as `en`")
        safesearch: Literal[0, 1, 2] = Field(1, description="none, moderate, strict")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.engine = Engine("SearXNG", config.base_url, timeout=config.timeout, reasons=REASONS)

    async def tools(self) -> list[FunctionDefinition]:
        return [TOOL]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        return await answer(name, arguments, self._search)

    async def _search(self, query: Query) -> list[Result]:
        parameters: dict[str, str | int] = {
            "q": query.query,
            "format": "json",
            "safesearch": self.config.safesearch,
        }
        if self.config.language:
            parameters["language"] = self.config.language
        reply: Reply = self.engine.read(Reply, await self.engine.ask("GET", "/search", params=parameters))
        return [result(page.title, page.url, page.content) for page in reply.results]

    async def aclose(self) -> None:
        await self.engine.aclose()
