"""An answer as shields read it: what each of its choices has said so far, and which of them are refused."""

import asyncio
import codecs
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from llama_stack_lite.api.inference import (
    ChatChunk,
    ChunkChoice,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Delta,
    FunctionDelta,
    TokenLogprob,
    ToolCallDelta,
)
from llama_stack_lite.api.safety import Blocked, Touchpoint, Turn

from .judge import Heard, Watch

C = TypeVar("C", ChatChunk, Completion)
Way = tuple[str | int, ...]  # to a field: keys, and numbers of what is in lists

# the names of fields that say nothing themselves
KNOWN = {
    "text",
    "stop_reason",
    *Delta.__annotations__,
    *ToolCallDelta.__annotations__,
    *FunctionDelta.__annotations__,
}

CHARACTERS = 8  # that a token has at most, as a rule: some servers send many tokens in one chunk


class Speech:
    """One choice: its text in the order it came, its tool calls, and what its log-probabilities give away."""

    def __init__(self) -> None:
        self.said: dict[Way, str] = {}  # by field, which a later delta goes on with
        self.calls: dict[Way, str] = {}
        self.tokens = ""  # of the log-probabilities, by their bytes
        self.spelled = ""  # the same by their names, which is something else in odd cases only
        self.odd = False
        self.others: dict[str, None] = {}  # tokens that were likely too
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.begun = False  # whether any of it has left

    def hear(self, choice: ChunkChoice | CompletionChoice) -> None:
        for way, piece in pieces(choice):
            texts = self.calls if way[0] == "tool_calls" else self.said
            if way not in texts:
                texts[way] = "".join(
                    f"{name}\n" for name in way if isinstance(name, str) and name not in KNOWN
                )
            texts[way] += piece
        if isinstance(choice.logprobs, CompletionLogprobs):
            self.tokens += "".join(choice.logprobs.tokens)
            tops = choice.logprobs.top_logprobs or []
            self.others |= dict.fromkeys(token for top in tops for token in top or {})
        elif choice.logprobs:
            for token in [*(choice.logprobs.content or []), *(choice.logprobs.refusal or [])]:
                self._weigh(token)

    def _weigh(self, token: TokenLogprob) -> None:
        raw = token.token.encode() if token.bytes is None else bytes(token.bytes)
        self.tokens += self._decoder.decode(raw)
        self.spelled += token.token
        self.odd |= raw.decode("utf-8", "replace") != token.token
        for top in token.top_logprobs:
            self.others[top.token] = None
            if top.bytes is not None:
                self.others[bytes(top.bytes).decode("utf-8", "replace")] = None

    def heard(self) -> dict[str, tuple[Touchpoint, str]]:
        """All that was said, in up to three texts by name, each with the touchpoint that it is judged at."""
        found: dict[str, tuple[Touchpoint, str]] = {}
        if said := "\n".join(text for text in self.said.values() if text):
            found["text"] = "output", said
        if self.calls:
            found["calls"] = "tool_call", "\n".join(self.calls.values())
        known = [*self.said.values(), *self.calls.values()]
        tokens = [self.tokens, *([self.spelled] if self.odd else [])]
        new = [text for text in tokens if not any(text in each for each in known)]
        if aside := " ".join([*new, *self.others]):
            found["logprobs"] = "output", aside
        return found


def pieces(choice: ChunkChoice | CompletionChoice) -> Iterator[tuple[Way, str]]:
    """What a chunk adds to which field of a choice: every string of it that is not an API's own word."""
    if isinstance(choice, CompletionChoice):
        said: dict[str, Any] = {"text": choice.text, "refusal": choice.refusal or ""}
        yield from _leaves(said, ())
        return
    if choice.stop_reason:  # no more than one of the request's own, but it is a server who says so
        yield ("stop_reason",), choice.stop_reason
    for way, piece in _leaves(choice.delta, ()):
        if way != ("role",) and not (way[0] == "tool_calls" and way[2:] == ("type",)):
            yield way, piece


def _leaves(value: Any, way: Way) -> Iterator[tuple[Way, str]]:
    """Every leaf with the way to it; what is no string says nothing but its name."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*way, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            number = inner.get("index") if isinstance(inner, dict) else None
            yield from _leaves(inner, (*way, number if isinstance(number, int) else place))
    elif isinstance(value, str):
        yield way, value
    elif way[-1] != "index":
        yield way, ""


def forget_unknown(value: BaseModel) -> None:
    """Take away what a server says beside the choices and their deltas: it is nothing that a model wrote."""
    for name in type(value).model_fields:
        inner = getattr(value, name)
        for each in inner if isinstance(inner, list) else [inner]:
            if isinstance(each, BaseModel):
                forget_unknown(each)
    (value.model_extra or {}).clear()


class Answers(Generic[C]):
    """The choices of an answer under watch. `context` gives the conversation that a choice answers.

    Deltas are judged with every field that they have; fields that we do not know elsewhere do not leave.
    """

    def __init__(
        self,
        watch: Watch,
        *,
        count: int,
        context: Callable[[int], list[Heard]],
        refused: Callable[[int, Blocked, bool], C],
    ) -> None:
        self.watch, self.count, self.context = watch, count, context
        self.refused: Callable[[int, Blocked, bool], C] = refused
        self.speeches: dict[int, Speech] = {}
        self.blocked: set[int] = set()
        self._judged: dict[tuple[int, str], str] = {}

    def tokens(self, chunk: C) -> int:
        """About how many tokens of one choice a chunk brings; 0 where it brings nothing to judge."""
        return max((self._length(choice) for choice in chunk.choices), default=0)

    def _length(self, choice: ChunkChoice | CompletionChoice) -> int:
        said = sum(len(piece) for _, piece in pieces(choice))
        return max(1, said // CHARACTERS) if said else 0

    async def judged(self, chunks: list[C]) -> tuple[list[C], bool]:
        """What may leave of a batch, and whether any choice goes on."""
        for chunk in chunks:
            forget_unknown(chunk)
            for choice in chunk.choices:
                self.speeches.setdefault(choice.index, Speech()).hear(choice)
        found = await asyncio.gather(
            *(self._verdict(index) for index in self.speeches if index not in self.blocked)
        )
        refusals = [each for each in found if each]
        self.blocked |= {index for index, _ in refusals}
        said: list[C] = []
        counts: list[C] = []
        for chunk in chunks:
            left = [choice for choice in chunk.choices if choice.index not in self.blocked]
            if left:
                said.append(chunk.model_copy(update={"choices": left}))
            elif not chunk.choices:
                counts.append(chunk)
        said += [self.refused(index, why, not self.speeches[index].begun) for index, why in refusals]
        for chunk in said:
            for choice in chunk.choices:
                self.speeches[choice.index].begun = True
        return said + counts, len(self.blocked) < self.count

    async def _verdict(self, index: int) -> tuple[int, Blocked] | None:
        for name, (touchpoint, text) in self.speeches[index].heard().items():
            if self._judged.get((index, name)) == text:
                continue
            self._judged[index, name] = text
            turns = [*self.context(index), Heard.of(Turn(role="assistant", text=text))]
            if blocked := await self.watch.blocked(touchpoint, turns):
                return index, blocked
        return None
