"""A chat with an agent: messages in, one turn of it, chunks out; nothing is kept."""

import time
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from pydantic import Field, ValidationError

from llama_stack_lite.api.agents import PREFIX, Agent
from llama_stack_lite.api.inference import (
    AllowedToolChoice,
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    ImagePart,
    Logprobs,
    Message,
    NamedTool,
    OtherPart,
    Part,
    RefusalPart,
    TextPart,
)
from llama_stack_lite.api.responses import (
    Event,
    MCPApprovalRequestItem,
    Response,
    ResponseRequest,
)
from llama_stack_lite.errors import InvalidRequest, StackError

from .turn import Turns

Fields = dict[str, Any]

# what a turn has no word for goes to the model as it came
SAMPLING = (
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "user",
    "top_k",
    "min_p",
    "repeat_penalty",
)


class Asked(ResponseRequest):
    """A request that was made as a chat, with the settings that only chats have."""

    sampling: Fields = Field(default_factory=dict, exclude=True)

    def as_chat(self, model: str, messages: list[Message], *, used: int, offer: Fields) -> ChatRequest:
        return super().as_chat(model, messages, used=used, offer=offer).model_copy(update=self.sampling)


async def chunks(turns: Turns, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
    """The turn of an agent as the answer to a chat. Its own tools run inside, and are not told of.

    Raises `InvalidRequest` where a call waits for an approval, which no chat can give.
    """
    turn = await turns.begin(asked(request))
    made: Fields = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": request.model,
    }
    said = _Said()
    async with aclosing(turns.follow(turn)) as events:
        async for event in events:
            for choice in said.hear(event):
                yield ChatChunk(choices=[choice], **made)
    if turn.response.error:
        raise turn.error or StackError(turn.response.error.message)
    yield ChatChunk(choices=[said.end(turn.response)], **made)
    if request.wants_usage() and turn.response.usage:
        yield ChatChunk(choices=[], usage=turn.response.usage.as_chat(), **made)


def card(agent: Agent) -> Fields:
    """An agent as lists of models show it."""
    facts = {"description": agent.description, "source": agent.source, "version": agent.version}
    return {
        "id": f"{PREFIX}{agent.name}",
        "created": agent.created_at or 0,
        "owned_by": "agents",
        "kind": "agent",
        **{name: fact for name, fact in facts.items() if fact is not None},
    }


class _Said:
    """What of a turn is told in a chat: its texts as one, and the calls that its client is to make."""

    def __init__(self) -> None:
        self.begun = False
        self.message = ""  # the item that the text so far came from
        self.refusal = ""
        self.calls: dict[int, int] = {}  # their numbers, by the places of their items

    def hear(self, event: Event) -> Iterator[ChunkChoice]:
        """The choice of a chunk that tells of an event, if anything does."""
        told = event.data
        delta: Delta = {}
        logprobs: Logprobs | None = None
        if event.type == "response.output_text.delta":
            between = "\n\n" if self.message not in ("", told["item_id"]) else ""
            self.message = told["item_id"]
            delta["content"] = between + told["delta"]
            logprobs = Logprobs.model_validate({"content": told["logprobs"]}) if told["logprobs"] else None
        elif event.type == "response.reasoning_text.delta":
            delta["reasoning_content"] = told["delta"]
        elif event.type == "response.refusal.delta":
            self.refusal += told["delta"]  # told at the end, beside who refused
        elif event.type == "response.output_item.added" and told["item"]["type"] == "function_call":
            delta = self._call(told["output_index"], told["item"])
        elif event.type == "response.function_call_arguments.delta":
            number = self.calls[told["output_index"]]
            delta["tool_calls"] = [{"index": number, "function": {"arguments": told["delta"]}}]
        if delta:
            yield ChunkChoice(delta=self._first(delta), logprobs=logprobs)

    def _call(self, place: int, item: Fields) -> Delta:
        number = self.calls[place] = len(self.calls)
        function = {"name": item["name"], "arguments": ""}
        call = {"index": number, "id": item["call_id"], "type": "function", "function": function}
        return {"tool_calls": [call]}  # type: ignore[list-item]

    def _first(self, delta: Delta) -> Delta:
        if not self.begun:
            self.begun = True
            delta["role"] = "assistant"
        return delta

    def end(self, response: Response) -> ChunkChoice:
        """The last chunk's choice: why it ends, and who refused."""
        if any(isinstance(item, MCPApprovalRequestItem) for item in response.output):
            raise InvalidRequest("a call waits for an approval, which only /v1/responses can ask for")
        delta: Delta = {"refusal": self.refusal} if self.refusal else {}
        finish: FinishReason = "tool_calls" if self.calls else "stop"
        if response.incomplete_details:
            finish = "content_filter" if response.incomplete_details.reason == "content_filter" else "length"
        return ChunkChoice(delta=self._first(delta), finish_reason=finish, safety=response.safety)


