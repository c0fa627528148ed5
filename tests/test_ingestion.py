"""Files become searchable as jobs: whole or not at all, each with its own end, on either database."""

import asyncio
import contextlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfWriter
from sqlalchemy import Connection, Engine, event, func, select, text, update

from llama_stack_lite.api.ids import token
from llama_stack_lite.api.vector_stores import Search, StoreFileRequest
from llama_stack_lite.errors import Conflict, NotFound, Unavailable, UpstreamError
from llama_stack_lite.providers.safety.canary import Canary
from llama_stack_lite.rag import ingestion, stores
from llama_stack_lite.rag.chunking import Chunk
from llama_stack_lite.rag.embedding import BATCH, Embedder, checked
from llama_stack_lite.rag.search import search, words
from llama_stack_lite.state import document_leases as leases
from llama_stack_lite.state import documents as state
from llama_stack_lite.state import store_files, vector_stores
from llama_stack_lite.state.journal import LeaseLost
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import chunks, documents, dropped_chunks
from tests.support.databases import KINDS, database
from tests.support.ingesting import (
    article,
    attach,
    built,
    claimed,
    config,
    counted,
    index_of,
    kept,
    model_of,
    settled,
    shown,
    store_of,
    until,
    until_embedded,
    upload,
)

ROW = {
    "id": "vs_Ab-1",
    "created_at": 1.0,
    "name": "",
    "metadata": "{}",
    "provider": "exact",
    "model": "test/words",
    "dimension": 2,
    "chunking": "{}",
}
STORE = "vs_Ab-1"
PLAIN: dict[str, Any] = {"filename": "a.txt", "attributes": {}, "chunking": "{}", "size": 9}


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with database(request.param, tmp_path) as url:
        yield url


@contextlib.asynccontextmanager
async def opened(url: str) -> Any:
    store = await Store.open(url)
    try:
        await store.write(lambda connection: vector_stores.add(connection, ROW) and None)
        yield store
    finally:
        await store.aclose()


def chunk(said: str) -> Chunk:
    return Chunk(said, ["One", "Two"], 3, len(said.split()), None)


def put(connection: Connection, id: str, *texts: str, **fields: Any) -> tuple[int, list[int]]:
    """A document with chunks and vectors that cannot be found yet."""
    document = state.add(connection, STORE, id=id, **PLAIN | fields)
    found = [chunk(said) for said in texts]
    keys = state.add_chunks(connection, STORE, document, found, [" ".join(words(each)) for each in texts])
    state.put_vectors(connection, keys, b"\0\0\x80?\0\0\0\0" * len(keys), 2)
    return document, keys


def matching(connection: Connection, word: str, *, of: str = STORE) -> list[int]:
    """The keys of chunks of a store that have a word, whether they can be found or not."""
    if connection.dialect.name == "sqlite":
        query = text("SELECT rowid FROM keywords WHERE keywords MATCH :asked ORDER BY rowid")
        asked = f'store: "{token(of)}" AND terms: "{word}"'
    else:
        query = text("SELECT key FROM keywords WHERE terms @@ CAST(:asked AS tsquery) ORDER BY key")
        asked = f"'{token(of)}' & '{word}'"
    return [*connection.scalars(query, {"asked": asked})]


# ---------------------------------------------------------------- what is kept of documents


