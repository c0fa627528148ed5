"""/v1/chat/completions: the request, the chunks, the whole answer."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from typing_extensions import TypedDict

from llama_stack_lite.api.safety import Blocked

from .messages import (
    AllowedToolChoice,
    FunctionDefinition,
    ImagePart,
    Message,
    NamedTool,
    Tool,
    ToolCall,
    Wire,
    sparse,
)


class JsonSchema(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    # `schema` is a method of pydantic's BaseModel
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Wire):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("`json_schema` goes with type `json_schema`, and only with it")
        return self

    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer has to match, `{}` for any object; None for free text."""
        if self.type == "text":
            return None
        if self.json_schema is None or self.json_schema.schema_ is None:
            return {"type": "object"}
        return self.json_schema.schema_


class StreamOptions(Wire):
    include_usage: bool = False
    include_obfuscation: bool | None = None


Stop = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]


class Sampling(Wire):
    """What chat and plain completions have in common; ranges are OpenAI's, None is the provider's default."""

    model: str = Field(min_length=1, max_length=500)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    stop: Annotated[str, Field(min_length=1)] | Stop | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    user: str | None = None
    guardrails: list[Annotated[str, Field(min_length=1)]] = Field(
        [], max_length=16, exclude=True, description="shields to ask besides those of the distribution"
    )
    # as llama.cpp and vLLM extend the API
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=10)

    @model_validator(mode="after")
    def _streaming(self) -> Self:
        if self.stream_options and not self.stream:
            raise ValueError("`stream_options` goes with `stream: true`, and only with it")
        return self

    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def wants_usage(self) -> bool:
        """Whether the answer carries `usage`: a whole one always, a stream where it was asked for."""
        return not self.stream or bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(Sampling):
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, description="deprecated; use max_completion_tokens")
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(None, min_length=1, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | AllowedToolChoice | None = None
    parallel_tool_calls: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("`top_logprobs` goes with `logprobs: true`, and only with it")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("`tool_choice` goes with `tools`, and only with them")
        names = [tool.function.name for tool in self.tools or []]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"`tools` holds {', '.join(sorted(twice))} twice")
        if unknown := self._chosen() - set(names):
            raise ValueError(f"`tool_choice` names {', '.join(sorted(unknown))}, which `tools` does not hold")
        return self

    def _chosen(self) -> set[str]:
        if isinstance(self.tool_choice, NamedTool):
            return {self.tool_choice.function.name}
        if isinstance(self.tool_choice, AllowedToolChoice):
            return {tool.function.name for tool in self.tool_choice.allowed_tools.tools}
        return set()

    def links_images(self) -> bool:
        """Whether an image is elsewhere: named by a URL that does not carry it."""
        return any(
            isinstance(part, ImagePart) and not part.image_url.carries()
            for message in self.messages
            if isinstance(message.content, list)
            for part in message.content
        )

    def limit(self) -> int | None:
        """At most this many tokens may be generated; None for as many as fit."""
        return self.max_completion_tokens or self.max_tokens

    def offered(self) -> list[FunctionDefinition]:
        """The functions that the model may call in this turn; none with `tool_choice: none`."""
        if self.tool_choice == "none":
            return []
        chosen = self._chosen()
        functions = [tool.function for tool in self.tools or []]
        return [function for function in functions if not chosen or function.name in chosen]

    def must_call(self) -> bool:
        """Whether plain text is no answer: `required`, or a function named."""
        if isinstance(self.tool_choice, AllowedToolChoice):
            return self.tool_choice.allowed_tools.mode == "required"
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)


class TokenDetails(Wire):
    cached_tokens: int | None = sparse()
    reasoning_tokens: int | None = sparse()


class Usage(Wire):
    """Counted by the model's own tokenizer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: TokenDetails | None = sparse()
    completion_tokens_details: TokenDetails | None = sparse()


class TopLogprob(Wire):
    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob] = Field(default_factory=list)


class Logprobs(Wire):
    content: list[TokenLogprob] | None = None
    refusal: list[TokenLogprob] | None = None


class FunctionDelta(TypedDict, total=False):
    name: str
    arguments: str


class ToolCallDelta(TypedDict, total=False):
    index: int
    id: str
    type: Literal["function"]
    function: FunctionDelta


class Delta(TypedDict, total=False):
    """What is new in a choice since the last chunk; only the keys that are."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    reasoning_content: str | None
    tool_calls: list[ToolCallDelta]


FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ChunkChoice(Wire):
    index: int = 0
    delta: Delta = Field(default_factory=Delta)
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None
    # as vLLM extends the API: which of the request's stop strings ended the choice, where that is known
    stop_reason: str | None = sparse()
    safety: Blocked | None = sparse()


class ChatChunk(Wire):
    """What `Inference.chat` yields. The door fills in `id`, `created` and `model`.

    A provider that knows them before the usage says how many tokens the prompt has, and how many of those
    need not be read again; OpenAI's API has no place for that, so they do not cross the wire.
    """

    id: str = ""
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = 0
    model: str = ""
    choices: list[ChunkChoice]
    usage: Usage | None = sparse()
    system_fingerprint: str | None = sparse()
    prompt_tokens: int | None = Field(None, exclude=True)
    cached_tokens: int | None = Field(None, exclude=True)


class Answer(Wire):
    role: Literal["assistant"] = "assistant"
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = sparse()
    tool_calls: list[ToolCall] | None = sparse()


class ChatChoice(Wire):
    index: int
    message: Answer
    logprobs: Logprobs | None = None
    finish_reason: FinishReason
    stop_reason: str | None = sparse()
    safety: Blocked | None = sparse()


class ChatCompletion(Wire):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = sparse()
    system_fingerprint: str | None = sparse()
