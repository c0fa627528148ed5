"""Vector stores that are deleted, expire, and are used by many at once, on either database."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Connection, func, select, text, update

from llama_stack_lite.api.vector_io import DeleteRequest, InsertRequest
from llama_stack_lite.api.vector_stores import Search, StoreFileRequest, VectorStoreRequest, VectorStoreUpdate
from llama_stack_lite.errors import InvalidRequest, NotFound, Unavailable
from llama_stack_lite.providers.inference.scripted import Scripted
from llama_stack_lite.rag import raw, stores, upkeep
from llama_stack_lite.rag.search import search
from llama_stack_lite.server import create_app
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import documents as contents
from llama_stack_lite.state import vector_stores as state
from llama_stack_lite.state.tables import (
    chunks,
    document_attributes,
    documents,
    dropped_chunks,
    dropped_stores,
    file_batches,
    vector_stores,
    vectors,
)
from tests.support.databases import KINDS, database
from tests.support.ingesting import article, attach, built, config, settled, store_of, upload

STALE = 7200  # seconds


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of an empty database."""
    with database(request.param, tmp_path) as url:
        yield url


def inserting(store: str, *ids: str, **fields: Any) -> InsertRequest:
    given = [{"content": f"raw {id}", "chunk_id": id, **fields} for id in ids]
    return InsertRequest.model_validate({"vector_store_id": store, "chunks": given})


async def found(stack: Stack, store: str, query: str | None = None) -> list[str]:
    page = await search(stack, [store], [query] if query else [], Search(max_num_results=50))
    return [hit.chunk_id for hit in page.data]


async def filled(stack: Stack) -> str:
    """A store with a file, a batch, raw chunks with attributes, and one that was taken out."""
    store = await store_of(stack, await upload(stack, "a.md", article("quails")))
    await raw.insert(stack, inserting(store, *"abcdefg", metadata={"n": 1}))
    await raw.remove(stack, DeleteRequest(vector_store_id=store, chunk_ids=["c"]))
    await settled(stack, store)
    return store


async def left(stack: Stack, store: str) -> int:
    """How many rows there are of a store."""

    def work(connection: Connection) -> int:
        columns = [vector_stores.c.id, dropped_stores.c.id]
        columns += [table.c.store for table in (documents, file_batches, dropped_chunks)]
        counts = (select(func.count()).where(each == store) for each in columns)
        return sum(connection.scalar(query) or 0 for query in counts)

    return await stack.store.read(work)


async def orphans(stack: Stack) -> list[int]:
    """How many chunks, vectors, attributes and words belong to nothing."""

    def work(connection: Connection) -> list[int]:
        keys, here = select(chunks.c.key), select(documents.c.key)
        attributes = document_attributes.c.document
        queries: list[Any] = [
            select(func.count()).where(chunks.c.document.not_in(here)),
            select(func.count()).where(vectors.c.key.not_in(keys)),
            select(func.count()).where(attributes.not_in(here)),
            text("SELECT (SELECT count(*) FROM keywords) - (SELECT count(*) FROM chunks)"),
        ]
        return [connection.execute(query).scalar_one() for query in queries]

    return await stack.store.read(work)


async def aged(stack: Stack, store: str, *, days: float) -> None:
    """Let the last use of a store be so many days ago."""
    ago = vector_stores.c.last_active_at - days * state.DAY
    change = update(vector_stores).where(vector_stores.c.id == store).values(last_active_at=ago)
    await stack.store.write(lambda connection: connection.execute(change) and None)


# ---------------------------------------------------------------- the end of a store


