"""A turn whose server stopped: what was open is ended, and the step that was lost begins again."""

from collections.abc import Iterator
from typing import Any

from llama_stack_lite.api.responses import Event, FunctionCallItem, MCPApprovalRequestItem, MCPListToolsItem
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.state.archive import ITEMS

from .telling import finished
from .turn import Turn

UNKNOWN = "The server stopped while this call ran. It may have taken effect; it was not made again."
UNLISTED = "the server stopped while it listed the tools"
SPOKEN = ("message", "reasoning", "function_call")  # the items that a model writes by itself
DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "text",
}


def resumed(turn: Turn, told: list[Event]) -> list[Event]:
    """Make the turn ready to go on after the events that were told; returns those that end what was open.

    What a model was just saying stays in the output as incomplete, and is not read by it when it is asked
    again. A call that was being made is not made again.
    """
    output = turn.response.output
    events: list[Event] = []
    for place, item in _begun(told).items():
        if item["type"] in SPOKEN:
            output[place] = ITEMS.validate_python([item])[0]
            events += _cut(turn, place)
        else:
            events += _broken(turn, place)
    steps = [place + 1 for place, item in enumerate(output) if item.type not in SPOKEN]
    turn.lost = range(max(steps, default=0), len(output))
    return events


def waits(turn: Turn) -> bool:
    """Whether the turn was about to end, as its client has to act first."""
    return any(
        isinstance(item, MCPApprovalRequestItem)
        or (isinstance(item, FunctionCallItem) and item.status == "completed")
        for item in turn.response.output
    )


def _begun(told: list[Event]) -> dict[int, dict[str, Any]]:
    """The items that had begun and not ended, by their places, as far as they were told."""
    items: dict[int, dict[str, Any]] = {}
    for event in told:
        data, place = event.data, event.data.get("output_index", -1)
        if event.type == "response.output_item.added":
            items[place] = data["item"]
        elif event.type == "response.output_item.done":
            del items[place]
        elif event.type == "response.content_part.added":
            items[place]["content"][data["content_index"] :] = [data["part"]]
        elif event.type == "response.output_text.annotation.added":
            items[place]["content"][data["content_index"]]["annotations"].append(data["annotation"])
        elif event.type == "response.function_call_arguments.delta":
            items[place]["arguments"] += data["delta"]
        elif field := DELTAS.get(event.type):
            part = items[place]["content"][data["content_index"]]
            part[field] += data["delta"]
            part.get("logprobs", []).extend(data.get("logprobs", []))
    return items


def _cut(turn: Turn, place: int) -> Iterator[Event]:
    """End what a model was saying."""
    if turn.response.output[place].type != "function_call":
        turn.grows(place)
    yield from turn.closed(whole=False)
    yield from turn.called(whole=False)


def _broken(turn: Turn, place: int) -> Iterator[Event]:
    """End what this server was doing."""
    item = turn.response.output[place]
    if isinstance(item, MCPListToolsItem):
        item.tools, item.error = [], UNLISTED
        yield turn.event("response.mcp_list_tools.failed", item_id=item.id, output_index=place)
        yield turn.done(place)
    else:
        yield from finished(turn, place, ToolResult(text=UNKNOWN, error=True))
