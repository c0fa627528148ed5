"""JSON Schemas narrowed to what a model should write: no constraint is lost, some freedom is."""

from collections.abc import Callable, Iterator
from typing import Any

from llama_stack_lite.errors import InvalidRequest

Schema = dict[str, Any]

# the integers that every JSON reader holds exactly (RFC 8259, section 6)
LARGEST_NUMBER = 2**53 - 1

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames")
_SOURCES = {"anyOf", "oneOf", "$ref", "properties", "patternProperties", "additionalProperties"}
_CHOICES = {"anyOf", "oneOf", "$ref"}

# formats that JSON Schema defines; any other is a remark of somebody's, such as OpenAPI's `password`
_FORMATS = {
    "date-time", "date", "time", "duration", "email", "idn-email", "hostname", "idn-hostname", "ipv4", "ipv6",
    "uri", "uri-reference", "iri", "iri-reference", "uuid", "uri-template", "json-pointer",
    "relative-json-pointer", "regex",
}  # fmt: skip


def narrowed(schema: Schema, *, param: str) -> Schema:
    """Return a schema of which all values are valid by the given one, and fewer are endless.

    Objects that name their properties hold no others unless `additionalProperties` says so, and numbers
    stay within +-(2^53 - 1) on the side without a limit. Where subschemas are merged (`allOf`, or `$ref` and
    `anyOf` beside other keywords) nothing of this is done, as one part does not know what another allows.
    Raises `InvalidRequest` naming `param` for what a grammar cannot count.
    """
    merged = any(_merges(part) for part in _parts(schema))

    def narrow(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        part = _mapped(part, narrow)
        part.pop("x-guidance", None)  # the engine's own switches are not the user's
        if part.get("format") not in _FORMATS:
            part.pop("format", None)
        _refuse_counting(part, param)
        if not merged:
            _close(part)
            _limit(part)
        return part

    found: Schema = narrow(schema)
    return found


def _mapped(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """The schema with all its subschemas changed."""
    found = dict(schema)
    for key in _MAPS:
        if isinstance(schema.get(key), dict):
            found[key] = {name: change(part) for name, part in schema[key].items()}
    for key in _LISTS:
        if isinstance(schema.get(key), list):
            found[key] = [change(part) for part in schema[key]]
    for key in _SINGLE:
        if key in schema:
            found[key] = change(schema[key])
    return found


def _parts(schema: Any) -> Iterator[Schema]:
    """The schema and all its subschemas."""
    if not isinstance(schema, dict):
        return
    yield schema
    inner: list[Any] = []
    _mapped(schema, inner.append)
    for part in inner:
        yield from _parts(part)


def _merges(schema: Schema) -> bool:
    sources = schema.keys() & _SOURCES
    return "allOf" in schema or bool(sources & _CHOICES and len(sources) > 1)


def _refuse_counting(schema: Schema, param: str) -> None:
    """A grammar cannot see that a key comes twice, and a key that comes twice counts once."""
    free = schema.get("additionalProperties", True) is not False or "patternProperties" in schema
    if free and schema.get("minProperties", 0) > max(1, len(schema.get("required", []))):
        raise InvalidRequest(
            "the schema cannot be enforced: `minProperties` above 1 needs `additionalProperties: false`",
            param=param,
        )


def _close(schema: Schema) -> None:
    names = schema.get("properties")
    if not isinstance(names, dict) or schema.keys() & {*_CHOICES, "patternProperties"}:
        return
    if set(schema.get("required", [])) <= names.keys():
        schema.setdefault("additionalProperties", False)


def _limit(schema: Schema) -> None:
    kinds = schema.get("type", [])
    if not {"integer", "number"} & set(kinds if isinstance(kinds, list) else [kinds]):
        return
    if schema.keys() & {"enum", "const"}:
        return
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None and (high is None or high > -LARGEST_NUMBER):
        schema["minimum"] = -LARGEST_NUMBER
    if high is None and (low is None or low < LARGEST_NUMBER):
        schema["maximum"] = LARGEST_NUMBER