def test_a_document_is_found_from_the_next_version_on_and_goes_without_a_trace(url: str) -> None:
    def first(connection: Connection) -> tuple[int, list[int]]:
        document, keys = put(connection, "one", "whales swim", "it's a \\ 鯨 réunion", "whales\0 sing")
        more = state.add_chunks(connection, STORE, document, [chunk("behind them")], ["behind them"])
        state.put_vectors(connection, more, b"\0\0\0\0\0\0\x80?", 2)
        assert matching(connection, "whale") == [keys[0], keys[2]]
        assert matching(connection, "鯨") == [keys[1]] and matching(connection, "réunion") == [keys[1]]
        assert matching(connection, "whale", of="another") == []
        rows = connection.execute(select(chunks).order_by(chunks.c.position)).all()
        assert [row.position for row in rows] == [0, 1, 2, 3] and rows[2].text == "whales sing"
        assert (rows[0].headings, rows[0].page, rows[0].tokens) == ('["One", "Two"]', 3, 2)
        return document, keys + more

    async def scenario() -> None:
        async with opened(url) as store:
            document, keys = await store.write(first)
            assert (await store.read(lambda c: state.counts(c, store=STORE))).in_progress == 1
            version = await store.write(lambda c: state.publish(c, STORE, document))
            row = await store.read(lambda c: c.execute(select(documents)).one())
            assert (row.status, row.version, row.chunks, row.embedded) == ("completed", version, 4, 4)
            assert row.bytes == len("whales swimit's a \\ 鯨 réunionwhales singbehind them".encode())
            with pytest.raises(Conflict):  # it has been
                await store.write(lambda c: state.publish(c, STORE, document))
            assert await store.write(lambda c: state.remove(c, STORE, ["one", "none"])) == keys
            dropped = await store.read(lambda c: c.execute(select(dropped_chunks)).all())
            assert [tuple(row) for row in dropped] == [(STORE, version + 1, key) for key in keys]
            for table in ("documents", "chunks", "vectors", "keywords", "document_attributes"):
                count = text(f"SELECT count(*) FROM {table}")
                assert await store.read(lambda c, count=count: c.scalar(count)) == 0
            with pytest.raises(NotFound):
                await store.write(lambda c: state.remove(c, "vs_gone", ["one"]))

    asyncio.run(scenario())


def test_only_what_could_be_found_is_told_to_indexes_as_dropped(url: str) -> None:
    async def scenario() -> None:
        async with opened(url) as store:
            _, keys = await store.write(lambda c: put(c, "one", "never found"))
            assert await store.write(lambda c: state.remove(c, STORE, ["one"])) == keys
            assert await store.read(lambda c: c.scalar(select(func.count()).select_from(dropped_chunks))) == 0
            assert await store.write(lambda c: state.locked(c, STORE)) == 0

    asyncio.run(scenario())


def test_the_same_file_again_stays_as_it_is_and_another_chunking_starts_it_anew(url: str) -> None:
    def again(connection: Connection, **fields: Any) -> int:
        return state.add(connection, STORE, id="one", **PLAIN | fields)

    async def scenario() -> None:
        async with opened(url) as store:
            document, keys = await store.write(lambda c: put(c, "one", "text"))
            assert await store.write(again) == document
            await store.write(lambda c: state.publish(c, STORE, document))
            attributes = {"lang": "en", "year": 2024, "draft": True}
            assert await store.write(lambda c: again(c, attributes=attributes, batch="b")) == document
            rows = text("SELECT name, kind, text, number FROM document_attributes ORDER BY name")
            found = await store.read(lambda c: [tuple(row) for row in c.execute(rows)])
            assert found == [("draft", "b", None, 1), ("lang", "s", "en", None), ("year", "n", None, 2024)]
            assert (await store.read(lambda c: state.counts(c, batch="b"))).completed == 1
            anew = await store.write(lambda c: again(c, chunking='{"type": "static"}'))
            row = await store.read(lambda c: c.execute(select(documents)).one())
            assert anew != document and (row.status, row.chunks) == ("in_progress", 0)
            dropped = select(dropped_chunks.c.key).where(dropped_chunks.c.version == row.version)
            assert await store.read(lambda c: [*c.scalars(dropped)]) == keys

    asyncio.run(scenario())


def test_a_word_in_a_tsvector_keeps_its_places_within_postgresql_s_bounds() -> None:
    assert state.tsvector(["it's", "a", "\\", "it's"]) == r"'it''s':1,4 'a':2 '\\':3"
    assert state.tsvector(["x" * 3000, "short"]) == "'short':2"
    places = state.tsvector(["again"] * 20_000).split(":")[1].split(",")
    assert (
        len(places) == 256 and max(map(int, state.tsvector(["a"] * 17_000 + ["b"]).split(":")[-1:])) == 16_383
    )


# ---------------------------------------------------------------- leases


