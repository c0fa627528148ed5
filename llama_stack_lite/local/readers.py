"""What the tokens of a turn come to mean: text, the arguments of a call, calls in a format, a quotation."""

import uuid
from typing import Protocol

from llama_stack_lite.api.inference import Delta, FinishReason, FunctionDefinition, ToolCallDelta
from llama_stack_lite.prompting import assisted
from llama_stack_lite.prompting.formats import Format

from .text import TextStream

Said = tuple[Delta, FinishReason | None]


class Reader(Protocol):
    """Takes each token's bytes and the engine's finish; gives what may leave now, and the turn's finish."""

    text: TextStream

    def feed(self, piece: bytes, finish: FinishReason | None) -> Said: ...


class Text:
    """Reads the tokens as the answer itself; a blank before it belongs to the prompt."""

    def __init__(self, stops: list[str]) -> None:
        self.text = TextStream(stops)
        self.begun = False

    def feed(self, piece: bytes, finish: FinishReason | None) -> Said:
        said = self.text.feed(piece, final=finish is not None)
        if not self.begun:
            said = said.lstrip()
            self.begun = bool(said)
        return ({"content": said} if said else {}), "stop" if self.text.stopped else finish


class Arguments:
    """Reads the tokens as the arguments of a call that is already decided."""

    def __init__(self, call: FunctionDefinition) -> None:
        self.text = TextStream([])
        self.name: str | None = call.name

    def feed(self, piece: bytes, finish: FinishReason | None) -> Said:
        said = self.text.feed(piece, final=finish is not None)
        if not (said or finish):
            return {}, None
        call = (
            _call(0, self.name, said) if self.name else ToolCallDelta(index=0, function={"arguments": said})
        )
        self.name = None
        return {"tool_calls": [call]}, "tool_calls" if finish == "stop" else finish


class Calls:
    """Reads the tokens as text in which calls may stand, written in the model's own format."""

    def __init__(self, form: Format, functions: list[FunctionDefinition], stops: list[str]) -> None:
        self.text = TextStream(stops)
        self.form = form
        self.functions = functions
        self.unsent = ""

    def feed(self, piece: bytes, finish: FinishReason | None) -> Said:
        self.unsent += self.text.feed(piece, final=finish is not None)
        finish = "stop" if self.text.stopped else finish
        if finish:
            return self._end(finish)
        if not self.unsent or self.form.holds(self.unsent):
            return {}, None
        said, self.unsent = self.unsent, ""
        return {"content": said}, None

    def _end(self, finish: FinishReason) -> Said:
        parsed = self.form.parse(self.unsent, self.functions)
        delta: Delta = {}
        if content := "\n".join(filter(None, [parsed.content, *(wrong.text for wrong in parsed.invalid)])):
            delta["content"] = content
        if parsed.calls:
            delta["tool_calls"] = [_call(i, c.name, c.arguments) for i, c in enumerate(parsed.calls)]
            return delta, "tool_calls" if finish == "stop" else finish
        return delta, finish


class Grounded:
    """Reads an answer to its end, and quotes the passage instead where the answer adds to it."""

    def __init__(self, stops: list[str], *, passage: str, request: str) -> None:
        self.text = TextStream(stops)
        self.passage = passage
        self.request = request
        self.said = ""

    def feed(self, piece: bytes, finish: FinishReason | None) -> Said:
        self.said += self.text.feed(piece, final=finish is not None)
        if not (finish or self.text.stopped):
            return {}, None
        answer = assisted.grounded(self.said.strip(), passage=self.passage, request=self.request)
        return {"content": answer}, "stop" if self.text.stopped else finish


def joined(said: Delta, more: Delta) -> Delta:
    """One delta of two that follow each other; of calls, only the arguments of one come in pieces."""
    both: Delta = {**said, **more}
    if "content" in said and "content" in more:
        both["content"] = f"{said['content']}{more['content']}"
    if "tool_calls" in said and "tool_calls" in more:
        (call,), (rest,) = said["tool_calls"], more["tool_calls"]
        arguments = call["function"]["arguments"] + rest["function"]["arguments"]
        both["tool_calls"] = [{**call, "function": {**call["function"], "arguments": arguments}}]
    return both


def _call(index: int, name: str, arguments: str) -> ToolCallDelta:
    return {
        "index": index,
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
