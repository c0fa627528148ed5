"""What a call of a tool is told by: its events, and what came of it in its item."""

from collections.abc import Iterator
from typing import Any

from llama_stack_lite.api.responses import (
    CodeInterpreterItem,
    Event,
    FileSearchItem,
    MCPCallItem,
    WebSearchItem,
)
from llama_stack_lite.api.tools import ToolResult

from .turn import Turn

# what is told before a call is made, by the item's type, besides `in_progress`
DURING = {
    "web_search_call": "searching",
    "file_search_call": "searching",
    "code_interpreter_call": "interpreting",
}


def begun(turn: Turn, item: Any) -> tuple[int, list[Event]]:
    """Add a call to the output: its place, and the events that say that it is made."""
    place = turn.place(item)
    return place, list(_beginning(turn, item, place))


def _beginning(turn: Turn, item: Any, place: int) -> Iterator[Event]:
    told = {"item_id": item.id, "output_index": place}
    yield turn.added(place)
    yield turn.event(f"response.{item.type}.in_progress", **told)
    if isinstance(item, MCPCallItem):
        yield turn.event("response.mcp_call_arguments.delta", **told, delta=item.arguments)
        yield turn.event("response.mcp_call_arguments.done", **told, arguments=item.arguments)
    if isinstance(item, CodeInterpreterItem):
        yield turn.event("response.code_interpreter_call_code.delta", **told, delta=item.code)
        yield turn.event("response.code_interpreter_call_code.done", **told, code=item.code)
    if during := DURING.get(item.type):
        yield turn.event(f"response.{item.type}.{during}", **told)


def finished(turn: Turn, place: int, result: ToolResult) -> list[Event]:
    """Put what came of a call into its item; the events that say so."""
    item: Any = turn.response.output[place]
    if isinstance(item, MCPCallItem):
        item.output, item.error = (None, _error(result.text)) if result.error else (result.text, None)
    for name, value in result.details.items():
        setattr(item, name, value)
    if isinstance(item, CodeInterpreterItem) and item.outputs is None:
        item.outputs = [{"type": "logs", "logs": result.text}]
    if isinstance(item, WebSearchItem | FileSearchItem) and item.results is None:
        item.results = [{"text": result.text}] if result.error else []
    item.status = "failed" if result.error else "completed"
    # of OpenAI's types only those of MCP calls tell of a failure; the others' items do
    ending = "failed" if result.error and isinstance(item, MCPCallItem) else "completed"
    told = {"item_id": item.id, "output_index": place}
    return [turn.event(f"response.{item.type}.{ending}", **told), turn.done(place)]


def _error(text: str) -> dict[str, Any]:
    return {"type": "mcp_tool_execution_error", "content": [{"type": "text", "text": text}]}
