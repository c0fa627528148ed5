"""What a request may say besides what it must; names are OpenAI's, and servers have defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from .objects import Object

Json = Mapping[str, Any]
Input = str | Sequence[Json | Object]
"""What a response is given: a text, or items."""


class Common(TypedDict, total=False):
    """`extra` are fields that are none of these."""

    temperature: float
    top_p: float
    top_logprobs: int
    tool_choice: str | Json
    parallel_tool_calls: bool
    metadata: Mapping[str, str]
    user: str
    extra: Json


class ChatOptions(Common, total=False):
    """`guardrails` are shields to ask besides those that the operator enforces."""

    model: str
    tools: Sequence[Json]
    guardrails: Sequence[str]
    max_completion_tokens: int
    stop: str | Sequence[str]
    seed: int
    n: int
    logprobs: bool
    response_format: Json
    presence_penalty: float
    frequency_penalty: float
    reasoning_effort: str


class AgentOptions(Common, total=False):
    """What is the same in each response of an agent."""

    background: bool
    store: bool
    include: Sequence[str]
    max_output_tokens: int
    max_tool_calls: int
    prompt: Json
    reasoning: Json
    text: Json
    truncation: str


class ResponseOptions(AgentOptions, total=False):
    """`guardrails` are shields to ask besides those that the operator enforces."""

    model: str
    tools: Sequence[Json]
    guardrails: Sequence[str]
    instructions: str
    previous_response_id: str
    conversation: str


def body(options: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The JSON of a request."""
    named = {name: value for name, value in options.items() if name != "extra"}
    return {**named, **options.get("extra", {}), **fields}


def plain(value: Any) -> Any:
    """An input as JSON: items that came of a server go back as they are."""
    if isinstance(value, Object):
        return value.model_dump(mode="json", exclude_none=True)
    return value if isinstance(value, str | Mapping) else [plain(each) for each in value]
