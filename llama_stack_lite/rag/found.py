"""What a search finds, as the database has it."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, func, select

from llama_stack_lite.state.tables import chunks, documents

CHUNK = select(
    *(chunks.c[name] for name in ("key", "document", "position", "text", "headings", "page")),
    *(documents.c[name] for name in ("id", "raw", "filename", "attributes")),
).join(documents, chunks.c.document == documents.c.key)

INDEXED = documents.c.store, documents.c.status
UNINDEXED = tuple(func.coalesce(column, "") for column in INDEXED)  # or SQLite begins with all that there are
# built once: to build it takes as long as to run it
SHOWN = CHUNK.where(
    chunks.c.key.in_(bindparam("keys", expanding=True)),
    UNINDEXED[0] == bindparam("store"),
    UNINDEXED[1] == "completed",
)


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk, and how well it fits: `score` is from 0 to 1."""

    row: Row[Any]
    score: float
