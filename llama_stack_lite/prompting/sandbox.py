"""Jinja for templates that come with a model's weights: no way out, and little time and memory."""

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from types import FrameType
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, LoopControlExtension
from jinja2.nodes import EvalContext
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

LARGEST = 2**25  # characters or items of one value, and of all the output
WIDEST = 1000  # the largest number that a filter such as `indent` takes
_WIDE_FORMAT = re.compile(r"\d{4,}|\*|\{[^{}]*\{")


class TooSlow(Exception):
    """The template ran past its time."""


class _Compiler(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`~` is no operator that a sandbox may intercept, and doubles a string as fast as `+`."""
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class Generation(Extension):
    """`{% generation %}` marks what a model is trained on; it says nothing about the text."""

    tags = frozenset(["generation"])  # type: ignore[assignment]

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as Hugging Face sets it up, in which nothing can be made larger than `LARGEST`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])
    code_generator_class = _Compiler

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation])
        self.globals |= {
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }
        self.filters["tojson"] = _to_json
        self.filters = {name: _bounded(name, each) for name, each in self.filters.items()}

    def concat(self, parts: Iterable[str]) -> str:
        found, size = [], 0
        for part in parts:
            size += len(part)
            _check(size)
            found.append(part)
        return "".join(found)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            _check(len(left) + len(right))
        if operator == "*":
            _check(_times(left) * _times(right))
        if operator == "**":
            _check(abs(left) ** min(abs(right), 64))
            _check(abs(right))
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **options: Any) -> Any:
        """Methods of strings that make much of little are looked at before they run."""
        method = getattr(__obj, "__wrapped__", __obj)  # `format` is wrapped by Jinja's sandbox
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            _check_arguments(name, owner, [*args, *options.values()], LARGEST // 1000)
        return super().call(__context, __obj, *args, **options)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TooSlow` in this thread when the time is over; sees the Python lines that templates become."""
    end = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: object) -> Any:
        if time.monotonic() > end:
            raise TooSlow
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose numbers and products are looked at before it runs."""

    @functools.wraps(function)  # keeps the mark by which Jinja passes the environment
    def checked(*args: Any, **options: Any) -> Any:
        own = [each for each in args if not isinstance(each, Environment | EvalContext | Context)]
        _check_arguments(name, own[0], [*own[1:], *options.values()], WIDEST)
        return function(*args, **options)

    return checked


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as Hugging Face's templates mean it: not escaped for HTML, keys in their order."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _check_arguments(name: str, value: Any, arguments: list[Any], widest: int) -> None:
    for argument in arguments:
        if isinstance(argument, int) and abs(argument) > widest:
            raise TemplateError(f"`{name}` with {argument} makes too much")
        if name in ("replace", "join") and isinstance(argument, str) and hasattr(value, "__len__"):
            _check((len(value) + 1) * len(argument))
    if name in ("format", "format_map") and isinstance(value, str):
        _check_format(value)


def _check(size: float) -> None:
    if size > LARGEST:
        raise TemplateError(f"it makes more than {LARGEST} characters")


def _check_format(text: str) -> None:
    if _WIDE_FORMAT.search(text):
        raise TemplateError("a format that is too wide")


def _times(side: Any) -> float:
    return len(side) if hasattr(side, "__len__") else abs(side)
