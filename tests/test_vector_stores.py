"""/v1/vector_stores and /v1/vector-io: what can be asked, what is refused, and what is left afterwards."""

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from llama_stack_lite.state.database import engine_of
from llama_stack_lite.state.tables import (
    documents,
)
from tests.support.databases import KINDS, database
from tests.support.ingesting import article, config
from tests.support.serving import Running, serve

JsonObject = dict[str, Any]
DIMENSION = 16


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server on either kind of database."""
    folder = tmp_path_factory.mktemp("stores")
    model = {"models": ["chats"], "embedding_models": ["words"], "embedding_dimension": DIMENSION}
    inference = {"test": {"provider": "tests.support.ingesting:Stumbling", **model}}
    with (
        database(request.param, folder) as storage,
        serve(config(folder, storage=storage, inference=inference)) as running,
    ):
        yield running


class Client(httpx.Client):
    """Asks a server, and knows what should come of it."""

    def ask(self, method: str, path: str, status: int = 200, **given: Any) -> JsonObject:
        reply = self.request(method, path, **given)
        assert reply.status_code == status, reply.text
        found: JsonObject = reply.json()
        return found

    def new(self, **fields: Any) -> str:
        return str(self.ask("POST", "/vector_stores", json=fields)["id"])

    def upload(self, content: str, name: str = "a.md") -> str:
        file, about = {"file": (name, content)}, {"purpose": "assistants"}
        return str(self.ask("POST", "/files", files=file, data=about)["id"])

    def refused(self, path: str, body: JsonObject, status: int = 400) -> JsonObject:
        error: JsonObject = self.ask("POST", path, status, json=body)["error"]
        return error

    def insert(self, store: str, *given: JsonObject) -> list[str]:
        body = {"vector_store_id": store, "chunks": given}
        ids: list[str] = self.ask("POST", "/vector-io/insert", json=body)["chunk_ids"]
        return ids

    def query(self, store: str, **given: Any) -> list[str]:
        found = self.ask("POST", "/vector-io/query", json={"vector_store_id": store, **given})
        assert found["scores"] == [hit["score"] for hit in found["chunks"]]
        return [hit["chunk_id"] for hit in found["chunks"]]

    def settled(self, path: str) -> JsonObject:
        """An object once it is no longer in progress."""
        late = time.monotonic() + 20
        while (found := self.ask("GET", path))["status"] == "in_progress":
            assert time.monotonic() < late, found
            time.sleep(0.02)
        return found


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[Client]:
    with Client(base_url=f"{running.url}/v1", timeout=30) as client:
        yield client


@pytest.fixture
def database_of(running: Running) -> Iterator[Callable[..., Any]]:
    """Runs a statement in the server's own database."""
    engine = engine_of(running.app.state.stack.config.storage)

    def run(statement: Any) -> Any:
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            found = connection.execute(statement)
            return found.all() if found.returns_rows else None

    yield run
    engine.dispose()


def texts(page: JsonObject) -> list[str]:
    return [part["text"] for part in page["data"]]


# ---------------------------------------------------------------- stores


def test_a_store_says_what_it_was_made_with_and_what_is_in_it(client: Client) -> None:
    made = client.ask(
        "POST",
        "/vector_stores",
        json={
            "name": "Bücher",
            "description": "all of them",
            "metadata": {"owner": "me"},
            "expires_after": {"anchor": "last_active_at", "days": 2},
            "chunking_strategy": None,
        },
    )
    assert made == {
        "id": made["id"],
        "object": "vector_store",
        "created_at": made["created_at"],
        "name": "Bücher",
        "description": "all of them",
        "usage_bytes": 0,
        "file_counts": {"in_progress": 0, "completed": 0, "failed": 0, "cancelled": 0, "total": 0},
        "status": "completed",
        "expires_after": {"anchor": "last_active_at", "days": 2},
        "expires_at": made["last_active_at"] + 2 * 86_400,
        "last_active_at": made["last_active_at"],
        "metadata": {"owner": "me"},
        "embedding_model": "test/words",
        "embedding_dimension": DIMENSION,
        "provider": "exact",
    }
    assert abs(made["last_active_at"] - time.time()) < 60
    assert client.ask("GET", f"/vector_stores/{made['id']}") == made


