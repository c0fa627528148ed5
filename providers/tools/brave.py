"""Web search by Brave's index (https://api-dashboard.search.brave.com)."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.web_search import TOOL, Address, Engine, Key, Query, Result, answer, result

LONGEST = 400  # characters of a query, of at most 50 words


class Page(BaseModel):
    title: str | None = None
    url: str
    description: str | None = None


class Web(BaseModel):
    results: list[Page] = []


class Reply(BaseModel):
    web: Web | None = None


class Brave:
    """One tool, `web_search`. What is longer than Brave's queries may be is cut."""

    kind: Literal["web_search"] = "web_search"

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        api_key: Key
        base_url: Address = "https://api.search.brave.com/res/v1"
        timeout: float = Field(10, gt=0, description="seconds for one search")
        safesearch: Literal["off", "moderate", "strict"] = "moderate"

    def __init__(self, config: Config) -> None:
        self.config = config
        headers = {"x-subscription-token": config.api_key.get_secret_value()}
        self.engine = Engine("Brave Search", config.base_url, timeout=config.timeout, headers=headers)

    async def tools(self) -> list[FunctionDefinition]:
        return [TOOL]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        return await answer(name, arguments, self._search)

    async def _search(self, query: Query) -> list[Result]:
        parameters: dict[str, str | int] = {
            "q": " ".join(query.query.split()[:50])[:LONGEST],
            "count": query.count,
            "safesearch": self.config.safesearch,
            "result_filter": "web",
            "text_decorations": "false",
        }
        body = await self.engine.ask("GET", "/web/search", params=parameters)
        reply: Reply = self.engine.read(Reply, body)
        return [result(page.title, page.url, page.description) for page in (reply.web or Web()).results]

    async def aclose(self) -> None:
        await self.engine.aclose()
