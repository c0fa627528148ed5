"""Messages, and the tools they speak of."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Wire(BaseModel):
    """Unknown fields pass through untouched: a remote server may understand more than we do."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    def to_json(self) -> bytes:
        """What `model_dump_json` gives, as bytes, and without its detour by `str`."""
        return self.__pydantic_serializer__.to_json(self)


class Nullable(Wire):
    """A field that is `null` says what one says that is left out, as OpenAI's packages write it."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict) and None in data.values():
            return {name: value for name, value in data.items() if value is not None}
        return data


def sparse() -> Any:
    """A field that is left out of the JSON, rather than `null`, when there is nothing to say."""
    return Field(default=None, exclude_if=lambda value: value is None)


class TextPart(Wire):
    type: Literal["text"]
    text: str


class RefusalPart(Wire):
    type: Literal["refusal"]
    refusal: str


class ImageURL(Wire):
    url: str = Field(min_length=1)
    detail: Literal["auto", "low", "high"] = "auto"

    def carries(self) -> bool:
        """Whether the URL is the image itself."""
        return self.url.lstrip()[:5].lower() == "data:"


class ImagePart(Wire):
    type: Literal["image_url"]
    image_url: ImageURL


class OtherPart(Wire):
    """Audio and files: known to the API, understood by some remote models."""

    type: Literal["input_audio", "file"]


Part = Annotated[TextPart | RefusalPart | ImagePart | OtherPart, Field(discriminator="type")]


class FunctionCall(Wire):
    name: str = Field(min_length=1)
    arguments: str


class ToolCall(Wire):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(Wire):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool message needs `tool_call_id`")
        if self.role != "assistant" and self.content is None:
            raise ValueError(f"a {self.role} message needs `content`")
        if self.role == "assistant" and not (self.content is not None or self.tool_calls or self.refusal):
            raise ValueError("an assistant message needs `content`, `tool_calls` or `refusal`")
        return self

    def text(self) -> str:
        """All the text in the message, whatever shape it came in."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))


class FunctionDefinition(Wire):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def schema_of_arguments(self) -> dict[str, Any]:
        return self.parameters or {"type": "object", "properties": {}}


class Tool(Wire):
    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Wire):
    name: str


class NamedTool(Wire):
    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Wire):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedToolChoice(Wire):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def arguments_of(call: FunctionCall) -> dict[str, Any]:
    """The arguments as an object; raises `json.JSONDecodeError` where the model wrote none."""
    found: dict[str, Any] = json.loads(call.arguments or "{}")
    return found