def test_a_change_clears_what_is_null_and_leaves_what_is_not_said(client: Client) -> None:
    store = client.new(name="a", metadata={"k": "v"}, expires_after={"anchor": "last_active_at", "days": 1})
    path = f"/vector_stores/{store}"
    assert client.ask("POST", path, json={"name": "b"})["metadata"] == {"k": "v"}
    assert client.ask("POST", path, json={"metadata": {"x": "y"}})["metadata"] == {"x": "y"}
    cleared = client.ask("POST", path, json={"metadata": None, "expires_after": None})
    assert cleared["name"] == "b"
    assert (cleared["metadata"], cleared["expires_after"], cleared["expires_at"]) == ({}, None, None)
    assert client.ask("POST", path, json={"name": None})["name"] == ""
    again = client.ask("POST", path, json={"expires_after": {"anchor": "last_active_at", "days": 365}})
    assert again["expires_at"] == again["last_active_at"] + 365 * 86_400
    assert client.ask("POST", path, json={}) == again == client.ask("GET", path)


def test_stores_are_listed_in_pages_forwards_and_backwards(client: Client) -> None:
    made = [client.new(name=str(number)) for number in range(5)]

    def page(**given: Any) -> tuple[list[str], bool]:
        found = client.ask("GET", "/vector_stores", params=given)
        ids = [store["id"] for store in found["data"]]
        ends = (ids[0], ids[-1]) if ids else (None, None)
        assert (found["first_id"], found["last_id"]) == ends
        return ids, found["has_more"]

    newest = made[::-1]
    assert page(limit=2) == (newest[:2], True)
    assert page(limit=2, after=newest[1]) == (newest[2:4], True)
    assert page(limit=2, before=newest[3]) == (newest[1:3], True)
    assert page(limit=100, before=newest[2]) == (newest[:2], False)
    assert page(order="asc", after=made[1], limit=2) == (made[2:4], True)
    assert page(order="asc", after=made[3]) == (made[4:], False)
    assert page(order="asc", before=made[4], limit=2) == (made[2:4], True)
    assert page(order="asc", after=made[4]) == ([], False)
    assert page(after=newest[0], before=newest[3]) == (newest[1:3], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "vs_nowhere"}, "after"),
        ({"before": "no\0where"}, "before"),
    ],
)
def test_a_page_that_cannot_be_is_refused(client: Client, query: JsonObject, param: str) -> None:
    assert client.ask("GET", "/vector_stores", 400, params=query)["error"]["param"] == param


LONG = "x" * 513
STORE_MISTAKES: list[tuple[JsonObject, str]] = [
    ({"name": 5}, "name"),
    ({"name": "x" * 257}, "name"),
    ({"embedding_model": "test/wods"}, "embedding_model"),
    ({"embedding_model": "test/chats"}, "embedding_model"),
    ({"embedding_dimension": 15}, "embedding_dimension"),
    ({"provider": "exac"}, "provider"),
    ({"file_ids": ["file-1"]}, "file_ids[0]"),
    ({"file_ids": ["a b\0"]}, "file_ids[0]"),
    ({"metadata": {"k": LONG}}, "metadata.k"),
    ({"metadata": {"k": 5}}, "metadata.k"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"expires_after": {"anchor": "created_at", "days": 1}}, "expires_after.anchor"),
    ({"expires_after": {"anchor": "last_active_at", "days": 366}}, "expires_after.days"),
    ({"chunking_strategy": {"type": "other"}}, "chunking_strategy"),
    ({"chunking_strategy": {"type": "static"}}, "chunking_strategy.static"),
    (
        {
            "chunking_strategy": {
                "type": "static",
                "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 51},
            }
        },
        "chunking_strategy.static",
    ),
]


