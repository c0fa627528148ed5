"""The index in this process loses nothing, notices damage, and follows the database from any state."""

import asyncio
import logging
import resource
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import pytest

from llama_stack_lite.api.vector_io import VectorIO
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.providers.vector_io.faiss import Faiss
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.store import Store
from tests.conformance.vector_io import Matrix, Subject, closed, some
from tests.support.databases import KINDS, database
from tests.support.indexing import EACH, INDEX

ROOT = Path(__file__).parent.parent


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'state.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "vectors"


def made(stack: Stack, *, folder: Path, exact: int = 10_000, memory: int | None = None) -> VectorIO:
    found: VectorIO = Faiss(Faiss.Config(folder=folder, exact=exact, memory=memory), stack)
    return found


@asynccontextmanager
async def subject(
    url: str, folder: Path, *, dimension: int = 32, exact: int = 10_000, memory: int | None = None
) -> AsyncIterator[Subject]:
    """An index of its own, of a server of its own."""
    stack = Stack(StackConfig())
    stack.store = await Store.open(url)
    make = partial(made, folder=folder, exact=exact, memory=memory)
    found = Subject(stack, make, dimension=dimension)
    try:
        yield found
    finally:
        await closed(found.provider)
        await stack.store.aclose()


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


async def agrees(subject: Subject, vectors: Matrix) -> None:
    for vector in vectors:
        await subject.check(vector, limit=10)


# ---------------------------------------------------------------- the log


def test_an_end_that_was_not_written_whole_is_cut_off(url: str, folder: Path) -> None:
    async def scenario() -> None:
        async with subject(url, folder, dimension=4) as it:
            rows = some(12, 4)
            await it.add(range(8), rows[:8])
            await it.remove([1])
            await closed(it.provider)
            (log,) = files(folder, "*.log")
            whole = log.stat().st_size
            await it.again()
            await it.add(range(8, 12), rows[8:])
            await closed(it.provider)
            data = log.read_bytes()
            for size in range(whole, len(data)):
                log.write_bytes(data[:size])
                it.rows = {key: rows[key] for key in range(8) if key != 1}
                await it.again()
                await agrees(it, rows[:1])
                assert log.stat().st_size == whole
            await it.add(range(8, 12), rows[8:])
            await it.again()
            await agrees(it, rows)
        assert not files(folder, "*corrupt*")

    asyncio.run(scenario())


