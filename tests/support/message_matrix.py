"""The safety matrix at Anthropic's door: a row made of each path in its types, and its answers as choices."""

import re
from collections.abc import Iterator
from typing import Any

from llama_stack_lite.api.messages import MessagesRequest
from tests.support.guarded import MESSAGES, WORD, Answer
from tests.support.matrix import TOOL_RESULT, Build, Fields, Rows, Text, schemas
from tests.support.paths import paths

QUIET: Fields = {"max_tokens": 9, "messages": [{"role": "user", "content": "what flew there?"}]}

# ------------------------------------------------------------ what a request can say

TEXT_BLOCK: Fields = {"type": "text", "text": "hello"}
EXAMPLES: dict[str, Fields] = {
    "UserMessage": {"role": "user", "content": "hello"},
    "AssistantMessage": {"role": "assistant", "content": "hello"},
    "SystemMessage": {"role": "system", "content": "hello"},
    "TextBlock": TEXT_BLOCK,
    "ImageBlock": {"type": "image"},
    "Base64Image": {"type": "base64", "media_type": "image/png", "data": "AA=="},
    "URLImage": {"type": "url"},
    "DocumentBlock": {"type": "document", "source": {"type": "text", "data": "hello"}},
    "PlainText": {"type": "text"},
    "Passages": {"type": "content"},
    "SearchResultBlock": {
        "type": "search_result",
        "source": "a shelf",
        "title": "birds",
        "content": [TEXT_BLOCK],
    },
    "ToolResultBlock": {"type": "tool_result", "tool_use_id": "c1", "content": "hello"},
    "ThinkingBlock": {"type": "thinking", "thinking": "hm", "signature": "x"},
    "RedactedThinkingBlock": {"type": "redacted_thinking"},
    "ToolUseBlock": {"type": "tool_use", "id": "c1", "name": "look", "input": {}},
    # of one kind only, so known by their field
    "content": TEXT_BLOCK,
    "system": TEXT_BLOCK,
    "tools": {"name": "look", "input_schema": {"type": "object"}},
    "format": {"type": "json_schema", "schema": {"type": "object"}},
}
# what is no text to a model, and why
SILENT = {
    **{
        path: "an image, which is judged as one or refused"
        for path in paths(MessagesRequest)
        if re.search(r"Image>\.(data|url)$", path)
    },
    "model": "names a model of the stack",
    "messages[]<AssistantMessage>.content[]<ThinkingBlock>.signature": "dropped",
    "messages[]<AssistantMessage>.content[]<RedactedThinkingBlock>.data": "dropped",
    "tool_choice.name": "names one of the tools, whose names are judged",
    "mcp_servers[]{}": "refused",
    "metadata.user_id": "names who asks; servers keep it for themselves",
    "guardrails[]": "names shields of the stack",
}
STEP = re.compile(r"(?P<name>\w+)(?P<list>\[\])?(?:<(?P<kind>\w+)>)?(?P<keys>\{\})?$")


def put(path: str, leaf: Any) -> Fields:
    """A request with something at a path, among the least that a request must have."""
    fields: Fields = {}
    _put(fields, path.split("."), leaf)
    begun = QUIET["messages"]
    # what an assistant said is followed by somebody else, or it would be for the model to continue
    return {**QUIET, **fields, "messages": [*begun, *fields.get("messages", []), *begun]}


def _put(target: Fields, steps: list[str], leaf: Any) -> None:
    step = STEP.match(steps[0])
    assert step, steps[0]
    value = leaf
    if len(steps) > 1:
        value = dict(EXAMPLES.get(step["kind"] or step["name"], {}))
        _put(value, steps[1:], leaf)
    target[step["name"]] = [value] if step["list"] else value


def builds(path: str) -> dict[str, Build]:
    name = TOOL_RESULT if "<ToolResultBlock>" in path else ""
    if path.endswith("schema{}"):
        return schemas(lambda schema: put(path, schema))
    if path.endswith("{}"):
        return {
            "key": lambda text: put(path, {text.whole: 1}),
            "deep": lambda text: put(path, {"a": [{"b": text.whole}]}),
        }
    if path == "tools[].name":
        return {name: lambda text: put(path, text.name)}
    whole: dict[str, Build] = {name: lambda text: put(path, text.whole)}
    if path.endswith("content[]<TextBlock>.text") and "<AssistantMessage>" in path:
        whole["in two"] = in_two
    return whole


def in_two(text: Text) -> Fields:
    blocks = [{"type": "text", "text": piece} for piece in text.pieces]
    return put("messages[]<AssistantMessage>.content", blocks)


INPUTS: Rows = {path: builds(path) for path in paths(MessagesRequest) if path not in SILENT}
RESULT = put("messages[]<UserMessage>.content[]<ToolResultBlock>.content", WORD)

# ------------------------------------------------------------ what an answer says

FINISHES = {"end_turn": "stop", "stop_sequence": "stop", "refusal": "content_filter"}


def spoken(door: str, fields: Fields) -> Fields:
    """A chat's settings as a door understands them."""
    if door != MESSAGES:
        return fields
    known = {key: value for key, value in fields.items() if key in ("messages", "max_tokens", "stream")}
    if "response_format" in fields:
        known["output_config"] = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    return known


def told(answer: Answer) -> Iterator[tuple[Fields, int]]:
    """What an answer says of each choice, bit by bit, with the turns that had been seen by then.

    Anthropic's events become such choices; words of our own in them, that is refusals and ids, are left out.
    """
    frames = list(answer.frames())
    ends = [frame.get("delta") or frame for frame, _ in frames if not frame.get("choices")]
    own = {end["stop_details"]["explanation"] for end in ends if end.get("stop_details")}
    for frame, seen in frames:
        for choice in frame["choices"] if "choices" in frame else _choices(frame, own):
            yield choice, seen


def _choices(frame: Fields, own: set[str]) -> Iterator[Fields]:
    kind = frame["type"]
    if kind == "message":
        blocks = [{"index": index, **block} for index, block in enumerate(frame["content"])]
        yield {"index": 0, "content": [_block(block) for block in blocks], **_end(frame)}
    elif kind == "content_block_start" and frame["content_block"]["type"] == "tool_use":
        block = _block({"index": frame["index"], **frame["content_block"]})
        yield {"index": 0, "content": [block], "finish_reason": None}
    elif kind == "content_block_delta" and frame["delta"].get("text") not in own:
        yield {"index": 0, "content": [{"index": frame["index"], **frame["delta"]}], "finish_reason": None}
    elif kind == "message_delta":
        yield {"index": 0, **_end(frame["delta"])}


def _block(block: Fields) -> Fields:
    """Without an id that we made up."""
    return {key: value for key, value in block.items() if key != "id" or not value.startswith("toolu_")}


def _end(found: Fields) -> Fields:
    safety = {"safety": found["safety"]} if "safety" in found else {}
    return {"finish_reason": FINISHES[found["stop_reason"]], **safety}
