"""From a URL to an engine: SQLite as durable as it can be, PostgreSQL by psycopg, mistakes in one line."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as SQLite
from sqlite3 import OperationalError
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError

from llama_stack_lite.errors import ConfigError

DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
FORMS = "sqlite:////folder/state.db or postgresql://user:password@host/database"
CONNECTIONS = 8  # to PostgreSQL, of one server
PATIENCE = 10  # seconds for a connection, and for another process to let go of an SQLite file
WRITING = {"writes": True}  # execution options of a connection whose next transactions write
READING = {"postgresql_readonly": True, "isolation_level": "REPEATABLE READ"}  # one snapshot, as in SQLite


def engine_of(url: str) -> Engine:
    """An engine that has not connected yet; raises `ConfigError`, which shows no password."""
    location = _location(url)
    if location.drivername == "sqlite":
        _create(_path(location))
        engine = create_engine(location, connect_args={"timeout": PATIENCE}, hide_parameters=True)
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
        return engine
    try:
        return create_engine(
            location,
            connect_args={"connect_timeout": PATIENCE},
            hide_parameters=True,
            max_overflow=0,
            pool_size=CONNECTIONS,
        )
    except ImportError as error:
        raise ConfigError(
            "storage: PostgreSQL needs a package more: pip install 'llama-stack-lite[postgres]'"
        ) from error


def _location(url: str) -> URL:
    try:
        location = make_url(url)
    except (ArgumentError, ValueError) as error:  # whose words may quote a password
        raise ConfigError(f"storage: this is no URL of a database; it looks like {FORMS}") from error
    if location.drivername not in DRIVERS:
        raise ConfigError(f"storage: there is no driver `{location.drivername}`; write {FORMS}")
    if "@" in (location.host or ""):
        raise ConfigError("storage: write `@` in the URL's password as %40, and other marks likewise")
    return location.set(drivername=DRIVERS[location.drivername])


def _path(location: URL) -> Path:
    if not location.database or location.database.startswith((":memory:", "file:")):
        raise ConfigError("storage: SQLite keeps its state in a file: write sqlite:////folder/state.db")
    return Path(location.database)


def _create(path: Path) -> None:
    """Make the file, and the folder, for nobody else to read; SQLite gives its other files the same mode."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise ConfigError(
            f"storage: {path} cannot be written ({error.strerror}): name a file in a folder of this user's"
        ) from error


def _prepare(connection: SQLite, _: object) -> None:
    connection.isolation_level = None  # transactions begin where SQLAlchemy says, by `_begin`
    connection.execute("PRAGMA synchronous = FULL")
    if _write_ahead(connection) != "wal":
        raise ConfigError("storage: SQLite cannot write ahead in this folder: name a file on a local disk")


def _write_ahead(connection: SQLite) -> str:
    """Let others read while one writes. The file remembers it; until it does, SQLite waits for nobody."""
    late = time.monotonic() + PATIENCE
    while True:
        try:
            mode: str = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
            return mode
        except OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > late:
                raise
            time.sleep(0.02)


def _begin(connection: Connection) -> None:
    """Take the lock at once where something will be written; elsewhere nothing can be."""
    writes = bool(connection.get_execution_options().get("writes"))
    raw: Any = connection.connection.driver_connection
    raw.execute(f"PRAGMA query_only = {not writes:d}")
    raw.execute("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Turn what goes wrong with a database at start into one line that says where, and what."""
    try:
        yield
    except DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        place = engine.url.set(query={}).render_as_string(hide_password=True)
        raise ConfigError(f"storage: {place} cannot be used: {reason}") from error