def test_a_lease_goes_to_one_and_to_the_next_when_it_runs_out(url: str) -> None:
    async def scenario() -> None:
        async with opened(url) as store:
            for name in ("one", "two"):
                await store.write(lambda c, name=name: state.add(c, STORE, id=name, **PLAIN))
            await store.write(lambda c: state.add(c, STORE, id="raw", raw=True, **PLAIN))
            first, second = await asyncio.gather(claimed(store, "a"), claimed(store, "b"))
            assert {first.id, second.id} == {"one", "two"}
            assert await leases.claim(store, "c", lease=30) is None
            assert (first.provider, first.model, first.dimension) == ("exact", "test/words", 2)
            await leases.step(store, first, lambda c: None)
            expire = update(documents).where(documents.c.key == first.key)
            await store.write(lambda c: c.execute(expire.values(leased_until=1)) and None)
            assert await leases.kept(store, "a", {first.key, second.key}) == {first.key}
            taken = await claimed(store, "c")
            assert (taken.id, taken.attempts) == (first.id, 2)
            with pytest.raises(LeaseLost):
                await leases.step(store, first, lambda c: state.set_attributes(c, first.key, {"x": 1}))
            await leases.renew(store, "a", {first.key}, lease=0)
            assert await leases.claim(store, "d", lease=30) is None
            await leases.put_off(store, taken, seconds=-1)  # over, whatever a clock tells apart
            again = await claimed(store, "d")
            assert (again.id, again.attempts) == (first.id, 2)  # being put off was no attempt
            await leases.release(store, "d")
            assert (await claimed(store, "e")).attempts == 2

    asyncio.run(scenario())


# ---------------------------------------------------------------- files, to their end


def encrypted() -> bytes:
    writer, target = PdfWriter(), io.BytesIO()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret")
    writer.write(target)
    return target.getvalue()


