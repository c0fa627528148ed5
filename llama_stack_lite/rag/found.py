"""What a search finds, as the database has it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, select

from llama_stack_lite.state.tables import chunks, documents

CHUNK = select(
    *(chunks.c[name] for name in ("key", "document", "position", "text", "headings", "page")),
    *(documents.c[name] for name in ("id", "raw", "filename", "attributes")),
).join(documents, chunks.c.document == documents.c.key)

# what may be shown of these keys. Built once, as to build it takes as long as to run it; and of no columns
# that are in an index, or SQLite begins with all that there are
SHOWN = CHUNK.where(
    chunks.c.key.in_(bindparam("keys", expanding=True)),
    func.coalesce(documents.c.store, "") == bindparam("store"),
    func.coalesce(documents.c.status, "") == "completed",
)


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk, and how well it fits: `score` is from 0 to 1."""

    row: Row[Any]
    score: float