def test_nothing_is_left_of_a_store_that_is_deleted(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            store, other = await filled(stack), await filled(stack)
            before, index = await found(stack, other), stack.vector_io["exact"]
            assert index.held[store]  # type: ignore[attr-defined]
            await stores.remove(stack, store)
            assert await left(stack, store) == 0
            assert await orphans(stack) == [0, 0, 0, 0]
            assert store not in index.held  # type: ignore[attr-defined]
            assert await found(stack, other) == before
            with pytest.raises(NotFound):
                await stores.remove(stack, store)

    asyncio.run(run())


def test_what_a_crash_left_of_a_deleted_store_goes_later(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            store, index = await filled(stack), stack.vector_io["exact"]
            await stack.store.write(lambda connection: state.drop(connection, store))
            with pytest.raises(NotFound):
                await stores.get(stack, store)
            with pytest.raises(NotFound):
                await found(stack, store)
            assert await left(stack, store) > 1
            await upkeep.expire(stack)
            assert (await left(stack, store), await orphans(stack)) == (0, [0, 0, 0, 0])
            assert store not in index.held  # type: ignore[attr-defined]

    asyncio.run(run())


def test_an_index_that_cannot_be_reached_is_dropped_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with built(config(tmp_path)) as stack:
            store, index = await filled(stack), stack.vector_io["exact"]

            async def broken(_: object) -> None:
                raise Unavailable("the index is out of order")

            with monkeypatch.context() as patch:
                patch.setattr(index, "drop", broken)
                await stores.remove(stack, store)
                await upkeep.expire(stack)
                assert await left(stack, store) == 1
            await upkeep.expire(stack)
            assert await left(stack, store) == 0
            assert store not in index.held  # type: ignore[attr-defined]

    asyncio.run(run())


def test_a_store_is_deleted_while_its_files_are_worked_on(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            stack.inference["test"].pause = 0.05  # type: ignore[attr-defined]
            files = [await upload(stack, f"{n}.md", article(f"crane{n}")) for n in range(4)]
            store = await store_of(stack, *files)
            inserted = asyncio.create_task(raw.insert(stack, inserting(store, *"abc")))
            await asyncio.sleep(0.1)
            await stores.remove(stack, store)
            outcome = (await asyncio.gather(inserted, return_exceptions=True))[0]
            assert outcome == ["a", "b", "c"] or isinstance(outcome, NotFound)
            await asyncio.sleep(0.3)
            assert (await left(stack, store), await orphans(stack)) == (0, [0, 0, 0, 0])

    asyncio.run(run())


def test_an_expired_store_says_so_and_is_cleared(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            file = await upload(stack, "a.md", article("quails"))
            store = await store_of(stack, file, expires_after={"anchor": "last_active_at", "days": 2})
            await settled(stack, store)
            await raw.insert(stack, inserting(store, "a"))
            await aged(stack, store, days=1.9)
            await upkeep.expire(stack)
            assert len(await found(stack, store)) > 1  # and that counts as a use
            await aged(stack, store, days=1.9)
            await stores.attach(stack, store, StoreFileRequest(file_id=file))
            await aged(stack, store, days=2)
            shown = await stores.get(stack, store)
            assert shown.status == "expired" and shown.file_counts.completed == 1
            used: list[Any] = [
                found(stack, store),
                attach(stack, store, file),
                raw.insert(stack, inserting(store, "b")),
                stores.update(stack, store, VectorStoreUpdate(expires_after=None)),
            ]
            for use in used:
                with pytest.raises(InvalidRequest, match="expired") as caught:
                    await use
                assert caught.value.code == "expired"
            await upkeep.expire(stack)
            shown = await stores.get(stack, store)
            assert (shown.status, shown.file_counts.total, shown.usage_bytes) == ("expired", 0, 0)
            assert (await left(stack, store), await orphans(stack)) == (1, [0, 0, 0, 0])
            assert store not in stack.vector_io["exact"].held  # type: ignore[attr-defined]
            await stores.remove(stack, store)
            assert await left(stack, store) == 0

    asyncio.run(run())


def test_a_search_is_a_use_but_no_write_each_time(tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path)) as stack:
            store = await store_of(stack)

            async def active() -> float:
                row = await stack.store.read(partial(state.get, store_id=store))
                return float(row.last_active_at)

            await found(stack, store)
            first = await active()
            await found(stack, store)
            assert await active() == first
            await aged(stack, store, days=1)
            await found(stack, store)
            assert await active() >= first - 1

    asyncio.run(run())


def test_chunks_of_an_insert_that_crashed_are_never_found_and_go(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            store = await store_of(stack)
            await raw.insert(stack, inserting(store, "a"))
            ages = {"hidden_old": STALE, "hidden_new": 0}

            def crashed(connection: Connection) -> None:
                for id, age in ages.items():
                    given: Any = {"filename": "b", "attributes": {}, "chunking": "{}", "size": 1, "raw": True}
                    key = contents.add(connection, store, id=id, **given)
                    ago = update(documents).where(documents.c.key == key)
                    connection.execute(ago.values(created_at=documents.c.created_at - age))

            await stack.store.write(crashed)
            await upkeep.expire(stack)
            ids = select(documents.c.id).where(documents.c.store == store).order_by(documents.c.key)
            kept = await stack.store.read(lambda connection: [*connection.scalars(ids)])
            assert kept == ["a", "hidden_new"]
            assert await found(stack, store) == ["a"]

    asyncio.run(run())


# ---------------------------------------------------------------- names and models


def test_a_store_is_found_by_its_id_or_by_a_name_that_only_it_has(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            one = await store_of(stack, name="birds")
            two, three = [await store_of(stack, name="fish") for _ in range(2)]
            trap = await store_of(stack, name=one)
            unnamed = await store_of(stack)
            for name, expected in (("birds", one), (one, one), (trap, trap), (unnamed, unnamed)):
                assert (await state.resolve(stack.store, name)).id == expected
            with pytest.raises(InvalidRequest, match=f"{two}, {three}"):
                await state.resolve(stack.store, "fish")
            for name in ("", "bird", "vs_nowhere", "a\0b"):
                with pytest.raises(NotFound):
                    await state.resolve(stack.store, name)

    asyncio.run(run())


class Unsaid(Scripted):  # type: ignore[misc]  # checked under its other name
    """Does not say how long its vectors are, as remote servers do not."""

    async def models(self) -> list[Any]:
        cards = await super().models()
        return [card.model_copy(update={"embedding_dimension": None}) for card in cards]


def with_models(folder: Path, *models: str, provider: str = "scripted", **sections: Any) -> Any:
    inference = {"provider": provider, "models": ["m"], "embedding_models": [*models]}
    return config(folder, inference={"test": inference}, **sections)


def test_a_distribution_without_an_embedding_model_says_what_to_add(tmp_path: Path) -> None:
    async def run() -> None:
        async with built(with_models(tmp_path)) as stack:
            with pytest.raises(
                InvalidRequest, match=r"needs one under `inference`.*defaults.embedding_model"
            ) as caught:
                await store_of(stack)
            assert caught.value.param == "embedding_model"
        async with built(with_models(tmp_path, "e", "f")) as stack:
            with pytest.raises(InvalidRequest, match="test/e, test/f"):
                await store_of(stack)
            assert (
                await stores.create(stack, VectorStoreRequest(embedding_model="f"))
            ).embedding_model == "test/f"
        named = {"embedding_model": "test/e", "vector_io": "exact"}
        async with built(with_models(tmp_path, "e", "f", defaults=named)) as stack:
            made = await stores.create(stack, VectorStoreRequest())
            assert (made.embedding_model, made.provider) == ("test/e", "exact")

    asyncio.run(run())


def test_a_model_is_asked_how_long_its_vectors_are(tmp_path: Path) -> None:
    async def run() -> None:
        unsaid = with_models(tmp_path, "e", provider="tests.test_store_life:Unsaid")
        async with built(unsaid) as stack:
            made = await stores.create(stack, VectorStoreRequest(embedding_dimension=64))
            assert made.embedding_dimension == 64
            await raw.insert(stack, inserting(made.id, "a", "b"))
            assert sorted(await found(stack, made.id, "raw")) == ["a", "b"]
            with pytest.raises(InvalidRequest, match="64, not 32"):
                await store_of(stack, embedding_dimension=32)

    asyncio.run(run())


def test_a_store_whose_model_is_gone_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        async with built(with_models(tmp_path, "e")) as stack:
            store = await store_of(stack)
            file = await upload(stack, "a.md", "text")
        async with built(with_models(tmp_path, "f")) as stack:
            assert (await stores.get(stack, store)).embedding_model == "test/e"
            uses: list[Any] = [attach(stack, store, file), raw.insert(stack, inserting(store, "a"))]
            for use in uses:
                with pytest.raises(InvalidRequest, match="model that is gone"):
                    await use
            await stores.remove(stack, store)

    asyncio.run(run())


def test_a_chunk_that_is_too_long_for_the_model_is_named(tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path)) as stack:
            store = await store_of(stack)
            card = stack.models["test/words"].card
            card.context_length = 20
            long = {"content": "word " * 30}
            given = {"vector_store_id": store, "chunks": [{"content": "short"}, long]}
            with pytest.raises(InvalidRequest, match="reads at most 20") as caught:
                await raw.insert(stack, InsertRequest.model_validate(given))
            assert caught.value.param == "chunks[1].content"
            given["chunks"] = [{**long, "embedding": [1.0] * (card.embedding_dimension or 0)}]
            await raw.insert(stack, InsertRequest.model_validate(given))

    asyncio.run(run())


def test_what_a_shield_refuses_never_gets_into_a_store(tmp_path: Path) -> None:
    async def run() -> None:
        guard = {"safety": {"guard": {"provider": "canary", "words": ["kingfisher"]}}}
        async with built(config(tmp_path, enforce={"upload": ["guard"]}, **guard)) as stack:
            store = await store_of(stack)
            places: list[dict[str, Any]] = [
                {"content": "a kingfisher"},
                {"content": "x", "metadata": {"k": "kingfisher"}},
                {"content": "x", "metadata": {"kingfisher": 1}},
                {"content": "kingfisher", "embedding": [1.0]},
            ]
            for place in places:
                given = {"vector_store_id": store, "chunks": [{"content": "x"}] * 9 + [place]}
                with pytest.raises(InvalidRequest) as caught:
                    await raw.insert(stack, InsertRequest.model_validate(given))
                assert (caught.value.code, caught.value.param) == ("content_filter", "chunks[9]")
            assert await found(stack, store) == []

    asyncio.run(run())


# ---------------------------------------------------------------- many at once


@asynccontextmanager
async def replica(settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test/v1", timeout=60) as client:
            yield client


def test_many_clients_at_once_leave_the_right_counts(url: str, tmp_path: Path) -> None:
    """Each of 20 attaches a file, puts in chunks, searches, and takes half of that out again."""

    async def client(stack: Stack, store: str, number: int) -> None:
        file = await upload(stack, f"{number}.md", f"# Bird {number}\n\nA text about bird {number}.")
        await attach(stack, store, file, attributes={"n": number})
        await raw.insert(stack, inserting(store, f"{number}-a", f"{number}-b"))
        assert f"{number}-a" in await found(stack, store, f"raw {number}-a")
        await raw.remove(stack, DeleteRequest(vector_store_id=store, chunk_ids=[f"{number}-b"]))
        if number % 2:
            await stores.detach(stack, store, file)
        assert f"{number}-b" not in await found(stack, store)

    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            store = await store_of(stack)
            await asyncio.gather(*(client(stack, store, number) for number in range(20)))
            counts = await settled(stack, store)
            assert (counts.completed, counts.total) == (10, 10)
            every = await found(stack, store)
            assert sorted(id for id in every if not id.startswith("file")) == sorted(
                f"{n}-a" for n in range(20)
            )
            assert len(every) == 30
            assert await orphans(stack) == [0, 0, 0, 0]
            assert len(stack.vector_io["exact"].held[store]) == 30  # type: ignore[attr-defined]

    asyncio.run(run())


def test_the_same_chunk_from_many_at_once_is_there_once(url: str, tmp_path: Path) -> None:
    async def run() -> None:
        async with built(config(tmp_path, storage=url)) as stack:
            store = await store_of(stack)
            one, two = inserting(store, "a", "b"), inserting(store, "b", "a")
            await asyncio.gather(*(raw.insert(stack, each) for each in [one, two] * 6))
            assert sorted(await found(stack, store)) == ["a", "b"]
            assert await orphans(stack) == [0, 0, 0, 0]
            assert len(stack.vector_io["exact"].held[store]) == 2  # type: ignore[attr-defined]

    asyncio.run(run())


def test_replicas_on_one_database_see_each_other_at_once(tmp_path: Path) -> None:
    """Two servers with an index of their own each, on one PostgreSQL."""
    faiss = {"vector_io": {"faiss": {"provider": "faiss"}}}

    async def run(storage: str) -> None:
        settings = [config(tmp_path, storage=storage, name=name, **faiss) for name in ("one", "two")]
        async with replica(settings[0]) as one, replica(settings[1]) as two:
            store = (await one.post("/vector_stores", json={"name": "shared"})).json()["id"]
            for writer, reader, id in ((one, two, "a"), (two, one, "b"), (one, two, "c")):
                chunk = {"content": f"bird {id}", "chunk_id": id}
                body = {"vector_store_id": store, "chunks": [chunk]}
                assert (await writer.post("/vector-io/insert", json=body)).status_code == 200
                asked = {"vector_store_id": store, "query": f"bird {id}", "search_mode": "vector"}
                hits = (await reader.post("/vector-io/query", json=asked)).json()["chunks"]
                assert id in [hit["chunk_id"] for hit in hits]
            gone = {"vector_store_id": store, "chunk_ids": ["a"]}
            await two.post("/vector-io/delete", json=gone)
            asked = {"vector_store_id": store, "query": "bird a", "search_mode": "vector"}
            hits = (await one.post("/vector-io/query", json=asked)).json()["chunks"]
            assert sorted(hit["chunk_id"] for hit in hits) == ["b", "c"]
            assert (await two.delete(f"/vector_stores/{store}")).status_code == 200
            assert (await one.get(f"/vector_stores/{store}")).status_code == 404
            assert (await one.post("/vector-io/query", json=asked)).status_code == 404

    with database("postgresql", tmp_path) as storage:
        asyncio.run(run(storage))
