"""A grammar for a function's arguments in which the values are copied from the user's own words."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator, SchemaError

from llama_stack_lite.errors import InvalidRequest

Schema = dict[str, Any]

# Limits to what a model makes up where the schema sets none: a small one may never stop by itself.
LONGEST_STRING = 200  # characters
LONGEST_ARRAY = 8
LARGEST_NUMBER = 10**9
# Limits to the search for spans that a schema allows.
LONGEST_SPAN = 24  # pieces, so about 12 words
MOST_SPANS = 400
DEEPEST = 5

# Words keep the signs inside them (10:30, bob@example.com, O'Brien), and a calculation or a time of day is
# one piece, or a model would copy half of it. Scripts written without spaces go character by character.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff"
_WORD = rf"[^\W{_UNSPACED}]+"
_FIGURE = r"[(-]?(?:\d+(?:[.,]\d+)*)[)%]?"
_SIGN = r" ?[-+*/×÷^] ?| (?:plus|minus|times|over|by|(?:divided|multiplied) by|(?:percent|%) of) "
_PIECES = re.compile(
    rf"\s+|{_FIGURE}(?:(?:{_SIGN}){_FIGURE})+|\d+(?:[.:]\d+)? ?(?:[ap]m\b|percent\b|%)|[{_UNSPACED}]"
    rf"|{_WORD}(?:['’.,:@/-]{_WORD})*|[^\w\s]"
)
_NUMBERS = re.compile(r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,9})?(?!\d)")
_NUMBER_WORDS = re.findall(r"\w+", "zero one two three four five six seven eight nine ten eleven twelve")

# The inside of a JSON string, character by character; a span neither begins nor ends with a blank.
_CHARACTER = r'([^"\\]|\\["\\bfnrtu])'
_INK = r'([^\s"\\]|\\["\\bfu])'
_TRIMMED = f"/{_INK}({_CHARACTER}*{_INK})?/"
_NUMBER = {
    "integer": rf"/-?(0|[1-9][0-9]{{0,{len(str(LARGEST_NUMBER)) - 2}}})/",
    "number": rf"/-?(0|[1-9][0-9]{{0,{len(str(LARGEST_NUMBER)) - 2}}})(\.[0-9]{{1,4}})?/",
}

_FORMATS = {
    "email": r"[^@\s]+@[\w-]+(\.[\w-]+)+",
    "uri": r"[a-zA-Z][a-zA-Z0-9+.-]*://[!-~]*[\w/]",
    "date": r"\d{4}-\d{2}-\d{2}",
    "uuid": r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}
_ENFORCED = {*_FORMATS, "date-time", "time", "duration", "hostname", "ipv4", "ipv6"}
_REMARKS = {
    "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$comment", "$schema", "$id", "$defs", "definitions",
}  # fmt: skip
_LIMITS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_UNDERSTOOD = {
    "string": {"minLength", "maxLength", "format"},
    "integer": {*_LIMITS, "format"},
    "number": {*_LIMITS, "format"},
    "boolean": set[str](),
    "null": set[str](),
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties"},
}
_CHECKER = Draft202012Validator.FORMAT_CHECKER
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def arguments_grammar(schema: Schema, text: str) -> str:
    """Compile the JSON Schema of a function's arguments to an llguidance Lark grammar.

    All that it derives is valid by the schema, and takes its values from `text`, the user's message: a
    string is a span of its words, a number one of its numbers, an enum the value that is said. Where the
    message holds nothing that fits, the value is free within its schema, and so it is where the schema
    says more than types, enums, limits and nesting (`pattern`, `oneOf`, ...). A parameter that may be left
    out, or be null, is filled only if the message says one of its enum values or a word of its name; if
    all may, so is the first one without a default.

    Raises `InvalidRequest` where `schema` is no JSON Schema.
    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        where = "".join(f".{key}" for key in error.absolute_path)
        raise InvalidRequest(
            f"`parameters{where}` is no valid JSON Schema: {error.message}", param="tools"
        ) from error
    return _Copying(schema, text).grammar()


