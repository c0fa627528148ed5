"""Formats in which a mark goes before each call: Hermes, which Qwen speaks too, and Mistral."""

import json
import re

from .calling import BLANKS, Format, Read, letters, opening, read_arguments, read_described
from .constraints import TurnGrammar, json_head

TOOL_CALL, TOOL_CALL_END = "<tool_call>", "</tool_call>"
TOOL_CALLS, CALL_ID, ARGS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"

_TOOL_CALL_END = re.compile(rf"\s*(?:{TOOL_CALL_END}|\Z)")
_NAMED = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*(?=\{)")


def _after(text: str, at: int) -> int:
    """Where the blanks at `at` end."""
    blanks = BLANKS.match(text, at)
    return blanks.end() if blanks else at


class Hermes(Format):
    """Hermes, Qwen 2.5 and Qwen 3: `<tool_call>`, a line of JSON, `</tool_call>`; as often as needed."""

    name = "hermes"
    begins = opening(letters(TOOL_CALL))

    def read(self, text: str, at: int) -> Read:
        found = read_described(text, _after(text, at + len(TOOL_CALL)))
        # the closing tag may be missing where the model ended its turn instead
        closing = _TOOL_CALL_END.match(text, found[1]) if found else None
        return (found[0], closing.end()) if found and closing else None

    def write(self, turn: TurnGrammar) -> None:
        for place, function in enumerate(turn.functions):
            head = json_head(function.name, "arguments", prefix=r"\n?")
            turn.rules[f"call_{place}"] = rf"{head} {turn.arguments(place)} /\}}\n?/"
        turn.rules["call"] = turn.any_of("call")
        end, mark = turn.mark(TOOL_CALL_END), turn.mark(TOOL_CALL)
        another = turn.more(rf"/\n?/ {mark} call {end}")
        turn.marked(TOOL_CALL, f"call {end} {another}")


class Mistral(Format):
    """Mistral: `[TOOL_CALLS][{"name": ..., "arguments": {...}}]`, newer `[TOOL_CALLS]name[ARGS]{...}`."""

    name = "mistral"
    begins = opening(letters(TOOL_CALLS))

    def read(self, text: str, at: int) -> Read:
        at += len(TOOL_CALLS)
        if named := _NAMED.match(text, at):
            return read_arguments(text, named.end(), named[1], BLANKS)
        return read_described(text, _after(text, at))

    def write(self, turn: TurnGrammar) -> None:
        (self._newer if ARGS in turn.specials else self._older)(turn)

    def _newer(self, turn: TurnGrammar) -> None:
        for place, function in enumerate(turn.functions):
            turn.rules[f"call_{place}"] = f"{json.dumps(function.name)} to {turn.arguments(place)}"
        turn.rules["call"] = turn.any_of("call")
        number = f"({turn.mark(CALL_ID)} /[a-zA-Z0-9]{{9}}/)? " if CALL_ID in turn.specials else ""
        turn.rules["to"] = number + turn.mark(ARGS)
        turn.marked(TOOL_CALLS, f"call {turn.more(f'{turn.mark(TOOL_CALLS)} call')}")

    def _older(self, turn: TurnGrammar) -> None:
        for place, function in enumerate(turn.functions):
            head = json_head(function.name, "arguments")
            turn.rules[f"call_{place}"] = rf"{head} {turn.arguments(place)} /\}}/"
        turn.rules["call"] = turn.any_of("call")
        another = turn.more("/, ?/ call")
        turn.marked(TOOL_CALLS, rf'/ ?\[/ call {another} "]"')