@pytest.mark.parametrize(("body", "param"), STORE_MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_a_new_store_is_told_with_its_field(
    client: Client, body: JsonObject, param: str
) -> None:
    before = client.ask("GET", "/vector_stores", params={"limit": 1})["first_id"]
    assert client.refused("/vector_stores", body)["param"] == param
    assert client.ask("GET", "/vector_stores", params={"limit": 1})["first_id"] == before


def test_close_names_are_offered(client: Client) -> None:
    assert "did you mean exact?" in client.refused("/vector_stores", {"provider": "exac"})["message"]
    error = client.refused("/vector_stores", {"embedding_model": "test/wods"})
    assert "did you mean test/words" in error["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", ""),
        ("DELETE", ""),
        ("GET", "/files"),
        ("GET", "/files/file-1"),
        ("DELETE", "/files/file-1"),
        ("GET", "/files/file-1/content"),
        ("GET", "/file_batches/vsfb_1"),
        ("POST", "/file_batches/vsfb_1/cancel"),
        ("GET", "/file_batches/vsfb_1/files"),
    ],
)
def test_what_is_not_there_is_not_found(client: Client, method: str, path: str) -> None:
    body: JsonObject = {"json": {}} if method == "POST" else {}
    for store in ("vs_nowhere", "no%00where"):
        error = client.ask(method, f"/vector_stores/{store}{path}", 404, **body)["error"]
        assert error["code"] == "not_found"
    if path.count("/") > 1:
        store = client.new()
        assert (
            client.ask(method, f"/vector_stores/{store}{path}", 404, **body)["error"]["code"] == "not_found"
        )


def test_nothing_can_be_done_with_a_store_that_is_not_there(client: Client) -> None:
    bodies: dict[str, JsonObject] = {
        "/vector_stores/vs_nowhere/files": {"file_id": "file-1"},
        "/vector_stores/vs_nowhere/files/file-1": {"attributes": {}},
        "/vector_stores/vs_nowhere/file_batches": {"file_ids": ["file-1"]},
        "/vector_stores/vs_nowhere/search": {"query": "q"},
        "/vector-io/insert": {"vector_store_id": "vs_nowhere", "chunks": [{"content": "c"}]},
        "/vector-io/query": {"vector_store_id": "vs_nowhere", "query": "q"},
        "/vector-io/delete": {"vector_store_id": "vs_nowhere", "chunk_ids": ["c"]},
    }
    for path, body in bodies.items():
        assert client.refused(path, body, 404)["code"] == "not_found"


# ---------------------------------------------------------------- files


def test_a_file_is_attached_found_changed_read_and_taken_out(client: Client) -> None:
    file, store = client.upload(article("herons")), client.new()
    path = f"/vector_stores/{store}/files"
    begun = client.ask("POST", path, json={"file_id": file, "attributes": {"year": 2024, "old": False}})
    assert begun["status"] == "in_progress" or begun["status"] == "completed"
    done = client.settled(f"{path}/{file}")
    assert (done["status"], done["last_error"], done["progress"]) == ("completed", None, 1)
    assert done["attributes"] == {"year": 2024, "old": False}
    content = client.ask("GET", f"{path}/{file}/content")
    size = sum(len(each.encode()) for each in texts(content)) + done["chunks"] * DIMENSION * 4
    assert done["usage_bytes"] == size == client.ask("GET", f"/vector_stores/{store}")["usage_bytes"]
    changed = client.ask("POST", f"{path}/{file}", json={"attributes": {"year": 2025}})
    assert changed == {**done, "attributes": {"year": 2025}}
    only = {"type": "eq", "key": "year", "value": 2025}
    hits = client.ask("POST", f"/vector_stores/{store}/search", json={"query": "herons", "filters": only})
    assert {hit["file_id"] for hit in hits["data"]} == {file}
    assert client.ask("POST", f"{path}/{file}", json={"attributes": None})["attributes"] == {}
    gone = client.ask("DELETE", f"{path}/{file}")
    assert gone == {"id": file, "object": "vector_store.file.deleted", "deleted": True}
    client.ask("GET", f"{path}/{file}", 404)
    client.ask("GET", f"/files/{file}")
    assert client.ask("GET", f"/vector_stores/{store}")["usage_bytes"] == 0
    assert client.ask("POST", f"/vector_stores/{store}/search", json={"query": "herons"})["data"] == []