class _Copying:
    """One compilation: a schema becomes a Lark expression, and rules beside it where it needs them."""

    def __init__(self, root: Schema, text: str) -> None:
        self.root = root
        self.text = text.encode("utf-8", "replace").decode()
        self.pieces: list[str] = _PIECES.findall(self.text)
        self.rules: dict[str, str] = {}

    def grammar(self) -> str:
        root = {"type": "object", **self.root}
        start = self.value(root, 0) if self._refers_to_definitions() else self._free(root)
        lines = [f"start: {start}", *(f"{name}: {body}" for name, body in self.rules.items()), ""]
        return "\n".join(lines).encode("utf-8", "replace").decode()

    def _refers_to_definitions(self) -> bool:
        """Whether parts of the schema can be compiled apart, given the definitions."""
        references = re.findall(r'"\$ref": "([^"]*)', json.dumps(self.root))
        return all(re.fullmatch(r"#/(\$defs|definitions)/[^/]+", found) for found in references)

    def value(self, schema: Any, depth: int) -> str:
        """Return a Lark expression for the values that a schema allows."""
        schema = self._single(schema)
        kind = _kind(schema)
        if depth > DEEPEST or kind is None:
            return self._free(schema)
        if "enum" in schema or "const" in schema:
            return self._choice(schema)
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "string":
                return self._string(schema)
            case "integer" | "number":
                return self._number(schema, kind)
            case _:
                return _any_of(["true", "false"]) if kind == "boolean" else _any_of(["null"])

    def _single(self, schema: Any) -> Any:
        """Follow references, and take the first alternative that is not null."""
        for _ in range(DEEPEST):
            if not isinstance(schema, dict):
                break
            rest = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
            if "$ref" in schema and rest.keys() <= _REMARKS:
                _, kept, name = schema["$ref"].split("/")
                schema = self.root.get(kept, {}).get(name, schema)
            elif "anyOf" in schema and rest.keys() <= _REMARKS:
                schema = next((part for part in schema["anyOf"] if not _is_null(part)), {"type": "null"})
            else:
                break
        return schema

    def _free(self, schema: Any) -> str:
        """Anything that the schema allows, within limits that end."""
        if isinstance(schema, dict):
            definitions = {key: self.root[key] for key in ("$defs", "definitions") if key in self.root}
            closed = '"allOf"' not in json.dumps(self.root)
            schema = {**_bounded({**definitions, **schema}, closed=closed), "x-guidance": _STYLE}
        return self._rule("free", f"%json {json.dumps(schema)}")

    def _rule(self, name: str, body: str) -> str:
        name = f"{name}_{len(self.rules)}"
        self.rules[name] = body
        return name

    # ------------------------------------------------------------ objects and arrays

    def _object(self, schema: Schema, depth: int) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not set(required) <= properties.keys():
            return self._free(schema)
        filled = self._filled(properties, required)
        parts, text = [], "{"
        for name, inner in properties.items():
            if name in filled or name in required:
                expression = self.value(inner, depth + 1) if name in filled else '"null"'
                parts += [_literal(f"{text}{json.dumps(name, ensure_ascii=False)}: "), expression]
                text = ", "
        return self._rule("object", " ".join([*parts, '"}"'])) if parts else '"{}"'

    def _filled(self, properties: dict[str, Any], required: list[str]) -> set[str]:
        """The parameters that get a value: the needed ones, and those that the message speaks of."""
        needed = {name for name in required if not _may_be_null(properties[name])}
        if not needed and self.text.strip():
            without = (name for name, inner in properties.items() if "default" not in _dict(inner))
            needed = set(islice(without, 1))
        return needed | {name for name, inner in properties.items() if self._speaks_of(name, inner)}

    def _speaks_of(self, name: str, schema: Any) -> bool:
        words = re.findall(r"[^\W\d_]{3,}", re.sub(r"([a-z])([A-Z])", r"\1 \2", name))
        said = {_stem(piece) for piece in self.pieces}
        values = _dict(self._single(schema)).get("enum", [])
        return any(_stem(word) in said for word in words) or any(map(self._says, values))

    def _array(self, schema: Schema, depth: int) -> str:
        unique = schema.get("uniqueItems", False)
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", 1 if unique else max(LONGEST_ARRAY, least))
        if unique and most > 1:
            most = 1
        if least > most:
            return self._free(schema)
        if most == 0:
            return '"[]"'
        item = self._rule("item", self.value(schema.get("items", {}), depth + 1))
        more = f' (", " {item}){{{max(least, 1) - 1},{most - 1}}}' if most > 1 else ""
        return self._rule("array", f'"[" {item}{more} "]"')

    # ------------------------------------------------------------ single values

    def _choice(self, schema: Schema) -> str:
        fits = Draft202012Validator({"type": schema["type"]} if "type" in schema else {}).is_valid
        values = [value for value in schema.get("enum", [schema.get("const")]) if fits(value)]
        said = [value for value in values if self._says(value)]
        return _any_of(json.dumps(value, ensure_ascii=False) for value in said or values)

    def _says(self, value: Any) -> bool:
        if not isinstance(value, str) or not value:
            return False
        words = re.escape(value.replace("_", " "))
        return re.search(rf"(?<!\w){words}(?!\w)", self.text, re.IGNORECASE) is not None

    def _string(self, schema: Schema) -> str:
        if not self.text.strip():
            return self._free(schema)
        least, most = schema.get("minLength", 0), schema.get("maxLength", len(self.text))
        form = schema.get("format") if schema.get("format") in _ENFORCED else None
        if form is None and least <= 1 and most >= len(self.text):
            return self._copied()
        fitting = (span for span in self._spans() if least <= len(span) <= most and _has_form(span, form))
        spans = list(islice(fitting, MOST_SPANS))
        return (
            _any_of(json.dumps(span, ensure_ascii=False) for span in spans) if spans else self._free(schema)
        )

    def _copied(self) -> str:
        """Any span of the message; a terminal, as llguidance scans it in one go."""
        pieces = [json.dumps(piece, ensure_ascii=False)[1:-1] for piece in self.pieces]
        self.rules["SPAN"] = f"%regex {json.dumps({'substring_chunks': pieces})} & {_TRIMMED}"
        self.rules["copied"] = r'"\"" SPAN "\""'
        return "copied"

    def _spans(self) -> Iterator[str]:
        for start in range(len(self.pieces)):
            for end in range(start + 1, min(start + LONGEST_SPAN, len(self.pieces)) + 1):
                span = "".join(self.pieces[start:end])
                if span == span.strip():
                    yield span

    @cached_property
    def numbers(self) -> list[int | float]:
        """The numbers in the message, in order, each once; `twelve` and below may be words."""
        digits = [float(found.replace(",", "")) for found in _NUMBERS.findall(self.text)]
        words = [_NUMBER_WORDS.index(word) for word in self.text.lower().split() if word in _NUMBER_WORDS]
        return list(dict.fromkeys(int(n) if float(n).is_integer() else n for n in [*digits, *words]))

    def _number(self, schema: Schema, kind: str) -> str:
        limits = {key: schema[key] for key in schema.keys() & _LIMITS}
        fits = Draft202012Validator({"type": kind, **limits}).is_valid
        if numbers := [number for number in self.numbers if fits(number)]:
            return _any_of(map(json.dumps, numbers))
        if not limits:
            return self._rule("NUMBER", _NUMBER[kind])
        return self._free(_ending(limits, kind))


