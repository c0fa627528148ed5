"""What a model says in one step, chunk by chunk, as items and the events that tell of them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.inference import ChatChunk, ToolCallDelta
from llama_stack_lite.api.safety import Blocked

from .items import FunctionCallItem
from .response import Event, ResponseUsage
from .writing import Writing, logprobs


@dataclass(slots=True)
class Call:
    """A call of a tool that this server runs, as the model wrote it."""

    name: str
    arguments: str = ""


class Speech:
    """What a model says in one step, chunk by chunk."""

    def __init__(self, writing: Writing, clients: Collection[str]) -> None:
        self.writing = writing
        self.clients = clients  # the functions that the client runs
        self.calls: list[Call] = []  # those that this server runs
        self.asked_client = False
        self.finish: str | None = None
        self.safety: Blocked | None = None
        self._tools: dict[int, Call | FunctionCallItem] = {}
        self._silent = True

    def heard(self, chunk: ChatChunk) -> Iterator[Event]:
        """The events of one chunk."""
        writing = self.writing
        if chunk.usage:
            writing.response.usage = (writing.response.usage or ResponseUsage()).plus(chunk.usage)
        for choice in chunk.choices:
            delta = choice.delta
            if text := delta.get("reasoning_content"):
                yield from writing.thought(text)
            if text := delta.get("content"):
                yield from writing.said(text, logprobs=logprobs(choice))
                self._silent = False
            if text := delta.get("refusal"):
                yield from writing.refused(text)
                self._silent = False
            for call in delta.get("tool_calls") or []:
                yield from self._called(call)
            self.finish = choice.finish_reason or self.finish
            self.safety = choice.safety or self.safety

    def ended(self) -> Iterator[Event]:
        """The events that end what is open, once the model has ended."""
        if self._silent and not self._tools:
            yield from self.writing.said("", logprobs=[])
        yield from self.writing.closed(whole=not self.cut())
        yield from self.writing.called(whole=not self.cut())

    def cut(self) -> bool:
        """Whether the model did not come to its end, so that nothing it called is carried out."""
        return self.safety is not None or self.finish in ("length", "content_filter")

    def _called(self, delta: ToolCallDelta) -> Iterator[Event]:
        """A call of the client's is told as it is written; one of ours is run once it is whole."""
        index, function = delta.get("index", 0), delta.get("function") or {}
        if index not in self._tools:
            yield from self._begun(index, delta.get("id") or new_id("call"), function.get("name") or "")
        call = self._tools[index]
        if arguments := function.get("arguments"):
            if isinstance(call, FunctionCallItem):
                yield self.writing.arguments(call, arguments)
            else:
                call.arguments += arguments

    def _begun(self, index: int, call_id: str, name: str) -> Iterator[Event]:
        if name in self.clients:
            self.asked_client = True
            yield from self.writing.calling(call_id, name)
            item = self.writing.response.output[-1]
            assert isinstance(item, FunctionCallItem)
            self._tools[index] = item
        else:
            yield from self.writing.closed()
            self.calls.append(Call(name))
            self._tools[index] = self.calls[-1]
