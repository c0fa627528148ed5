"""The conformance suite of tools: every provider that ships is under it, and no fault passes it."""

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolKind, ToolResult, Tools
from llama_stack_lite.config import StackConfig
from llama_stack_lite.plugins import plugins
from llama_stack_lite.providers.tools.mcp import MCP
from llama_stack_lite.stack import Stack
from tests.conformance.tools import ToolsConformance
from tests.support.mcp_servers import COMMAND

ROOT = Path(__file__).parent.parent


class TestMCP(ToolsConformance):
    tool = "add"

    def provider(self) -> Tools:
        found: Tools = MCP(MCP.Config(command=COMMAND, cwd=str(ROOT)), Stack(StackConfig()))
        return found

    def example(self, number: int) -> tuple[dict[str, Any], str]:
        return {"a": 1000, "b": number}, str(1000 + number)


def test_every_provider_of_tools_that_ships_is_under_the_suite() -> None:
    tests = "".join(path.read_text("utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    for point in plugins("tools").values():
        if point.module.startswith("llama_stack_lite.providers."):
            assert re.search(rf"^class Test{point.attr}\((ToolsConformance|Engines)\)", tests, re.M), (
                point.name
            )


class Doubling:
    """The tool that all the faulty ones are made of; itself without fault."""

    kind: ToolKind = "mcp"

    async def tools(self) -> list[FunctionDefinition]:
        number = {"n": {"type": "integer"}}
        schema = {"type": "object", "properties": number, "required": ["n"]}
        return [FunctionDefinition(name="double", description="Doubles.", parameters=schema)]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        if name != "double" or not isinstance(arguments.get("n"), int):
            return ToolResult(text="that cannot be doubled", error=True)
        return await self.double(arguments)

    async def double(self, arguments: dict[str, Any]) -> ToolResult:
        await asyncio.sleep(0.001)
        return ToolResult(text=str(2 * arguments["n"]))


class Raising(Doubling):
    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        return ToolResult(text=str(2 * arguments["n"]), error=name != "double")


class Deaf(Doubling):
    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        return await super().call("double", arguments, session=session)


class Editing(Doubling):
    async def double(self, arguments: dict[str, Any]) -> ToolResult:
        return ToolResult(text=str(2 * arguments.pop("n")))


class Mixing(Doubling):
    last = 0

    async def double(self, arguments: dict[str, Any]) -> ToolResult:
        self.last = arguments["n"]
        await asyncio.sleep(0.001)
        return ToolResult(text=str(2 * self.last))


class Leaving(Doubling):
    async def double(self, arguments: dict[str, Any]) -> ToolResult:
        self.work = asyncio.create_task(asyncio.sleep(0.5))
        await asyncio.sleep(0.001)
        return ToolResult(text=str(2 * arguments["n"]))


class Stubborn(Doubling):
    async def double(self, arguments: dict[str, Any]) -> ToolResult:
        deadline = asyncio.get_running_loop().time() + 0.05
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left)
            except asyncio.CancelledError:
                deadline += 1
        return ToolResult(text=str(2 * arguments["n"]))


class Fickle(Doubling):
    count = 0

    async def tools(self) -> list[FunctionDefinition]:
        self.count += 1
        found = await super().tools()
        return [each.model_copy(update={"description": str(self.count)}) for each in found]


class Silent(Doubling):
    async def tools(self) -> list[FunctionDefinition]:
        return [each.model_copy(update={"description": None}) for each in await super().tools()]


class Bare(Doubling):
    kind: ToolKind = "web_search"


class Endless(Doubling):
    async def double(self, arguments: dict[str, Any]) -> ToolResult:
        return ToolResult(text=str(2 * arguments["n"]) * 5_000_000)


class Particular(Doubling):
    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        if not session.isidentifier():
            return ToolResult(text="no session", error=True)
        return await super().call(name, arguments, session=session)


FAULTS = {
    Raising: "test_wrong_arguments_are_an_error",
    Deaf: "test_an_unknown_tool_is_an_error",
    Editing: "test_arguments_are_read_and_not_edited",
    Mixing: "test_concurrent_calls_do_not_mix",
    Leaving: "test_a_call_that_is_given_up_leaves_nothing",
    Stubborn: "test_a_call_that_is_given_up_leaves_nothing",
    Fickle: "test_tools_are_listed",
    Silent: "test_tools_are_listed",
    Bare: "test_details_are_those_of_the_kind",
    Endless: "test_a_call_is_answered",
    Particular: "test_a_session_may_have_any_name",
}


def suite(kind: type[Doubling]) -> ToolsConformance:
    class Suite(ToolsConformance):
        tool = "double"

        def provider(self) -> Doubling:
            return kind()

        def example(self, number: int) -> tuple[dict[str, Any], str]:
            return {"n": 100 + number}, str(200 + 2 * number)

    return Suite()


TESTS = [name for name in dir(ToolsConformance) if name.startswith("test_")]


@pytest.mark.parametrize("test", TESTS)
def test_a_provider_without_fault_passes(test: str) -> None:
    getattr(suite(Doubling), test)()


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_does_not_pass(kind: type[Doubling], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.conformance.tools.CANCEL_SECONDS", 0.3)
    with pytest.raises((AssertionError, KeyError)):
        getattr(suite(kind), FAULTS[kind])()