def _kind(schema: Any) -> str | None:
    """The JSON type of a schema that is understood; None for one that is left to llguidance."""
    if not isinstance(schema, dict):
        return "string" if schema is True else None
    kinds = schema.get("type") or ("object" if "properties" in schema else "string")
    kind = next((kind for kind in kinds if kind != "null"), "null") if isinstance(kinds, list) else kinds
    known = _UNDERSTOOD[kind] | _REMARKS | {"type", "enum", "const"}
    return kind if schema.keys() <= known else None


def _dict(schema: Any) -> Schema:
    return schema if isinstance(schema, dict) else {}


def _is_null(schema: Any) -> bool:
    return _dict(schema).get("type") == "null"


def _may_be_null(schema: Any) -> bool:
    """Whether null is the way to leave a parameter out, as OpenAI's strict schemas have it."""
    schema = _dict(schema)
    kinds = schema.get("type", [])
    listed = isinstance(kinds, list) and "null" in kinds and None in schema.get("enum", [None])
    return listed or any(map(_is_null, schema.get("anyOf", [])))


def _has_form(span: str, form: str | None) -> bool:
    if form is None:
        return True
    shape = _FORMATS.get(form)
    return bool(shape and re.fullmatch(shape, span)) and _CHECKER.conforms(span, form)


