"""Web search: each engine's documented answer, read from a real socket, and everything that may go wrong."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from openai.types.responses import ResponseFunctionWebSearch
from pydantic import SecretStr, ValidationError

from llama_stack_lite.api.tools import ToolResult, Tools
from llama_stack_lite.providers.tools.brave import Brave
from llama_stack_lite.providers.tools.searxng import SearXNG
from llama_stack_lite.providers.tools.tavily import Tavily
from llama_stack_lite.web_search import MAX_BYTES
from tests.conformance.tools import ToolsConformance
from tests.support.upstream import Exchange, Upstream, reply, upstream

KEY = "a-secret-key"
ENGINES = ["brave", "searxng", "tavily"]


def made(engine: str, url: str, **settings: Any) -> Any:
    if engine == "brave":
        return Brave(Brave.Config(api_key=SecretStr(KEY), base_url=url, **settings))
    if engine == "tavily":
        return Tavily(Tavily.Config(api_key=SecretStr(KEY), base_url=url, **settings))
    return SearXNG(SearXNG.Config(base_url=url, **settings))


def page(engine: str, title: Any, url: str, text: Any) -> dict[str, Any]:
    """A result as the engine writes it, with some of the fields that nobody here reads."""
    if engine == "brave":
        return {
            "type": "search_result",
            "title": title,
            "url": url,
            "description": text,
            "is_source_local": False,
            "language": "en",
            "family_friendly": True,
            "extra_snippets": ["more"],
        }
    if engine == "tavily":
        return {"title": title, "url": url, "content": text, "score": 0.81, "raw_content": None}
    return {
        "url": url,
        "title": title,
        "content": text,
        "thumbnail": "",
        "engine": "wikipedia",
        "engines": ["wikipedia"],
        "positions": [1],
        "score": 1.0,
        "category": "general",
        "publishedDate": None,
    }


def body(engine: str, query: str, pages: list[dict[str, Any]]) -> bytes:
    """An answer in the shape of the engine's documentation."""
    around: dict[str, Any] = {
        "brave": {
            "type": "search",
            "query": {"original": query, "more_results_available": True},
            "mixed": {"type": "mixed", "main": [{"type": "web", "index": 0, "all": False}]},
            "web": {"type": "search", "results": pages, "family_friendly": True},
        },
        "tavily": {
            "query": query,
            "follow_up_questions": None,
            "answer": None,
            "images": [],
            "results": pages,
            "response_time": 1.09,
            "request_id": "123e4567-e89b-12d3-a456-426614174111",
        },
        "searxng": {
            "query": query,
            "number_of_results": 0,
            "results": pages,
            "answers": [],
            "corrections": [],
            "infoboxes": [],
            "suggestions": ["other"],
            "unresponsive_engines": [["brave", "timeout"]],
        },
    }
    return json.dumps(around[engine]).encode()


