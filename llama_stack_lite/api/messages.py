"""/v1/messages: Anthropic's requests, replies and stream events, as far as models here can follow them."""

from collections import Counter
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from .inference import Wire, sparse
from .safety import Blocked

# ------------------------------------------------------------ what is asked


class Given(BaseModel):
    """What is not known here, such as hints to a cache, is not read, and no model sees it."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class TextBlock(Given):
    type: Literal["text"]
    text: str


class Base64Image(Given):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str = Field(min_length=1)


class URLImage(Given):
    type: Literal["url"]
    url: str = Field(min_length=1)


class ImageBlock(Given):
    type: Literal["image"]
    source: Annotated[Base64Image | URLImage, Field(discriminator="type")]


class PlainText(Given):
    type: Literal["text"]
    data: str


class Passages(Given):
    type: Literal["content"]
    content: str | list[Annotated[TextBlock | ImageBlock, Field(discriminator="type")]]


class DocumentBlock(Given):
    """A document in words; of a PDF or a file, nothing here reads the words out."""

    type: Literal["document"]
    source: Annotated[PlainText | Passages, Field(discriminator="type")]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Given):
    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


ToolId = Annotated[str, Field(min_length=1)]
Shown = Annotated[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock, Field(discriminator="type")]


class ToolResultBlock(Given):
    type: Literal["tool_result"]
    tool_use_id: ToolId
    content: str | list[Shown] = ""
    is_error: bool = False


class ThinkingBlock(Given):
    """The signature is the sender's, and nothing here depends on it."""

    type: Literal["thinking"]
    thinking: str
    signature: str = ""


class RedactedThinkingBlock(Given):
    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(Given):
    type: Literal["tool_use"]
    id: ToolId
    name: str = Field(min_length=1)
    input: dict[str, Any]


class UserMessage(Given):
    role: Literal["user"]
    content: (
        str
        | list[
            Annotated[
                TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolResultBlock,
                Field(discriminator="type"),
            ]
        ]
    )


class AssistantMessage(Given):
    role: Literal["assistant"]
    content: (
        str
        | list[
            Annotated[
                TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock, Field(discriminator="type")
            ]
        ]
    )


class SystemMessage(Given):
    role: Literal["system"]
    content: str | list[TextBlock]


class ClientTool(Given):
    """A tool that the client runs. Anthropic's own tools are none: only its models know them."""

    type: Literal["custom"] | None = None
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    input_schema: dict[str, Any]
    input_examples: list[dict[str, Any]] = []
    strict: bool | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _runs_at_the_client(cls, value: Any) -> Any:
        if value not in ("custom", None):
            raise ValueError(f"`{value}` is a tool of Anthropic's own; give tools with an `input_schema`")
        return value


class ToolChoice(Given):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise ValueError("`name` goes with type `tool`, and only with it")
        return self


class Thinking(Given):
    """Whether a model thinks is its own matter; this says whether its thoughts are shown."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(None, ge=1024)
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Given):
    type: Literal["json_schema"]
    # `schema` is a method of pydantic's BaseModel
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Given):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Given):
    user_id: str | None = None


class CountTokensRequest(Given):
    """What a prompt is made of."""

    model: str = Field(min_length=1, max_length=500)
    messages: list[Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]] = (
        Field(min_length=1)
    )
    system: str | list[TextBlock] | None = None
    tools: list[ClientTool] = Field([], max_length=128)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    mcp_servers: list[dict[str, Any]] = []

    @field_validator("mcp_servers")
    @classmethod
    def _none(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if value:
            raise ValueError("MCP servers are connected to by /v1/responses, not by this API")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.messages[-1].role == "assistant":
            raise ValueError("`messages` ends with an assistant message, and nothing here continues one")
        names = Counter(tool.name for tool in self.tools)
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"`tools` holds {', '.join(twice)} twice")
        choice = self.tool_choice
        if choice and choice.type in ("any", "tool") and not names:
            raise ValueError(f"`tool_choice` of type `{choice.type}` goes with `tools`, and only with them")
        if choice and choice.name and choice.name not in names:
            raise ValueError(f"`tool_choice` names {choice.name}, which `tools` does not hold")
        return self


class MessagesRequest(CountTokensRequest):
    max_tokens: int = Field(ge=1)
    stream: bool = False
    stop_sequences: list[Annotated[str, Field(min_length=1)]] = Field([], max_length=16)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    metadata: Metadata | None = None
    # of our own, as in all APIs that write
    guardrails: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=16, description="shields to ask besides those of the distribution"
    )


class TokenCount(BaseModel):
    input_tokens: int


# ------------------------------------------------------------ what is answered

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]


class ThinkingTokens(BaseModel):
    thinking_tokens: int


class ReplyUsage(BaseModel):
    """`input_tokens` are those that had to be read; all of the prompt is the sum of the first three."""

    input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens: int = 0
    output_tokens_details: ThinkingTokens | None = sparse()


class TextReply(BaseModel):
    type: Literal["text"] = "text"
    text: str = ""
    citations: None = None


class ThinkingReply(BaseModel):
    """Models here sign nothing, so the signature is empty."""

    type: Literal["thinking"] = "thinking"
    thinking: str = ""
    signature: str = ""


class ToolUseReply(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict)


ReplyBlock = Annotated[TextReply | ThinkingReply | ToolUseReply, Field(discriminator="type")]


class RefusalDetails(BaseModel):
    type: Literal["refusal"] = "refusal"
    category: None = None
    explanation: str | None = None


class Ending(BaseModel):
    """Why a reply ended, and after which of the `stop_sequences` where the model's server says which.

    `safety` says which shield withheld it.
    """

    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: RefusalDetails | None = None
    safety: Blocked | None = sparse()


class Reply(Wire):
    """What Anthropic calls a message."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ReplyBlock] = Field(default_factory=list)
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    stop_details: RefusalDetails | None = None
    safety: Blocked | None = sparse()
    usage: ReplyUsage


class MessageStart(Wire):
    type: Literal["message_start"] = "message_start"
    message: Reply


class BlockStart(Wire):
    type: Literal["content_block_start"] = "content_block_start"
    index: int
    content_block: ReplyBlock


class BlockDelta(Wire):
    """`delta` is a `text_delta`, a `thinking_delta` or an `input_json_delta`: its type and its text."""

    type: Literal["content_block_delta"] = "content_block_delta"
    index: int
    delta: dict[str, str]


class BlockStop(Wire):
    type: Literal["content_block_stop"] = "content_block_stop"
    index: int


class MessageDelta(Wire):
    type: Literal["message_delta"] = "message_delta"
    delta: Ending
    usage: ReplyUsage


class MessageStop(Wire):
    type: Literal["message_stop"] = "message_stop"


Event = MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class Failure(BaseModel):
    type: str
    message: str


class FailureBody(BaseModel):
    """Anthropic's error shape."""

    type: Literal["error"] = "error"
    error: Failure
    request_id: str | None = None
