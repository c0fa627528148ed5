"""What an agent tells of a turn: few small events, and the turn itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import Refused
from .items import (
    CodeInterpreterCall,
    DeltaEvent,
    Event,
    FileSearchCall,
    FunctionCall,
    Item,
    ItemEvent,
    MCPCall,
    Response,
    Usage,
    WebSearchCall,
)
from .tools import written


@dataclass(frozen=True)
class Turn:
    """What came of one input. `items` are all that the model and its tools said and did, in order.

    `text` is what the user reads, which is the refusal where there is one.
    """

    text: str
    items: list[Item]
    usage: Usage
    response: Response

    @property
    def refusal(self) -> str | None:
        return self.response.refusal

    def raise_for_refusal(self) -> Turn:
        """Return the turn itself; raises `Refused` where the answer was withheld."""
        if self.refusal is not None:
            raise Refused(self.refusal, code="content_filter")
        return self


@dataclass(frozen=True)
class Text:
    """More of the answer."""

    delta: str


@dataclass(frozen=True)
class Reasoning:
    """More of what the model thinks before it answers."""

    delta: str


@dataclass(frozen=True)
class Refusal:
    """More of what is said in the place of an answer that was withheld."""

    delta: str


@dataclass(frozen=True)
class Call:
    """A tool is called, by the agent or by the server; `arguments` are JSON as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Result:
    """What came of a call."""

    id: str
    name: str
    output: str
    error: bool = False


@dataclass(frozen=True)
class Approval:
    """A call of an MCP server's tool that waits for somebody's word."""

    id: str
    server: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Done:
    """The last event of a turn."""

    turn: Turn


AgentEvent = Text | Reasoning | Refusal | Call | Result | Approval | Done

DELTAS: dict[str, type[Text | Reasoning | Refusal]] = {
    "response.output_text.delta": Text,
    "response.reasoning_text.delta": Reasoning,
    "response.reasoning_summary_text.delta": Reasoning,
    "response.refusal.delta": Refusal,
}
SERVED = MCPCall | WebSearchCall | FileSearchCall | CodeInterpreterCall


def told(event: Event) -> Iterator[AgentEvent]:
    """What an event of a response says in fewer words."""
    if isinstance(event, DeltaEvent) and event.type in DELTAS:
        yield DELTAS[event.type](event.delta)
    elif isinstance(event, ItemEvent):
        item, ended = event.item, event.type == "response.output_item.done"
        if isinstance(item, FunctionCall) and ended:
            yield Call(item.call_id, item.name, item.arguments)
        elif isinstance(item, SERVED):
            name, arguments, output = _served(item)
            failed = item.status == "failed"
            yield (
                Result(item.id or "", name, output, failed) if ended else Call(item.id or "", name, arguments)
            )


def _served(item: SERVED) -> tuple[str, str, str]:
    """Name, arguments and output of a call that the server makes."""
    if isinstance(item, MCPCall):
        return item.name, item.arguments, item.output or _said(item.error)
    if isinstance(item, WebSearchCall):
        return "web_search", json.dumps(item.action, ensure_ascii=False), ""
    if isinstance(item, FileSearchCall):
        return "file_search", json.dumps(item.queries, ensure_ascii=False), written(item.results or "")
    return (
        "code_interpreter",
        item.code or "",
        "".join(str(each.get("logs", "")) for each in item.outputs or []),
    )


def _said(error: str | dict[str, Any] | None) -> str:
    if not isinstance(error, dict):
        return error or ""
    content = error.get("content") or error.get("message") or ""
    return content if isinstance(content, str) else "".join(str(each.get("text", "")) for each in content)