def test_a_byte_that_changed_anywhere_is_noticed_and_mended(
    url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with subject(url, folder, dimension=4) as it:
            rows = some(6, 4)
            await it.found()
            await it.keep("one", rows[:3])
            await it.keep("two", rows[3:])
            await it.forget("two")
            await agrees(it, rows[:1])
            await closed(it.provider)
            (log,) = files(folder, "*.log")
            data = log.read_bytes()
            for place in range(0, len(data), 3):
                log.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
                await it.again()
                await agrees(it, rows[:1])
                (damaged,) = files(folder, "*corrupt*")
                assert damaged.read_bytes()[place] == data[place] ^ 4
                damaged.unlink()
            await it.again()
            await agrees(it, rows)
            assert not files(folder, "*corrupt*"), "what was made anew is whole"

    with caplog.at_level(logging.ERROR):
        asyncio.run(scenario())
    assert "is damaged" in caplog.text


def test_a_damaged_graph_is_made_anew(url: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with subject(url, folder, exact=100) as it:
            rows = some(400)
            await it.add(range(400), rows)
            await closed(it.provider)
            (graph,) = files(folder, "*.graph")
            data = graph.read_bytes()
            for place in (0, 10, 25, 29, 33, 1000, len(data) - 1):
                await closed(it.provider)
                graph.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
                await it.again()
                await agrees(it, rows[::100])
                (damaged,) = files(folder, "*corrupt*")
                damaged.unlink()
            for size in (0, 5, 31, 2000):
                await closed(it.provider)
                graph.write_bytes(data[:size])
                await it.again()
                await agrees(it, rows[::100])

    asyncio.run(scenario())


def test_nothing_that_was_acknowledged_is_lost_when_the_process_is_killed(url: str, folder: Path) -> None:
    command = [sys.executable, "-m", "tests.support.indexing", url, str(folder)]
    rows = some(20_000)
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    lines = [process.stdout.readline() for _ in range(25)]
    process.kill()
    rest, _ = process.communicate()
    kept = len(lines) + rest.count("\n")

    async def scenario() -> None:
        async with subject(url, folder, exact=300) as it:
            it.index = INDEX
            for key in range(0, kept * EACH, 7):
                found = await it.nearest(rows[key], limit=1)
                assert found[0][0] == key and found[0][1] > 0.9999

    asyncio.run(scenario())
    assert not files(folder, "*corrupt*")


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Let no file grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_refuses_what_comes_and_harms_nothing_else(url: str, folder: Path) -> None:
    async def scenario() -> None:
        async with subject(url, folder) as it:
            rows = some(40)
            await it.add(range(20), rows[:20])
            (log,) = files(folder, "*.log")
            size = log.stat().st_size
            with full_disk(size + 100):
                with pytest.raises(Unavailable, match="cannot be written"):
                    await it.add(range(20, 40), rows[20:])
                await agrees(it, rows)
            assert log.stat().st_size == size
            await it.add(range(20, 40), rows[20:])
            await it.again()
            await agrees(it, rows)

    asyncio.run(scenario())


def test_a_search_goes_on_where_the_disk_is_full(url: str, folder: Path) -> None:
    async def scenario() -> None:
        async with subject(url, folder) as it:
            rows = some(300)
            await it.found()
            await it.keep("one", rows[:100])
            await agrees(it, rows[:5])
            await it.keep("two", rows[100:], told=False)
            (log,) = files(folder, "*.log")
            with full_disk(log.stat().st_size + 100):
                await agrees(it, rows[::30])
            await it.again()
            await agrees(it, rows[::30])

    asyncio.run(scenario())


# ---------------------------------------------------------------- the database


@pytest.mark.parametrize("kind", KINDS)
def test_every_server_finds_what_any_of_them_took_in(kind: str, tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        rows = some(300)
        async with subject(url, tmp_path / "a") as a, subject(url, tmp_path / "b") as b:
            await a.found()
            b.index = a.index
            for name, start in (("one", 0), ("two", 100), ("three", 200)):
                await a.keep(name, rows[start : start + 100])
                b.index, b.rows = a.index, a.rows
                await asyncio.gather(*(agrees(b, rows[::60]) for _ in range(5)))
            await a.forget("two")
            b.index, b.rows = a.index, a.rows
            await agrees(b, rows[::30])
            await b.keep("four", rows[:50])
            await b.again()
            a.index, a.rows = b.index, b.rows
            await agrees(a, rows[::30])
            await agrees(b, rows[::30])

    with database(kind, tmp_path) as url:
        asyncio.run(scenario(url))


def test_of_two_servers_on_one_folder_one_writes_and_both_find(url: str, folder: Path) -> None:
    async def scenario() -> None:
        rows = some(200)
        async with subject(url, folder) as a, subject(url, folder) as b:
            await a.found()
            await a.keep("one", rows[:100])
            (log,) = files(folder, "*.log")
            size = log.stat().st_size
            b.index, b.rows = a.index, a.rows
            await agrees(b, rows[:100:20])
            await b.keep("two", rows[100:])
            assert log.stat().st_size == size, "the second does not write"
            a.index, a.rows = b.index, b.rows
            await agrees(a, rows[::20])
            await closed(a.provider)
            await b.again()  # and has the files from now on
            await b.keep("three", rows[:10])
            assert log.stat().st_size > size
        assert not files(folder, "*corrupt*")

    asyncio.run(scenario())


@pytest.mark.parametrize("later", [False, True], ids=["as it was", "and changed since"])
def test_a_database_that_was_restored_is_followed(
    later: bool, url: str, folder: Path, tmp_path: Path
) -> None:
    state, backup = tmp_path / "state.db", tmp_path / "backup.db"

    async def begin() -> Subject:
        async with subject(url, folder) as it:
            await it.found()
            await it.keep("one", some(30))
        shutil.copy(state, backup)
        return it

    async def go_on(before: Subject) -> None:
        async with subject(url, folder) as it:
            it.index, it.rows = before.index, before.rows.copy()
            await it.keep("lost", some(30, seed=1))
            await agrees(it, some(5, seed=1))

    async def restored(before: Subject) -> None:
        async with subject(url, folder / "other") as it:  # another server, since
            it.index, it.rows = before.index, before.rows
            for name in ("two", "three") if later else ():
                await it.keep(name, some(20, seed=2))
            before.index, before.rows = it.index, it.rows
        async with subject(url, folder) as it:
            it.index, it.rows = before.index, before.rows
            await agrees(it, some(5, seed=1))
            await agrees(it, some(5, seed=2))

    before = asyncio.run(begin())
    asyncio.run(go_on(before))
    for name in ("state.db-wal", "state.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(backup, state)
    asyncio.run(restored(before))


# ---------------------------------------------------------------- growing, shrinking


def test_answers_stay_the_same_when_the_graph_takes_over(url: str, folder: Path) -> None:
    async def scenario() -> None:
        async with subject(url, folder, exact=300) as it:
            rows = some(2000)
            for start in range(0, 2000, 125):
                await it.add(range(start, start + 125), rows[start : start + 125])
                await agrees(it, rows[::400])
            await it.again()
            assert files(folder, "*.graph")
            await agrees(it, rows[::100])

    asyncio.run(scenario())


def test_what_is_of_no_use_any_more_leaves_memory_and_disk(url: str, folder: Path) -> None:
    async def scenario() -> None:
        async with subject(url, folder, exact=300) as it:
            rows = some(5000)
            await it.add(range(3000), rows[:3000])
            (log,) = files(folder, "*.log")
            size = log.stat().st_size
            await it.remove(range(2000))  # and while all is written anew
            await asyncio.gather(
                it.add(range(3000, 3400), rows[3000:3400]),
                it.remove(range(2500, 2600)),
                it.add(range(2600, 2700), rows[4000:4100]),
                agrees(it, rows[4999:]),
            )
            (mirror,) = it.provider._mirrors.values()  # type: ignore[attr-defined]
            await asyncio.wait([mirror._renewal])
            assert log.stat().st_size < size * 0.6
            await agrees(it, rows[::250])
            await it.add(range(4000, 4010), rows[4200:4210])
            await it.again()
            await agrees(it, rows[::250])
            assert [path.suffix for path in files(folder, "*")] == [".graph", ".log"]

    asyncio.run(scenario())


def test_the_longest_unused_are_let_go_of_and_come_back(url: str, folder: Path) -> None:
    async def scenario() -> None:
        async with subject(url, folder, exact=100, memory=1) as it:
            others = [it.other(16), it.other(24), it]
            for round_ in range(3):
                for each in others:
                    rows = some(200, each.index.dimension, seed=round_)
                    await each.add(range(round_ * 200, round_ * 200 + 200), rows)
                    await agrees(each, rows[:3])
            mirrors = it.provider._mirrors.values()  # type: ignore[attr-defined]
            assert [len(mirror.vectors) for mirror in mirrors] == [0, 0, 600]

    asyncio.run(scenario())
