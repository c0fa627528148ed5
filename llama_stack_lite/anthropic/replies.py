"""Our chunks as Anthropic's events, and the whole reply that the events add up to."""

import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from llama_stack_lite.api.inference import ChatChunk, ChunkChoice, ToolCallDelta, Usage
from llama_stack_lite.api.messages import (
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    Event,
    MessageDelta,
    MessagesRequest,
    MessageStart,
    MessageStop,
    RefusalDetails,
    Reply,
    ReplyBlock,
    ReplyUsage,
    StopReason,
    TextReply,
    ThinkingReply,
    ThinkingTokens,
    ToolUseReply,
)
from llama_stack_lite.errors import UpstreamError

REASONS: dict[str, StopReason] = {"length": "max_tokens", "content_filter": "refusal"}


async def events(
    chunks: AsyncGenerator[ChatChunk, None], asked: MessagesRequest
) -> AsyncGenerator[Event, None]:
    """Tell a chat of one choice as a reply; closing the generator closes the chat."""
    writing = _Writing(asked)
    async with aclosing(chunks):
        async for chunk in chunks:
            for event in writing.hear(chunk):
                yield event
    for event in writing.end():
        yield event


async def reply(told: AsyncIterator[Event]) -> Reply:
    """The reply that the events make; its calls have what is complete of their arguments."""
    found: Reply | None = None
    texts: list[list[str]] = []
    async for event in told:
        if isinstance(event, MessageStart):
            found = event.message
        elif isinstance(event, BlockDelta):
            texts[event.index] += [text for key, text in event.delta.items() if key != "type"]
        elif found and isinstance(event, BlockStart):
            found.content.append(event.content_block)
            texts.append([])
        elif found and isinstance(event, MessageDelta):
            found = found.model_copy(update={**dict(event.delta), "usage": event.usage})
    if found is None:
        raise UpstreamError("the model's stream ended without an answer")
    for block, pieces in zip(found.content, texts, strict=True):
        _fill(block, "".join(pieces))
    return found


def _fill(block: ReplyBlock, text: str) -> None:
    if isinstance(block, TextReply):
        block.text = text
    elif isinstance(block, ThinkingReply):
        block.thinking = text
    else:
        block.input = _object(text)


def _object(text: str) -> dict[str, Any]:
    """Arguments as an object; what is none keeps its text in the way that Anthropic proposes."""
    try:
        found = from_json(text or "{}", allow_partial=True)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"INVALID_JSON": text}


class _Writing:
    """One reply: what has come of it, and the block that it stands in."""

    def __init__(self, asked: MessagesRequest) -> None:
        self.stops = asked.stop_sequences
        shown = asked.thinking
        self.thinks = shown is None or (shown.type != "disabled" and shown.display != "omitted")
        self.begun = False
        self.count = 0  # blocks begun
        self.open = ""  # which kind of block is not ended yet
        self.current = -1  # which call it is, by the number it came with
        self.calls: dict[int, _Call] = {}
        self.refusal = ""
        self.ending = Ending(stop_reason="end_turn")
        self.usage: Usage | None = None

    def hear(self, chunk: ChatChunk) -> Iterator[Event]:
        self.usage = chunk.usage or self.usage
        if chunk.choices and not self.begun:
            self.begun = True
            yield MessageStart(message=self._start(chunk))
        for choice in chunk.choices:
            yield from self._said(choice)
            if choice.finish_reason:
                self._ends(choice)

    def _start(self, chunk: ChatChunk) -> Reply:
        cached = chunk.cached_tokens or 0
        read = (chunk.prompt_tokens or cached) - cached
        usage = ReplyUsage(input_tokens=read, cache_read_input_tokens=cached)
        return Reply(id=f"msg_{chunk.id.rpartition('-')[2]}", model=chunk.model, usage=usage)

    def _said(self, choice: ChunkChoice) -> Iterator[Event]:
        delta = choice.delta
        if self.thinks and (thought := delta.get("reasoning_content")):
            yield from self._text("thinking", thought)
        if text := delta.get("content"):
            yield from self._text("text", text)
        if refusal := delta.get("refusal"):
            # a shield's words are no part of what the model had begun to say
            self.refusal = refusal if choice.safety else self.refusal + refusal
            yield from self._text("withheld" if choice.safety else "refusal", refusal)
        for call in delta.get("tool_calls") or ():
            yield from self._called(call)

    def _text(self, kind: str, text: str) -> Iterator[Event]:
        if self.open != kind:
            yield from self._begin_calls()
            yield from self._begin(kind, ThinkingReply() if kind == "thinking" else TextReply())
        key = "thinking" if kind == "thinking" else "text"
        yield BlockDelta(index=self.count - 1, delta={"type": f"{key}_delta", key: text})

    def _called(self, delta: ToolCallDelta) -> Iterator[Event]:
        """A block begins with the call's whole name, which may come in pieces: with its first arguments."""
        index = delta.get("index", 0)
        if self.open == "call" and index != self.current:
            yield from self._stop()
        call = self.calls.setdefault(index, _Call())
        function = delta.get("function") or {}
        if not call.begun:
            call.id = delta.get("id") or call.id
            call.name += function.get("name") or ""
        if not (arguments := function.get("arguments")):
            return
        if not call.begun:
            yield from self._begin_calls(index)
        elif self.open != "call" or self.current != index:
            raise UpstreamError("the model went back to a call after others, which no reply can tell")
        yield BlockDelta(index=self.count - 1, delta={"type": "input_json_delta", "partial_json": arguments})

    def _begin_calls(self, last: int | None = None) -> Iterator[Event]:
        """Begin the calls up to that one that have no block yet: ones without arguments keep their place."""
        for index, call in sorted(self.calls.items()):
            if not call.begun and (last is None or index <= last):
                call.begun, self.current = True, index
                block = ToolUseReply(id=call.id or f"toolu_{uuid.uuid4().hex[:24]}", name=call.name)
                yield from self._begin("call", block)

    def _begin(self, kind: str, block: ReplyBlock) -> Iterator[Event]:
        yield from self._stop()
        self.open = kind
        self.count += 1
        yield BlockStart(index=self.count - 1, content_block=block)

    def _stop(self) -> Iterator[Event]:
        if self.open:
            self.open = ""
            yield BlockStop(index=self.count - 1)

    def _ends(self, choice: ChunkChoice) -> None:
        reason = REASONS.get(choice.finish_reason or "", "end_turn")
        if reason == "end_turn" and self.calls:
            reason = "tool_use"
        elif reason == "end_turn" and choice.stop_reason in self.stops:
            reason = "stop_sequence"
            self.ending.stop_sequence = choice.stop_reason
        if self.refusal or reason == "refusal":
            reason = "refusal"
            self.ending.stop_details = RefusalDetails(explanation=self.refusal or None)
        self.ending.stop_reason = reason
        self.ending.safety = choice.safety

    def end(self) -> Iterator[Event]:
        if not self.begun:
            raise UpstreamError("the model's stream ended without an answer")
        yield from self._begin_calls()
        yield from self._stop()
        yield MessageDelta(delta=self.ending, usage=_usage(self.usage or Usage()))
        yield MessageStop()


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    begun: bool = False


def _usage(usage: Usage) -> ReplyUsage:
    cached = (usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens) or 0
    thought = usage.completion_tokens_details and usage.completion_tokens_details.reasoning_tokens
    return ReplyUsage(
        input_tokens=usage.prompt_tokens - cached,
        cache_read_input_tokens=cached,
        output_tokens=usage.completion_tokens,
        output_tokens_details=None if thought is None else ThinkingTokens(thinking_tokens=thought),
    )
