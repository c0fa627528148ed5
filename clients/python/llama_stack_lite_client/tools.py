"""Python functions as tools: the schema of a call from the signature, arguments checked before a call."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin, get_type_hints, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, ValidationError, create_model
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from . import docstrings

Function = Callable[..., Any]
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Tool:
    """A function that a model may call; made by `@tool`, or by an agent of a plain function.

    Its parameters become a JSON Schema: type hints of any kind that pydantic knows, defaults, and
    descriptions from `Annotated[..., "..."]`, `Field(description=...)` or the docstring. `parameters` is that
    schema. Raises `TypeError` for a function that none can describe.
    """

    def __init__(
        self, function: Function, *, name: str | None = None, description: str | None = None
    ) -> None:
        said, about = docstrings.read(function)
        self.function = function
        self.name = name or _name(function)
        self.description = description or said or None
        self._signature = inspect.signature(function)
        try:
            self._model = _model(function, self._signature, about)
            self.parameters: dict[str, Any] = _untitled(self._model.model_json_schema())
        except (PydanticUserError, NameError) as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"`{self.name}` cannot be a tool: {reason}") from error
        self._names = dict(zip(self._model.model_fields, self._signature.parameters, strict=True))
        functools.update_wrapper(self, function, updated=())

    def __call__(self, *args: Any, **options: Any) -> Any:
        """The function itself, as it was."""
        return self.function(*args, **options)

    @property
    def definition(self) -> dict[str, Any]:
        """The tool as a request offers it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": self.parameters,
        }

    def job(self, arguments: str) -> Callable[[], Any]:
        """The call with arguments that a model wrote as JSON; raises `ValueError`, saying what is wrong."""
        try:
            found = self._model.model_validate_json(arguments or "{}")
        except ValidationError as error:
            raise ValueError(_told(error)) from error
        args: list[Any] = []
        options: dict[str, Any] = {}
        for field, name in self._names.items():
            parameter = self._signature.parameters[name]
            if field not in found.model_fields_set and not isinstance(parameter.default, FieldInfo):
                continue  # the function's own default
            if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
                args.append(getattr(found, field))
            else:
                options[name] = getattr(found, field)
        return functools.partial(self.function, *args, **options)


@overload
def tool(function: Function) -> Tool: ...
@overload
def tool(*, name: str | None = None, description: str | None = None) -> Callable[[Function], Tool]: ...
def tool(
    function: Function | None = None, *, name: str | None = None, description: str | None = None
) -> Tool | Callable[[Function], Tool]:
    """Make a function a tool, under its own name and docstring, or under those given."""
    if function is not None:
        return Tool(function)
    return functools.partial(Tool, name=name, description=description)


def written(result: Any) -> str:
    """What a function returned, as the model reads it: text as it is, all else as JSON."""
    return result if isinstance(result, str) else to_json(result, fallback=str).decode()


def _name(function: Function) -> str:
    name = getattr(function, "__name__", None) or getattr(getattr(function, "func", None), "__name__", None)
    if not NAME.fullmatch(name or ""):
        raise TypeError(f"{function!r} has no name that models can say: give it one by `tool(name=...)`")
    return str(name)


def _model(function: Function, signature: inspect.Signature, about: dict[str, str]) -> type[BaseModel]:
    """The parameters as a pydantic model, whose fields' names cannot clash with its methods'."""
    hints = _hints(function)
    fields: dict[str, Any] = {}
    for number, (name, parameter) in enumerate(signature.parameters.items()):
        if parameter.kind in VARIADIC:
            raise TypeError(f"`{parameter}` of {function!r} can be anything: a tool names each parameter")
        default = ... if parameter.default is parameter.empty else parameter.default
        field = default if isinstance(default, FieldInfo) else Field(default)
        hint = hints.get(name, Any)
        told = Field(alias=name, description=_described(hint) or about.get(name))
        fields[f"argument_{number}"] = (Annotated[hint, told], field)
    forbid = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    return create_model("Arguments", __config__=forbid, **fields)


def _hints(function: Function) -> dict[str, Any]:
    found = inspect.unwrap(function)
    while isinstance(found, functools.partial):
        found = found.func
    if not (inspect.isfunction(found) or inspect.ismethod(found)):
        found = type(found).__call__
    return get_type_hints(found, include_extras=True)


def _described(hint: Any) -> str | None:
    """The text in an `Annotated`: a plain string, or a `Doc`."""
    if get_origin(hint) is not Annotated:
        return None
    for each in get_args(hint)[1:]:
        text = each if isinstance(each, str) else getattr(each, "documentation", None)
        text = text or getattr(each, "description", None)
        if isinstance(text, str):
            return text
    return None


def _untitled(schema: Any) -> Any:
    """A schema without pydantic's titles, which tell a model nothing; a property may be called `title`."""
    if isinstance(schema, list):
        return [_untitled(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    named = ("properties", "$defs")
    return {
        name: {key: _untitled(each) for key, each in value.items()} if name in named else _untitled(value)
        for name, value in schema.items()
        if not (name == "title" and isinstance(value, str))
    }


def _told(error: ValidationError) -> str:
    """The mistakes, each with its place, in words that a model can mend them by."""
    return "; ".join(
        ": ".join(part for part in (".".join(map(str, each["loc"])), each["msg"]) if part)
        for each in error.errors(include_url=False)
    )