async def searched(
    engine: str,
    send: Callable[[Exchange], Awaitable[None]],
    arguments: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[ToolResult, Upstream]:
    async with upstream(send) as server:
        provider = made(engine, server.url.removesuffix("/v1"), **settings)
        try:
            asked = {"query": "flowers by the sea"} if arguments is None else arguments
            return await provider.call("web_search", asked, session="one"), server
        finally:
            await provider.aclose()


def failing(engine: str, data: bytes, **settings: Any) -> ToolResult:
    """The result of a search to which the engine says this."""

    async def send(exchange: Exchange) -> None:
        await exchange.send(data)

    found, _ = asyncio.run(searched(engine, send, **settings))
    assert found.error and KEY not in found.text
    assert found.details["action"]["sources"] == found.details["results"] == []
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_results_as_text_and_as_an_item(engine: str) -> None:
    pages = [
        page(engine, "Sea &amp; holly", "https://a.example/sea", "It  stands\nsalt &lt;spray&gt;."),
        page(engine, None, "https://b.example/", None),
        page(engine, "A trick", "javascript:alert(1)", "no page"),
        page(engine, "Another", "https://", "no page either"),
        page(engine, "Thrift", "https://c.example/?q=1&r=2", "x" * 5000),
        page(engine, "One too many", "https://d.example/", "left out"),
    ]

    async def send(exchange: Exchange) -> None:
        await exchange.send(reply(200, body(engine, "flowers by the sea", pages)))

    arguments = {"query": "flowers by the sea", "count": 3}
    found, server = asyncio.run(searched(engine, send, arguments))
    assert not found.error
    lines = found.text.split("\n\n")
    assert lines[0] == "1. Sea & holly\nhttps://a.example/sea\nIt stands salt <spray>."
    assert lines[1] == "2. https://b.example/\nhttps://b.example/"
    assert lines[2] == "3. Thrift\nhttps://c.example/?q=1&r=2\n" + "x" * 1000 and len(lines) == 3
    details = dict(found.details)
    results = details.pop("results")
    assert results[0] == {
        "title": "Sea & holly",
        "url": "https://a.example/sea",
        "snippet": "It stands salt <spray>.",
    }
    item = {"id": "ws_1", "type": "web_search_call", "status": "completed", **details}
    action = ResponseFunctionWebSearch.model_validate(item).action
    assert action.type == "search" and action.queries == [action.query] == ["flowers by the sea"]
    assert action.sources and [source.url for source in action.sources] == [each["url"] for each in results]
    check_request(engine, server.requests[0])


def check_request(engine: str, request: Exchange) -> None:
    """What was sent is what the engine's documentation asks for."""
    parts = urlsplit(request.path)
    said = {name: values[0] for name, values in parse_qs(parts.query).items()}
    if engine == "brave":
        assert parts.path == "/web/search" and request.headers["x-subscription-token"] == KEY
        assert said["q"] == "flowers by the sea" and said["count"] == "3"
    elif engine == "tavily":
        assert parts.path == "/search" and request.headers["authorization"] == f"Bearer {KEY}"
        assert request.body["query"] == "flowers by the sea" and request.body["max_results"] == 3
    else:
        assert parts.path == "/search" and said["q"] == "flowers by the sea" and said["format"] == "json"


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_found_is_no_error(engine: str) -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(reply(200, body(engine, "q", [])))

    found, _ = asyncio.run(searched(engine, send))
    assert not found.error and found.text == "Nothing was found."


def test_brave_leaves_out_what_it_did_not_find() -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(reply(200, b'{"type": "search", "query": {"original": "q"}}'))

    assert asyncio.run(searched("brave", send))[0].text == "Nothing was found."


def test_a_query_that_is_longer_than_brave_takes_is_cut() -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(reply(200, body("brave", "q", [])))

    _, server = asyncio.run(searched("brave", send, {"query": "word " * 60 + "x" * 999}))
    asked = parse_qs(urlsplit(server.requests[0].path).query)["q"][0]
    assert len(asked) <= 400 and len(asked.split()) == 50


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "API key"),
        (429, "try again later"),
        (400, "does not understand"),
        (500, "it failed"),
        (302, "else"),
    ],
)
def test_refusals_are_told_apart(engine: str, status: int, words: str) -> None:
    moved = ["location: http://127.0.0.1:1/"] if status == 302 else []
    found = failing(engine, reply(status, b'{"detail": {"error": "no"}}', *moved))
    assert words in found.text and f"HTTP {status}" in found.text


def test_what_only_one_engine_says() -> None:
    assert "search.formats" in failing("searxng", reply(403, b"<h1>Forbidden</h1>")).text
    assert "plan" in failing("tavily", reply(432, b"{}")).text
    assert "pay-as-you-go" in failing("tavily", reply(433, b"{}")).text


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (reply(200, b"<html>"), "no list of results"),
        (reply(200, b"\xff\xfe"), "no list of results"),
        (reply(200, b"[]"), "no list of results"),
        (reply(200, b'{"results": [{"url": 1}], "web": {"results": [{"url": 1}]}}'), "no list of results"),
        (reply(200, b"x" * (MAX_BYTES + 1)), "too long"),
        (reply(200, b"\x1f\x8b", "content-encoding: gzip"), "compressed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n{", "cannot be reached"),
        (b"SSH-2.0-OpenSSH_9\r\n", "cannot be reached"),
        (b"", "cannot be reached"),
    ],
)
def test_nonsense_is_told(engine: str, data: bytes, words: str) -> None:
    assert words in failing(engine, data).text


