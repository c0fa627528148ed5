"""Calls of tools that this server runs: checked, made side by side, and judged before anybody reads them."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import jsonschema_rs

from llama_stack_lite import enforcement
from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.inference import FunctionCall, FunctionDefinition, Message, ToolCall
from llama_stack_lite.api.responses import (
    Call,
    CodeInterpreterItem,
    Event,
    FileSearchItem,
    Item,
    MCPCallItem,
    MCPServer,
    WebSearchItem,
)
from llama_stack_lite.api.safety import Blocked
from llama_stack_lite.api.tools import ToolResult, Tools
from llama_stack_lite.errors import GuardFailed, StackError
from llama_stack_lite.safety.texts import strings

from .telling import begun, finished
from .turn import Turn

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool as the model is offered it, under the definition's name; `name` is what its server calls it."""

    definition: FunctionDefinition
    name: str
    provider: Tools
    label: str
    server: MCPServer | None = None
    session: str | None = None  # that it is called in, if it is not the turn's

    def plain(self) -> FunctionDefinition:
        """The definition as its server has it."""
        return self.definition.model_copy(update={"name": self.name})

    def item(self, arguments: str, *, approval: str | None = None) -> Item:
        """A call of it, not made yet."""
        if self.provider.kind == "web_search":
            action = {"type": "search", "query": _field(arguments, "query")}
            return WebSearchItem(id=new_id("ws"), status="in_progress", action=action)
        if self.provider.kind == "file_search":
            return FileSearchItem(id=new_id("fs"), status="in_progress", queries=[_field(arguments, "query")])
        if self.provider.kind == "code_interpreter":
            code = _field(arguments, "code")
            return CodeInterpreterItem(id=new_id("ci"), status="in_progress", code=code)
        return MCPCallItem(
            id=new_id("mcp"),
            status="in_progress",
            server_label=self.label,
            name=self.name,
            arguments=arguments,
            approval_request_id=approval,
        )


def _field(arguments: str, name: str) -> str:
    try:
        found = json.loads(arguments)
    except json.JSONDecodeError:
        return ""
    return str(found.get(name) or "") if isinstance(found, dict) else ""


@dataclass(slots=True)
class Planned:
    """A call that is about to be made; one whose `result` is there already is only told."""

    offered: Offered
    item: Item
    arguments: str
    result: ToolResult | None = None

    def asks(self) -> bool:
        """Whether somebody has to approve it first."""
        server = self.offered.server
        return self.result is None and server is not None and server.asks(self.offered.name)

    def problem(self) -> str | None:
        """What is wrong with the arguments, in words that a model can mend them by."""
        try:
            arguments = json.loads(self.arguments or "{}")
        except json.JSONDecodeError as error:
            return f"the arguments are no JSON: {error}"
        return invalid(self.offered.definition, arguments)


def invalid(definition: FunctionDefinition, arguments: Any) -> str | None:
    """What is wrong with arguments by the schema of their function."""
    schema = definition.schema_of_arguments()
    try:
        check = jsonschema_rs.validator_for(schema, retriever=_no_other_schema)
    except (ValueError, jsonschema_rs.ReferencingError) as error:
        return f"the tool's own schema cannot be used: {error}"
    found = next(check.iter_errors(arguments), None)
    if found is None:
        return None
    path = ".".join(map(str, found.instance_path))
    return f"{path}: {found.message}" if path else str(found.message)


def _no_other_schema(uri: str) -> Any:
    raise ValueError("it refers to another document, and nothing is fetched for a schema")


def unknown(call: Call) -> list[Message]:
    """What the model reads of a call of a tool that there is not."""
    call_id = new_id("call")
    made = ToolCall(id=call_id, function=FunctionCall(name=call.name or "unknown", arguments=call.arguments))
    return [
        Message(role="assistant", tool_calls=[made]),
        Message(role="tool", tool_call_id=call_id, content=f"There is no tool `{call.name}`."),
    ]


async def judged(turn: Turn, text: str) -> Blocked | None:
    """What a shield found in something that a tool, or its server, said."""
    return await enforcement.judged(turn.stack, "tool_result", text, guardrails=turn.request.guardrails)


async def carried_out(turn: Turn, planned: list[Planned]) -> AsyncGenerator[Event, None]:
    """Make the calls side by side, and tell of each as it ends.

    That they are made is kept before they are: after a crash none of them is made again.
    """
    if not planned:
        return
    places, events = [], []
    for plan in planned:
        place, told = begun(turn, plan.item)
        places.append(place)
        events += told
    await turn.save(places, events)
    for event in events:
        yield event
    tasks = {
        asyncio.create_task(_made(turn, plan)): place for plan, place in zip(planned, places, strict=True)
    }
    try:
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            events = [event for task in done for event in finished(turn, tasks[task], task.result())]
            if not waiting:
                turn.keep([tasks[task] for task in done], events)  # the model is asked meanwhile
                return
            await turn.save([tasks[task] for task in done], events)
            for event in events:
                yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _made(turn: Turn, plan: Planned) -> ToolResult:
    """What came of a call; a shield may withhold it, from the model as from the client."""
    result = plan.result or await _called(turn, plan)
    if result.judged:
        return result
    said = "\n".join([result.text, *strings(result.details)])
    if said.strip() and (blocked := await judged(turn, said)):
        return ToolResult(text=blocked.refusal(), error=True)
    return result


async def _called(turn: Turn, plan: Planned) -> ToolResult:
    offered = plan.offered
    try:
        async with asyncio.timeout_at(turn.deadline):
            arguments = json.loads(plan.arguments or "{}")
            return await offered.provider.call(
                offered.name, arguments, session=offered.session or turn.session
            )
    except GuardFailed:
        raise
    except StackError as error:
        return ToolResult(text=str(error), error=True)
    except TimeoutError:
        return ToolResult(text="The tool did not answer in time.", error=True)
    except Exception:
        log.exception("tool %s of %s broke", offered.name, offered.label)
        return ToolResult(text="The tool broke.", error=True)