def test_the_text_of_a_file_comes_in_pages(client: Client) -> None:
    file = client.upload(article("terns", paragraphs=6))
    static = {"type": "static", "static": {"max_chunk_size_tokens": 40, "chunk_overlap_tokens": 0}}
    store = client.new(file_ids=[file], chunking_strategy=static)
    path = f"/vector_stores/{store}/files/{file}"
    assert client.settled(path)["chunking_strategy"] == static
    whole = client.ask("GET", f"{path}/content")
    assert len(texts(whole)) > 4 and not whole["has_more"] and whole["next_page"] is None
    found: list[str] = []
    following: str | None = "0"
    while following:
        page = client.ask("GET", f"{path}/content", params={"page": following, "limit": 3})
        assert len(texts(page)) == 3 or not page["has_more"]
        found += texts(page)
        following = page["next_page"]
    assert found == texts(whole)


def test_files_are_listed_by_status_and_in_pages(client: Client) -> None:
    good = [client.upload(article(f"gull{number}"), f"{number}.md") for number in range(3)]
    bad = client.upload("\0\1\2\3", "a.exe")
    store = client.new(file_ids=[*good, bad])
    path = f"/vector_stores/{store}"
    done = client.settled(path)
    assert done["file_counts"] == {"in_progress": 0, "completed": 3, "failed": 1, "cancelled": 0, "total": 4}

    def listed(**given: Any) -> list[str]:
        return [file["id"] for file in client.ask("GET", f"{path}/files", params=given)["data"]]

    assert listed() == [bad, *good[::-1]]
    assert listed(order="asc", limit=2) == good[:2]
    assert listed(filter="completed", order="asc") == good
    assert listed(filter="failed") == [bad]
    assert listed(filter="cancelled") == []
    assert listed(filter="completed", after=bad, limit=1) == [good[2]]
    failed = client.ask("GET", f"{path}/files/{bad}")
    assert failed["last_error"]["code"] == "unsupported_file" and failed["last_error"]["message"]
    assert client.ask("GET", f"{path}/files/{bad}/content", 400)["error"]["message"]
    other = client.new(file_ids=good[:1])
    elsewhere = client.ask("GET", f"/vector_stores/{other}/files", 400, params={"after": good[1]})
    assert elsewhere["error"]["param"] == "after"
    assert client.ask("GET", f"{path}/files", 400, params={"filter": "done"})["error"]["param"] == "filter"


def test_a_file_that_is_attached_twice_is_there_once(client: Client) -> None:
    file, store = client.upload(article("owls")), client.new()
    path = f"/vector_stores/{store}/files"
    client.ask("POST", path, json={"file_id": file})
    first = client.settled(f"{path}/{file}")
    again = client.ask("POST", path, json={"file_id": file, "attributes": {"seen": True}})
    assert again == {**first, "attributes": {"seen": True}}
    static = {"type": "static", "static": {"max_chunk_size_tokens": 50, "chunk_overlap_tokens": 10}}
    client.ask("POST", path, json={"file_id": file, "chunking_strategy": static})
    anew = client.settled(f"{path}/{file}")
    assert anew["chunking_strategy"] == static and anew["chunks"] != first["chunks"]
    counts = client.ask("GET", f"/vector_stores/{store}")["file_counts"]
    assert (counts["completed"], counts["total"]) == (1, 1)


FILE_MISTAKES: list[tuple[JsonObject, str]] = [
    ({}, "file_id"),
    ({"file_id": "file-nowhere"}, "file_id"),
    ({"file_id": "file-nowhere", "attributes": {"k": LONG}}, "attributes.k"),
    ({"file_id": "file-nowhere", "attributes": {"k": ["v"]}}, "attributes.k"),
    ({"file_id": "file-nowhere", "attributes": {"k" * 65: 1}}, "attributes." + "k" * 65),
    ({"file_id": "file-nowhere", "attributes": {str(n): n for n in range(17)}}, "attributes"),
    (
        {
            "file_id": "file-nowhere",
            "chunking_strategy": {
                "type": "static",
                "static": {"max_chunk_size_tokens": 5000, "chunk_overlap_tokens": 0},
            },
        },
        "chunking_strategy.static.max_chunk_size_tokens",
    ),
]


