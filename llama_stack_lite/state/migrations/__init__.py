"""Brings a database to the tables of this version, whoever else starts meanwhile."""

from pathlib import Path

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from llama_stack_lite.errors import ConfigError
from llama_stack_lite.state.database import WRITING, engine_of, explained

LOCK = 7_209_151_020  # the advisory lock that servers on one PostgreSQL migrate under; any number will do


def upgrade(url: str) -> Engine:
    """Connect, and make or change the tables where they are not yet as this version wants them.

    Raises `ConfigError` where the URL is wrong, the database cannot be reached or written, or is of a newer
    version. All of it is one transaction: a server that dies in the middle leaves nothing behind.
    """
    engine = engine_of(url)
    try:
        with (
            explained(engine),
            engine.connect().execution_options(**WRITING) as connection,
            connection.begin(),
        ):
            if engine.dialect.name == "postgresql":  # SQLite's transaction has locked all of it
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            _migrate(connection)
    except BaseException:
        engine.dispose()
        raise
    return engine


def _migrate(connection: Connection) -> None:
    scripts = ScriptDirectory(Path(__file__).parent)
    known = {script.revision for script in scripts.walk_revisions()}

    def steps(heads: tuple[str, ...], _: MigrationContext) -> list[RevisionStep]:
        if newer := set(heads) - known:
            raise ConfigError(
                f"storage: the database is of a newer version ({', '.join(newer)}) than this program, which "
                f"knows {scripts.get_current_head()}: run the newer one, or name another database"
            )
        ahead = [*scripts.iterate_revisions("head", heads or "base")]
        return [MigrationStep.upgrade_from_script(scripts.revision_map, each) for each in reversed(ahead)]

    context = MigrationContext.configure(connection, opts={"fn": steps, "transactional_ddl": True})
    with Operations.context(context):
        context.run_migrations()
