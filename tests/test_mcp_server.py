"""/mcp: the official client finds, calls and cancels what the distribution serves, and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import httpx
import httpx2
import pytest
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent
from pydantic import BaseModel

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolKind, ToolResult
from llama_stack_lite.config import StackConfig
from llama_stack_lite.providers.inference.scripted import Scripted
from tests.support.responding import Sums, config
from tests.support.serving import Running, serve
from tests.support.waiting import until

MODEL = "test/scripted"
Mode = Literal["auto", "legacy"]
MODES: list[Mode] = ["auto", "legacy"]  # requests by themselves, and after a handshake
AGENTS = {
    "support": {"model": MODEL, "description": "helps", "instructions": "Be kind."},
    "boss": {"model": MODEL, "tools": ["support"]},
}


class Echo:
    """A tool that says what it is told; `heard` is what came to it, of all there were."""

    kind: ToolKind = "mcp"
    heard: ClassVar[list[str]] = []

    class Config(BaseModel):
        description: str = "says it again"

    def __init__(self, config: Config) -> None:
        self.description = config.description

    async def tools(self) -> list[FunctionDefinition]:
        return [FunctionDefinition(name="echo", description=self.description)]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        self.heard.append(arguments["say"])
        return ToolResult(text="".join(arguments.values()))


def use(
    settings: StackConfig, work: Callable[[Running, Client], Awaitable[None]], *, mode: Mode = "auto"
) -> None:
    """Do the work with the official client of a server with these settings."""

    async def main(running: Running) -> None:
        async with Client(f"{running.url}/mcp", mode=mode) as client:
            await work(running, client)

    with serve(settings) as running:
        asyncio.run(main(running))


def model(running: Running) -> Scripted:
    found: Scripted = running.app.state.stack.inference["test"]
    return found


def said(result: CallToolResult) -> list[str]:
    return [block.text for block in result.content if isinstance(block, TextContent)]


@pytest.mark.parametrize("mode", MODES)
def test_agents_are_tools(mode: Mode, tmp_path: Path) -> None:
    told: list[tuple[float, str | None]] = []

    async def told_of(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async def work(running: Running, client: Client) -> None:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert list(tools) == ["support", "boss"] and tools["support"].description == "helps"
        assert tools["support"].input_schema["required"] == ["input"]
        found = await client.call_tool("boss", {"input": "who?"}, progress_callback=told_of)
        assert said(found) == ["It was Ada."] and not found.is_error
        assert told == [(1, "mcp_call"), (2, "message")]
        assert model(running).requests[1].messages[0].content == "Be kind."

    calls = {"tool_calls": [{"name": "support", "arguments": {"input": "who?"}}]}
    use(config(tmp_path, calls, "Ada", "It was Ada.", agents=AGENTS), work, mode=mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_session_goes_on_and_two_do_not_mix(mode: Mode, tmp_path: Path) -> None:
    async def work(running: Running, client: Client) -> None:
        async with Client(f"{running.url}/mcp", mode=mode) as other:
            names = []
            for each, secret in ((client, "red"), (other, "blue")):
                found = await each.call_tool("support", {"input": f"I like {secret}", "session": "new"})
                text, name = said(found)
                names.append(name.removeprefix("session: "))
                assert found.structured_content == {"answer": text, "session": names[-1]}
            assert names[0] != names[1]
            for each, name, mine, theirs in (
                (client, names[0], "red", "blue"),
                (other, names[1], "blue", "red"),
            ):
                await each.call_tool("support", {"input": "what do I like?", "session": name})
                asked = model(running).requests[-1].model_dump_json()
                assert mine in asked and theirs not in asked
            await client.call_tool("support", {"input": "what do I like?"})
            assert "red" not in model(running).requests[-1].model_dump_json()

    use(config(tmp_path, *["ok"] * 5, agents=AGENTS), work, mode=mode)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "input"),
        ({"input": 5}, "string"),
        ({"input": "x", "colour": "red"}, "colour"),
        ({"input": "x", "session": "conv_none"}, "no conversation `conv_none`"),
        ({"input": "x"}, "scripted failure"),
    ],
)
def test_what_goes_wrong_is_a_result_that_says_so(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    async def work(running: Running, client: Client) -> None:
        found = await client.call_tool("support", arguments)
        assert found.is_error and message in said(found)[0]
        with pytest.raises(MCPError, match="no tool `nobody`"):
            await client.call_tool("nobody", {"input": "x"})

    use(config(tmp_path, {"error": {"status": 503}}, agents=AGENTS), work)


def test_a_call_that_is_given_up_stops_the_model(tmp_path: Path) -> None:
    slow = {"content": "one two three four five six", "delay": 1}

    async def work(running: Running, client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await client.call_tool("support", {"input": "x"})
        await until(lambda: model(running).cancelled == 1)

    use(config(tmp_path, slow, agents=AGENTS), work)


def test_an_older_client_that_leaves_stops_the_model(tmp_path: Path) -> None:
    slow = {"content": "one two three four five six", "delay": 1}

    async def main(running: Running) -> None:
        async with asyncio.timeout(30):
            async with Client(f"{running.url}/mcp", mode="legacy") as client:
                call = asyncio.create_task(client.call_tool("support", {"input": "x"}))
                await until(lambda: model(running).requests)
                call.cancel()
        await until(lambda: model(running).cancelled == 1)

    with serve(config(tmp_path, slow, agents=AGENTS)) as running:
        asyncio.run(main(running))


# ------------------------------------------------------------ what is served, and to whom


def test_the_operator_chooses_agents_and_tools(tmp_path: Path) -> None:
    async def work(running: Running, client: Client) -> None:
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert names == ["boss", "sums__add", "sums__multiply"]
        assert said(await client.call_tool("sums__add", {"a": 1, "b": 2})) == ["3"]
        found = await client.call_tool("sums__add", {"a": "one", "b": 2})
        assert found.is_error and "The call was not made: a:" in said(found)[0]
        sums: Sums = running.app.state.stack.tools["sums"]
        assert sums.made == [("add", {"a": 1, "b": 2})]
        for name in ("support", "web__web_search", "add", "web_search"):
            with pytest.raises(MCPError):
                await client.call_tool(name, {"input": "x", "query": "x"})

    use(config(tmp_path, agents=AGENTS, mcp={"agents": ["boss"], "tools": ["sums"]}), work)


def test_agents_made_by_the_api_are_served_too(tmp_path: Path) -> None:
    async def work(running: Running, client: Client) -> None:
        async with httpx.AsyncClient(base_url=running.url) as http:
            made = await http.post("/v1/agents", json={"name": "made", "model": MODEL})
            assert made.status_code == 200
        assert [tool.name for tool in (await client.list_tools()).tools] == ["made"]
        assert said(await client.call_tool("made", {"input": "x"})) == ["hello"]

    use(config(tmp_path, "hello"), work)


@asynccontextmanager
async def keyed(url: str, key: str) -> AsyncIterator[Client]:
    async with (
        httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}) as http,
        Client(streamable_http_client(url, http_client=http)) as client,
    ):
        yield client


def test_a_key_is_needed_where_the_server_has_keys(tmp_path: Path) -> None:
    async def main(url: str) -> None:
        async with keyed(url, "right") as client:
            assert said(await client.call_tool("support", {"input": "x"})) == ["hello"]

    with serve(config(tmp_path, "hello", agents=AGENTS, server={"api_keys": ["right"]})) as running:
        asyncio.run(main(f"{running.url}/mcp"))
        for headers in ({}, {"authorization": "Bearer wrong"}):
            assert ask(running.url, headers).status_code == 401
        assert len(model(running).requests) == 1


LISTING = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}


def ask(url: str, headers: dict[str, str]) -> httpx.Response:
    accept = {"accept": "application/json, text/event-stream"}
    return httpx.post(f"{url}/mcp", json=LISTING, headers=accept | headers)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:99"}, 200),
        ({"host": "lite.example"}, 200),
        ({"origin": "https://page.example"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "evil.example", "origin": "http://evil.example"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_no_web_page_can_ask_by_a_name_of_its_own(
    headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    server = {"cors_origins": ["https://page.example"]}
    with serve(config(tmp_path, agents=AGENTS, server=server, mcp={"hosts": ["lite.example"]})) as running:
        reply = ask(running.url, headers)
        assert reply.status_code == status, reply.text
        if status != 200:
            assert "`mcp.hosts`" in reply.json()["error"]["message"]


def test_without_storage_there_is_no_mcp() -> None:
    with serve(StackConfig.model_validate({"inference": {"test": {"provider": "scripted"}}})) as running:
        assert ask(running.url, {}).status_code == 404


# ------------------------------------------------------------ guarded

GUARD: dict[str, Any] = {
    "safety": {"bird": {"provider": "canary", "words": ["kingfisher"]}},
    "enforce": {"input": ["bird"], "output": ["bird"]},
}


@pytest.mark.parametrize("place", ["input", "answer", "argument", "result", "inner answer"])
def test_what_is_flagged_leaves_by_no_tool(place: str, tmp_path: Path) -> None:
    inner = {"tool_calls": [{"name": "support", "arguments": {"input": "who?"}}]}
    replies: dict[str, list[Any]] = {
        "answer": ["a kingfisher flew"],
        "inner answer": [inner, "a kingfisher flew", "plain"],
    }
    tools = {"echo": {"provider": "tests.test_mcp_server:Echo"}}

    async def work(running: Running, client: Client) -> None:
        if place in ("argument", "result"):
            given = {"say": "a kingfisher"} if place == "argument" else {"say": "a king", "and": "fisher"}
            found = await client.call_tool("echo__echo", given)
            assert Echo.heard == ([] if place == "argument" else ["a king"])
        else:
            name = "boss" if place == "inner answer" else "support"
            found = await client.call_tool(name, {"input": "a kingfisher" if place == "input" else "?"})
        text = " ".join(said(found))
        assert "kingfisher" not in text
        if place == "inner answer":
            assert (
                text == "plain" and "a kingfisher flew" not in model(running).requests[-1].model_dump_json()
            )
        else:
            assert found.is_error

    Echo.heard.clear()
    settings = config(
        tmp_path, *replies.get(place, []), agents=AGENTS, tools=tools, mcp={"tools": ["echo"]}, **GUARD
    )
    use(settings, work)


def test_a_tool_whose_description_is_flagged_is_not_listed(tmp_path: Path) -> None:
    tools = {"echo": {"provider": "tests.test_mcp_server:Echo", "description": "a kingfisher"}}

    async def work(running: Running, client: Client) -> None:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["boss"]

    agents = {"boss": {"model": MODEL}, "bad": {"model": MODEL, "description": "sings as a kingfisher"}}
    use(config(tmp_path, agents=agents, tools=tools, mcp={"tools": ["echo"]}, **GUARD), work)
