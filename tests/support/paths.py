"""Every place in a wire type that can hold text, so that a test can ask of each what becomes of it."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, ForwardRef, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, SecretStr
from typing_extensions import is_typeddict

UNIONS = (Union, types.UnionType)
SILENT = (int, float, bool, types.NoneType, SecretStr)  # a secret is for a server, never for a model


def paths(kind: Any, way: str = "") -> Iterator[str]:
    """The places in a type: `messages[].name`, `logit_bias{}` for keys and values, `tools[].*` for unknown.

    Where objects of several kinds may stand, the kind is named: `content[]<TextPart>.text`.
    """
    kind = _bare(kind)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in UNIONS:
        yield from _either([_bare(each) for each in inner], way)
    elif origin is list:
        yield from [f"{way}[]"] if _bare(inner[0]) is int else paths(inner[0], f"{way}[]")
    elif origin is dict:
        yield f"{way}{{}}"
    elif _is_object(kind):
        yield from _object(kind, f"{way}." if way else "")
    elif isinstance(kind, str | ForwardRef):
        return  # a type within itself, whose places are known
    elif kind in (str, Any):
        yield way
    else:
        assert origin is Literal or kind in SILENT, (way, kind)


def _either(kinds: list[Any], way: str) -> Iterator[str]:
    named = len([kind for kind in kinds if _is_object(kind)]) > 1
    for kind in kinds:
        yield from paths(kind, f"{way}<{kind.__name__}>" if named and _is_object(kind) else way)


def _object(kind: Any, way: str) -> Iterator[str]:
    if is_typeddict(kind):
        fields = get_type_hints(kind, include_extras=True)
    else:
        fields = {field.alias or name: field.annotation for name, field in kind.model_fields.items()}
    for name, field in fields.items():
        yield from paths(field, f"{way}{name}")
    if is_typeddict(kind) or kind.model_config.get("extra") == "allow":
        yield f"{way}*"


def _bare(kind: Any) -> Any:
    return _bare(get_args(kind)[0]) if get_origin(kind) is Annotated else kind


def _is_object(kind: Any) -> bool:
    return is_typeddict(kind) or isinstance(kind, type) and issubclass(kind, BaseModel)
