"""OpenAI's own package makes, fills and searches vector stores, and its types validate what we answer."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types import FileObject, VectorStore, VectorStoreDeleted, VectorStoreSearchResponse
from openai.types.vector_stores import (
    FileContentResponse,
    VectorStoreFile,
    VectorStoreFileBatch,
    VectorStoreFileDeleted,
)

from llama_stack_lite.config import StackConfig
from tests.support.databases import KINDS, database
from tests.support.ingesting import article, config
from tests.support.official import official
from tests.support.serving import serve

STATIC: Any = {"type": "static", "static": {"max_chunk_size_tokens": 60, "chunk_overlap_tokens": 10}}
SOON = 20  # milliseconds between two looks


@pytest.fixture(scope="module", params=KINDS)
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp("sdk")
    with (
        database(request.param, folder) as storage,
        serve(config(folder, storage=storage)) as running,
        OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def checked(kind: Any, *found: Any) -> None:
    """What the package has read is as its types say, to the letter."""
    for each in found:
        official(kind, each.to_dict())


def named(name: str, text: str) -> tuple[str, BytesIO]:
    return name, BytesIO(text.encode())


def test_stores_are_made_listed_changed_and_deleted(client: OpenAI) -> None:
    made = [client.vector_stores.create(name=f"{number}", metadata={"n": f"{number}"}) for number in range(5)]
    checked(VectorStore, *made)
    assert client.vector_stores.retrieve(made[0].id) == made[0]
    listed = list(client.vector_stores.list(limit=2, order="asc", after=made[0].id))  # page after page
    checked(VectorStore, *listed)
    assert listed == made[1:]
    before = client.vector_stores.list(limit=2, order="asc", before=made[3].id)
    assert before.data == made[1:3] and before.has_more
    changed = client.vector_stores.update(
        made[0].id, name=None, metadata=None, expires_after={"anchor": "last_active_at", "days": 7}
    )
    checked(VectorStore, changed)
    assert (changed.name, changed.metadata) == ("", {})
    assert changed.expires_after and changed.expires_after.days == 7
    gone = client.vector_stores.delete(made[0].id)
    checked(VectorStoreDeleted, gone)
    with pytest.raises(NotFoundError):
        client.vector_stores.retrieve(made[0].id)


def test_a_file_is_uploaded_searched_and_read(client: OpenAI) -> None:
    store = client.vector_stores.create()
    files = client.vector_stores.files
    done = files.upload_and_poll(
        vector_store_id=store.id, file=named("herons.md", article("herons")), poll_interval_ms=SOON
    )
    checked(VectorStoreFile, done)
    assert done.status == "completed", done.last_error
    changed = files.update(done.id, vector_store_id=store.id, attributes={"wet": True, "n": 1.5, "s": "x"})
    checked(VectorStoreFile, changed)
    assert files.retrieve(done.id, vector_store_id=store.id) == changed
    hits = client.vector_stores.search(
        store.id,
        query=["herons", "what herons are good for"],
        max_num_results=3,
        filters={
            "type": "and",
            "filters": [
                {"type": "eq", "key": "wet", "value": True},
                {"type": "in", "key": "s", "value": ["x", "y"]},
            ],
        },
        ranking_options={"ranker": "none", "score_threshold": 0.1},
        rewrite_query=False,
    )
    checked(VectorStoreSearchResponse, *hits.data)
    assert hits.data and {hit.file_id for hit in hits.data} == {done.id}
    assert hits.data[0].filename == "herons.md" and 0.1 <= hits.data[0].score <= 1
    assert hits.data[0].attributes == {"wet": True, "n": 1.5, "s": "x"}
    none = client.vector_stores.search(
        store.id, query="herons", filters={"type": "ne", "key": "wet", "value": True}
    )
    assert none.data == []
    content = files.content(done.id, vector_store_id=store.id)
    checked(FileContentResponse, *content.data)
    assert "herons" in "\n".join(part.text or "" for part in content.data)
    checked(VectorStoreFileDeleted, files.delete(done.id, vector_store_id=store.id))
    assert files.list(store.id).data == []
    checked(FileObject, client.files.retrieve(done.id))


def test_a_file_that_cannot_be_read_fails_with_a_reason(client: OpenAI) -> None:
    store = client.vector_stores.create()
    file = client.files.create(file=("a.exe", b"\x00\x01\x02"), purpose="assistants")
    done = client.vector_stores.files.create_and_poll(
        file.id, vector_store_id=store.id, poll_interval_ms=SOON
    )
    checked(VectorStoreFile, done)
    assert done.status == "failed" and done.last_error
    assert done.last_error.code == "unsupported_file" and done.last_error.message


def test_batches_are_uploaded_polled_listed_and_cancelled(client: OpenAI, tmp_path: Path) -> None:
    store = client.vector_stores.create(chunking_strategy=STATIC)
    batches = client.vector_stores.file_batches
    path = tmp_path / "path.md"
    path.write_text(article("rails"), encoding="utf-8")
    done = batches.upload_and_poll(
        store.id, files=[named("one.md", article("owls")), path], poll_interval_ms=SOON
    )
    checked(VectorStoreFileBatch, done)
    assert (done.status, done.file_counts.completed, done.file_counts.total) == ("completed", 2, 2)
    listed = list(batches.list_files(done.id, vector_store_id=store.id, limit=1, filter="completed"))
    checked(VectorStoreFile, *listed)
    assert len(listed) == 2
    assert listed[0].chunking_strategy and listed[0].chunking_strategy.type == "static"
    ids = [file.id for file in listed]
    other = client.vector_stores.create()
    same = batches.create_and_poll(
        other.id, files=[{"file_id": id, "attributes": {"n": 1}} for id in ids], poll_interval_ms=SOON
    )
    assert same.file_counts.completed == 2
    begun = batches.create(other.id, file_ids=ids, chunking_strategy=STATIC, attributes={"n": 2})
    checked(VectorStoreFileBatch, begun, batches.cancel(begun.id, vector_store_id=other.id))
    assert batches.retrieve(begun.id, vector_store_id=other.id).file_counts.in_progress == 0
    filled = client.vector_stores.create(file_ids=ids)
    assert client.vector_stores.retrieve(filled.id).file_counts.total == 2


def test_mistakes_are_raised_with_their_field(client: OpenAI) -> None:
    store = client.vector_stores.create()
    with pytest.raises(BadRequestError) as caught:
        client.vector_stores.file_batches.create(store.id, file_ids=["file-nowhere"])
    assert caught.value.param == "file_ids[0]"
    with pytest.raises(BadRequestError) as caught:
        client.vector_stores.search(store.id, query="q", max_num_results=51)
    assert caught.value.param == "max_num_results"
    with pytest.raises(NotFoundError) as missing:
        client.vector_stores.files.retrieve("file-nowhere", vector_store_id=store.id)
    assert missing.value.code == "not_found"


@pytest.mark.model
def test_the_starter_s_embedding_model_finds_what_is_meant(
    starter_config: StackConfig, tmp_path: Path
) -> None:
    texts = {
        "tides.md": "# Tides\n\nThe sea rises and falls twice a day, pulled by the moon.",
        "bread.md": "# Bread\n\nLet the dough rest for a night, then bake it in a hot oven.",
        "trains.md": "# Trains\n\nThe express leaves at noon and arrives in the capital by evening.",
    }
    local = {
        "inference": starter_config.model_dump()["inference"],
        "vector_io": {"faiss": {"provider": "faiss"}},
        "files": {"local": {"provider": "local", "folder": str(tmp_path / "files")}},
        "storage": f"sqlite:///{tmp_path / 'state.db'}",
        "defaults": {"embedding_model": "embed/all-minilm-l6-v2"},
    }
    with (
        serve(StackConfig.model_validate(local)) as running,
        OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client,
    ):
        store = client.vector_stores.create(name="library")
        done = client.vector_stores.file_batches.upload_and_poll(
            store.id, files=[named(*each) for each in texts.items()], poll_interval_ms=SOON
        )
        assert done.file_counts.completed == 3
        questions = {
            "what makes the ocean go up and down?": "tides.md",
            "how long do I wait before putting it into the stove?": "bread.md",
            "when do I get to the city by rail?": "trains.md",
        }
        for question, file in questions.items():
            hits = client.vector_stores.search(store.id, query=question).data
            assert hits[0].filename == file, question
