"""What providers of web search have in common: the tool, a limited HTTP request, results as text."""

import asyncio
import html
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import AfterValidator, BaseModel, Field, SecretStr, ValidationError

from .api.inference import FunctionDefinition
from .api.tools import ToolResult

MOST = 10  # results of one search
MAX_BYTES = 4 * 1024 * 1024  # of an engine's answer
SHOWN = 1000  # characters of a passage that the model reads
REASONS = {
    400: "it does not understand the query",
    401: "it refuses the API key",
    403: "it refuses access",
    422: "it does not understand the query",
    429: "it has had too many searches, try again later",
}
TOOL = FunctionDefinition(
    name="web_search",
    description="Search the web. Gives titles, addresses and short passages of pages.",
    parameters={
        "type": "object",
        "properties": {
            "query": {"type": "string", "minLength": 1, "description": "what to look for"},
            "count": {"type": "integer", "minimum": 1, "maximum": MOST, "description": "how many results"},
        },
        "required": ["query"],
        "additionalProperties": False,
    },
)


def _key(value: SecretStr) -> SecretStr:
    text = value.get_secret_value()
    if not text or not (text.isascii() and text.isprintable()):
        raise ValueError("no key: it is empty, or holds what no HTTP header can")
    return value


def _address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("no address of a server, such as http://127.0.0.1:8888")
    return value.rstrip("/")


Key = Annotated[SecretStr, AfterValidator(_key)]
Address = Annotated[str, AfterValidator(_address)]


class Result(BaseModel):
    """A page that was found."""

    title: str
    url: str
    snippet: str


class Query(BaseModel):
    """The tool's arguments."""

    query: str = Field(min_length=1)
    count: int = Field(5, ge=1, le=MOST)


class SearchFailed(Exception):
    """Why there are no results, in words for the model."""


class Engine:
    """A search engine's HTTP API, at an address that the operator chose. No redirect is followed."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        timeout: float,
        headers: dict[str, str] | None = None,
        reasons: dict[int, str] | None = None,
    ) -> None:
        self.name = name
        self.timeout = timeout
        self.reasons = REASONS | (reasons or {})
        self._client = httpx.AsyncClient(
            base_url=base_url,
            # what is not compressed cannot grow
            headers={"accept": "application/json", "accept-encoding": "identity", **(headers or {})},
            timeout=None,  # httpx would count each read anew
        )

    async def ask(self, method: str, path: str, **options: Any) -> bytes:
        """The body of its answer, of at most `MAX_BYTES`; raises `SearchFailed`."""
        try:
            async with asyncio.timeout(self.timeout):
                async with self._client.stream(method, path, **options) as response:
                    if response.status_code != 200:
                        raise self._failed(self._reason(response))
                    return await self._read(response)
        except TimeoutError:
            raise self._failed(f"no answer within {self.timeout:g} seconds") from None
        except httpx.HTTPError as error:
            raise self._failed(f"it cannot be reached ({type(error).__name__})") from error

    async def _read(self, response: httpx.Response) -> bytes:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise self._failed("its answer is compressed, which it was asked not to do")
        found = bytearray()
        async for piece in response.aiter_raw():
            found += piece
            if len(found) > MAX_BYTES:
                raise self._failed("its answer is too long")
        return bytes(found)

    def _reason(self, response: httpx.Response) -> str:
        status = response.status_code
        reason = self.reasons.get(status, "it failed" if status >= 500 else "it answered something else")
        return f"{reason} (HTTP {status})"

    def _failed(self, reason: str) -> SearchFailed:
        return SearchFailed(f"{self.name}: {reason}")

    def read(self, kind: type[BaseModel], body: bytes) -> Any:
        """A body as what it should be; raises `SearchFailed`."""
        try:
            return kind.model_validate_json(body)
        except ValidationError:
            raise self._failed("its answer is no list of results") from None

    async def aclose(self) -> None:
        await self._client.aclose()


def result(title: str | None, url: str, snippet: str | None) -> Result:
    """What an engine says of a page, as plain text on one line each."""
    title, snippet = (" ".join(html.unescape(text or "").split()) for text in (title, snippet))
    return Result(title=title or url, url=url, snippet=snippet[:SHOWN])


async def answer(
    name: str, arguments: dict[str, Any], search: Callable[[Query], Awaitable[list[Result]]]
) -> ToolResult:
    """A call of the tool: the results as the model reads them, and as an item of a response has them."""
    if name != TOOL.name:
        return ToolResult(text=f"there is no tool `{name}`, only `{TOOL.name}`", error=True)
    try:
        query = Query.model_validate(arguments)
    except ValidationError as error:
        first = error.errors()[0]
        return ToolResult(text=f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}", error=True)
    try:
        found = [page for page in await search(query) if _is_page(page.url)][: query.count]
    except SearchFailed as failure:
        return ToolResult(text=f"The search failed. {failure}.", error=True, details=_details(query, []))
    pages = [f"{number}. {page.title}\n{page.url}\n{page.snippet}" for number, page in enumerate(found, 1)]
    text = "\n\n".join(map(str.rstrip, pages))
    return ToolResult(text=text or "Nothing was found.", details=_details(query, found))


def _is_page(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not any(map(str.isspace, url))


def _details(query: Query, found: list[Result]) -> dict[str, Any]:
    """The fields of an item of type `web_search_call`, and beside them `results`, for citations."""
    action = {
        "type": "search",
        "query": query.query,
        "queries": [query.query],
        "sources": [{"type": "url", "url": page.url} for page in found],
    }
    return {"action": action, "results": [page.model_dump() for page in found]}
