"""Reads calls in Python's notation, `name(key='value')`, as data: nothing is ever evaluated."""

import ast
import re
import warnings
from typing import Any, NamedTuple

from .arguments import read_json

_CALL = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*\(\s*")
_KEY = re.compile(r"([A-Za-z_][\w.-]*)\s*=\s*")
_SPREAD = re.compile(r"\*\*\s*(?=\{)")
_BETWEEN = re.compile(r"\s*(,\s*|(?=[\])]))")
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_PLAIN = re.compile(r"[^\[\](){},'\"]+")
_NAMES = {"true": True, "false": False, "null": None}


class Call(NamedTuple):
    name: str
    arguments: dict[str, Any]
    end: int


def read_calls(text: str, at: int) -> list[Call]:
    """Read a list of calls, `[f(a=1), g()]`, that begins at `at`; the last `end` is that of the list.

    The list may be empty where the text is something else, or not complete.
    """
    opening = re.compile(r"\s*\[").match(text, at)
    calls: list[Call] = []
    at = opening.end() if opening else len(text)
    while call := read_call(text, at):
        between = _BETWEEN.match(text, call.end)
        if between is None:
            return []
        at = between.end()
        closed = text.startswith("]", at)
        calls.append(call._replace(end=at + closed))
        if closed:
            return calls
    return []


def read_call(text: str, at: int) -> Call | None:
    """Read `name(key=value, ...)`; values are literals of Python or JSON. None where it is anything else."""
    head = _CALL.match(text, at)
    if head is None:
        return None
    arguments: dict[str, Any] = {}
    at = head.end()
    while not text.startswith(")", at):
        try:
            added, at = _argument(text, at)
        except ValueError:
            return None
        arguments |= added
        between = _BETWEEN.match(text, at)
        if between is None:
            return None
        at = between.end()
    return Call(head[1], arguments, at + 1)


def _argument(text: str, at: int) -> tuple[dict[str, Any], int]:
    if spread := _SPREAD.match(text, at):
        value, end = _value(text, spread.end())
        if not isinstance(value, dict):
            raise ValueError("`**` goes with an object")
        return value, end
    key = _KEY.match(text, at)
    if key is None:
        raise ValueError("an argument needs a name")
    value, end = _value(text, key.end())
    return {key[1]: value}, end


def _value(text: str, at: int) -> tuple[Any, int]:
    """A literal and its end. JSON goes first: its escapes are not quite Python's."""
    try:
        value, end = read_json(text, at)
        if _BETWEEN.match(text, end):
            return value, end
    except ValueError:
        pass
    end = _extent(text, at)
    return _literal(text[at:end]), end


def _extent(text: str, at: int) -> int:
    """Where the expression at `at` ends: at the first comma or closing bracket that is not inside of it."""
    depth = 0
    while at < len(text):
        if token := _PLAIN.match(text, at) or _STRING.match(text, at):
            at = token.end()
            continue
        if depth == 0 and text[at] in ",)]}":
            return at
        depth += (text[at] in "([{") - (text[at] in ")]}")
        at += 1
    raise ValueError("not complete")


def _literal(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a model's string is no fault of ours
            return _data(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("no literal") from error


def _data(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None):
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float())):
            return -_data(node.operand)
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_data(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            pairs = zip(keys, values, strict=True)
            return {str(key.value): _data(value) for key, value in pairs if isinstance(key, ast.Constant)}
    raise ValueError("no literal")
