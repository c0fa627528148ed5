"""Filters of searches as SQL: one meaning on every store, as the attributes are in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, not_, or_

from llama_stack_lite.api.vector_stores import Comparison, Filter
from llama_stack_lite.state.tables import document_attributes, documents

Value = str | bool | float
attribute = document_attributes.c


def condition(filter: Filter) -> ColumnElement[bool]:
    """What a row of `documents` must be for the filter to hold.

    Values are compared with those of their own kind only: numbers, texts (by code point), true and false.
    """
    if not isinstance(filter, Comparison):
        joined = and_ if filter.type == "and" else or_
        return joined(*(condition(each) for each in filter.filters))
    if filter.type in ("ne", "nin"):
        return not_(_some(filter.key, _equals(_values(filter))))
    if filter.type in ("eq", "in"):
        return _some(filter.key, _equals(_values(filter)))
    return _some(filter.key, _ordered(filter))


def kind_of(value: Value) -> str:
    """How a value is kept: "s" in `text`, "n" and "b" in `number`."""
    if isinstance(value, bool):
        return "b"
    return "s" if isinstance(value, str) else "n"


def _values(filter: Comparison) -> Sequence[Value]:
    return filter.value if isinstance(filter.value, list) else [filter.value]


def _some(key: str, holds: ColumnElement[bool]) -> ColumnElement[bool]:
    return exists().where(attribute.document == documents.c.key, attribute.name == key, holds)


def _equals(values: Sequence[Value]) -> ColumnElement[bool]:
    """Whether the attribute is one of the values."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = {kind: [float(value) for value in values if kind_of(value) == kind] for kind in "nb"}
    return or_(
        (attribute.kind == "s") & attribute.text.in_(texts),
        *((attribute.kind == kind) & attribute.number.in_(found) for kind, found in numbers.items()),
    )


def _ordered(filter: Comparison) -> ColumnElement[bool]:
    value: Any = filter.value
    kind = kind_of(value)
    column: Any = attribute.text if kind == "s" else attribute.number
    compared: dict[str, ColumnElement[bool]] = {
        "gt": column > value,
        "gte": column >= value,
        "lt": column < value,
        "lte": column <= value,
    }
    return (attribute.kind == kind) & compared[filter.type]
