"""An empty database of either kind that the store can be on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.postgres import postgres

KINDS = ("sqlite", "postgresql")


@contextmanager
def database(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a new database: a file in the folder, or one on a real PostgreSQL."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / 'state' / 'state.db'}"
    else:
        with postgres() as url:
            yield url
