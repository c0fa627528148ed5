"""Items: what a response is given and what it makes, each of which can say itself as chat messages."""

import json
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llama_stack_lite.api.ids import new_id, well_formed
from llama_stack_lite.api.inference import FunctionCall, Message, Nullable, TextPart, ToolCall, Wire, sparse

from .content import Content, InputContent, InputFile, InputImage, OutputRefusal

ItemStatus = Literal["in_progress", "completed", "incomplete"]


def made(kind: str) -> Any:
    """The field of an item's id, which is made where there is none."""
    return Field(default_factory=lambda: new_id(kind))


class Identified(Nullable):
    """An item with an id: the client's where it sent one."""

    @model_validator(mode="before")
    @classmethod
    def _with_id(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "id" not in data:
            return data
        if not data["id"]:
            return {key: value for key, value in data.items() if key != "id"}
        if not (isinstance(data["id"], str) and well_formed(data["id"])):
            raise ValueError(
                "an id has 1 to 64 letters, digits, `_`, `-`, `.` or `:`; leave it out, and one is made"
            )
        return data

    def indirect(self) -> bool:
        """Whether a model reads something else than what is written here."""
        return False


def _indirect(parts: str | Sequence[Content]) -> bool:
    return any(isinstance(part, InputImage | InputFile) and part.indirect() for part in parts)


class MessageItem(Identified):
    """A message of any role; an assistant's has `output_text` and `refusal` parts."""

    id: str = made("msg")
    type: Literal["message"] = "message"
    status: ItemStatus = "completed"
    role: Literal["user", "assistant", "system", "developer"]
    content: list[Content]

    @model_validator(mode="before")
    @classmethod
    def _parts(cls, data: Any) -> Any:
        """A text in the place of parts is one of them."""
        if not isinstance(data, dict) or not isinstance(data.get("content"), str):
            return data
        kind = "output_text" if data.get("role") == "assistant" else "input_text"
        return {**data, "content": [{"type": kind, "text": data["content"]}]}

    def messages(self) -> list[Message]:
        refusals = [part.refusal for part in self.content if isinstance(part, OutputRefusal)]
        parts = [part.part() for part in self.content if not isinstance(part, OutputRefusal)]
        if self.role == "assistant":
            text = "".join(part.text for part in parts if isinstance(part, TextPart))
            return [Message(role="assistant", content=text, refusal="".join(refusals) or None)]
        return [Message(role=self.role, content=parts)]

    def indirect(self) -> bool:
        return _indirect(self.content)


class FunctionCallItem(Identified):
    """A call that the client answers with a `function_call_output`."""

    id: str = made("fc")
    type: Literal["function_call"] = "function_call"
    status: ItemStatus = "completed"
    call_id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    arguments: str

    def messages(self) -> list[Message]:
        return [_calling(self.call_id, self.name, self.arguments)]


class FunctionCallOutputItem(Identified):
    id: str = made("fco")
    type: Literal["function_call_output"] = "function_call_output"
    status: ItemStatus = "completed"
    call_id: str = Field(min_length=1)
    output: str | list[InputContent]

    def messages(self) -> list[Message]:
        output = self.output if isinstance(self.output, str) else [part.part() for part in self.output]
        return [Message(role="tool", tool_call_id=self.call_id, content=output)]

    def indirect(self) -> bool:
        return _indirect(self.output)


class ReasoningText(Nullable):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Identified):
    """What a model thought before it spoke; it is not shown to a model again."""

    id: str = made("rs")
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus = "completed"
    summary: list[ReasoningText] = Field(default_factory=list)
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = sparse()

    def messages(self) -> list[Message]:
        return []


class MCPTool(Wire):
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    annotations: dict[str, Any] | None = None


class MCPListToolsItem(Identified):
    """The tools of an MCP server, as they were when a turn first asked."""

    id: str = made("mcpl")
    type: Literal["mcp_list_tools"] = "mcp_list_tools"
    server_label: str
    tools: list[MCPTool]
    error: str | None = None

    def messages(self) -> list[Message]:
        return []


