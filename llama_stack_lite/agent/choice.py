"""What a chat request says of a turn's tools: those that are offered, and the choice among them."""

from collections.abc import Collection, Mapping
from typing import Any

from llama_stack_lite.api.responses import (
    AllowedChoice,
    FunctionTool,
    HostedChoice,
    MCPChoice,
    NamedFunctionChoice,
    ResponseRequest,
)
from llama_stack_lite.errors import InvalidRequest

from .calls import Offered


def offer(
    request: ResponseRequest, functions: list[FunctionTool], known: Mapping[str, Offered]
) -> dict[str, Any]:
    """The fields `tools` and `tool_choice`; none where there is nothing to offer."""
    definitions = [*(each.definition() for each in functions), *(each.definition for each in known.values())]
    if not definitions:
        return {}
    tools = [{"type": "function", "function": each.model_dump(exclude_none=True)} for each in definitions]
    return {"tools": tools, "tool_choice": _choice(request, [each.name for each in definitions], known)}


def later(
    request: ResponseRequest, offer: dict[str, Any], *, only: Collection[str] | None = None
) -> dict[str, Any]:
    """The offer once a tool has been called: none must be any more, and those allowed stay the only ones.

    `only` are those that may still be called, where that is not all.
    """
    names, choice = [each["function"]["name"] for each in offer["tools"]], offer["tool_choice"]
    if choice == "none":
        return offer
    left = names
    if isinstance(request.tool_choice, AllowedChoice):
        left = [each["function"]["name"] for each in choice["allowed_tools"]["tools"]]
    if only is not None:
        left = [name for name in left if name in only]
    some: Any = _allowed("auto", left) if left else "none"
    return {**offer, "tool_choice": "auto" if left == names else some}


def _choice(request: ResponseRequest, names: list[str], known: Mapping[str, Offered]) -> Any:
    choice = request.tool_choice
    if isinstance(choice, str):
        return choice
    if isinstance(choice, AllowedChoice):
        chosen = [name for each in choice.tools for name in _named(each, names, known)]
        return _allowed(choice.mode, chosen)
    chosen = _named(choice.model_dump(), names, known)
    if isinstance(choice, NamedFunctionChoice) or (isinstance(choice, MCPChoice) and choice.name):
        return {"type": "function", "function": {"name": chosen[0]}}
    assert isinstance(choice, HostedChoice | MCPChoice)
    return _allowed("required", chosen)


def _allowed(mode: str, names: list[str]) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in dict.fromkeys(names)]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def _named(tool: dict[str, Any], names: list[str], known: Mapping[str, Offered]) -> list[str]:
    """The names, as they are offered, of the tools that a choice speaks of."""
    kind, name = tool["type"], tool.get("name")
    if kind == "function":
        found = [each for each in names if each == name and each not in known]
    elif kind == "mcp":
        found = [
            each
            for each, offered in known.items()
            if offered.label == tool.get("server_label") and name in (None, offered.name)
        ]
    else:
        wanted = "web_search" if kind.startswith("web_search") else kind
        found = [each for each, offered in known.items() if offered.provider.kind == wanted]
    if not found:
        what = " ".join(str(tool[key]) for key in ("type", "server_label", "name") if tool.get(key))
        raise InvalidRequest(f"tool_choice: `tools` has no {what}", param="tool_choice")
    return found