def bomb() -> bytes:
    """A Word document that unpacks to 200 MB."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", '<Types xmlns="x"/>')
        archive.writestr("word/document.xml", b"<w:p>" + b" " * 200_000_000)
    return target.getvalue()


def test_bad_files_fail_each_with_its_reason_and_the_good_beside_them_are_found(
    url: str, tmp_path: Path
) -> None:
    limits = {"max_text_bytes": 100_000, "parse_seconds": 10, "workers": 3}
    bad = {
        "torn.pdf": (b"%PDF-1.7\n1 0 obj <</Type/Catalog>> torn", "invalid_file"),
        "locked.pdf": (encrypted(), "invalid_file"),
        "bomb.docx": (bomb(), "invalid_file"),
        "long.txt": (b"all work and no play\n" * 10_000, "invalid_file"),
        "program.bin": (bytes(range(256)) * 64, "unsupported_file"),
        "empty.txt": (b"  \n", "invalid_file"),
    }

    async def scenario() -> None:
        async with built(config(tmp_path, storage=url, documents=limits)) as stack:
            files = {name: await upload(stack, name, content) for name, (content, _) in bad.items()}
            good = {
                name: await upload(stack, f"{name}.md", article(name)) for name in ("okapi", "ibex", "gnu")
            }
            missing = await upload(stack, "missing.txt", "soon gone")
            store = await store_of(stack, *files.values(), *good.values(), missing)
            counts = await settled(stack, store)
            assert (counts.completed, counts.failed, counts.total) == (4, 6, 10)
            for name, file in files.items():
                found = await shown(stack, store, file)
                error = found["last_error"]
                assert found["status"] == "failed" and error["code"] == bad[name][1], (name, error)
                assert len(error["message"]) > 15 and "Traceback" not in error["message"]
                assert (found["chunks"], found["usage_bytes"]) == (0, 0)
            for mark, file in good.items():
                hits = await search(stack, [store], [mark], Search(max_num_results=50))
                found = await shown(stack, store, file)
                assert {hit.file_id for hit in hits.data if mark in hit.text()} == {file}
                assert (found["status"], found["progress"]) == ("completed", 1) and found["chunks"] > 1
            held = index_of(stack).held[store]
            rows = await kept(stack)
            assert rows["chunks"] == rows["vectors"] == len(held)

    asyncio.run(scenario())


def test_nothing_of_a_file_is_found_before_all_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with built(config(tmp_path)) as stack:
            index = index_of(stack)
            index.gate.clear()
            file = await upload(stack, "okapi.md", article("okapi", paragraphs=9))
            store = await store_of(stack, file)
            await until(lambda: index.waiting == 1)
            assert (await search(stack, [store], ["okapi"], Search())).data == []
            found = await shown(stack, store, file)
            assert (found["status"], found["progress"], found["chunks"]) == ("in_progress", 1, 0)
            index.gate.set()
            await settled(stack, store)
            whole = (await search(stack, [store], ["okapi"], Search(max_num_results=50))).data
            assert len(whole) == len(index.held[store])

    asyncio.run(scenario())


def test_a_file_goes_on_from_the_first_chunk_without_a_vector(url: str, tmp_path: Path) -> None:
    """By another server, as soon as the lease of the first has run out; it embeds nothing twice."""
    settings: dict[str, Any] = {"documents": {"lease": 1}}

    async def scenario() -> None:
        async with built(config(tmp_path, storage=url, **settings)) as first:
            model = model_of(first)
            model.pause = 0.2
            file = await upload(first, "okapi.md", article("okapi", paragraphs=200))
            store = await store_of(first, file)
            await until_embedded(first, store, file)
            for task in [*first.ingestion._loops, *first.ingestion._working.values()]:
                task.cancel()  # as if it were dead
            await asyncio.sleep(0.3)
            done = (await shown(first, store, file))["progress"]
            assert 0 < done < 1
            async with built(config(tmp_path, storage=url, **settings)) as second:
                await settled(second, store)
                texts = [each for call in model_of(second).calls for each in call]
                rows = await kept(second)
                found = await shown(second, store, file)
            assert len(texts) == round(rows["chunks"] * (1 - done)) == len({*texts})
            assert found["status"] == "completed" and rows["vectors"] == rows["chunks"] == found["chunks"]

    asyncio.run(scenario())


def test_two_servers_share_the_work_and_do_no_file_twice(tmp_path: Path) -> None:
    async def scenario(url: str) -> None:
        async with built(config(tmp_path, storage=url)) as one, built(config(tmp_path, storage=url)) as two:
            for stack in (one, two):
                model_of(stack).pause = 0.05
            files = [await upload(one, f"{name}.md", article(f"beast{name}")) for name in range(30)]
            store = await store_of(one, *files)
            two.ingestion.wake()
            assert (await settled(two, store)).completed == 30
            texts = [[each for call in model_of(stack).calls for each in call] for stack in (one, two)]
            rows = await kept(one)
            assert all(texts) and len(texts[0]) + len(texts[1]) == rows["chunks"] == rows["vectors"]

    with database("postgresql", tmp_path) as url:
        asyncio.run(scenario(url))


def test_a_server_that_stops_lets_go_of_its_files_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings: dict[str, Any] = {"documents": {"lease": 60, "attempts": 1}}
        async with built(config(tmp_path, **settings)) as stack:
            model_of(stack).pause = 5
            store = await store_of(stack, await upload(stack, "okapi.md", article("okapi")))
            await until(lambda: stack.ingestion._working)
        async with built(config(tmp_path, **settings)) as stack:
            assert (await settled(stack, store, within=3)).completed == 1

    asyncio.run(scenario())


# ---------------------------------------------------------------- what goes wrong on the way


def test_what_the_server_is_to_blame_for_is_tried_again_and_then_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "AGAIN_AFTER", (0.01, 0.01, 0.01))
    monkeypatch.setattr(ingestion, "LOOK_EVERY", 0.05)

    async def scenario() -> None:
        async with built(config(tmp_path)) as stack:
            model, index = model_of(stack), index_of(stack)
            model.broken = 2
            file = await upload(stack, "okapi.md", article("okapi"))
            store = await store_of(stack, file)
            assert (await settled(stack, store)).completed == 1 and model.broken == 0
            model.broken = 1_000
            lost = await upload(stack, "ibex.md", article("ibex"))
            await attach(stack, store, lost)
            counts = await settled(stack, store)
            assert (counts.completed, counts.failed) == (1, 1) and model.broken == 1_000 - 4
            error = (await shown(stack, store, lost))["last_error"]
            assert error == {"code": "server_error", "message": "the embedding model is out of order"}
            model.broken, index.broken = 0, True
            await attach(stack, store, lost)  # a file that failed can be put in once more
            await asyncio.sleep(0.1)
            index.broken = False
            assert (await settled(stack, store)).completed == 2

    asyncio.run(scenario())


def test_a_file_that_ends_its_server_each_time_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with built(config(tmp_path, documents={"workers": 0})) as stack:
            file = await upload(stack, "okapi.md", article("okapi"))
            store = await store_of(stack, file)
            for worker in ("a", "b", "c"):
                assert (await claimed(stack.store, worker, lease=-1)).id == file
        async with built(config(tmp_path)) as stack:
            assert (await settled(stack, store)).failed == 1
            error = (await shown(stack, store, file))["last_error"]
            assert error["message"] == "the server stopped 3 times while it worked on this file"

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["cancel", "detach", "delete"])
def test_work_stops_on_what_is_not_wanted_any_more_and_leaves_nothing(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "LOOK_EVERY", 0.05)

    async def scenario() -> None:
        async with built(config(tmp_path)) as stack:
            index = index_of(stack)
            index.gate.clear()
            store = await store_of(stack)
            files = [await upload(stack, f"{name}.md", article(name)) for name in ("okapi", "ibex")]
            batch = await stack.store.write(
                lambda c: store_files.add_batch(
                    c, store, {name: StoreFileRequest(file_id=name) for name in files}
                )
            )
            stack.ingestion.wake()
            await until(lambda: index.waiting == 2)
            if how == "cancel":
                found = await stack.store.write(lambda c: store_files.cancel(c, store, batch.id))
                assert found.file_counts.cancelled == 2
            elif how == "detach":
                await stores.detach(stack, store, files[0])
                await stores.detach(stack, store, files[1])
            else:
                await stores.remove(stack, store)
            await until(lambda: not stack.ingestion._working)
            rows = await kept(stack)
            assert rows["chunks"] == rows["vectors"] == 0 == len(index.held[store])
            assert rows["documents"] == (2 if how == "cancel" else 0)

    asyncio.run(scenario())


def test_what_is_left_of_a_cancelled_file_whose_worker_is_gone_is_tidied_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with built(config(tmp_path, documents={"workers": 0})) as stack:
            store = await store_of(stack, await upload(stack, "okapi.md", article("okapi")))
            work = await claimed(stack.store, "gone")

            def write(connection: Connection) -> list[int]:
                return state.add_chunks(connection, store, work.key, [chunk("left over")], ["left over"])

            keys = await leases.step(stack.store, work, write)
            index = index_of(stack)
            index.held[store] = dict.fromkeys(keys, b"")
            await stack.store.write(lambda c: vector_stores.stop(c, documents.c.key == work.key))
        async with built(config(tmp_path, documents={"workers": 0})) as stack:
            late = asyncio.get_running_loop().time() + 5
            while (await kept(stack))["chunks"]:
                assert asyncio.get_running_loop().time() < late
                await asyncio.sleep(0.02)
            assert (await counted(stack, store)).cancelled == 1

    asyncio.run(scenario())


def test_an_upload_that_a_shield_refuses_fails_and_nothing_passes_unjudged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingestion, "AGAIN_AFTER", (0.01,))
    sections: dict[str, Any] = {
        "safety": {"bird": {"provider": "canary"}},
        "enforce": {"upload": ["bird"]},
    }

    async def scenario() -> None:
        async with built(config(tmp_path, **sections)) as stack:
            said = article("okapi", paragraphs=12)
            fine = await upload(stack, "okapi.md", said)
            inside = await upload(stack, "ibex.md", said + "\n\nand a canary at the end")
            named = await upload(stack, "canary.md", said)
            store = await store_of(stack, fine, inside, named)
            counts = await settled(stack, store)
            assert (counts.completed, counts.failed) == (1, 2)
            for file in (inside, named):
                error = (await shown(stack, store, file))["last_error"]
                assert error["code"] == "invalid_file" and "safety policy" in error["message"]
            bird = stack.safety["bird"]
            assert isinstance(bird, Canary)
            seen = "\n".join(turn.text for turn in bird.seen)
            for number in range(12):
                assert f"okapi part {number}" in seen
            bird.fault = "error"
            other = await upload(stack, "gnu.md", article("gnu"))
            await attach(stack, store, other)
            await settled(stack, store)
            error = (await shown(stack, store, other))["last_error"]
            assert error["code"] == "server_error" and "could not judge" in error["message"]
            assert (await search(stack, [store], ["gnu"], Search(search_mode="keyword"))).data == []

    asyncio.run(scenario())


def test_a_full_disk_delays_files_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "AGAIN_AFTER", (0.1,) * 100)
    monkeypatch.setattr(ingestion, "LOOK_EVERY", 0.1)
    pages = 0

    async def scenario() -> None:
        nonlocal pages
        async with built(config(tmp_path)) as stack:
            store = await store_of(stack, await upload(stack, "okapi.md", article("okapi")))
            await settled(stack, store)
            large = await upload(stack, "ibex.md", article("ibex", paragraphs=400))
            bound(stack.store.engine)
            pages = await stack.store.read(lambda c: c.scalar(text("PRAGMA page_count"))) + 12
            await attach(stack, store, large)
            await asyncio.sleep(1)
            assert (await shown(stack, store, large))["status"] == "in_progress"
            assert (await search(stack, [store], ["okapi"], Search())).data
            pages = 2**30
            counts = await settled(stack, store)
            assert (counts.completed, counts.total) == (2, 2)
            rows = await kept(stack)
            assert rows["chunks"] == rows["vectors"] == len(index_of(stack).held[store])

    def bound(engine: Engine) -> None:
        @event.listens_for(engine, "begin")
        def _(connection: Connection) -> None:
            raw: Any = connection.connection.driver_connection
            raw.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    asyncio.run(scenario())


# ---------------------------------------------------------------- embedding together


def test_many_small_files_are_embedded_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with built(config(tmp_path)) as stack:
            model = model_of(stack)
            model.pause = 0.3
            files = [await upload(stack, f"{name}.txt", f"a note about beast{name}") for name in range(60)]
            store = await store_of(stack, *files)
            assert (await settled(stack, store)).completed == 60
            assert sum(len(call) for call in model.calls) == 60 and len(model.calls) < 40
            assert max(map(len, model.calls)) <= BATCH

    asyncio.run(scenario())


def test_a_text_that_the_model_refuses_is_nobody_else_s_failure(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with built(config(tmp_path)) as stack:
            model, embedder = stack.model("test/words", "embedding"), Embedder()
            size = model.card.embedding_dimension or 0

            async def asked(*texts: str) -> bytes:
                return await embedder.vectors(model, [*texts], dimension=size)

            model_of(stack).refused = "hemlock"
            found = await asyncio.gather(
                asked("one"), asked("two", "hemlock"), asked("three"), return_exceptions=True
            )
            assert [type(each).__name__ for each in found] == ["bytes", "InvalidRequest", "bytes"]
            model_of(stack).broken = 1
            with pytest.raises(Unavailable):
                await asked("one")
            with pytest.raises(UpstreamError):
                await embedder.vectors(model, ["one"], dimension=size + 1)
            assert len(await asked("one")) == size * 4

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "vectors", [[[1.0]], [[0.0, 0.0]], [[float("nan"), 1.0]], [[float("inf"), 1.0]], [[1.0, 2.0], [1.0, 2.0]]]
)
def test_vectors_that_are_none_are_refused(vectors: list[list[float]]) -> None:
    assert checked(vectors, 1, 2) is None
    assert checked([[3.0, 4.0]], 1, 2) is not None
