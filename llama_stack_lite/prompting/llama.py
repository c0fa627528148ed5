"""The two formats of Llama 3 and 4: calls as JSON, and calls as a list in Python's notation."""

import json
import re

from .calling import Format, Read, Written, letters, opening, read_arguments, read_described
from .constraints import TurnGrammar, json_head, json_schema
from .pythonic import read_call, read_calls
from .schemas import Schema, narrowed

PYTHON_TAG = "<|python_tag|>"

_FUNCTION_TAG = re.compile(r"<function=([\w.-]+)>\s*")
_FUNCTION_TAG_END = re.compile(r"\s*(?:</function>|\Z)")
_PYTHON_TAGS = re.compile(r"<\|python_(?:tag|start)\|>\s*")
_PYTHON_END = re.compile(r"\s*<\|python_end\|>")
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
# with one of these, an object is more than the list of its properties
_BEYOND_PROPERTIES = {
    "anyOf", "oneOf", "allOf", "$ref", "not", "if", "patternProperties", "propertyNames", "minProperties",
    "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedProperties",
    "const", "enum",
}  # fmt: skip


def _tagged(turn: TurnGrammar, calls: str, looks: str) -> None:
    """Let the tag go before the calls where it is a token, and text not begin as what `looks` like one."""
    tag = f"({turn.mark(PYTHON_TAG)})? " if PYTHON_TAG in turn.specials else ""
    turn.rules["calls"] = tag + calls
    turn.text_not_beginning(rf"{looks}|{re.escape(PYTHON_TAG)}")


class Llama3Json(Format):
    """Llama 3.1 to 3.3: `{"name": ..., "parameters": {...}}`, with or without `<|python_tag|>`, one or
    several; also `<function=name>{...}</function>`, and `name.call(key="value")` after the tag.
    """

    name = "llama3-json"
    begins = opening(
        letters(PYTHON_TAG),
        letters("<function="),
        *(
            [r"\{\s*", *letters(f'"{key}"'), r"\s*", ":"]
            for key in ("name", "type", "function", "parameters", "arguments")
        ),
    )

    def read(self, text: str, at: int) -> Read:
        tag = _PYTHON_TAGS.match(text, at)
        if tag is None:
            return self._one(text, at)
        at = tag.end()
        return self._one(text, at) or self._built_in(text, at) or _read_list(text, at)

    def _one(self, text: str, at: int) -> Read:
        if tag := _FUNCTION_TAG.match(text, at):
            return read_arguments(text, tag.end(), tag[1], _FUNCTION_TAG_END)
        return read_described(text, at)

    def _built_in(self, text: str, at: int) -> Read:
        call = read_call(text, at)
        if call is None or not call.name.endswith(".call"):
            return None
        return [Written(call.name.removesuffix(".call"), call.arguments)], call.end

    def write(self, turn: TurnGrammar) -> None:
        for place, function in enumerate(turn.functions):
            head = json_head(function.name, "parameters", may_be_typed=True)
            turn.rules[f"call_{place}"] = rf"{head} {turn.arguments(place)} /\n?\}}/"
        turn.rules["call"] = turn.any_of("call")
        described = rf'"type"\s*:\s*"function"|"name"\s*:\s*"({turn.names()})"'
        another = turn.more(r"/; ?|\n/ call")
        _tagged(turn, f"call {another}", rf"\{{\s*({described})|<function=")


class LlamaPythonic(Format):
    """Llama 3.2 1B and 3B, and Llama 4: `[name(key='value', n=1), other()]`."""

    name = "llama-pythonic"
    begins = opening(
        letters(PYTHON_TAG),
        letters("<|python_start|>"),
        [r"\[\s*", r"[A-Za-z_][\w.-]*\s*", r"\("],
    )

    def read(self, text: str, at: int) -> Read:
        if tag := _PYTHON_TAGS.match(text, at):
            at = tag.end()
        found = _read_list(text, at)
        if found is None:
            return None
        closing = _PYTHON_END.match(text, found[1])
        return found[0], closing.end() if closing else found[1]

    def write(self, turn: TurnGrammar) -> None:
        for place, function in enumerate(turn.functions):
            turn.rules[f"inside_{place}"] = f'{_keywords(turn, place)} ")"'
            turn.rules[f"call_{place}"] = f"{json.dumps(f'{function.name}(')} inside_{place}"
            # the bracket is part of the name's terminal, or text that begins with one would win
            turn.rules[f"first_{place}"] = f"{json.dumps(f'[{function.name}(')} inside_{place}"
        turn.rules["first"] = turn.any_of("first")
        turn.rules["call"] = turn.any_of("call")
        another = turn.more("/, ?/ call")
        _tagged(turn, f'first {another} "]"', rf"\[\s*({turn.names()})\s*\(")


def _read_list(text: str, at: int) -> Read:
    calls = read_calls(text, at)
    return ([Written(call.name, call.arguments) for call in calls], calls[-1].end) if calls else None


def _keywords(turn: TurnGrammar, place: int) -> str:
    """A rule for `key=value, ...` in the schema's order; `**{...}` for an object that is more than that."""
    whole, param = turn.arguments(place), turn.param(place)
    schema = narrowed(turn.functions[place].schema_of_arguments(), param=param)
    names = list(schema.get("properties", {}))
    plain = schema.keys().isdisjoint(_BEYOND_PROPERTIES) and schema.get("additionalProperties") is False
    if not plain or not all(map(_IDENTIFIER.fullmatch, names)) or not _refers_to_definitions(schema):
        return f'"**" {whole}'
    del turn.rules[whole]
    kept: Schema = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    for at, name in enumerate(names):
        part, value, rest = schema["properties"][name], f"value_{place}_{at}", at + 1
        turn.rules[value] = json_schema({**kept, **part} if isinstance(part, dict) else {}, param)
        for rule, comma in (("none", ""), ("more", ", ")):
            skip = "" if name in schema.get("required", []) else f" | {rule}_{place}_{rest}"
            key = json.dumps(f"{comma}{name}=")
            turn.rules[f"{rule}_{place}_{at}"] = f"{key} {value} more_{place}_{rest}{skip}"
    turn.rules[f"none_{place}_{len(names)}"] = turn.rules[f"more_{place}_{len(names)}"] = '""'
    return f"none_{place}_0"


def _refers_to_definitions(schema: Schema) -> bool:
    """Whether a property's schema can stand by itself, given the definitions."""
    references = re.findall(r'"\$ref": "([^"]*)', json.dumps(schema))
    return all(re.fullmatch(r"#/(\$defs|definitions)/[^/]+", reference) for reference in references)
