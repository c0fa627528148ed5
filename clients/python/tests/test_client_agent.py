"""Agents: functions that the model calls, what is told of it, sessions, approvals, limits."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_stack_lite.server import create_app
from llama_stack_lite_client import (
    Agent,
    Approval,
    AsyncClient,
    Call,
    Client,
    Done,
    Reasoning,
    Refusal,
    Refused,
    Result,
    Text,
    TooManyTurns,
    TurnFailed,
    tool,
)

from .served import WAYS, Configured, every, reached, scripted, served, value
from .served import configured as configured
from .served import local as local

ROOT = Path(__file__).parents[3]
MCP = {
    "tools": {
        "calc": {
            "provider": "mcp",
            "command": [sys.executable, "-m", "tests.support.mcp_servers"],
            "cwd": str(ROOT),
            "allowed_tools": ["add", "fail"],
        }
    }
}
ASKS = {"type": "mcp", "server_label": "calc"}
each_way = pytest.mark.parametrize("way", WAYS)


def calls(*made: tuple[str, dict[str, Any] | str]) -> dict[str, Any]:
    return {"tool_calls": [{"name": name, "arguments": arguments} for name, arguments in made]}


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def double(a: int) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"doubled": 2 * a}


TWO_CALLS = calls(("add", {"a": 1, "b": 2}), ("double", {"a": 4}))


@each_way
def test_a_turn_calls_functions_of_both_kinds(way: str, configured: Configured) -> None:
    async def check() -> None:
        async with served(way, configured(TWO_CALLS, "3 and 8")) as (client, app):
            agent = Agent(client, instructions="Calculate.", tools=[add, double], temperature=0.5)
            turn = await value(agent.run("What is 1 + 2, and 2 * 4?"))
            assert turn.text == "3 and 8" and turn.refusal is None and turn.raise_for_refusal() is turn
            assert [item.type for item in turn.items] == [
                "function_call",
                "function_call",
                "function_call_output",
                "function_call_output",
                "message",
            ]
            assert [item.output for item in turn.items[2:4]] == ["3", '{"doubled":8}']
            first, second = scripted(app).requests
            spent = sum(each.usage.output_tokens for each in [turn.response])
            assert turn.usage.output_tokens > spent > 0
            assert first.temperature == 0.5 and first.messages[0].text() == "Calculate."
            assert [each.function.name for each in first.tools] == ["add", "double"]
            assert [message.role for message in second.messages] == [
                "system",
                "user",
                "assistant",
                "tool",
                "tool",
            ]
            assert [message.text() for message in second.messages[-2:]] == ["3", '{"doubled":8}']

    asyncio.run(check())


@each_way
def test_a_turn_is_told_in_small_events(way: str, configured: Configured) -> None:
    thought = {"reasoning_content": "let me see", **calls(("add", {"a": 1, "b": 2}))}

    async def check() -> None:
        async with reached(way, configured(thought, "It is 3")) as client:
            events = await every(Agent(client, tools=[add]).stream("1 + 2?"))
            kinds = [type(event) for event in events]
            assert kinds == [Reasoning] * 3 + [Call, Result] + [Text] * 3 + [Done]
            assert events[3:5] == [
                Call(events[3].id, "add", '{"a": 1, "b": 2}'),
                Result(events[3].id, "add", "3"),
            ]
            assert "".join(event.delta for event in events if isinstance(event, Text)) == "It is 3"
            assert events[-1].turn.text == "It is 3"

    asyncio.run(check())


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
def test_calls_run_side_by_side(kind: str, configured: Configured) -> None:
    """Each of three waits until all have begun; a context variable is there in each."""
    begun = threading.Barrier(3, timeout=20)
    user = contextvars.ContextVar("user", default="nobody")

    def wait(name: str) -> str:
        begun.wait()
        return f"{name} for {user.get()}"

    config = configured(calls(*[("wait", {"name": name}) for name in "abc"]), "done")

    async def check() -> list[Any]:
        user.set("me")
        if kind == "blocking":
            with Client(app=create_app(config)) as client:
                return Agent(client, tools=[wait]).run("go").items
        async with AsyncClient(app=create_app(config)) as client:
            return (await Agent(client, tools=[wait]).run("go")).items

    outputs = [item.output for item in asyncio.run(check()) if item.type == "function_call_output"]
    assert outputs == ["a for me", "b for me", "c for me"]


def test_results_are_told_as_they_come_and_kept_in_order(local: Callable[..., Client]) -> None:
    def wait(seconds: float) -> str:
        time.sleep(seconds)
        return f"{seconds}"

    client = local(calls(("wait", {"seconds": 0.3}), ("wait", {"seconds": 0})), "done")
    events = list(Agent(client, tools=[wait]).stream("go"))
    assert [event.output for event in events if isinstance(event, Result)] == ["0.0", "0.3"]
    kept = events[-1].turn.items  # type: ignore[union-attr]
    assert [item.output for item in kept if item.type == "function_call_output"] == ["0.3", "0.0"]  # type: ignore[union-attr]


def test_a_single_call_runs_where_its_caller_is(local: Callable[..., Client]) -> None:
    def where() -> str:
        return threading.current_thread().name

    turn = Agent(local(calls(("where", {})), "there"), tools=[where]).run("go")
    assert turn.items[1].output == threading.current_thread().name  # type: ignore[union-attr]


# ---------------------------------------------------------------- what goes wrong


def divide(a: int, b: int) -> float:
    return a / b


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("divide", {"a": 1, "b": 0}), "The call failed: ZeroDivisionError: division by zero"),
        (("divide", {"a": 1}), "The call was not made: b: Field required"),
        (("divide", "{a"), "The call was not made: Invalid JSON"),
        (("multiply", {"a": 1}), "The call was not made: there is no tool `multiply`"),
    ],
)
def test_the_model_reads_what_was_wrong_with_a_call(
    call: tuple[str, Any], told: str, local: Callable[..., Client]
) -> None:
    multiply = {"type": "function", "name": "multiply", "parameters": {"type": "object", "properties": {}}}
    client = local(calls(call, ("divide", {"a": 4, "b": 2})), "sorry")
    events = list(Agent(client, tools=[divide, multiply]).stream("1/0"))
    results = {event.error: event.output for event in events if isinstance(event, Result)}
    assert results[False] == "2.0" and results[True].startswith(told)


def test_errors_of_functions_can_end_the_turn(local: Callable[..., Client]) -> None:
    client = local(calls(("divide", {"a": 1, "b": 0})), "not reached")
    agent = Agent(client, tools=[divide], raise_errors=True)
    with pytest.raises(ZeroDivisionError):
        agent.run("1/0")


def test_a_response_that_fails_is_an_error_which_has_it(local: Callable[..., Client]) -> None:
    client = local({"content": "half of", "error": {"status": 503, "message": "the cable"}}, "whole")
    session = Agent(client).session()
    with pytest.raises(TurnFailed, match="the cable") as failed:
        session.run("hi")
    assert failed.value.response.status == "failed"
    assert session.run("again").text == "whole"  # as if it had not been begun


def test_a_model_that_never_ends_is_stopped(configured: Configured) -> None:
    made: list[int] = []

    def count(number: int) -> int:
        made.append(number)
        return number

    app = create_app(configured(*[calls(("count", {"number": n})) for n in range(5)]))
    with Client(app=app) as client:
        with pytest.raises(TooManyTurns, match="asked 3 times"):
            Agent(client, tools=[count], max_turns=3).run("count")
        assert made == [0, 1] and len(scripted(app).requests) == 3


def test_a_tool_that_must_be_called_must_be_so_once(configured: Configured) -> None:
    app = create_app(configured(calls(("add", {"a": 1, "b": 2})), "3"))
    with Client(app=app) as client:
        assert Agent(client, tools=[add], tool_choice="required").run("1 + 2?").text == "3"
        assert [request.tool_choice for request in scripted(app).requests] == ["required", "auto"]


def test_two_tools_of_one_name_are_a_mistake(local: Callable[..., Client]) -> None:
    with pytest.raises(ValueError, match="two tools have the same name"):
        Agent(local(), tools=[add, tool(name="add")(double)])


def test_a_refusal_is_what_the_user_reads(local: Callable[..., Client]) -> None:
    guard = {"safety": {"bird": {"provider": "canary"}}, "enforce": {"output": ["bird"]}}
    client = local({"content": "the canary sings", "repeat": 2}, **guard)
    agent = Agent(client)
    turn = agent.run("sing")
    assert turn.refusal == turn.text and "Withheld by the safety policy" in turn.text
    with pytest.raises(Refused, match="Withheld"):
        turn.raise_for_refusal()
    assert [type(event) for event in agent.stream("sing")] == [Refusal, Done]


def test_guardrails_are_asked_besides_the_operators(local: Callable[..., Client]) -> None:
    client = local("the canary sings", safety={"bird": {"provider": "canary"}})
    assert Agent(client, guardrails=["bird"]).run("sing").refusal


# ---------------------------------------------------------------- sessions


def said(app: Any) -> list[str]:
    """What the model has read with its last question."""
    return [message.text() for message in scripted(app).requests[-1].messages]


@pytest.mark.parametrize("kind", ["responses", "conversation", "client"])
def test_a_session_goes_on(kind: str, configured: Configured) -> None:
    app = create_app(configured(calls(("add", {"a": 1, "b": 2})), "3", "4", "5"))
    with Client(app=app) as client:
        agent = Agent(client, tools=[add], store=kind != "client")
        kept = client.conversations.create() if kind == "conversation" else None
        session = agent.session(conversation=kept.id if kept else None)
        assert session.run("1 + 2?").text == "3"
        assert session.run("plus 1?").text == "4"
        assert said(app) == ["1 + 2?", "", "3", "3", "plus 1?"]
        again = agent.session(conversation=kept.id) if kept else session
        assert again.run("and 1?").text == "5"
        assert said(app)[-3:] == ["plus 1?", "4", "and 1?"]
        assert agent.session().previous_response_id is None


def test_what_is_not_to_be_kept_is_not(configured: Configured) -> None:
    app = create_app(configured("one", "two"))
    with Client(app=app) as client:
        session = Agent(client, store=False).session()
        turn = session.run("hi")
        session.run([{"role": "user", "content": "again"}])
        assert said(app) == ["hi", "one", "again"]
        assert client.responses.wire.retries == 2
        with pytest.raises(Exception, match="There is no response"):
            client.responses.retrieve(turn.response.id)


def test_a_background_agent_answers_too(local: Callable[..., Client]) -> None:
    client = local(calls(("add", {"a": 1, "b": 2})), "3")
    turn = Agent(client, tools=[add], background=True).run("1 + 2?")
    assert turn.text == "3" and turn.response.background


# ---------------------------------------------------------------- tools of the server


@pytest.mark.parametrize("store", [True, False])
def test_an_approved_call_is_made_by_the_server(store: bool, configured: Configured) -> None:
    asked: list[Approval] = []

    def approve(approval: Approval) -> bool:
        asked.append(approval)
        return True

    client = Client(app=create_app(configured(calls(("add", {"a": 1, "b": 2})), "3", **MCP)))
    with client:
        events = list(Agent(client, tools=[ASKS], approve=approve, store=store).stream("1 + 2?"))
    assert asked == [Approval(asked[0].id, "calc", "add", {"a": 1, "b": 2})]
    told = [event for event in events if isinstance(event, Approval | Call | Result)]
    assert told[0] == asked[0]
    assert [type(event) for event in told] == [Approval, Call, Result]
    assert isinstance(told[2], Result) and (told[2].name, told[2].output, told[2].error) == (
        "add",
        "3",
        False,
    )


@pytest.mark.parametrize("way", ["blocking in process", "awaited in process"])
@pytest.mark.parametrize("answer", ["no", "nobody"])
def test_a_call_that_nobody_approves_is_not_made(
    way: str, answer: str, configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    async def no(approval: Approval) -> bool:
        return False

    async def check() -> None:
        async with served(way, configured(calls(("add", {"a": 1, "b": 2})), "as you like", **MCP)) as (
            client,
            app,
        ):
            agent = Agent(client, tools=[ASKS], approve=no if answer == "no" else None)
            events = await every(agent.stream("1 + 2?"))
            result = next(event for event in events if isinstance(event, Result))
            assert result.error and result.output.startswith("The user did not approve this call")
            assert ("gave no `approve`" in result.output) == (answer == "nobody")
            assert ("gave no `approve`" in caplog.text) == (answer == "nobody")
            assert events[-1].turn.text == "as you like"

    asyncio.run(check())


def test_a_call_that_needs_no_approval_is_told_with_its_error(configured: Configured) -> None:
    free = ASKS | {"require_approval": "never"}
    config = configured(calls(("fail", {}), ("add", {"a": 2, "b": 2})), "4", **MCP)
    with Client(app=create_app(config)) as client:
        events = list(Agent(client, tools=[free]).stream("go"))
    results = {event.name: event for event in events if isinstance(event, Result)}
    assert results["fail"].error and "the kitchen burns" in results["fail"].output
    assert results["add"].output == "4" and not results["add"].error


# ---------------------------------------------------------------- agents of the server


@each_way
def test_agents_are_kept_and_asked_by_name(way: str, configured: Configured) -> None:
    async def check() -> None:
        own = {"agents": {"clerk": {"instructions": "Be quick."}}}
        config = configured(calls(("add", {"a": 1, "b": 2})), "3", "again", **own)
        async with served(way, config) as (client, app):
            made = await value(client.agents.create("sums", instructions="Calculate.", model="test/m"))
            assert (made.name, made.version) == ("sums", 1)
            newer = await value(client.agents.update("sums", instructions="Calculate well."))
            assert newer.version == 2
            assert (await value(client.agents.retrieve("sums", version=1))).instructions == "Calculate."
            assert [each.version for each in (await value(client.agents.versions("sums"))).data] == [2, 1]
            assert [each.name for each in (await value(client.agents.list())).data] == ["clerk", "sums"]
            agent = Agent(client, model="agent:sums", tools=[add])
            assert (await value(agent.run("1 + 2?"))).text == "3"
            assert said(app)[0] == "Calculate well."
            kept = await value(client.agents.session("clerk", metadata={"of": "me"}))
            assert kept.metadata["of"] == "me"
            turn = Agent(client, model="agent:clerk").session(conversation=kept.id).run("hello")
            assert (await value(turn)).text == "again" and said(app) == ["Be quick.", "hello"]
            assert (await value(client.agents.delete("sums"))).deleted

    asyncio.run(check())
