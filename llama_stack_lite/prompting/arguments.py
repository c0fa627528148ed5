"""Arguments that a model wrote: brought to the types of the function's schema, or refused with a reason."""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry
from referencing.exceptions import Unresolvable

Schema = dict[str, Any]
DEEPEST = 32  # levels of a schema that are looked at to coerce strings

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_DECODER = json.JSONDecoder(parse_constant=lambda name: float(name))


def read_json(text: str, at: int = 0) -> tuple[Any, int]:
    """Read the JSON value that starts at `at` and return it with its end; raises `ValueError`."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value, end


def checked(arguments: Any, schema: Schema) -> str:
    """Return arguments as JSON text that is valid by the schema; raises `ValueError` with the reason.

    Where a model wrote `"10"` for a number, `"true"` for a boolean or a whole object as a string, the value
    is read out of the string. Nothing else is changed.
    """
    if isinstance(arguments, str):
        arguments = _inside(arguments, {"object"})
    if not isinstance(arguments, dict):
        raise ValueError("the arguments are no JSON object")
    try:
        reason = _fault(arguments, schema, schema)
        if reason:
            arguments = _coerced(arguments, schema, schema, 0)
            reason = _fault(arguments, schema, schema)
        if reason:
            raise ValueError(reason)
        return _dumped(arguments)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # half of a surrogate pair can be escaped in JSON, but not be sent as UTF-8
    return text if text.isascii() or not _SURROGATE.search(text) else json.dumps(value, allow_nan=False)


def _multiple_of(validator: Any, factor: Any, value: Any, schema: Any) -> Iterator[ValidationError]:
    """Counted in decimals: 0.3 is a multiple of 0.1, which binary fractions deny."""
    if validator.is_type(value, "number") and math.isfinite(value):
        try:
            whole = Decimal(str(value)) % Decimal(str(factor)) == 0
        except InvalidOperation:
            whole = math.fmod(value, factor) == 0
        if not whole:
            yield ValidationError(f"{value!r} is not a multiple of {factor!r}")


def _kept(validator: Any, pattern: Any, value: Any, schema: Any) -> tuple[()]:
    """The grammar has seen to it without backtracking; a request could make Python's `re` run for ever."""
    return ()


_extend: Any = extend  # its annotations are incomplete
_Validator = _extend(
    Draft202012Validator, {"multipleOf": _multiple_of, "pattern": _kept, "patternProperties": _kept}
)


def _validator(schema: Any, root: Schema) -> Any:
    # an empty registry of its own: a `$ref` to the network is refused, not fetched
    validator = _Validator(root, registry=Registry())
    return validator if schema is root else validator.evolve(schema=schema)


def _fault(value: Any, schema: Any, root: Schema) -> str | None:
    try:
        error = best_match(_validator(schema, root).iter_errors(value))
    except Unresolvable as missing:
        return f"the schema refers to {missing.ref}, which it does not hold"
    if error is None:
        return None
    where = "".join(f"[{key!r}]" for key in error.absolute_path)
    return f"{where}: {error.message}" if where else str(error.message)


def _coerced(value: Any, schema: Any, root: Schema, depth: int) -> Any:
    if depth > DEEPEST:
        return value
    forms = list(_alternatives(schema, root, depth))
    if isinstance(value, str):
        kinds = {kind for form in forms for kind in _kinds(form)}
        return value if not kinds or "string" in kinds else _inside(value, kinds)
    for form in forms:
        if isinstance(value, dict) and isinstance(form.get("properties"), dict):
            known = form["properties"]
            value = {k: _coerced(v, known[k], root, depth + 1) if k in known else v for k, v in value.items()}
        if isinstance(value, list) and "items" in form:
            value = [_coerced(item, form["items"], root, depth + 1) for item in value]
    return value


def _alternatives(schema: Any, root: Schema, depth: int) -> Iterator[Schema]:
    """The schema with its local references followed and its `anyOf` and `oneOf` laid out."""
    if not isinstance(schema, dict) or depth > DEEPEST:
        return
    yield schema
    parts = [*schema.get("anyOf", []), *schema.get("oneOf", [])]
    reference = schema.get("$ref", "")
    if reference.startswith(("#/$defs/", "#/definitions/")) and reference.count("/") == 2:
        _, kept, name = reference.split("/")
        parts.append(root.get(kept, {}).get(name))
    for part in parts:
        yield from _alternatives(part, root, depth + 1)


def _kinds(schema: Schema) -> list[str]:
    """The JSON types that a schema names, or shows by the values it lists."""
    kinds = schema.get("type", [])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return ["string"] if any(isinstance(value, str) for value in values) else ["integer", "boolean"]
    return kinds if isinstance(kinds, list) else [kinds]


def _inside(text: str, kinds: set[str]) -> Any:
    """The value of one of the JSON types that a string holds, or the string itself."""
    words = {"true": True, "false": False, "null": None, "none": None}
    word = text.strip().lower()
    try:
        value = words[word] if word in words else json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if any(_Validator({"type": kind}).is_valid(value) for kind in kinds) else text