@pytest.mark.parametrize("engine", ENGINES)
def test_an_endless_answer_is_left(engine: str) -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n[")
        while True:
            await exchange.send(b" " * 65536)

    assert "too long" in asyncio.run(searched(engine, send))[0].text


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", b"HTTP/1.1 200 OK\r\n"]
)
def test_a_slow_answer_is_left(engine: str, begun: bytes) -> None:
    """However it is slow: each byte in time does not make the whole in time."""

    async def send(exchange: Exchange) -> None:
        await exchange.send(begun)
        for _ in range(100):
            await asyncio.sleep(0.05)
            await exchange.send(b"x-" if begun.endswith(b"OK\r\n") else b"")

    found, _ = asyncio.run(searched(engine, send, timeout=0.3))
    assert found.error and "no answer within 0.3 seconds" in found.text


@pytest.mark.parametrize("engine", ENGINES)
def test_nobody_there(engine: str) -> None:
    async def call() -> ToolResult:
        provider = made(engine, "http://127.0.0.1:1")
        try:
            found: ToolResult = await provider.call("web_search", {"query": "x"}, session="one")
            return found
        finally:
            await provider.aclose()

    assert "cannot be reached" in asyncio.run(call()).text


@pytest.mark.parametrize(
    "wrong", [{}, {"query": ""}, {"query": 1}, {"query": "x", "count": 11}, {"query": "x", "count": 0}]
)
def test_wrong_arguments_ask_nobody(wrong: dict[str, Any]) -> None:
    async def send(exchange: Exchange) -> None:
        await exchange.send(reply(200, body("tavily", "q", [])))

    found, server = asyncio.run(searched("tavily", send, wrong))
    assert found.error and ("query" in found.text or "count" in found.text)
    assert not server.requests


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Brave, {}),
        (Brave, {"api_key": ""}),
        (Brave, {"api_key": "a\nb"}),
        (Tavily, {"api_key": "k", "base_url": "file:///etc/passwd"}),
        (SearXNG, {"base_url": "searx"}),
        (SearXNG, {"base_url": "http://x", "api_key": "k"}),
    ],
)
def test_configuration_is_checked(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        kind.Config.model_validate(settings)


def test_a_key_is_not_shown() -> None:
    assert KEY not in repr(made("brave", "http://x").config)


# ------------------------------------------------------------ conformance


class Handler(BaseHTTPRequestHandler):
    """Finds one page for each query, whose address holds the query."""

    engine: str

    def do_GET(self) -> None:
        self.answer(parse_qs(urlsplit(self.path).query)["q"][0])

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["content-length"])))["query"])

    def answer(self, query: str) -> None:
        url = f"https://example.com/{query.replace(' ', '-')}"
        data = body(self.engine, query, [page(self.engine, f"About {query}", url, "All of it.")])
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@contextmanager
def listening(engine: str) -> Iterator[str]:
    handler = type("EngineHandler", (Handler,), {"engine": engine})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Engines(ToolsConformance):
    tool = "web_search"
    engine: str
    url: str

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _engine(cls) -> Iterator[None]:
        with listening(cls.engine) as url:
            cls.url = url
            yield

    def provider(self) -> Tools:
        found: Tools = made(self.engine, self.url)
        return found

    def example(self, number: int) -> tuple[dict[str, Any], str]:
        return {"query": f"flower {number}"}, f"https://example.com/flower-{number}"


class TestBrave(Engines):
    engine = "brave"


class TestTavily(Engines):
    engine = "tavily"


class TestSearXNG(Engines):
    engine = "searxng"