class MCPApprovalRequestItem(Identified):
    """A call that waits for somebody's word; `digest` is of the tool's schema as it was shown to them."""

    id: str = made("mcpr")
    type: Literal["mcp_approval_request"] = "mcp_approval_request"
    server_label: str
    name: str
    arguments: str
    digest: str | None = sparse()

    def messages(self) -> list[Message]:
        return []  # the model reads of the call when it has been made, or refused


class MCPApprovalResponseItem(Identified):
    id: str = made("mcpa")
    type: Literal["mcp_approval_response"] = "mcp_approval_response"
    approval_request_id: str
    approve: bool
    reason: str | None = None

    def messages(self) -> list[Message]:
        return []


class MCPError(Wire):
    """What OpenAI's types call a tool's execution error."""

    type: Literal["mcp_tool_execution_error"] = "mcp_tool_execution_error"
    content: list[dict[str, Any]] | str


class MCPCallItem(Identified):
    """A call of a tool that this server made."""

    id: str = made("mcp")
    type: Literal["mcp_call"] = "mcp_call"
    status: Literal["in_progress", "calling", "completed", "incomplete", "failed"] = "completed"
    server_label: str
    name: str
    arguments: str
    output: str | None = None
    error: str | dict[str, Any] | None = None
    approval_request_id: str | None = None

    def messages(self) -> list[Message]:
        return _called(self.id, self.name, self.arguments, self.output or _said(self.error))


class WebSearchItem(Identified):
    id: str = made("ws")
    type: Literal["web_search_call"] = "web_search_call"
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] = "completed"
    action: dict[str, Any] = Field(default_factory=dict)
    results: list[dict[str, Any]] | None = sparse()

    def messages(self) -> list[Message]:
        query = json.dumps({"query": self.action.get("query") or ""}, ensure_ascii=False)
        return _called(self.id, "web_search", query, _results(self.results))


class FileSearchItem(Identified):
    id: str = made("fs")
    type: Literal["file_search_call"] = "file_search_call"
    status: Literal["in_progress", "searching", "completed", "incomplete", "failed"] = "completed"
    queries: list[str] = Field(default_factory=list)
    results: list[dict[str, Any]] | None = None

    def messages(self) -> list[Message]:
        query = json.dumps({"query": " ".join(self.queries)}, ensure_ascii=False)
        return _called(self.id, "file_search", query, self.text())

    def numbered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The passages by the numbers that the model cites them by."""
        for place, each in enumerate(self.results or [], 1):
            if each.get("file_id"):
                number = each.get("number")
                yield number if isinstance(number, int) else place, each

    def text(self) -> str:
        """What was found, as the model reads it."""
        passages = [_passage(number, each) for number, each in self.numbered()]
        if passages or self.results is None:
            return "\n\n".join(passages)
        return "\n".join(str(each.get("text") or "") for each in self.results) or "Nothing was found."


class CodeInterpreterItem(Identified):
    id: str = made("ci")
    type: Literal["code_interpreter_call"] = "code_interpreter_call"
    status: Literal["in_progress", "interpreting", "completed", "incomplete", "failed"] = "completed"
    container_id: str = ""
    code: str | None = None
    outputs: list[dict[str, Any]] | None = None

    def messages(self) -> list[Message]:
        code = json.dumps({"code": self.code or ""}, ensure_ascii=False)
        logs = "\n".join(str(each.get("logs") or "") for each in self.outputs or [])
        return _called(self.id, "python", code, logs)


class CompactionItem(Identified):
    """What came before, in short: `encrypted_content` is this server's own, for no client to read."""

    id: str = made("cmp")
    type: Literal["compaction"] = "compaction"
    encrypted_content: str

    def messages(self) -> list[Message]:
        return []  # the server opens it first

    def indirect(self) -> bool:
        return True


