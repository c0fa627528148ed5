"""Conversations as chat templates expect them, and the other shapes that some insist on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama_stack_lite.api.inference import ImagePart, Message, OtherPart
from llama_stack_lite.errors import InvalidRequest

Plain = dict[str, Any]


def plain(
    messages: Sequence[Message],
    *,
    developer: bool = False,
    parts: bool = False,
    image: Callable[[], str | Plain] | None = None,
) -> list[Plain]:
    """Messages as dictionaries: content one string, `arguments` objects, tool results with their name.

    `developer` keeps that role, which most templates do not know and read as system here; `parts` gives
    content as a list, for templates that read nothing else. `image` is called at each image, in order, for
    what stands in its place: a mark in the text, or a part such as `{"type": "image"}`, which makes a list
    of the content. Raises `InvalidRequest` naming the place of audio, a file, or an image without it.
    """
    names = {call.id: call.function.name for message in messages for call in message.tool_calls or []}
    found = []
    for number, message in enumerate(messages):
        content = _joined(_contents(message, number, image), parts=parts)
        found.append(_plain(message, content, names, developer=developer))
    return found


def _plain(message: Message, content: str | list[Plain], names: dict[str, str], *, developer: bool) -> Plain:
    role = "system" if message.role == "developer" and not developer else message.role
    found: Plain = {"role": role, "content": content}
    if name := message.name or names.get(message.tool_call_id or ""):
        found["name"] = name
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return found


def _contents(
    message: Message, number: int, image: Callable[[], str | Plain] | None
) -> Iterator[str | Plain]:
    if not isinstance(message.content, list):
        yield message.refusal if message.refusal and message.content is None else message.content or ""
        return
    for place, part in enumerate(message.content):
        if isinstance(part, ImagePart) and image:
            yield image()
        elif isinstance(part, ImagePart | OtherPart):
            raise _unreadable(part, f"messages[{number}].content[{place}]", sees=image is not None)
        else:
            yield part.refusal if part.type == "refusal" else part.text


def _joined(contents: Iterator[str | Plain], *, parts: bool) -> str | list[Plain]:
    """One string, or a list of parts where it must be one or holds one; texts in a row are one text."""
    found: list[str | Plain] = [""]
    for content in contents:
        last = found[-1]
        if isinstance(content, str) and isinstance(last, str):
            found[-1] = last + content
        else:
            found.append(content)
    if len(found) == 1 and isinstance(found[0], str) and not parts:
        return found[0]
    texts = [_part(each) for each in found if each]
    return texts or [_part("")]


def _part(content: str | Plain) -> Plain:
    return {"type": "text", "text": content} if isinstance(content, str) else content


def _unreadable(part: ImagePart | OtherPart, param: str, *, sees: bool) -> InvalidRequest:
    what = {"image_url": "images", "input_audio": "audio"}.get(part.type, "files")
    reads = "text and images" if sees else "text"
    return InvalidRequest(f"this model reads {reads} only: it cannot take {what}", param=param)


def _arguments(text: str) -> Any:
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text


def shapes(messages: list[Plain]) -> Iterator[list[Plain]]:
    """The conversation as it is, then in other shapes, each further from it, for templates that refuse it."""
    yield messages
    if (as_text := _arguments_as_text(messages)) != messages:
        yield as_text
    for change in _CHANGES:
        changed = change(messages)
        if changed != messages:
            messages = changed
            yield messages


def _one_call_each(messages: list[Plain]) -> list[Plain]:
    """Llama 3.1 reads one call a message: calls made together follow each other, each with its result."""
    results = {m["tool_call_id"]: m for m in messages if m["role"] == "tool"}
    together = {c["id"] for m in messages if len(m.get("tool_calls", [])) > 1 for c in m["tool_calls"]}
    found: list[Plain] = []
    for message in messages:
        calls = message.get("tool_calls", [])
        if len(calls) > 1:
            for number, call in enumerate(calls):
                content = "" if number else message["content"]
                found.append({**message, "content": content, "tool_calls": [call]})
                found += [results[call["id"]]] if call["id"] in results else []
        elif message.get("tool_call_id") not in together:
            found.append(message)
    return found


def _short_ids(messages: list[Plain]) -> list[Plain]:
    """Mistral wants ids of nine letters and digits."""

    def short(name: str) -> str:
        return hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:9]

    found = []
    for message in messages:
        message = dict(message)
        if "tool_call_id" in message:
            message["tool_call_id"] = short(message["tool_call_id"])
        if "tool_calls" in message:
            message["tool_calls"] = [{**call, "id": short(call["id"])} for call in message["tool_calls"]]
        found.append(message)
    return found


def _arguments_as_text(messages: list[Plain]) -> list[Plain]:
    """Some templates put the arguments together as strings."""
    found = []
    for message in messages:
        if "tool_calls" in message:
            calls = [
                {**call, "function": {**call["function"], "arguments": _json(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ]
            message = {**message, "tool_calls": calls}
        found.append(message)
    return found


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _system_folded(messages: list[Plain]) -> list[Plain]:
    """For templates without a system role: what it says goes before the first thing that the user says."""
    system = [m["content"] for m in messages if m["role"] == "system"]
    rest = [m for m in messages if m["role"] != "system"]
    if not system:
        return rest
    first = next((at for at, m in enumerate(rest) if m["role"] == "user"), None)
    if first is None:
        return [{"role": "user", "content": _both(*system)}, *rest]
    folded = {**rest[first], "content": _both(*system, rest[first]["content"])}
    return [*rest[:first], folded, *rest[first + 1 :]]


def _alternating(messages: list[Plain]) -> list[Plain]:
    """For templates that insist on turns: neighbours of one role become one message, the user begins."""
    merged: list[Plain] = []
    for message in messages:
        last = merged[-1] if merged else {}
        if last.get("role") != message["role"] or message["role"] == "tool" or "tool_calls" in last:
            merged.append(message)
        else:
            merged[-1] = {**last, **message, "content": _both(last["content"], message["content"])}
    first = next((m["role"] for m in merged if m["role"] != "system"), "user")
    return merged if first == "user" else [{"role": "user", "content": ""}, *merged]


def _both(*contents: Any) -> Any:
    """Contents one after another: texts as paragraphs, as one list where one is a list of parts."""
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(filter(None, contents))
    lists = [[_part(content)] if isinstance(content, str) else content for content in contents if content]
    return [part for parts in lists for part in parts]


_CHANGES: tuple[Callable[[list[Plain]], list[Plain]], ...] = (
    _short_ids,
    _one_call_each,
    _system_folded,
    _alternating,
)
