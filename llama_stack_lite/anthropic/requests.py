"""Anthropic's requests as chat requests: the same words, images, tools and settings in other shapes."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from llama_stack_lite.api.inference import ChatRequest
from llama_stack_lite.api.messages import (
    AssistantMessage,
    Base64Image,
    ClientTool,
    CountTokensRequest,
    DocumentBlock,
    ImageBlock,
    MessagesRequest,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
)

Fields = dict[str, Any]

CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# of the efforts that servers of the OpenAI API know, the nearest
EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
LONGEST_USER = 64  # characters: what OpenAI takes for a user's name


def chat_request(asked: MessagesRequest) -> ChatRequest:
    """The chat request that asks the same; a stream tells its usage, as all of Anthropic's do."""
    user = asked.metadata.user_id if asked.metadata else None
    fields = {
        "max_completion_tokens": asked.max_tokens,
        "stream": asked.stream,
        "stream_options": {"include_usage": True} if asked.stream else None,
        "stop": asked.stop_sequences or None,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "top_k": asked.top_k,
        "user": user if user and len(user) <= LONGEST_USER else None,
        "guardrails": asked.guardrails or None,
    }
    return _request(asked, fields)


def prompt_request(asked: CountTokensRequest) -> ChatRequest:
    """A chat request with the same prompt."""
    return _request(asked, {})


def _request(asked: CountTokensRequest, fields: Fields) -> ChatRequest:
    output = asked.output_config
    schema = {"name": "answer", "schema": output.format.schema_} if output and output.format else None
    fields |= {
        "model": asked.model,
        "messages": list(_messages(asked)),
        "tools": [_tool(tool) for tool in asked.tools] or None,
        "response_format": {"type": "json_schema", "json_schema": schema} if schema else None,
        "reasoning_effort": EFFORTS[output.effort] if output and output.effort else None,
        **(_choice(asked.tool_choice) if asked.tool_choice and asked.tools else {}),
    }
    # what is not set is left out: remote servers are sent what was asked, and no more
    return ChatRequest.model_validate({name: value for name, value in fields.items() if value is not None})


def _messages(asked: CountTokensRequest) -> Iterable[Fields]:
    if asked.system:
        yield {"role": "system", "content": _text(asked.system)}
    for message in asked.messages:
        if isinstance(message, UserMessage):
            yield from _user(message)
        elif isinstance(message, AssistantMessage):
            yield _assistant(message)
        else:
            yield {"role": "system", "content": _text(message.content)}


def _user(message: UserMessage) -> Iterable[Fields]:
    """Results of tools are messages of their own, right behind the calls; images in them come after."""
    if isinstance(message.content, str):
        yield {"role": "user", "content": message.content}
        return
    results = [block for block in message.content if isinstance(block, ToolResultBlock)]
    shown: list[Fields] = []
    for block in results:
        parts = _parts(block.content)
        shown += [part for part in parts if part["type"] == "image_url"]
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, parts)}
    shown += _parts([block for block in message.content if not isinstance(block, ToolResultBlock)])
    if shown or not results:
        yield {"role": "user", "content": _content(shown)}


def _result(block: ToolResultBlock, parts: list[Fields]) -> str:
    said = "\n\n".join(part["text"] for part in parts if part["type"] == "text")
    return f"Error: {said}" if block.is_error else said


def _content(parts: list[Fields]) -> str | list[Fields]:
    """Plain text as a string, which every server understands; else parts."""
    if len(parts) == 1 and parts[0]["type"] == "text":
        text: str = parts[0]["text"]
        return text
    return parts or ""


def _parts(content: str | Sequence[BaseModel]) -> list[Fields]:
    """The parts of blocks that a user may show; documents are text."""
    if isinstance(content, str):
        return [_part(content)] if content else []
    found: list[Fields] = []
    for block in content:
        if isinstance(block, TextBlock):
            found.append(_part(block.text))
        elif isinstance(block, ImageBlock):
            found.append({"type": "image_url", "image_url": {"url": _url(block)}})
        elif isinstance(block, DocumentBlock):
            found += _document(block)
        elif isinstance(block, SearchResultBlock):
            found += [_part(f"{block.title}\n{block.source}"), *_parts(block.content)]
    return found


def _part(text: str) -> Fields:
    return {"type": "text", "text": text}


def _url(block: ImageBlock) -> str:
    source = block.source
    if isinstance(source, Base64Image):
        return f"data:{source.media_type};base64,{source.data}"
    return source.url


def _document(block: DocumentBlock) -> list[Fields]:
    head = "\n".join(each for each in (block.title, block.context) if each)
    inside = block.source.data if block.source.type == "text" else block.source.content
    return [*([_part(head)] if head else []), *_parts(inside)]


def _assistant(message: AssistantMessage) -> Fields:
    """Thoughts go along, for models that read their own; what is redacted, none here can read."""
    if isinstance(message.content, str):
        return {"role": "assistant", "content": message.content}
    thoughts = "".join(block.thinking for block in message.content if isinstance(block, ThinkingBlock))
    calls = [_call(block) for block in message.content if isinstance(block, ToolUseBlock)]
    text = "".join(block.text for block in message.content if isinstance(block, TextBlock))
    return {
        "role": "assistant",
        "content": text or (None if calls else ""),
        **({"reasoning_content": thoughts} if thoughts else {}),
        **({"tool_calls": calls} if calls else {}),
    }


def _call(block: ToolUseBlock) -> Fields:
    arguments = json.dumps(block.input, ensure_ascii=False)
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _text(content: str | list[TextBlock]) -> str:
    return content if isinstance(content, str) else "\n\n".join(block.text for block in content)


def _tool(tool: ClientTool) -> Fields:
    examples = {"examples": tool.input_examples} if tool.input_examples else {}
    function: Fields = {"name": tool.name, "parameters": tool.input_schema | examples}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> Fields:
    if choice.type == "tool":
        chosen: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        chosen = CHOICES[choice.type]
    parallel = {"parallel_tool_calls": False} if choice.disable_parallel_tool_use else {}
    return {"tool_choice": chosen, **parallel}