class ItemReference(Nullable):
    """An item that the server has already, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: str

    def messages(self) -> list[Message]:
        return []  # the server finds it first

    def indirect(self) -> bool:
        return False  # by then it is found


def _calling(call_id: str, name: str, arguments: str) -> Message:
    call = ToolCall(id=call_id, function=FunctionCall(name=name, arguments=arguments))
    return Message(role="assistant", tool_calls=[call])


def _called(call_id: str, name: str, arguments: str, output: str) -> list[Message]:
    return [_calling(call_id, name, arguments), Message(role="tool", tool_call_id=call_id, content=output)]


def _said(error: str | dict[str, Any] | None) -> str:
    if isinstance(error, dict):
        found = error.get("content") or error.get("message") or ""
        return found if isinstance(found, str) else "\n".join(str(each.get("text", "")) for each in found)
    return error or ""


def _results(results: list[dict[str, Any]] | None) -> str:
    """What was found on the web, as the model read it."""
    return "\n\n".join(
        f"[{number}] {each.get('title') or ''} {each.get('url') or ''}\n"
        f"{each.get('snippet') or each.get('text') or ''}"
        for number, each in enumerate(results or [], 1)
    )


def _passage(number: int, result: dict[str, Any]) -> str:
    """A passage under a line that says where it stands."""
    headings = result.get("headings")
    path = " > ".join(map(str, headings)) if isinstance(headings, list) else ""
    page = f" (page {result['page']})" if result.get("page") else ""
    head = " — ".join(part for part in (str(result.get("filename") or ""), path) if part)
    return f"[{number}] {head}{page}\n{result.get('text') or ''}"


def _kind(value: Any) -> str | None:
    """The type of an item; a message, and a reference, need not say theirs."""
    if not isinstance(value, dict):
        return getattr(value, "type", None)
    implied = "message" if "role" in value else "item_reference" if "id" in value else None
    kind = value.get("type") or implied
    return kind if isinstance(kind, str) else None


Item = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[MCPListToolsItem, Tag("mcp_list_tools")]
    | Annotated[MCPApprovalRequestItem, Tag("mcp_approval_request")]
    | Annotated[MCPApprovalResponseItem, Tag("mcp_approval_response")]
    | Annotated[MCPCallItem, Tag("mcp_call")]
    | Annotated[WebSearchItem, Tag("web_search_call")]
    | Annotated[FileSearchItem, Tag("file_search_call")]
    | Annotated[CodeInterpreterItem, Tag("code_interpreter_call")]
    | Annotated[CompactionItem, Tag("compaction")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind),
]
"""An item as it comes in or goes out."""


def shown(item: Item, include: Collection[str]) -> dict[str, Any]:
    """An item as a client sees it: some of its fields only where the request's `include` names them."""
    found = item.model_dump(mode="json", by_alias=True)
    if isinstance(item, WebSearchItem):
        if "web_search_call.results" not in include:
            found.pop("results", None)
        if "web_search_call.action.sources" not in include:
            found["action"].pop("sources", None)
    elif isinstance(item, FileSearchItem) and "file_search_call.results" not in include:
        found["results"] = None
    elif isinstance(item, CodeInterpreterItem) and "code_interpreter_call.outputs" not in include:
        found["outputs"] = None
    return found


def conversation(items: list[Item]) -> list[Message]:
    """Items as the messages of a chat: what an assistant says and calls at once is one message."""
    found: list[Message] = []
    for message in (message for item in items for message in item.messages()):
        last = found[-1] if found else None
        if last and last.role == message.role == "assistant":
            found[-1] = _joined(last, message)
        else:
            found.append(message)
    return found


def _joined(first: Message, second: Message) -> Message:
    """One message of two that an assistant said in a row."""
    texts = [text for text in (first.text(), second.text()) if text]
    calls = [*(first.tool_calls or []), *(second.tool_calls or [])]
    return Message(
        role="assistant",
        content="\n".join(texts) or (None if calls else ""),
        refusal=second.refusal or first.refusal,
        tool_calls=calls or None,
    )
