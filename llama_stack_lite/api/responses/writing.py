"""A response as it is written: its items grow, and OpenAI's events tell of each change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from llama_stack_lite.api.inference import ChunkChoice, TopLogprob

from .content import OutputRefusal, OutputText
from .items import (
    FunctionCallItem,
    Item,
    MessageItem,
    ReasoningItem,
    ReasoningText,
    shown,
)
from .request import ResponseRequest
from .response import Event, Response


@dataclass(kw_only=True)
class Writing:
    """The response so far; `number` is that of the next event, and there is no gap between two.

    A message or a thought grows until something else is said; calls of functions grow side by side. `cite`
    says of a whole text what it is taken from, as annotations.
    """

    request: ResponseRequest
    response: Response
    number: int = 0
    cite: Callable[[str], list[dict[str, Any]]] | None = None
    _place: int | None = field(default=None, init=False)  # of the item that grows

    def event(self, type: str, **data: Any) -> Event:
        """The next event of the stream."""
        number, self.number = self.number, self.number + 1
        return Event(type, {"type": type, "sequence_number": number, **data})

    def whole(self, type: str) -> Event:
        """An event that carries the response as it is now."""
        return self.event(type, response=self.response.shown(self.request.include))

    def place(self, item: Item) -> int:
        """Add an item to the output; returns its index."""
        self.response.output.append(item)
        return len(self.response.output) - 1

    def added(self, place: int) -> Event:
        return self._item_told("response.output_item.added", place)

    def done(self, place: int) -> Event:
        return self._item_told("response.output_item.done", place)

    def _item_told(self, type: str, place: int) -> Event:
        item = shown(self.response.output[place], self.request.include)
        return self.event(type, output_index=place, item=item)

    def _tell(self, type: str, **data: Any) -> Event:
        told = {"item_id": self._item.id, "output_index": self._place}
        return self.event(f"response.{type}", **told, **data)

    @property
    def _item(self) -> Any:
        return None if self._place is None else self.response.output[self._place]

    # ------------------------------------------------------------ what is said

    def said(self, text: str, *, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        yield from self._part(OutputText(text=""))
        part, place = self._item.content[-1], len(self._item.content) - 1
        part.text += text
        part.logprobs += logprobs
        if text:
            yield self._tell("output_text.delta", content_index=place, delta=text, logprobs=logprobs)

    def refused(self, text: str) -> Iterator[Event]:
        yield from self._part(OutputRefusal(refusal=""))
        self._item.content[-1].refusal += text
        yield self._tell("refusal.delta", content_index=len(self._item.content) - 1, delta=text)

    def thought(self, text: str) -> Iterator[Event]:
        if not isinstance(self._item, ReasoningItem):
            part = ReasoningText(type="reasoning_text", text="")
            yield from self._open(ReasoningItem(status="in_progress", content=[part]))
            yield self._tell("content_part.added", content_index=0, part=part.model_dump())
        self._item.content[0].text += text
        yield self._tell("reasoning_text.delta", content_index=0, delta=text)

    def _part(self, part: OutputText | OutputRefusal) -> Iterator[Event]:
        """Make a part of that type the one that grows, in a message."""
        if not isinstance(self._item, MessageItem):
            yield from self._open(MessageItem(role="assistant", status="in_progress", content=[]))
        content: list[Any] = self._item.content
        if not content or content[-1].type != part.type:
            if content:
                yield from self._part_closed()
            content.append(part)
            yield self._tell("content_part.added", content_index=len(content) - 1, part=part.model_dump())

    def _part_closed(self) -> Iterator[Event]:
        place, part = len(self._item.content) - 1, self._item.content[-1]
        if isinstance(part, OutputText):
            yield from self._annotated(part, place)
            said = {"text": part.text, "logprobs": part.logprobs}
            yield self._tell("output_text.done", content_index=place, **said)
        elif isinstance(part, OutputRefusal):
            yield self._tell("refusal.done", content_index=place, refusal=part.refusal)
        else:
            yield self._tell("reasoning_text.done", content_index=place, text=part.text)
        yield self._tell("content_part.done", content_index=place, part=part.model_dump())

    def _annotated(self, part: OutputText, place: int) -> Iterator[Event]:
        """Tell where the text of a part is from; some of it may have been told before a server stopped."""
        known, part.annotations = len(part.annotations), self.cite(part.text) if self.cite else []
        for number, each in list(enumerate(part.annotations))[known:]:
            told = {"content_index": place, "annotation_index": number, "annotation": each}
            yield self._tell("output_text.annotation.added", **told)

    def _open(self, item: Item) -> Iterator[Event]:
        yield from self.closed()
        self._place = self.place(item)
        yield self.added(self._place)

    def grows(self, place: int) -> None:
        """Go on with a message or thought that had begun."""
        self._place = place

    def closed(self, *, whole: bool = True) -> Iterator[Event]:
        """End the message or thought that grows; it is `whole` unless the model was cut short."""
        if self._place is not None:
            item, place = self._item, self._place
            yield from self._part_closed()
            item.status = "completed" if whole else "incomplete"
            self._place = None
            yield self.done(place)

    def cut(self) -> None:
        """What still grows when the response ends stays incomplete."""
        for item in self.response.output:
            if getattr(item, "status", None) == "in_progress":
                setattr(item, "status", "incomplete")  # noqa: B010 - the types of some have none

    # ------------------------------------------------------------ calls that the client makes

    def calling(self, call_id: str, name: str) -> Iterator[Event]:
        """Begin a call, the last item of the output from now on."""
        yield from self.closed()
        item = FunctionCallItem(status="in_progress", call_id=call_id, name=name, arguments="")
        yield self.added(self.place(item))

    def arguments(self, item: FunctionCallItem, text: str) -> Event:
        item.arguments += text
        return self._call_told(item, "delta", delta=text)

    def called(self, *, whole: bool) -> Iterator[Event]:
        """End the calls."""
        for place, item in enumerate(self.response.output):
            if isinstance(item, FunctionCallItem) and item.status == "in_progress":
                if whole and not item.arguments.strip():
                    yield self.arguments(item, "{}")
                yield self._call_told(item, "done", name=item.name, arguments=item.arguments)
                item.status = "completed" if whole else "incomplete"
                yield self.done(place)

    def _call_told(self, item: FunctionCallItem, what: str, **data: Any) -> Event:
        told = {"item_id": item.id, "output_index": self.response.output.index(item)}
        return self.event(f"response.function_call_arguments.{what}", **told, **data)


def logprobs(choice: ChunkChoice) -> list[dict[str, Any]]:
    """The log-probabilities of a chunk's tokens; their bytes, which chats may leave out, are filled in."""
    found = (choice.logprobs.content or []) if choice.logprobs else []
    return [
        {**_logprob(token), "top_logprobs": [_logprob(each) for each in token.top_logprobs]}
        for token in found
    ]


def _logprob(token: TopLogprob) -> dict[str, Any]:
    text = token.token.encode()
    return {"token": token.token, "logprob": token.logprob, "bytes": token.bytes or list(text)}
