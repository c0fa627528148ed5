"""Indexes of vectors: every provider that ships is under the suite, and what is each one's own."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from pydantic import SecretStr
from sqlalchemy import Connection, TextClause, text

from llama_stack_lite.api.vector_io import Index, VectorIO
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Busy, ConfigError, StackError, Unavailable, UpstreamError
from llama_stack_lite.plugins import plugins
from llama_stack_lite.providers.vector_io.faiss import Faiss
from llama_stack_lite.providers.vector_io.pgvector import PGVector
from llama_stack_lite.providers.vector_io.qdrant import Qdrant
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.vectors import Matrix, everything, matrix, row
from tests.conformance.vector_io import Subject, VectorIOConformance, closed, some
from tests.support.postgres import postgres


class TestFaiss(VectorIOConformance):
    def provider(self, stack: Stack) -> Faiss:
        return Faiss(Faiss.Config(folder=self.folder), stack)


class TestFaissByGraph(VectorIOConformance):
    def provider(self, stack: Stack) -> Faiss:
        return Faiss(Faiss.Config(folder=self.folder, exact=100), stack)


class TestPGVector(VectorIOConformance):
    @contextmanager
    def database(self) -> Iterator[str]:
        with postgres() as url:
            yield url

    def provider(self, stack: Stack) -> PGVector:
        return PGVector(PGVector.Config(exact=200), stack)


class TestQdrant(VectorIOConformance):
    def provider(self, stack: Stack) -> Qdrant:
        return Qdrant(Qdrant.Config(path=":memory:"), stack)


def test_every_index_that_ships_is_under_the_suite() -> None:
    for point in plugins("vector_io").values():
        if point.module.startswith("llama_stack_lite.providers."):
            assert issubclass(globals()[f"Test{point.attr}"], VectorIOConformance), point.name


# ---------------------------------------------------------------- the suite finds faults


class Looking:
    """Looks at all there is; what all the faulty ones are made of, itself without fault."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.indexes: dict[str, dict[int, Matrix]] = {}

    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        rows = matrix(index, vectors, count=len(keys))
        there = await self.there(index)
        there.update(zip(keys, rows, strict=True))

    async def there(self, index: Index) -> dict[int, Matrix]:
        there = self.indexes.setdefault(index.store, {})
        async for keys, rows in everything(self.stack.store, index):
            there.update((key, row) for key, row in zip(keys, rows, strict=True) if key not in there)
        return there

    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        for key in keys:
            self.indexes.get(index.store, {}).pop(key, None)

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        point = row(index, vector)
        there = await self.there(index)
        keys = [key for key in (there if among is None else dict.fromkeys(among)) if key in there]
        if not keys:
            return []
        scores = np.clip(np.stack([there[key] for key in keys]) @ point, -1, 1)
        best = np.argsort(-scores, kind="stable")[:limit].tolist()
        return [(keys[place], float(scores[place])) for place in best]

    async def drop(self, index: Index) -> None:
        self.indexes.pop(index.store, None)


class Keeping(Looking):
    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        pass


class Sweeping(Looking):
    async def drop(self, index: Index) -> None:
        self.indexes.clear()


class Distant(Looking):
    async def nearest(self, *given: Any, **options: Any) -> list[tuple[int, float]]:
        return [(key, 1 - score) for key, score in await super().nearest(*given, **options)]


class Filtering(Looking):
    """Asks for the nearest of all first, and then whether they are among those given."""

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        found = await super().nearest(index, vector, limit=limit)
        return [hit for hit in found if among is None or hit[0] in among]


class Forgetful(Looking):
    async def there(self, index: Index) -> dict[int, Matrix]:
        return self.indexes.setdefault(index.store, {})


class Rough(Looking):
    """Nine of ten, where there are many."""

    async def there(self, index: Index) -> dict[int, Matrix]:
        there = await super().there(index)
        return there if len(there) < 5000 else {key: row for key, row in there.items() if key % 10}


class Credulous(Looking):
    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        rows = np.frombuffer(vectors, "<f4").reshape(len(keys), -1)
        self.indexes.setdefault(index.store, {}).update(zip(keys, rows, strict=True))


FAULTS = {
    Keeping: "test_what_was_removed_is_not_found",
    Sweeping: "test_two_indexes_do_not_mix",
    Distant: "test_the_nearest_are_found",
    Filtering: "test_only_those_are_found_that_are_asked_for",
    Forgetful: "test_what_an_index_never_heard_of_comes_from_the_database",
    Rough: "test_most_of_the_nearest_are_found_among_many",
    Credulous: "test_what_is_no_vector_of_the_index_is_refused",
}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_is_found(kind: type[Looking]) -> None:
    with pytest.raises(AssertionError):
        run(kind, FAULTS[kind])


def test_one_without_fault_passes() -> None:
    for test in FAULTS.values():
        if "many" not in test:
            run(Looking, test)


def run(kind: type[Looking], test: str) -> None:
    class Suite(VectorIOConformance):
        def provider(self, stack: Stack) -> Looking:
            return kind(stack)

    suite = Suite()
    suite.setup_method()
    try:
        getattr(suite, test)()
    finally:
        Suite.teardown_class()


# ---------------------------------------------------------------- pgvector


@asynccontextmanager
async def subject(url: str, make: Callable[[Stack], VectorIO]) -> AsyncIterator[Subject]:
    stack = Stack(StackConfig())
    stack.store = await Store.open(url)
    try:
        found = Subject(stack, make)
        yield found
        await closed(found.provider)
    finally:
        await stack.store.aclose()


