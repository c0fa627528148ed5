"""What every provider of tools must do: subclass `ToolsConformance`, say how yours is called, return it."""

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable
from typing import Any, get_args

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolKind, ToolResult, Tools
from llama_stack_lite.errors import StackError

CANCEL_SECONDS = 10.0  # within which a call has to let go that nobody waits for
LARGEST = 4 * 1024 * 1024  # characters of a result, beyond which no model could read it
ODD = "na\u00efve \u65e5\u672c\u8a9e \U0001f9d1\u200d\U0001f680 \u202eabc\u202c / .. ' \" \n \ufeff"
# fields of the item that OpenAI's API has for a call of the kind
DETAILS = {
    "web_search": {"action", "results"},
    "code_interpreter": {"container_id", "code", "outputs"},
}

Check = Callable[[Any, Tools], Awaitable[None]]


def awaited(check: Check) -> Callable[["ToolsConformance"], None]:
    """Make a test of an async check."""

    # no functools.wraps: pytest would take the check's parameters for fixtures
    def test(self: "ToolsConformance") -> None:
        asyncio.run(self.run(check))

    test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
    return test


class ToolsConformance:
    """Every test builds a provider of its own, calls it, and closes it.

    `tool` is the name of one of its tools.
    """

    tool: str
    timeout = 120.0  # seconds for each test

    def provider(self) -> Tools:
        """Return a new provider."""
        raise NotImplementedError("return a new provider from `provider()`")

    def example(self, number: int) -> tuple[dict[str, Any], str]:
        """Arguments that the tool takes, and what its answer must then hold; others for each number."""
        raise NotImplementedError("return arguments and a part of the answer from `example()`")

    async def run(self, check: Check) -> None:
        provider = self.provider()
        try:
            async with asyncio.timeout(self.timeout):
                await check(self, provider)
        finally:
            if close := getattr(provider, "aclose", None):
                await close()

    async def called(self, provider: Tools, number: int, *, session: str = "one") -> ToolResult:
        """An example's call, which has to succeed."""
        arguments, expected = self.example(number)
        found = await provider.call(self.tool, arguments, session=session)
        assert isinstance(found, ToolResult), f"{found!r} is no ToolResult"
        assert not found.error, found.text
        assert expected in found.text, f"{found.text!r} does not hold {expected!r}"
        return found

    @awaited
    async def test_tools_are_listed(self, provider: Tools) -> None:
        assert provider.kind in get_args(ToolKind), f"there is no kind `{provider.kind}`"
        found = await provider.tools()
        assert all(isinstance(each, FunctionDefinition) for each in found)
        names = [each.name for each in found]
        assert self.tool in names and len(set(names)) == len(names), names
        described = {each.name for each in found if each.description}
        assert self.tool in described, f"a model is not told what `{self.tool}` is for"
        for each in found:
            schema = each.schema_of_arguments()
            assert schema.get("type") == "object", f"the arguments of `{each.name}` are no object"
            json.dumps(schema)
        assert await provider.tools() == found, "the list changes by itself"

    @awaited
    async def test_a_call_is_answered(self, provider: Tools) -> None:
        found = await self.called(provider, 1)
        assert len(found.text) <= LARGEST
        found.text.encode()  # a lone surrogate could not be sent

    @awaited
    async def test_details_are_those_of_the_kind(self, provider: Tools) -> None:
        found = await self.called(provider, 1)
        json.dumps(found.details)
        assert DETAILS.get(provider.kind, set()) <= found.details.keys()

    @awaited
    async def test_it_can_be_called_before_it_is_listed_and_again(self, provider: Tools) -> None:
        for number in (1, 2, 1):
            await self.called(provider, number)

    @awaited
    async def test_arguments_are_read_and_not_edited(self, provider: Tools) -> None:
        arguments, _ = self.example(1)
        before = copy.deepcopy(arguments)
        await provider.call(self.tool, arguments, session="one")
        assert arguments == before

    @awaited
    async def test_an_unknown_tool_is_an_error(self, provider: Tools) -> None:
        for name in ("no_such_tool", "", ODD):
            await self._fails(provider, name, self.example(1)[0])

    @awaited
    async def test_wrong_arguments_are_an_error(self, provider: Tools) -> None:
        """They were checked against the schema; what comes through all the same does no harm."""
        arguments, _ = self.example(1)
        mistakes: list[dict[str, Any]] = [{}, dict.fromkeys(arguments), {name: [[]] for name in arguments}]
        for wrong in mistakes:
            await self._fails(provider, self.tool, wrong)
        await self.called(provider, 2)

    async def _fails(self, provider: Tools, name: str, arguments: dict[str, Any]) -> None:
        try:
            found = await provider.call(name, arguments, session="one")
        except StackError as error:
            assert str(error) and error.status < 500, f"`{name}` with {arguments} is not the server's fault"
        else:
            assert found.error and found.text, f"`{name}` with {arguments} was answered with {found}"

    @awaited
    async def test_concurrent_calls_do_not_mix(self, provider: Tools) -> None:
        await asyncio.gather(
            *(self.called(provider, number, session=f"session {number}") for number in range(8))
        )

    @awaited
    async def test_concurrent_calls_of_one_session_do_not_mix(self, provider: Tools) -> None:
        await asyncio.gather(*(self.called(provider, number) for number in range(8)))

    @awaited
    async def test_a_session_may_have_any_name(self, provider: Tools) -> None:
        for session in ("", ODD, "x" * 10_000, "../../etc/passwd"):
            await self.called(provider, 1, session=session)

    @awaited
    async def test_a_call_that_is_given_up_leaves_nothing(self, provider: Tools) -> None:
        await self.called(provider, 1)
        before = asyncio.all_tasks()
        for seconds in (0, 0.001, 0.02):
            calling = asyncio.create_task(provider.call(self.tool, self.example(2)[0], session="one"))
            await asyncio.sleep(seconds)
            calling.cancel()
            _, late = await asyncio.wait([calling], timeout=CANCEL_SECONDS)
            assert not late, f"a call that was cancelled was not over after {CANCEL_SECONDS:g} s"
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before, "a cancelled call left tasks behind"
        await self.called(provider, 3)

    @awaited
    async def test_it_closes_while_it_is_called(self, provider: Tools) -> None:
        """When a server stops, a call in progress ends, however that may be; closing twice does no harm."""
        calling = asyncio.create_task(provider.call(self.tool, self.example(1)[0], session="one"))
        await asyncio.sleep(0.01)
        for _ in range(2):
            if close := getattr(provider, "aclose", None):
                await close()
        _, late = await asyncio.wait([calling], timeout=CANCEL_SECONDS)
        assert not late, f"a call was not over {CANCEL_SECONDS:g} s after its provider was closed"
        if not calling.cancelled() and (error := calling.exception()):
            assert isinstance(error, StackError), f"{error!r} is no StackError"
