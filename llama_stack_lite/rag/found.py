"""What a search has found, before it is told."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row


@dataclass(frozen=True, slots=True)
class Found:
    """A chunk, and how well it fits: `score` is from 0 to 1."""

    row: Row[Any]
    score: float