def asked(request: ChatRequest) -> Asked:
    """The turn that a chat asks for; raises `InvalidRequest` where no turn can be that."""
    if request.n > 1:
        raise InvalidRequest("n: an agent gives one answer", param="n")
    fields: Fields = {
        "model": request.model,
        "input": [item for message in request.messages for item in _items(message)],
        "store": False,
        "stream": request.stream,
        "guardrails": request.guardrails,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_output_tokens": request.limit(),
        "parallel_tool_calls": request.parallel_tool_calls,
        "tools": [
            {"type": "function", **tool.function.model_dump(exclude_none=True)}
            for tool in request.tools or []
        ],
        "tool_choice": _choice(request),
        "top_logprobs": request.top_logprobs,
        "include": ["message.output_text.logprobs"] if request.logprobs else [],
        "sampling": {name: value for name in SAMPLING if (value := getattr(request, name)) is not None},
    }
    if effort := (request.model_extra or {}).get("reasoning_effort"):
        fields["reasoning"] = {"effort": effort}
    if request.response_format:
        fields["text"] = {"format": _format(request)}
    try:
        return Asked.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidRequest(f"{place}: {first['msg'].removeprefix('Value error, ')}", param=place) from error


def _format(request: ChatRequest) -> Fields:
    form = request.response_format
    assert form
    schema = form.json_schema.model_dump(by_alias=True, exclude_none=True) if form.json_schema else {}
    return {"type": form.type, **schema}


def _choice(request: ChatRequest) -> Any:
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        return {"type": "function", "name": choice.function.name}
    if isinstance(choice, AllowedToolChoice):
        allowed = choice.allowed_tools
        tools = [{"type": "function", "name": tool.function.name} for tool in allowed.tools]
        return {"type": "allowed_tools", "mode": allowed.mode, "tools": tools}
    return choice or "auto"


def _items(message: Message) -> Iterator[Fields]:
    """A message as input items; what an assistant called are items of their own."""
    if message.role == "tool":
        text = message.content if isinstance(message.content, str) else None
        output = [_part(part) for part in _parts(message)] if text is None else text
        yield {"type": "function_call_output", "call_id": message.tool_call_id, "output": output}
        return
    if message.role == "assistant":
        content = [_spoken(part) for part in _parts(message)]
        if message.refusal:
            content.append({"type": "refusal", "refusal": message.refusal})
    else:
        content = [_part(part) for part in _parts(message)]
    if content or not message.tool_calls:
        yield {"type": "message", "role": message.role, "content": content}
    for call in message.tool_calls or []:
        function = call.function
        called = {"call_id": call.id, "name": function.name, "arguments": function.arguments}
        yield {"type": "function_call", **called}


def _parts(message: Message) -> list[Part]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content or []


def _spoken(part: Part) -> Fields:
    if isinstance(part, TextPart):
        return {"type": "output_text", "text": part.text}
    if isinstance(part, RefusalPart):
        return {"type": "refusal", "refusal": part.refusal}
    raise InvalidRequest(f"messages: an assistant's message has no {part.type}", param="messages")


def _part(part: Part) -> Fields:
    if isinstance(part, ImagePart):
        return {"type": "input_image", "image_url": part.image_url.url, "detail": part.image_url.detail}
    if isinstance(part, OtherPart):
        file = (part.model_extra or {}).get("file")
        if isinstance(file, dict):
            return {"type": "input_file", **file}
        raise InvalidRequest(f"messages: an agent reads no {part.type}", param="messages")
    return {"type": "input_text", "text": part.refusal if isinstance(part, RefusalPart) else part.text}
