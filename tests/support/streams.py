"""Streams of /v1/chat/completions and /v1/completions, and what a client makes of them."""

import json
from typing import Any


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a whole stream, which has to end as it should."""
    *blocks, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", ""), text
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def folded(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The usage, where it was told, and of each choice its text, arguments, scores and finish."""
    found: dict[str, Any] = {"usage": (events[-1].get("usage") or {}) | {"prompt_tokens_details": None}}
    for choice in (choice for event in events for choice in event["choices"]):
        mine = found.setdefault(choice["index"], {"text": "", "arguments": "", "scores": [], "finish": []})
        delta = choice["delta"] if "delta" in choice else {"content": choice["text"]}
        mine["text"] += delta.get("content") or ""
        for call in delta.get("tool_calls", []):
            mine["arguments"] += call["function"]["arguments"]
        scores = choice.get("logprobs") or {}
        keys = ("tokens", "token_logprobs", "text_offset", "top_logprobs")
        columns = [scores[key] for key in keys if scores.get(key)]
        mine["scores"] += scores.get("content") or [list(row) for row in zip(*columns, strict=True)]
        mine["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return found