@pytest.mark.parametrize(("body", "param"), FILE_MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_a_file_is_told_with_its_field(client: Client, body: JsonObject, param: str) -> None:
    assert client.refused(f"/vector_stores/{client.new()}/files", body)["param"] == param


# ---------------------------------------------------------------- batches


def test_a_batch_tells_of_its_files_and_no_others(client: Client) -> None:
    files = [client.upload(article(f"duck{number}"), f"{number}.md") for number in range(3)]
    store = client.new(file_ids=files[:1])
    path = f"/vector_stores/{store}/file_batches"
    given = [{"file_id": files[1], "attributes": {"n": 1}}, {"file_id": files[2]}]
    made = client.ask("POST", path, json={"files": given})
    assert made["object"] == "vector_store.files_batch" and made["vector_store_id"] == store
    done = client.settled(f"{path}/{made['id']}")
    assert done["status"] == "completed"
    assert done["file_counts"] == {"in_progress": 0, "completed": 2, "failed": 0, "cancelled": 0, "total": 2}
    listed = client.ask("GET", f"{path}/{made['id']}/files", params={"order": "asc"})["data"]
    assert [(file["id"], file["attributes"]) for file in listed] == [(files[1], {"n": 1}), (files[2], {})]
    assert client.ask("POST", f"{path}/{made['id']}/cancel")["status"] == "completed"
    for method, rest in (("GET", ""), ("GET", "/files"), ("POST", "/cancel")):
        client.ask(method, f"/vector_stores/{client.new()}/file_batches/{made['id']}{rest}", 404)


def test_a_batch_with_one_mistake_attaches_nothing(client: Client) -> None:
    file, store = client.upload(article("rails")), client.new()
    path = f"/vector_stores/{store}/file_batches"
    assert client.refused(path, {"file_ids": [file, file, "file-x"]})["param"] == "file_ids[2]"
    given = [{"file_id": file}, {"file_id": "file-x"}]
    assert client.refused(path, {"files": given})["param"] == "files[1].file_id"
    large = {"type": "static", "static": {"max_chunk_size_tokens": 4096, "chunk_overlap_tokens": 5000}}
    error = client.refused(
        path, {"files": [{"file_id": file}, {"file_id": file, "chunking_strategy": large}]}
    )
    assert error["param"].startswith("files[1].chunking_strategy")
    assert client.refused(path, {})["param"] == "file_ids"
    assert client.refused(path, {"file_ids": [file], "files": given})["param"] == "file_ids"
    assert client.ask("GET", f"/vector_stores/{store}")["file_counts"]["total"] == 0


def test_a_batch_is_cancelled_as_far_as_it_is_not_done(running: Running, client: Client) -> None:
    slow = running.app.state.stack.inference["test"]
    files = [client.upload(article(f"swan{number}"), f"{number}.md") for number in range(6)]
    store = client.new()
    slow.pause = 0.3
    try:
        made = client.ask("POST", f"/vector_stores/{store}/file_batches", json={"file_ids": files})
        path = f"/vector_stores/{store}/file_batches/{made['id']}"
        cancelled = client.ask("POST", f"{path}/cancel")
    finally:
        slow.pause = 0
    assert cancelled["status"] == "cancelled" and cancelled["file_counts"]["in_progress"] == 0
    assert cancelled["file_counts"]["cancelled"] > 0
    assert client.ask("POST", f"{path}/cancel") == cancelled == client.ask("GET", path)
    assert client.ask("GET", f"/vector_stores/{store}")["status"] == "completed"
    client.ask("POST", f"/vector_stores/{store}/files", json={"file_id": files[-1]})
    assert client.settled(f"/vector_stores/{store}/files/{files[-1]}")["status"] == "completed"


# ---------------------------------------------------------------- chunks without files


def test_raw_chunks_are_found_replaced_and_removed(client: Client) -> None:
    store = client.new()
    made = client.insert(
        store,
        {"content": "the heron stands in the reeds", "chunk_id": "a", "metadata": {"page": 1}},
        {"content": "a swift never sits down", "metadata": {"page": 2.5}},
    )
    assert made[0] == "a" and made[1].startswith("chunk_")
    assert client.query(store, query="swift")[0] == made[1]
    assert client.query(store, query="heron", search_mode="keyword") == ["a"]
    assert client.query(store) == made
    assert client.query(store, filters={"type": "gt", "key": "page", "value": 1}) == made[1:]
    assert client.insert(store, {"content": "a swift swift swift", "chunk_id": "a"}) == ["a"]
    assert client.query(store, query="heron", search_mode="keyword") == []
    assert client.query(store, query="swift", search_mode="keyword", max_num_results=1) == ["a"]
    assert sorted(client.query(store)) == sorted(made)
    body = {"vector_store_id": store, "chunk_ids": ["a", "nobody", "a"]}
    assert client.ask("POST", "/vector-io/delete", json=body)["chunk_ids"] == ["a"]
    assert client.query(store) == made[1:]
    assert client.ask("GET", f"/vector_stores/{store}")["file_counts"]["total"] == 0
    assert client.ask("GET", f"/vector_stores/{store}/files")["data"] == []


def test_a_vector_that_comes_with_its_chunk_is_used_whatever_its_length(client: Client) -> None:
    store = client.new()
    rows = {name: [0.0] * DIMENSION for name in ("east", "north", "far")}
    rows["east"][0], rows["north"][1], rows["far"][0] = 1e-30, 5.0, 1e300
    rows["far"][1] = 1e300
    client.insert(
        store, *({"content": "x", "chunk_id": name, "embedding": row} for name, row in rows.items())
    )
    eastward = [1.0, 0.1, *[0.0] * (DIMENSION - 2)]
    assert client.query(store, embedding=eastward) == ["east", "far", "north"]
    found = client.ask("POST", "/vector-io/query", json={"vector_store_id": store, "embedding": rows["far"]})
    assert found["scores"][0] == pytest.approx(1, abs=1e-6)
    assert all(math.isfinite(score) and 0 <= score <= 1 for score in found["scores"])


VECTOR = [1.0] + [0.0] * (DIMENSION - 1)
RAW_MISTAKES: list[tuple[list[JsonObject], str]] = [
    ([], "chunks"),
    ([{"content": "x"}, {"content": ""}], "chunks[1].content"),
    ([{"content": "x"}, {"chunk_id": "c"}], "chunks[1].content"),
    ([{"content": "x", "chunk_id": "a b"}], "chunks[0].chunk_id"),
    ([{"content": "x", "chunk_id": "ä"}], "chunks[0].chunk_id"),
    ([{"content": "x", "chunk_id": "c"}, {"content": "y", "chunk_id": "c"}], "chunks[1].chunk_id"),
    ([{"content": "x", "metadata": {"k": None}}], "chunks[0].metadata.k"),
    ([{"content": "x", "embedding": VECTOR}, {"content": "y", "embedding": [1.0]}], "chunks[1].embedding"),
    ([{"content": "x", "embedding": [0.0] * DIMENSION}], "chunks[0].embedding"),
    ([{"content": "x", "embedding": []}], "chunks[0].embedding"),
]


@pytest.mark.parametrize(("given", "param"), RAW_MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_in_a_chunk_is_told_with_its_field_and_nothing_is_kept(
    client: Client, given: list[JsonObject], param: str
) -> None:
    store = client.new()
    assert client.refused("/vector-io/insert", {"vector_store_id": store, "chunks": given})["param"] == param
    assert client.query(store) == []


def test_numbers_that_are_none_are_refused(client: Client) -> None:
    store = client.new()
    for wrong in ("NaN", "Infinity", "1e999"):
        vector = json.dumps(VECTOR[1:])[:-1] + f", {wrong}]"
        for place in (f'"embedding": {vector}', f'"metadata": {{"k": {wrong}}}'):
            body = f'{{"vector_store_id": "{store}", "chunks": [{{"content": "x", {place}}}]}}'
            headers = {"content-type": "application/json"}
            client.ask("POST", "/vector-io/insert", 400, content=body, headers=headers)
    assert client.query(store) == []


def test_a_chunk_cannot_take_the_place_of_a_file(client: Client) -> None:
    file = client.upload(article("coots"))
    store = client.new(file_ids=[file])
    client.settled(f"/vector_stores/{store}")
    body = {"vector_store_id": store, "chunks": [{"content": "x"}, {"content": "y", "chunk_id": file}]}
    assert client.refused("/vector-io/insert", body)["param"] == "chunks[1].chunk_id"
    gone = {"vector_store_id": store, "chunk_ids": [file]}
    assert client.ask("POST", "/vector-io/delete", json=gone)["chunk_ids"] == []
    assert {each.rpartition(":")[0] for each in client.query(store)} == {file}


def test_chunks_that_an_index_does_not_take_are_not_kept(
    running: Running, client: Client, database_of: Callable[..., Any]
) -> None:
    store, index = client.new(), running.app.state.stack.vector_io["exact"]
    client.insert(store, {"content": "a heron", "chunk_id": "a"})
    index.broken = True
    try:
        given = [{"content": "a swift", "chunk_id": "a"}, {"content": "a coot"}]
        client.refused("/vector-io/insert", {"vector_store_id": store, "chunks": given}, 503)
    finally:
        index.broken = False
    assert client.query(store) == ["a"]
    assert client.query(store, query="heron", search_mode="keyword") == ["a"]
    assert len(database_of(select(documents.c.key).where(documents.c.store == store))) == 1


def test_text_that_no_database_takes_does_no_harm(client: Client) -> None:
    store = client.new(name="a\0b", description="\0", metadata={"k": "v\0"})
    client.insert(store, {"content": "heron\0s 🦆", "chunk_id": "a", "metadata": {"k": "v\0"}})
    keyed: JsonObject = {"vector_store_id": store, "chunks": [{"content": "x", "metadata": {"k\0": 1}}]}
    assert client.refused("/vector-io/insert", keyed)["param"].startswith("chunks[0].metadata")
    assert client.query(store, query="heron\0s") == ["a"]
    wrong = {"type": "eq", "key": "k", "value": "v\0"}
    body: JsonObject = {"vector_store_id": store, "filters": wrong}
    assert client.refused("/vector-io/query", body)["param"] == "filters.value"


SEARCH_MISTAKES: list[tuple[JsonObject, str]] = [
    ({}, "query"),
    ({"query": ""}, "query"),
    ({"query": []}, "query"),
    ({"query": "q", "max_num_results": 0}, "max_num_results"),
    ({"query": "q", "max_num_results": 51}, "max_num_results"),
    ({"query": "q", "search_mode": "semantic"}, "search_mode"),
    ({"query": "q", "ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
    ({"query": "q", "filters": {"type": "like", "key": "k", "value": "v"}}, "filters"),
    ({"query": "q", "filters": {"type": "and"}}, "filters.filters"),
    ({"query": "q", "filters": {"type": "or", "filters": []}}, "filters.filters"),
    ({"query": "q", "filters": {"type": "in", "key": "k", "value": "v"}}, "filters"),
    ({"query": "q", "filters": {"type": "eq", "key": "k", "value": ["v"]}}, "filters"),
    ({"query": "q", "filters": {"type": "gt", "key": "k", "value": True}}, "filters"),
]


@pytest.mark.parametrize(("body", "param"), SEARCH_MISTAKES, ids=lambda value: str(value)[:50])
def test_a_mistake_in_a_search_is_told_with_its_field(client: Client, body: JsonObject, param: str) -> None:
    error = client.refused(f"/vector_stores/{client.new()}/search", body)
    assert error["param"] == param, error


def test_filters_have_an_end(client: Client) -> None:
    store = client.new()
    leaf: JsonObject = {"type": "eq", "key": "k", "value": 1}
    deep = leaf
    for _ in range(7):
        deep = {"type": "and", "filters": [deep]}
    path = f"/vector_stores/{store}/search"
    client.ask("POST", path, json={"query": "q", "filters": deep})
    deeper = {"type": "or", "filters": [deep]}
    assert client.refused(path, {"query": "q", "filters": deeper})["param"] == "filters"
    wide = {"type": "or", "filters": [{"type": "and", "filters": [leaf] * 64}] * 2}
    client.ask("POST", path, json={"query": "q", "filters": wide})
    wider = {"type": "or", "filters": [wide, leaf]}
    assert client.refused(path, {"query": "q", "filters": wider})["param"] == "filters"
