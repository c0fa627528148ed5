"""Web search by Tavily, an engine for agents (https://docs.tavily.com)."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.web_search import TOOL, Address, Engine, Key, Query, Result, answer, result

REASONS = {432: "the plan's limit is reached", 433: "the pay-as-you-go limit is reached"}


class Page(BaseModel):
    title: str | None = None
    url: str
    content: str | None = None


class Reply(BaseModel):
    results: list[Page]


class Tavily:
    """One tool, `web_search`."""

    kind: Literal["web_search"] = "web_search"

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        api_key: Key
        base_url: Address = "https://api.tavily.com"
        timeout: float = Field(20, gt=0, description="seconds for one search")
        search_depth: Literal["basic", "advanced"] = Field(
            "basic", description="`advanced` costs twice as much"
        )

    def __init__(self, config: Config) -> None:
        self.config = config
        headers = {"authorization": f"Bearer {config.api_key.get_secret_value()}"}
        self.engine = Engine(
            "Tavily", config.base_url, timeout=config.timeout, headers=headers, reasons=REASONS
        )

    async def tools(self) -> list[FunctionDefinition]:
        return [TOOL]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        return await answer(name, arguments, self._search)

    async def _search(self, query: Query) -> list[Result]:
        asked = {
            "query": query.query,
            "max_results": query.count,
            "search_depth": self.config.search_depth,
        }
        reply: Reply = self.engine.read(Reply, await self.engine.ask("POST", "/search", json=asked))
        return [result(page.title, page.url, page.content) for page in reply.results]

    async def aclose(self) -> None:
        await self.engine.aclose()
