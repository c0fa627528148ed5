"""What a pydantic model's fields hold, through every union, list and mapping of their annotations."""

from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel


def types(annotation: Any) -> set[Any]:
    """The types that an annotation names: `list[str | Card] | None` holds `str`, `Card` and `NoneType`."""
    inner = get_args(annotation)
    return {found for part in inner for found in types(part)} if inner else {annotation}


def models(kinds: Iterable[Any]) -> list[type[BaseModel]]:
    """Those of the types that are pydantic models."""
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]


def names(model: type[BaseModel]) -> dict[str, Any]:
    """A model's keys as a file writes them, each with its annotation."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def below(kinds: set[Any], key: str | int) -> set[Any]:
    """The types found under a key or an index; those of a list or a mapping are those of its items."""
    found = [names(model)[key] for model in models(kinds) if key in names(model)]
    return {kind for annotation in found for kind in types(annotation)} if found else kinds
