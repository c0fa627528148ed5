"""/v1/responses: what a client asks for."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from llama_stack_lite.api.inference import ChatRequest, Message, Nullable, Wire, sparse

from .content import InputFile, InputImage, InputText
from .items import Item, MessageItem
from .tools import ResponseTool, ToolChoice

Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class TextFormat(Nullable):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(None, pattern=r"^[a-zA-Z0-9_-]{1,64}$", exclude_if=lambda value: value is None)
    description: str | None = sparse()
    # `schema` is a method of pydantic's BaseModel
    schema_: dict[str, Any] | None = Field(None, alias="schema", exclude_if=lambda value: value is None)
    strict: bool | None = sparse()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.type == "json_schema" and not (self.name and self.schema_ is not None):
            raise ValueError("a `json_schema` format needs `name` and `schema`")
        return self

    def of_chat(self) -> dict[str, Any] | None:
        """The `response_format` of a chat request; None for free text."""
        if self.type == "json_schema":
            schema = self.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            return {"type": "json_schema", "json_schema": schema}
        return {"type": self.type} if self.type == "json_object" else None


class TextOptions(Nullable):
    format: TextFormat = TextFormat()
    verbosity: Literal["low", "medium", "high"] | None = sparse()


class Reasoning(Wire):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ConversationRef(Wire):
    id: str = Field(min_length=1)


class PromptRef(Wire):
    """A stored prompt; its text comes before the instructions."""

    id: str = Field(min_length=1)
    version: str | None = None
    variables: dict[str, str | InputText | InputImage | InputFile] | None = None

    @model_validator(mode="after")
    def _of_text(self) -> Self:
        for name, value in (self.variables or {}).items():
            if isinstance(value, InputImage | InputFile):
                raise ValueError(f"`variables.{name}`: only text can be put into a prompt")
        return self

    def texts(self) -> dict[str, str]:
        """The variables as what they put in."""
        given = self.variables or {}
        return {
            name: value.text if isinstance(value, InputText) else str(value) for name, value in given.items()
        }


class StreamOptions(Wire):
    include_obfuscation: bool | None = None


class InputRequest(Nullable):
    """What every request to a model says here: the model, the input, and what comes before it."""

    model: str | None = Field(None, min_length=1, max_length=500)
    input: str | list[Item] | None = None
    instructions: str | None = None
    previous_response_id: str | None = Field(None, min_length=1)
    guardrails: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=16, description="shields to ask besides those of the distribution"
    )


class TokensRequest(InputRequest):
    """/v1/responses/input_tokens"""

    conversation: Annotated[str, Field(min_length=1)] | ConversationRef | None = None
    parallel_tool_calls: bool = True
    reasoning: Reasoning | None = None
    text: TextOptions = TextOptions()
    tool_choice: ToolChoice = "auto"
    tools: list[ResponseTool] = Field([], max_length=128)
    truncation: Literal["auto", "disabled"] = "disabled"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.previous_response_id and self.conversation:
            raise ValueError("`conversation` and `previous_response_id` cannot go together")
        if self.tool_choice not in ("auto", "none") and not self.tools:
            raise ValueError("`tool_choice` goes with `tools`, and only with them")
        for kind, key in (("mcp", "server_label"), ("function", "name")):
            names = [getattr(tool, key) for tool in self.tools if tool.type == kind]
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"`tools` holds {', '.join(sorted(twice))} twice")
        return self


class ResponseRequest(TokensRequest):
    stream: bool = False
    stream_options: StreamOptions | None = None
    background: bool = False
    store: bool | None = None
    include: list[Includable] = Field(default_factory=list)
    max_output_tokens: int | None = Field(None, ge=1)
    max_tool_calls: int | None = Field(None, ge=1)
    metadata: Metadata = Field(default_factory=dict)
    prompt: PromptRef | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority", "fast", "ultrafast"] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    top_p: float | None = Field(None, ge=0, le=1)
    user: str | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.background and self.store is False:
            raise ValueError("`background` goes with `store: true`, and only with it")
        if self.stream_options and not self.stream:
            raise ValueError("`stream_options` goes with `stream: true`, and only with it")
        return self

    def conversation_id(self) -> str | None:
        found = self.conversation
        return found.id if isinstance(found, ConversationRef) else found

    def as_chat(
        self, model: str, messages: list[Message], *, used: int, offer: dict[str, Any]
    ) -> ChatRequest:
        """What a model is asked; `used` tokens are written already, `offer` says what it may call."""
        fields: dict[str, Any] = {"model": model, "messages": messages, **offer}
        for name in ("temperature", "top_p", "guardrails"):
            fields[name] = getattr(self, name)
        if self.stream or self.background:
            fields |= {"stream": True, "stream_options": {"include_usage": True}}
        if self.max_output_tokens is not None:
            fields["max_completion_tokens"] = self.max_output_tokens - used
        if self.top_logprobs or "message.output_text.logprobs" in self.include:
            fields |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.reasoning and self.reasoning.effort:
            fields["reasoning_effort"] = self.reasoning.effort
        if offer:
            fields["parallel_tool_calls"] = self.parallel_tool_calls
        if form := self.text.format.of_chat():
            fields["response_format"] = form
        return ChatRequest.model_validate(fields)

    def items(self) -> list[Item]:
        """The input as items."""
        return items_of(self.input)


class CompactRequest(InputRequest):
    """/v1/responses/compact"""


def items_of(given: str | list[Item] | None) -> list[Item]:
    """An input in either shape as items."""
    if isinstance(given, str):
        return [MessageItem(role="user", content=[InputText(type="input_text", text=given)])]
    return given or []