def pgvector(stack: Stack, *, url: str | None = None, exact: int = 200) -> PGVector:
    return PGVector(PGVector.Config(url=SecretStr(url) if url else None, exact=exact), stack)


def test_a_table_that_was_lost_is_made_of_the_database() -> None:
    async def scenario(url: str) -> None:
        async with subject(url, pgvector) as it:
            rows = some(400)
            await it.found()
            await it.keep("one", rows[:300])
            await it.check(rows[0], limit=10)
            for statement in ("DROP TABLE", "TRUNCATE"):
                lose = text(f'{statement} "vectors_{it.index.store}"')
                await it.stack.store.write(partial(_execute, statement=lose))
                await it.check(rows[0], limit=10)
                await it.stack.store.write(partial(_execute, statement=lose))
                await it.again()
                await it.check(rows[0], limit=10)
            await it.keep("two", rows[300:])
            await it.check(rows[0], limit=10)

    with postgres() as url:
        asyncio.run(scenario(url))


def _execute(connection: Connection, *, statement: TextClause) -> None:
    connection.execute(statement)


def test_vectors_may_be_in_a_postgresql_of_their_own(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with subject(f"sqlite:///{tmp_path / 'state.db'}", partial(pgvector, url=url)) as it:
            rows = some(300)
            await it.found()
            await it.keep("one", rows, told=False)
            await it.check(rows[0], limit=10)
            await it.again()
            await it.check(rows[0], limit=10)

    with postgres() as url:
        asyncio.run(scenario(url))


@pytest.mark.parametrize("dimension", [2500, 4500])
def test_vectors_may_be_longer_than_an_index_of_them_holds(dimension: int) -> None:
    """Beyond 2,000 dimensions the index has half-precision, and beyond 4,000 there is none."""

    async def scenario(url: str) -> None:
        async with subject(url, partial(pgvector, exact=50)) as it:
            other = it.other(dimension)
            rows = some(150, dimension)
            await other.add(range(150), rows)
            for vector in rows[::50]:
                await other.check(vector, limit=10)

    with postgres() as url:
        asyncio.run(scenario(url))


def test_pgvector_says_at_start_what_it_lacks(tmp_path: Path) -> None:
    async def scenario() -> None:
        stack = Stack(StackConfig())
        stack.store = await Store.open(f"sqlite:///{tmp_path / 'state.db'}")
        for url, reason in [
            (None, "`storage` is no PostgreSQL"),
            ("sqlite:////tmp/x.db", "names no PostgreSQL"),
            ("postgresql://nobody:hunter2@127.0.0.1:9/x", "cannot be used"),
        ]:
            with pytest.raises(ConfigError, match=reason) as caught:
                pgvector(stack, url=url)
            assert "hunter2" not in str(caught.value)
        await stack.store.aclose()

    asyncio.run(scenario())


# ---------------------------------------------------------------- qdrant


def test_a_collection_that_was_lost_is_made_of_the_database(tmp_path: Path) -> None:
    def make(stack: Stack) -> Qdrant:
        return Qdrant(Qdrant.Config(path=str(tmp_path / "qdrant")), stack)

    async def scenario() -> None:
        async with subject(f"sqlite:///{tmp_path / 'state.db'}", make) as it:
            rows = some(40)
            await it.found()
            await it.keep("one", rows[:30])
            for again in (False, True):
                client = it.provider.client  # type: ignore[attr-defined]
                await client.delete_collection(f"llama-lite-{it.index.store}")
                if again:
                    await it.again()
                await it.check(rows[0], limit=10)
            await it.keep("two", rows[30:])
            await it.again()
            await it.check(rows[0], limit=10)

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the client forgets a file
def test_a_folder_of_qdrant_has_one_user(tmp_path: Path) -> None:
    async def scenario() -> None:
        config = Qdrant.Config(path=str(tmp_path))
        stack = Stack(StackConfig())
        first = Qdrant(config, stack)
        with pytest.raises(ConfigError, match="already accessed"):
            Qdrant(config, stack)
        await first.aclose()

    asyncio.run(scenario())
    gc.collect()


@pytest.mark.parametrize(
    ("status", "error"), [(500, Unavailable), (403, UpstreamError), (400, UpstreamError), (429, Busy)]
)
def test_what_a_qdrant_server_answers_is_told(
    status: int, error: type[StackError], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        headers = {"retry-after": "3"} if status == 429 else {}
        return web.json_response({"status": {"error": "no"}}, status=status, headers=headers)

    async def scenario() -> None:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", refuse)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        config = Qdrant.Config(url=f"http://{host}:{port}", api_key=SecretStr("hunter2"))
        async with subject(f"sqlite:///{tmp_path / 'state.db'}", partial(Qdrant, config)) as it:
            with pytest.raises(error) as caught:
                await it.add([1], some(1))
            assert "hunter2" not in str(caught.value)
            await runner.cleanup()
            with pytest.raises(Unavailable, match="cannot be reached"):
                await it.nearest(some(1)[0], limit=1)

    asyncio.run(scenario())
    assert "without encryption" in caplog.text


def test_a_qdrant_has_one_place() -> None:
    for settings in ({}, {"url": "http://a", "path": "b"}):
        with pytest.raises(ValueError, match="either `url` or `path`"):
            Qdrant.Config(**settings)
