"""Pages of what is kept: the database reads no more than is answered."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, select, tuple_

from llama_stack_lite.api.ids import well_formed
from llama_stack_lite.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Paging:
    """Which part of a list is asked for: the rows next to the id `after`, or those before the id `before`."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


def page(
    connection: Connection,
    query: Select[Any],
    id: Column[str],
    *,
    by: Sequence[Column[Any]],
    asked: Paging,
    within: ColumnElement[bool] | None = None,
) -> tuple[list[Row[Any]], bool]:
    """The rows of a page, ordered `by` columns that no two share, and whether there are more.

    `after` and `before` are ids `within` the list, and need not be of what the query picks out of that.
    Raises `InvalidRequest` where they are not.
    """
    places = select(*by) if within is None else select(*by).where(within)
    query = query if within is None else query.where(within)
    backwards = asked.after is None and asked.before is not None
    ascending = (asked.order == "asc") != backwards
    for field in ("after", "before"):
        if (cursor := getattr(asked, field)) is not None:
            behind = (asked.order == "asc") == (field == "after")
            place = tuple_(
                *_place(connection, places.where(id == cursor), cursor, field),
                types=[each.type for each in by],
            )
            query = query.where(tuple_(*by) > place if behind else tuple_(*by) < place)
    query = query.order_by(*(each.asc() if ascending else each.desc() for each in by))
    rows = list(connection.execute(query.limit(asked.limit + 1)))
    found, more = rows[: asked.limit], len(rows) > asked.limit
    return found[::-1] if backwards else found, more


def _place(connection: Connection, query: Select[Any], cursor: str, field: str) -> Row[Any]:
    found = connection.execute(query).first() if well_formed(cursor) else None
    if found is None:
        raise InvalidRequest(f"{field}: there is no `{cursor}` in this list", param=field)
    return found
