"""What every format of tool calls shares: to find calls in what a model says, and to write their grammar."""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from llama_stack_lite.api.inference import FunctionCall, FunctionDefinition
from llama_stack_lite.api.models import ToolCalling

from .arguments import checked, read_json
from .constraints import TurnGrammar

MOST_TRIES = 100  # places that look like a call and are none, after which the rest is text
BLANKS = re.compile(r"\s*")


class Written(NamedTuple):
    """A call as the model wrote it; `arguments` is the JSON value, or text that may hold one."""

    name: str
    arguments: Any


Read = tuple[list[Written], int] | None  # calls, and where they end in the text; None where there is none


class Invalid(NamedTuple):
    """A call of an offered function with arguments that its schema refuses; `text` is what the model said."""

    name: str
    text: str
    reason: str


@dataclass(slots=True)
class Parsed:
    """What a model said: text, calls that can be made, calls that cannot."""

    content: str | None = None
    calls: list[FunctionCall] = field(default_factory=list)
    invalid: list[Invalid] = field(default_factory=list)


class Format(ABC):
    """A format of tool calls. `begins` finds where a call begins, or may begin at the end of the text."""

    name: ToolCalling
    begins: re.Pattern[str]

    @abstractmethod
    def read(self, text: str, at: int) -> Read:
        """Read the calls that begin at `at`, where `begins` matches."""

    @abstractmethod
    def write(self, turn: TurnGrammar) -> None:
        """Add the rules of this format to the grammar: `calls`, and `text` for what may be said instead."""

    def holds(self, text: str) -> bool:
        """Whether the text has a call, or may become one as it grows, so that it must not be shown yet."""
        return self.begins.search(text) is not None

    def grammar(
        self,
        functions: Sequence[FunctionDefinition],
        *,
        must_call: bool,
        parallel: bool,
        specials: Mapping[str, int],
    ) -> str:
        """The grammar of a turn in which the model may, or must, call functions; `parallel` allows several.

        A call is always of a given function, and its arguments are JSON of its schema; with `must_call` the
        turn is nothing else. Otherwise it may be text, which cannot begin like a call. `specials` are the ids
        of the control tokens by their text; a mark that is not among them is written as text. Raises
        `InvalidRequest` naming the function whose schema is none, or asks for what cannot be enforced.
        """
        turn = TurnGrammar(functions, parallel, specials)
        self.write(turn)
        return turn.grammar("calls" if must_call else "text")

    def parse(self, text: str, functions: Sequence[FunctionDefinition]) -> Parsed:
        """Split a model's words into text and calls of the offered functions. Raises nothing.

        Whatever is no call of an offered function stays text, as it was written.
        """
        offered = {function.name: function for function in functions}
        parsed = Parsed()
        pieces: list[str] = []
        at = start = 0
        for _ in range(MOST_TRIES):
            found = self.begins.search(text, at)
            if found is None:
                break
            at = found.start() + 1
            read = self.read(text, found.start())
            if read and read[0] and all(call.name in offered for call in read[0]):
                pieces.append(text[start : found.start()])
                at = start = read[1]
                for call in read[0]:
                    _check(call, offered[call.name], text[found.start() : start], parsed)
        pieces.append(text[start:])
        parsed.content = _joined(pieces) or None
        return parsed


def _check(call: Written, function: FunctionDefinition, text: str, parsed: Parsed) -> None:
    try:
        arguments = checked(call.arguments, function.schema_of_arguments())
    except ValueError as error:
        parsed.invalid.append(Invalid(call.name, text, str(error)))
    else:
        parsed.calls.append(FunctionCall(name=call.name, arguments=arguments))


def _joined(pieces: list[str]) -> str:
    """The text around calls, without the blanks and separators that belong to the calls."""
    last = len(pieces) - 1
    for at, piece in enumerate(pieces):
        piece = piece if at == 0 else piece.lstrip(" \t\r\n;,")
        pieces[at] = piece if at == last else piece.rstrip(" \t\r\n;,")
    return "\n".join(filter(None, pieces))


def opening(*forms: Sequence[str]) -> re.Pattern[str]:
    """A pattern of the given sequences of regular expressions, or of a beginning of one at the text's end."""
    return re.compile("|".join(_open(list(form)) for form in forms))


def _open(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else rf"{parts[0]}(?:\Z|{_open(parts[1:])})"


def letters(text: str) -> list[str]:
    """A text as a sequence for `opening`."""
    return [re.escape(letter) for letter in text]


def read_described(text: str, at: int) -> Read:
    """A JSON object that describes a call, or a list of them, in any of the spellings that models use."""
    try:
        value, end = read_json(text, at)
    except ValueError:
        return None
    items = value if isinstance(value, list) else [value]
    calls = [call for item in items if (call := _described(item))]
    return (calls, end) if calls and len(calls) == len(items) else None


def _described(value: Any) -> Written | None:
    if not isinstance(value, dict):
        return None
    inner = value["function"] if isinstance(value.get("function"), dict) else value
    name = inner.get("name", inner.get("function"))
    arguments: Any = next((inner[key] for key in ("parameters", "arguments") if key in inner), None)
    return Written(name, {} if arguments is None else arguments) if isinstance(name, str) and name else None


def read_arguments(text: str, at: int, name: str, closing: re.Pattern[str]) -> Read:
    """A call whose name is known, of which the JSON arguments begin at `at` and `closing` follows."""
    try:
        arguments, end = read_json(text, at)
    except ValueError:
        return None
    found = closing.match(text, end)
    return ([Written(name, arguments)], found.end()) if found else None
