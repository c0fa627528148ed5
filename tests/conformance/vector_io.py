"""What every index of vectors must do: subclass `VectorIOConformance`, and return yours."""

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, insert

from llama_stack_lite.api.vector_io import Index, VectorIO
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import StackError
from llama_stack_lite.rag.chunking import Chunk
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import documents
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import vector_stores

Matrix = NDArray[np.float32]
Found = list[tuple[int, float]]
NEAR = 1e-4  # what a cosine may be wrong by
RECALL = 0.98  # of the ten nearest of many, how many an index has to find


class Subject:
    """The provider under test, and an index of its own."""

    def __init__(self, stack: Stack, make: Callable[[Stack], VectorIO], *, dimension: int = 32) -> None:
        self.stack = stack
        self.provider = make(stack)
        self.index = Index(f"vs_{secrets.token_hex(12)}", dimension, 0)
        self.rows: dict[int, Matrix] = {}  # what is in the index
        self._make = make

    def other(self, dimension: int) -> "Subject":
        """Another index of the same provider."""
        subject = Subject(self.stack, lambda stack: self.provider, dimension=dimension)
        subject._make = self._make
        return subject

    async def add(self, keys: Sequence[int], rows: Matrix) -> None:
        await self.provider.add(self.index, keys, rows.astype("<f4").tobytes())
        self.rows |= dict(zip(keys, rows, strict=True))

    async def remove(self, keys: Sequence[int]) -> None:
        await self.provider.remove(self.index, keys)
        self.rows = {key: row for key, row in self.rows.items() if key not in set(keys)}

    async def nearest(self, vector: Matrix, *, limit: int, among: Sequence[int] | None = None) -> Found:
        """What the provider finds, which must be well-formed."""
        found = await self.provider.nearest(self.index, vector.tolist(), limit=limit, among=among)
        keys, scores = [key for key, _ in found], [score for _, score in found]
        assert len(found) <= limit and len(set(keys)) == len(keys), "too many, or one twice"
        assert all(type(key) is int and type(score) is float for key, score in found), found[:3]
        assert all(-1 <= score <= 1 for score in scores), "no cosine"  # and no NaN
        assert scores == sorted(scores, reverse=True), "the best is not first"
        return found

    async def check(self, vector: Matrix, *, limit: int, among: Sequence[int] | None = None) -> None:
        """What is found is what looking at each would find; keys of the same score may change places."""
        found = await self.nearest(vector, limit=limit, among=among)
        cosines = {
            key: float(row @ vector) for key, row in self.rows.items() if among is None or key in set(among)
        }
        best = sorted(cosines.values(), reverse=True)[:limit]
        assert len(found) == len(best), f"{len(found)} of {len(best)} found"
        for (key, score), expected in zip(found, best, strict=True):
            assert key in cosines, f"key {key} was not asked for, or is gone"
            assert abs(score - expected) < NEAR and abs(score - cosines[key]) < NEAR, (score, expected)

    async def again(self) -> None:
        """Close the provider, and make it again, as when the server starts again."""
        await closed(self.provider)
        self.provider = self._make(self.stack)

    # ------------------------------------------------------------ the database's part

    async def found(self) -> None:
        """Make the vector store in the database."""
        row = {
            "id": self.index.store,
            "created_at": time.time(),
            "name": "",
            "metadata": "{}",
            "last_active_at": time.time(),
            "version": 1,
            "provider": "test",
            "model": "test",
            "dimension": self.index.dimension,
            "chunking": "{}",
        }
        await self.stack.store.write(
            lambda connection: connection.execute(insert(vector_stores), row) and None
        )
        self._at(1)

    async def keep(self, name: str, rows: Matrix, *, told: bool = True) -> list[int]:
        """Put a document into the database as ingestion does; and into the index, where that is `told`."""
        chunks = [Chunk(f"{name} {place}", [], None, 1, None) for place in range(len(rows))]

        def begin(connection: Connection) -> tuple[int, list[int]]:
            store = self.index.store
            document = documents.add(
                connection, store, id=name, filename=name, attributes={}, chunking=json.dumps({}), size=1
            )
            keys = documents.add_chunks(connection, store, document, chunks, ["" for _ in chunks])
            data = rows.astype("<f4").tobytes()
            documents.put_vectors(connection, keys, data, self.index.dimension)
            return document, keys

        document, keys = await self.stack.store.write(begin)
        if told:
            await self.add(keys, rows)
        self.rows |= dict(zip(keys, rows, strict=True))
        self._at(
            await self.stack.store.write(
                lambda connection: documents.publish(connection, self.index.store, document)
            )
        )
        return keys

    async def forget(self, name: str, *, told: bool = True) -> None:
        """Take a document out of the database, and out of the index, where that is `told`."""
        store = self.index.store
        keys = await self.stack.store.write(lambda connection: documents.remove(connection, store, [name]))
        version = await self.stack.store.write(lambda connection: documents.locked(connection, store))
        self._at(version)
        if told:
            await self.provider.remove(self.index, keys)
        self.rows = {key: row for key, row in self.rows.items() if key not in set(keys)}

    def _at(self, version: int) -> None:
        self.index = Index(self.index.store, self.index.dimension, version)


