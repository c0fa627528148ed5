"""The store keeps what it says it keeps: on SQLite and on a real PostgreSQL."""

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, event, func, insert, make_url, select, text, update

from llama_stack_lite.errors import ConfigError, Unavailable
from llama_stack_lite.state import tables
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import conversation_items
from tests.support.databases import KINDS, database
from tests.support.postgres import PostgresServer, server, start
from tests.support.writing import keep, kept

ROOT = Path(__file__).parent.parent


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, tmp_path) as url:
        yield url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state' / 'state.db'}"


def child(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.support.writing", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


async def _kept(url: str) -> set[str]:
    store = await Store.open(url)
    try:
        return await kept(store)
    finally:
        await store.aclose()


# ---------------------------------------------------------------- what is kept


def test_what_was_written_is_there_for_another_process(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)
        written = {await keep(store, "a", position) for position in range(3)}
        assert await kept(store) == written
        assert await _kept(url) == written
        await store.aclose()

    asyncio.run(scenario())


def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(url: str) -> None:
    acknowledged: set[str] = set()
    for enough in (30, 200):  # and the second begins where the first was killed
        process = child(url)
        assert process.stdout
        assert process.stdout.readline() == "open\n"
        acknowledged |= {process.stdout.readline().strip() for _ in range(enough)}
        process.kill()
        rest, _ = process.communicate()
        acknowledged |= {line for line in rest.split("\n")[:-1] if line}
    assert len(acknowledged) >= 230
    assert acknowledged <= asyncio.run(_kept(url))


def test_a_full_disk_loses_nothing_that_was_acknowledged(sqlite_url: str) -> None:
    process = child(sqlite_url, "--limit", "1000000")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = output.splitlines()
    refused = [line for line in lines if line.startswith("full")]
    acknowledged = {line for line in lines if not line.startswith(("full", "open"))}
    assert len(refused) == 8  # every writer came to the limit
    assert len(acknowledged) > 100
    assert asyncio.run(_kept(sqlite_url)) == acknowledged  # nor is anything there that was refused


def test_one_that_fails_harms_no_other_of_its_group(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)

        def work(connection: Connection, number: int) -> int:
            row = {"conversation": "a", "position": number, "id": str(number), "item": ""}
            connection.execute(insert(conversation_items), row)
            if number % 3 == 0:
                raise ValueError(number)
            if number % 3 == 1:
                next(iter(()))
            return number

        calls = [store.write(lambda connection, n=number: work(connection, n)) for number in range(60)]  # type: ignore[misc]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        for number, outcome in enumerate(outcomes):
            if number % 3 == 2:
                assert outcome == number
            else:
                assert isinstance(outcome, ValueError if number % 3 == 0 else RuntimeError)
        assert await kept(store) == {str(number) for number in range(2, 60, 3)}
        await store.aclose()

    asyncio.run(scenario())


def test_writes_that_meet_on_sqlite_share_a_commit(sqlite_url: str) -> None:
    async def scenario() -> int:
        store = await Store.open(sqlite_url)
        commits: list[None] = []
        event.listen(store.engine, "commit", lambda connection: commits.append(None))
        await asyncio.gather(*(keep(store, "a", number) for number in range(100)))
        assert len(await kept(store)) == 100
        await store.aclose()
        return len(commits)

    assert asyncio.run(scenario()) < 20  # of the reader, too


def test_a_caller_who_is_cancelled_tears_nothing(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)
        began, go_on = threading.Event(), threading.Event()

        def slow(connection: Connection) -> None:
            row = {"conversation": "a", "position": 0, "id": "slow", "item": ""}
            connection.execute(insert(conversation_items), row)
            began.set()
            assert go_on.wait(10)
            connection.execute(insert(conversation_items), row | {"position": 1, "id": "slow-2"})

        task = asyncio.create_task(store.write(slow))
        await asyncio.to_thread(began.wait, 10)
        waiting = asyncio.create_task(keep(store, "b", 0))
        await asyncio.sleep(0)
        task.cancel()
        waiting.cancel()
        for cancelled in (task, waiting):
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        go_on.set()
        last = await keep(store, "c", 0)
        await store.aclose()  # waits for what goes on
        found = await _kept(url)
        assert {"slow", "slow-2", last} < found
        assert len(found) == 4

    asyncio.run(scenario())


def test_a_function_that_reads_cannot_write(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)

        def work(connection: Connection) -> None:
            connection.execute(insert(tables.conversations), {"id": "a", "created_at": 0, "metadata": "{}"})

        with pytest.raises(Unavailable):
            await store.read(work)
        await store.write(work)  # the same connection can, elsewhere
        await store.aclose()

    asyncio.run(scenario())


def test_all_that_one_function_reads_is_of_one_moment(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)
        loop = asyncio.get_running_loop()

        def twice(connection: Connection) -> list[int]:
            count = select(func.count()).select_from(conversation_items)
            first = connection.execute(count).scalar_one()
            asyncio.run_coroutine_threadsafe(keep(store, "a", 0), loop).result(10)
            return [first, connection.execute(count).scalar_one()]

        assert await store.read(twice) == [0, 0]
        assert len(await kept(store)) == 1
        await store.aclose()

    asyncio.run(scenario())


def test_a_closed_store_has_finished_and_takes_no_more(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)
        late = [asyncio.create_task(keep(store, "a", number)) for number in range(20)]
        await asyncio.sleep(0)
        await store.aclose()
        await store.aclose()
        assert set(await asyncio.gather(*late)) == await _kept(url)
        for call in (keep(store, "b", 0), kept(store)):
            with pytest.raises(Unavailable, match="stopping"):
                await call

    asyncio.run(scenario())


# ---------------------------------------------------------------- SQLite


def test_sqlite_is_as_durable_as_it_can_be_and_private(sqlite_url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(sqlite_url)
        await keep(store, "a", 0)

        def pragmas(connection: Connection) -> list[Any]:
            return [connection.scalar(text(f"PRAGMA {name}")) for name in ("journal_mode", "synchronous")]

        for call in (store.read, store.write):
            assert await call(pragmas) == ["wal", 2]  # 2 is FULL
        file = Path(make_url(sqlite_url).database or "")
        modes = {
            each.name: stat.S_IMODE(each.stat().st_mode) for each in [file.parent, *file.parent.iterdir()]
        }
        assert modes == {"state": 0o700, "state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
        await store.aclose()

    asyncio.run(scenario())


def test_a_write_waits_for_another_process(sqlite_url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(sqlite_url)
        with sqlite3.connect(make_url(sqlite_url).database or "", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            task = asyncio.create_task(keep(store, "a", 0))
            await asyncio.sleep(0.2)
            assert not task.done()
            other.execute("COMMIT")
            await task
        other.close()
        await store.aclose()

    asyncio.run(scenario())


# ---------------------------------------------------------------- PostgreSQL


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    running = start()
    yield running
    running.cleanup()


def test_a_server_that_was_restarted_is_found_again(own_server: PostgresServer) -> None:
    async def scenario() -> None:
        store = await Store.open(own_server.get_uri())
        # several connections, all of which the restart makes useless
        written = set(await asyncio.gather(*(keep(store, "a", number) for number in range(20))))
        own_server.stop()
        with pytest.raises(Unavailable, match="log"):
            await kept(store)
        own_server.start()
        assert await kept(store) == written
        own_server.stop()
        own_server.start()
        written |= set(await asyncio.gather(*(keep(store, "b", number) for number in range(20))))
        assert await kept(store) == written
        await store.aclose()

    asyncio.run(scenario())


def test_two_that_lock_each_other_out_both_come_through() -> None:
    async def scenario(url: str) -> None:
        store = await Store.open(url)
        ids = [await keep(store, "a", number) for number in range(2)]
        met = threading.Barrier(2)
        runs: list[int] = []

        def work(connection: Connection, order: list[str]) -> None:
            runs.append(1)
            for number, each in enumerate(order):
                here = conversation_items.c.id == each
                connection.execute(update(conversation_items).where(here).values(item=order[0]))
                if number == 0 and len(runs) <= 2:
                    met.wait(10)

        one, two = ids, ids[::-1]
        await asyncio.gather(store.write(lambda c: work(c, one)), store.write(lambda c: work(c, two)))
        assert len(runs) == 3  # one of them ran again
        items = await store.read(lambda c: c.scalars(select(conversation_items.c.item)).all())
        assert len(set(items)) == 1  # and nothing is mixed
        await store.aclose()

    with database("postgresql", Path()) as url:
        asyncio.run(scenario(url))


def test_writes_go_side_by_side_on_postgresql() -> None:
    async def scenario(url: str) -> None:
        store = await Store.open(url)
        met = threading.Barrier(4)
        await asyncio.gather(*(store.write(lambda _: met.wait(10)) for _ in range(4)))
        await store.aclose()

    with database("postgresql", Path()) as url:
        asyncio.run(scenario(url))


# ---------------------------------------------------------------- migrations


def test_the_migrations_make_the_very_tables_that_the_code_uses(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)

        def differences(connection: Connection) -> list[Any]:
            def known(name: str | None, *_: object) -> bool:
                return not str(name).startswith("keyword")  # which are another thing on each database

            options = {"compare_type": True, "include_name": known}
            context = MigrationContext.configure(connection, opts=options)
            return list(compare_metadata(context, tables.metadata))

        assert await store.read(differences) == []
        await store.aclose()

    asyncio.run(scenario())


def test_several_that_start_at_once_make_the_tables_once(url: str) -> None:
    processes = [child(url, "--count", "3") for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    written = {line for output in outputs for line in output if line != "open"}
    assert len(written) == 4 * 8 * 3
    assert asyncio.run(_kept(url)) == written


def test_a_database_of_a_newer_version_is_left_alone(url: str) -> None:
    async def scenario() -> None:
        store = await Store.open(url)
        await store.write(lambda c: c.execute(text("UPDATE alembic_version SET version_num = '9999'")))
        await store.aclose()
        with pytest.raises(ConfigError, match="newer version.*9999.*0002") as caught:
            await Store.open(url)
        assert "\n" not in str(caught.value)

    asyncio.run(scenario())


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("hush", "no URL of a database"),
        ("postgresql://me:hush@host:port/x", "no URL of a database"),
        ("mysql://me:hush@host/x", "no driver `mysql`; write sqlite:////folder/state.db or postgresql://"),
        ("postgresql+asyncpg://me:hush@host/x", r"no driver `postgresql\+asyncpg`"),
        ("sqlite+aiosqlite:///x", r"no driver `sqlite\+aiosqlite`"),
        ("sqlite://", "in a file"),
        ("sqlite:///:memory:", "in a file"),
        ("sqlite:///file:x?mode=memory&uri=true", "in a file"),
        ("postgresql://me:more@hush@host/x", "%40"),
        ("postgresql://me:hush@127.0.0.1:1/x?sslpassword=hush", "127.0.0.1:1/x cannot be used: .*refused"),
        ("postgresql://me:hush@no-such-host.invalid/x", "no-such-host.invalid/x cannot be used"),
        ("sqlite:////proc/none/state.db", "/proc/none/state.db cannot be written"),
        ("sqlite:////etc/hostname/state.db", "/etc/hostname/state.db cannot be written .File exists"),
    ],
)
def test_a_url_that_is_wrong_is_one_line_without_the_password(wrong: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        asyncio.run(Store.open(wrong))
    message = str(caught.value)
    assert message.startswith("storage: ")
    assert "hush" not in message
    assert "\n" not in message


def test_a_database_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match='/nowhere cannot be used: .*"nowhere" does not exist'):
        asyncio.run(Store.open(server().get_uri(database="nowhere")))


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database " * 100, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"notes.txt cannot be used: file is not a database"):
        asyncio.run(Store.open(f"sqlite:///{file}"))
    assert file.read_text(encoding="utf-8") == "not a database " * 100


def test_a_driver_that_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'llama-stack-lite\[postgres\]'"):
        asyncio.run(Store.open("postgresql://host/x"))


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgresql_may_be_written_in_three_ways(scheme: str) -> None:
    async def scenario(url: str) -> None:
        store = await Store.open(url)
        await keep(store, "a", 0)
        await store.aclose()

    with database("postgresql", Path()) as url:
        asyncio.run(scenario(f"{scheme}:{url.partition(':')[2]}"))
