"""Items, responses made of them, and the events that tell of a response as it grows."""

from __future__ import annotations

from typing import Annotated, Any, Union

from pydantic import Discriminator, Field, Tag

from .objects import Object, Safety


class Part(Object):
    """A part of a message; of `text` and `refusal` it has the one that its type says."""

    type: str
    text: str = ""
    refusal: str = ""


class OtherItem(Object):
    """An item of a type that this version does not know."""

    type: str
    id: str | None = None


class Message(Object):
    type: str = "message"
    id: str | None = None
    status: str | None = None
    role: str
    content: str | list[Part]

    @property
    def text(self) -> str:
        """All that it says, without refusals."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)

    @property
    def refusal(self) -> str | None:
        parts = [] if isinstance(self.content, str) else self.content
        return "".join(part.refusal for part in parts) or None


class FunctionCall(Object):
    """A call that the client makes; `arguments` are JSON as the model wrote it."""

    type: str = "function_call"
    id: str | None = None
    status: str | None = None
    call_id: str
    name: str
    arguments: str


class FunctionCallOutput(Object):
    type: str = "function_call_output"
    id: str | None = None
    call_id: str
    output: str | list[dict[str, Any]]


class ReasoningItem(Object):
    type: str = "reasoning"
    id: str | None = None
    summary: list[Part] = Field(default_factory=list)
    content: list[Part] | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or self.summary)


class MCPListTools(Object):
    type: str = "mcp_list_tools"
    id: str | None = None
    server_label: str
    tools: list[dict[str, Any]] = Field(default_factory=list)
    error: str | dict[str, Any] | None = None


class MCPApprovalRequest(Object):
    """A call that waits for somebody's word."""

    type: str = "mcp_approval_request"
    id: str
    server_label: str
    name: str
    arguments: str


class MCPCall(Object):
    type: str = "mcp_call"
    id: str | None = None
    status: str | None = None
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: str | dict[str, Any] | None = None
    approval_request_id: str | None = None


class WebSearchCall(Object):
    type: str = "web_search_call"
    id: str | None = None
    status: str | None = None
    action: dict[str, Any] = Field(default_factory=dict)


class FileSearchCall(Object):
    type: str = "file_search_call"
    id: str | None = None
    status: str | None = None
    queries: list[str] = Field(default_factory=list)
    results: list[dict[str, Any]] | None = None


class CodeInterpreterCall(Object):
    type: str = "code_interpreter_call"
    id: str | None = None
    status: str | None = None
    code: str | None = None
    outputs: list[dict[str, Any]] | None = None


KINDS: dict[str, type[Object]] = {
    "message": Message,
    "function_call": FunctionCall,
    "function_call_output": FunctionCallOutput,
    "reasoning": ReasoningItem,
    "mcp_list_tools": MCPListTools,
    "mcp_approval_request": MCPApprovalRequest,
    "mcp_call": MCPCall,
    "web_search_call": WebSearchCall,
    "file_search_call": FileSearchCall,
    "code_interpreter_call": CodeInterpreterCall,
}


def _kind(value: Any) -> str:
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return str(found) if found in KINDS else "other"


Item = Annotated[
    Union[  # noqa: UP007 - a union of annotated types is none for `|` in Python 3.10
        Annotated[Message, Tag("message")],
        Annotated[FunctionCall, Tag("function_call")],
        Annotated[FunctionCallOutput, Tag("function_call_output")],
        Annotated[ReasoningItem, Tag("reasoning")],
        Annotated[MCPListTools, Tag("mcp_list_tools")],
        Annotated[MCPApprovalRequest, Tag("mcp_approval_request")],
        Annotated[MCPCall, Tag("mcp_call")],
        Annotated[WebSearchCall, Tag("web_search_call")],
        Annotated[FileSearchCall, Tag("file_search_call")],
        Annotated[CodeInterpreterCall, Tag("code_interpreter_call")],
        Annotated[OtherItem, Tag("other")],
    ],
    Discriminator(_kind),
]
"""An item of any type."""


class Usage(Object):
    """Tokens."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
        )


class Failure(Object):
    message: str
    code: str | None = None


class Incomplete(Object):
    reason: str


class Response(Object):
    """What a model answered, and what it called meanwhile."""

    id: str
    created_at: float = 0
    status: str
    background: bool = False
    model: str
    output: list[Item] = Field(default_factory=list)
    usage: Usage | None = None
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    previous_response_id: str | None = None
    safety: Safety | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the model said, in one text: the refusal, where it is one."""
        said = [item.text for item in self.output if isinstance(item, Message)]
        return "".join(said) or self.refusal or ""

    @property
    def refusal(self) -> str | None:
        said = [item.refusal or "" for item in self.output if isinstance(item, Message)]
        return "".join(said) or None

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "in_progress")


class InputTokens(Object):
    input_tokens: int


class Compaction(Object):
    """A conversation in short: `output` is to be the input of later responses."""

    id: str
    output: list[Item]
    usage: Usage | None = None


# ---------------------------------------------------------------- events


class Event(Object):
    """Something that happened to a response; its other fields are those of OpenAI's event of the type."""

    type: str
    sequence_number: int = -1


class ResponseEvent(Event):
    """The response as it is now: created, in progress, or ended."""

    response: Response


class ItemEvent(Event):
    """An item was added, or is done."""

    output_index: int
    item: Item


class DeltaEvent(Event):
    """More of a text, a refusal, or arguments."""

    delta: str
    item_id: str = ""
    output_index: int = 0


ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
WHOLE = ENDS | {"response.created", "response.queued", "response.in_progress"}


def event(fields: dict[str, Any]) -> Event:
    """An event of the class that its type has."""
    kind = str(fields.get("type"))
    if kind in WHOLE:
        return ResponseEvent.model_validate(fields)
    if kind.startswith("response.output_item."):
        return ItemEvent.model_validate(fields)
    if kind.endswith(".delta") and isinstance(fields.get("delta"), str):
        return DeltaEvent.model_validate(fields)
    return Event.model_validate(fields)
