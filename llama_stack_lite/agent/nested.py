"""An agent as the tool of another: a call of it is a turn of its own, kept nowhere."""

from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

from llama_stack_lite.api.agents import NESTING, PREFIX, Agent
from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.responses import (
    FunctionCallItem,
    MCPApprovalRequestItem,
    MessageItem,
    OutputRefusal,
    OutputText,
    Response,
    ResponseRequest,
    ResponseUsage,
)
from llama_stack_lite.api.tools import ToolKind, ToolResult
from llama_stack_lite.errors import InvalidRequest

from .named import Named
from .turn import Turn, Turns

INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "what to ask, with all that has to be known"}},
    "required": ["input"],
    "additionalProperties": False,
}


class Colleague:
    """The provider of one agent to a turn.

    Each call begins anew, and knows of the outer turn only what it is asked. Its time is the outer turn's, as
    is what it costs; the shields of both guard it.
    """

    kind: ToolKind = "mcp"

    def __init__(self, outer: Turn, *, name: str, named: Named, turns: Turns) -> None:
        self.outer = outer
        self.name = name
        self.named = named
        self.turns = turns

    async def tools(self) -> list[FunctionDefinition]:
        return [offered(await self.named.get(self.name))]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        outer = self.outer
        above = (*outer.above, *([outer.agent.name] if outer.agent else []))
        if name in above or len(above) >= NESTING:
            raise InvalidRequest(f"agent `{name}` cannot be asked by {' > '.join(above)}")
        request = ResponseRequest(
            model=f"{PREFIX}{name}",
            input=arguments["input"],
            guardrails=outer.request.guardrails,
            store=False,
        )
        turn = await self.turns.begin(request)
        turn.above, turn.session = above, f"{session}/{name}"
        try:
            async with aclosing(self.turns.follow(turn)) as events:
                async for _ in events:
                    pass
        finally:
            if spent := turn.response.usage:
                outer.response.usage = (outer.response.usage or ResponseUsage()).plus(spent.as_chat())
        return outcome(turn.response)


def offered(agent: Agent) -> FunctionDefinition:
    """An agent as a function that models and other programs can call."""
    description = agent.description or f"Asks the agent `{agent.name}`."
    return FunctionDefinition(name=agent.name, description=description, parameters=INPUT)


def outcome(response: Response) -> ToolResult:
    """What came of a turn for those who cannot go on with it."""
    if response.error:
        return ToolResult(text=f"The agent failed: {response.error.message}", error=True)
    for item in response.output:
        if isinstance(item, FunctionCallItem):
            return ToolResult(text=f"The agent waits for its client to run `{item.name}`.", error=True)
        if isinstance(item, MCPApprovalRequestItem):
            return ToolResult(text=f"The agent waits for an approval of `{item.name}`.", error=True)
    if refusals := [part.refusal for part in _parts(response) if isinstance(part, OutputRefusal)]:
        return ToolResult(text="".join(refusals), error=True)
    said = "".join(part.text for part in _parts(response) if isinstance(part, OutputText))
    if response.incomplete_details:
        reason = response.incomplete_details.reason
        return ToolResult(text=f"{said}\n\n(Not complete: {reason}.)".strip(), error=not said)
    return ToolResult(text=said)


def _parts(response: Response) -> Iterator[Any]:
    """The parts of the last message, with which a turn answers: what came before went with its calls."""
    messages = [item for item in response.output if isinstance(item, MessageItem)]
    yield from messages[-1].content if messages else []
