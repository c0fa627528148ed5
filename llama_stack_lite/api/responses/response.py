"""/v1/responses: what a client gets, whole or as events."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import Field
from pydantic_core import to_json

from llama_stack_lite.api.inference import Usage as ChatUsage
from llama_stack_lite.api.inference import Wire, sparse
from llama_stack_lite.api.safety import Blocked

from .items import Item, shown
from .request import ConversationRef, PromptRef, Reasoning, ResponseRequest, TextOptions
from .tools import ResponseTool, ToolChoice

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ENDED: frozenset[Status] = frozenset({"completed", "incomplete", "failed", "cancelled"})


class InputTokensDetails(Wire):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Wire):
    reasoning_tokens: int = 0


class ResponseUsage(Wire):
    """Tokens of every call of the model in the turn, added up."""

    input_tokens: int = 0
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int = 0

    def plus(self, usage: ChatUsage) -> "ResponseUsage":
        read, written = usage.prompt_tokens_details, usage.completion_tokens_details
        cached = self.input_tokens_details.cached_tokens + (read and read.cached_tokens or 0)
        thought = self.output_tokens_details.reasoning_tokens + (written and written.reasoning_tokens or 0)
        return ResponseUsage(
            input_tokens=self.input_tokens + usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached),
            output_tokens=self.output_tokens + usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=thought),
            total_tokens=self.total_tokens + usage.total_tokens,
        )

    def as_chat(self) -> ChatUsage:
        """The same in the words of a chat."""
        details = {"cached_tokens": self.input_tokens_details.cached_tokens}
        written = {"reasoning_tokens": self.output_tokens_details.reasoning_tokens}
        return ChatUsage.model_validate(
            {
                "prompt_tokens": self.input_tokens,
                "completion_tokens": self.output_tokens,
                "total_tokens": self.total_tokens,
                "prompt_tokens_details": details if any(details.values()) else None,
                "completion_tokens_details": written if any(written.values()) else None,
            }
        )


class ResponseFailure(Wire):
    """Why a response failed. `code` is one of OpenAI's; ours is in `type` where it says more."""

    code: str
    message: str


class Incomplete(Wire):
    reason: Literal["max_output_tokens", "content_filter", "max_messages"]


class Response(Wire):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    background: bool = False
    completed_at: int | None = None
    conversation: ConversationRef | None = None
    dropped_items: int | None = sparse()  # how many of the input `truncation: auto` left out
    error: ResponseFailure | None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    model: str
    output: list[Item] = Field(default_factory=list)
    parallel_tool_calls: bool = True
    previous_response_id: str | None = None
    prompt: PromptRef | None = None
    prompt_cache_key: str | None = sparse()
    reasoning: Reasoning | None = None
    safety: Blocked | None = sparse()
    safety_identifier: str | None = sparse()
    service_tier: str | None = "default"
    store: bool = True
    temperature: float | None = None
    text: TextOptions = TextOptions()
    tool_choice: ToolChoice = "auto"
    tools: list[ResponseTool] = Field(default_factory=list)
    top_logprobs: int | None = 0
    top_p: float | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None = None

    @classmethod
    def begun(
        cls, request: ResponseRequest, *, id: str, created_at: int, store: bool, model: str
    ) -> "Response":
        """The object of a response that has not said anything yet."""
        same = set(cls.model_fields) & set(ResponseRequest.model_fields) - {"store", "model", "conversation"}
        given = {name: getattr(request, name) for name in same if name in request.model_fields_set}
        conversation = request.conversation_id()
        return cls(
            **given,
            id=id,
            created_at=created_at,
            status="queued" if request.background else "in_progress",
            store=store,
            model=model,
            conversation=ConversationRef(id=conversation) if conversation else None,
        )

    def shown(self, include: Collection[str]) -> dict[str, Any]:
        """The response as a client sees it: see `shown` of items."""
        found = self.model_dump(mode="json", by_alias=True, exclude={"output"})
        return found | {"output": [shown(item, include) for item in self.output]}

    def ended(self) -> bool:
        return self.status in ENDED


class Event:
    """One event of a stream: its type, its number, and the fields that the type has."""

    __slots__ = ("data", "type")

    def __init__(self, type: str, data: dict[str, Any]) -> None:
        self.type = type
        self.data = data

    def to_json(self) -> bytes:
        return to_json(self.data)


class ItemList(Wire):
    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str = ""
    last_id: str = ""
    has_more: bool = False

    @classmethod
    def of(cls, items: list[Item], include: Collection[str], *, more: bool) -> "ItemList":
        """One page of them."""
        ends = {"first_id": items[0].id, "last_id": items[-1].id} if items else {}
        return cls(data=[shown(item, include) for item in items], has_more=more, **ends)


class Deleted(Wire):
    id: str
    object: str
    deleted: bool = True


class InputTokens(Wire):
    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: int


class Compaction(Wire):
    id: str
    object: Literal["response.compaction"] = "response.compaction"
    created_at: int
    output: list[Item]
    usage: ResponseUsage = Field(default_factory=ResponseUsage)