def _ending(limits: Schema, kind: str) -> Schema:
    """A narrower range with two ends, of whole numbers where it holds any: fractions need not end."""
    low = limits.get("minimum", limits.get("exclusiveMinimum"))
    high = limits.get("maximum", limits.get("exclusiveMaximum"))
    if low is None:
        low = -LARGEST_NUMBER if high is None else min(0, high) - LARGEST_NUMBER
    if high is None:
        high = max(0, low) + LARGEST_NUMBER
    if "multipleOf" in limits:
        return {"minimum": low, "maximum": high, **limits, "type": kind}
    fits = Draft202012Validator(limits).is_valid
    first, last = math.ceil(low), math.floor(high)
    first, last = first if fits(first) else first + 1, last if fits(last) else last - 1
    if first <= last:
        return {"minimum": first, "maximum": last, "type": "integer"}
    # llguidance lets an exclusive limit of 0 through
    step = (high - low) / 1000
    return {"minimum": low + step, "maximum": high - step, "type": kind} if step else {**limits, "type": kind}


def _bounded(schema: Any, *, closed: bool) -> Any:
    """A narrower schema: strings, arrays, numbers and objects that end, and no format that nobody knows."""
    if isinstance(schema, list):
        return [_bounded(part, closed=closed) for part in schema]
    if not isinstance(schema, dict):
        return schema
    literal = {"enum", "const", "default", "examples", "required"}
    found = {
        key: value if key in literal else _bounded(value, closed=closed) for key, value in schema.items()
    }
    if isinstance(found.get("format"), str) and found["format"] not in _ENFORCED:
        del found["format"]
    if not found.keys() & {"enum", "const", "$ref"}:
        _limit(found, closed=closed)
    return found


def _limit(schema: Schema, *, closed: bool) -> None:
    kinds = schema.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds and not schema.keys() & {"pattern", "format"}:
        schema.setdefault("maxLength", max(LONGEST_STRING, schema.get("minLength", 0)))
    if "array" in kinds and "prefixItems" not in schema:
        schema.setdefault("maxItems", max(LONGEST_ARRAY, schema.get("minItems", 0)))
    if "integer" in kinds and not schema.keys() & _LIMITS:
        schema.update(minimum=-LARGEST_NUMBER, maximum=LARGEST_NUMBER)
    if (
        "object" in kinds
        and closed
        and set(schema.get("required", [])) <= schema.get("properties", {}).keys()
    ):
        schema.setdefault("additionalProperties", False)


def _stem(word: str) -> str:
    return word.lower().removesuffix("s")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _any_of(texts: Iterable[str]) -> str:
    return f"({' | '.join(dict.fromkeys(map(_literal, texts)))})"