Check = Callable[[Any, Subject], Coroutine[Any, Any, None]]


def awaited(check: Check) -> Callable[["VectorIOConformance"], None]:
    """Make a test of an async check."""

    # no functools.wraps: pytest would take the check's parameters for fixtures
    def test(self: "VectorIOConformance") -> None:
        asyncio.run(self.run(check))

    test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
    return test


async def closed(provider: Any) -> None:
    if close := getattr(provider, "aclose", None):
        await close()


def unit(rows: Any) -> Matrix:
    found = np.asarray(rows, np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=-1, keepdims=True), np.float32)


def some(count: int, dimension: int = 32, *, seed: int = 0) -> Matrix:
    """Vectors as texts have them: in groups of about twenty, none of length 0."""
    random = np.random.default_rng(seed)
    middles = random.standard_normal((count // 20 + 1, dimension))
    near = middles[random.integers(len(middles), size=count)]
    return unit(near + 0.6 * random.standard_normal((count, dimension)))


class VectorIOConformance:
    """Every test builds a provider of its own, with an index of its own, on a real database."""

    timeout = 120.0  # seconds for each test
    folder: Path  # of all tests of the class
    url: str

    def provider(self, stack: Stack) -> VectorIO:
        """Return a new provider, on what an earlier one has left; `stack.store` is open."""
        raise NotImplementedError("return a new provider from `provider()`")

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of the database: by default an SQLite file."""
        yield f"sqlite:///{self.folder / 'state.db'}"

    def setup_method(self) -> None:
        if "url" not in vars(type(self)):
            type(self)._temporary = tempfile.TemporaryDirectory()  # type: ignore[attr-defined]
            type(self).folder = Path(type(self)._temporary.name)  # type: ignore[attr-defined]
            type(self)._open = self.database()  # type: ignore[attr-defined]
            type(self).url = type(self)._open.__enter__()  # type: ignore[attr-defined]

    @classmethod
    def teardown_class(cls) -> None:
        if "url" in vars(cls):
            cls._open.__exit__(None, None, None)  # type: ignore[attr-defined]
            cls._temporary.cleanup()  # type: ignore[attr-defined]

    async def run(self, check: Check) -> None:
        stack = Stack(StackConfig())
        stack.store = await Store.open(self.url)
        subject = None
        try:
            subject = Subject(stack, self.provider)
            async with asyncio.timeout(self.timeout):
                await check(self, subject)
        finally:
            if subject:
                await closed(subject.provider)
            await stack.store.aclose()

    # ------------------------------------------------------------ what is found

    @awaited
    async def test_the_nearest_are_found(self, subject: Subject) -> None:
        rows = some(600)
        for start in range(0, 600, 150):
            await subject.add(range(start, start + 150), rows[start : start + 150])
        for vector in some(10, seed=1):
            for limit in (1, 10, 50):
                await subject.check(vector, limit=limit)

    @awaited
    async def test_a_limit_may_be_larger_than_the_index(self, subject: Subject) -> None:
        await subject.add(range(40), some(40))
        for limit in (39, 40, 41, 1000):
            await subject.check(some(1, seed=1)[0], limit=limit)

    @awaited
    async def test_an_empty_index_finds_nothing(self, subject: Subject) -> None:
        vector = some(1)[0]
        assert await subject.nearest(vector, limit=10) == []
        assert await subject.nearest(vector, limit=10, among=[1, 2]) == []
        await subject.remove([1])
        await subject.add([], some(1)[:0])
        assert await subject.nearest(vector, limit=10) == []

    @awaited
    async def test_the_same_vector_has_a_cosine_of_one_and_the_opposite_of_minus_one(
        self, subject: Subject
    ) -> None:
        rows = some(100)
        await subject.add(range(100), rows)
        await subject.add([100, 101], np.stack([-rows[7], unit(np.eye(1, 32)[0])]))
        (key, score), *others = await subject.nearest(rows[7], limit=102)
        assert key == 7 and abs(score - 1) < 1e-5
        assert others[-1][0] == 100 and abs(others[-1][1] + 1) < 1e-5
        assert len(others) == 101, "what is far away is found as well"

    @awaited
    async def test_copies_are_all_found(self, subject: Subject) -> None:
        """And what stands beside them: one text may be in many documents, or in nearly the same words."""
        rows = some(900)
        rows[:300] = rows[0]
        rows[300:500] = unit(rows[300] + 1e-4 * np.random.default_rng(1).standard_normal((200, 32)))
        order = np.random.default_rng(2).permutation(900).tolist()
        await subject.add(order, rows[order])
        for vector in (rows[0], rows[300], rows[700], *unit(rows[:3] + 0.1 * some(3, seed=3))):
            for limit in (10, 350):
                found = await subject.nearest(vector, limit=limit)
                best = np.sort(rows @ vector)[::-1][:limit]
                assert len(found) == limit
                assert np.mean([score for _, score in found] >= best - NEAR) >= RECALL

    @awaited
    async def test_most_of_the_nearest_are_found_among_many(self, subject: Subject) -> None:
        rows = some(10_000, seed=1)
        await subject.add(range(9500), rows[:9500])
        await subject.add(range(9500, 10_000), rows[9500:])
        vectors = unit(rows[::200] + 0.1 * some(50, seed=2))
        hits = 0
        for vector in vectors:
            expected = set(np.argsort(-(rows @ vector))[:10].tolist())
            hits += len(expected & {key for key, _ in await subject.nearest(vector, limit=10)})
        assert hits / 500 >= RECALL, f"{hits} of 500"

    @awaited
    async def test_keys_may_be_large(self, subject: Subject) -> None:
        keys = [0, 1, 2**31, 2**53 + 1, 2**62]
        await subject.add(keys, some(5))
        for vector in some(5):
            await subject.check(vector, limit=1)
            await subject.check(vector, limit=5, among=keys[2:])

    # ------------------------------------------------------------ among

    @awaited
    async def test_only_those_are_found_that_are_asked_for(self, subject: Subject) -> None:
        await subject.add(range(600), some(600))
        random = np.random.default_rng(3)
        for vector in some(4, seed=1):
            for count in (1, 5, 50, 400):
                among = random.permutation(600)[:count].tolist()
                for limit in (1, 10, 500):
                    await subject.check(vector, limit=limit, among=among)

    @awaited
    async def test_of_keys_that_are_not_there_none_is_found(self, subject: Subject) -> None:
        await subject.add(range(50), some(50))
        vector = some(1, seed=1)[0]
        assert await subject.nearest(vector, limit=5, among=[]) == []
        assert await subject.nearest(vector, limit=5, among=[1000, 2**60]) == []
        await subject.check(vector, limit=5, among=[1000, 3, 3, 4, 2**60])

    # ------------------------------------------------------------ changes

    @awaited
    async def test_a_key_that_is_added_again_is_replaced(self, subject: Subject) -> None:
        rows = some(60)
        await subject.add(range(60), rows)
        await subject.add(range(20), rows[40:60])
        await subject.add([5], rows[5:6])
        for vector in rows[::10]:
            await subject.check(vector, limit=60)
            await subject.check(vector, limit=5, among=[1, 5, 45])

    @awaited
    async def test_what_was_removed_is_not_found(self, subject: Subject) -> None:
        rows = some(600)
        await subject.add(range(600), rows)
        near = np.argsort(-(rows @ rows[0]))[:200].tolist()  # all that a search would meet first
        await subject.remove([*near, 9999])
        await subject.remove(near[:3])
        for limit in (1, 10, 100, 600):
            await subject.check(rows[0], limit=limit)
        await subject.check(rows[0], limit=10, among=near)
        await subject.add(near[:5], rows[near[:5]])
        await subject.check(rows[0], limit=10)
        await subject.remove(range(600))
        assert await subject.nearest(rows[0], limit=10) == []

    @awaited
    async def test_changes_and_searches_at_once_do_not_mix(self, subject: Subject) -> None:
        rows = some(800)
        await subject.add(range(200), rows[:200])

        async def change(start: int) -> None:
            await subject.add(range(start, start + 50), rows[start : start + 50])
            await subject.remove(range(start, start + 10))

        async def search(place: int) -> None:
            for limit in (1, 20):
                (key, score), *_ = await subject.nearest(rows[place], limit=limit)
                assert key == place and abs(score - 1) < NEAR

        work: list[Awaitable[None]] = [change(start) for start in range(200, 800, 50)]
        work += [search(place) for place in range(100, 160)]
        await asyncio.gather(*work)
        for vector in rows[::100]:
            await subject.check(vector, limit=10)

    @awaited
    async def test_an_index_is_the_same_after_a_restart(self, subject: Subject) -> None:
        rows = some(300)
        await subject.found()
        await subject.keep("one", rows[:200])
        await subject.keep("two", rows[200:])
        await subject.forget("one")
        for _ in range(2):
            await subject.again()
            for vector in some(5, seed=1):
                await subject.check(vector, limit=10)
        keys = await subject.keep("three", rows[:50])
        await subject.again()
        await subject.check(rows[0], limit=200)
        await subject.check(rows[0], limit=5, among=keys)

    @awaited
    async def test_what_an_index_never_heard_of_comes_from_the_database(self, subject: Subject) -> None:
        rows = some(2500)
        await subject.found()
        for name, start in (("one", 0), ("two", 1200), ("three", 2400)):
            await subject.keep(name, rows[start : start + 1200], told=False)
        await subject.forget("three", told=False)
        for vector in rows[::500]:
            await subject.check(vector, limit=5)
            await subject.check(vector, limit=5, among=[*subject.rows][:700])

    @awaited
    async def test_two_indexes_do_not_mix(self, subject: Subject) -> None:
        other = subject.other(48)
        await subject.add(range(50), some(50))
        await other.add(range(25, 75), some(50, 48, seed=1))
        await other.remove([30])
        await subject.remove([40])
        for _ in range(2):
            await subject.check(some(1, seed=2)[0], limit=60)
            await other.check(some(1, 48, seed=2)[0], limit=60)
            await other.provider.drop(other.index)
            other.rows = {}

    @awaited
    async def test_a_dropped_index_is_empty(self, subject: Subject) -> None:
        await subject.provider.drop(subject.index)  # where there was none
        await subject.add(range(50), some(50))
        await subject.provider.drop(subject.index)
        subject.rows = {}
        await subject.check(some(1)[0], limit=10)
        await subject.again()
        await subject.check(some(1)[0], limit=10)
        await subject.add(range(5), some(5))
        await subject.check(some(1)[0], limit=10)

    # ------------------------------------------------------------ mistakes, and the end

    @awaited
    async def test_what_is_no_vector_of_the_index_is_refused(self, subject: Subject) -> None:
        rows = some(5)
        await subject.add(range(5), rows)
        wrong: list[Any] = [rows[:, :31], rows[:4], rows * 2, rows * 0, rows * np.nan, rows * np.inf]
        for matrix in wrong:
            await self._refused(subject.provider.add(subject.index, range(5), matrix.tobytes()))
        for vector in (rows[0][:31], np.append(rows[0], 0), rows[0] * np.nan, rows[0] * 0):
            await self._refused(subject.provider.nearest(subject.index, vector.tolist(), limit=3))
        await subject.check(rows[0], limit=10)

    async def _refused(self, call: Awaitable[Any]) -> None:
        try:
            found = await call
        except StackError as error:
            assert str(error) and error.status < 500, error
        else:
            raise AssertionError(f"this was answered with {found}")

    @awaited
    async def test_a_call_that_is_given_up_leaves_an_index_that_works(self, subject: Subject) -> None:
        rows = some(400)
        await subject.add(range(200), rows[:200])
        before = asyncio.all_tasks()
        for seconds in (0, 0.001, 0.01):
            adding = asyncio.create_task(subject.add(range(200, 400), rows[200:]))
            searching = asyncio.create_task(subject.nearest(rows[0], limit=10))
            await asyncio.sleep(seconds)
            adding.cancel()
            searching.cancel()
            await asyncio.wait([adding, searching])
        await subject.add(range(200, 400), rows[200:])
        await subject.check(rows[300], limit=10)
        assert asyncio.all_tasks() == before, "a call left tasks behind"

    @awaited
    async def test_closing_may_be_done_twice(self, subject: Subject) -> None:
        await subject.add(range(5), some(5))
        await closed(subject.provider)
        await closed(subject.provider)
