"""Files on their way into vector stores: a model that can be slow, fail or crash, and an index that tells."""

import asyncio
import hashlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel
from sqlalchemy import func, select

from llama_stack_lite import uploads
from llama_stack_lite.api.inference import Embeddings
from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.api.vector_stores import FileCounts, StoreFileRequest, VectorStoreRequest
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import InvalidRequest, Unavailable
from llama_stack_lite.forms import Upload
from llama_stack_lite.providers.inference.scripted import Scripted
from llama_stack_lite.rag import stores
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import document_leases as leases
from llama_stack_lite.state import documents as state
from llama_stack_lite.state import store_files
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import chunks, documents, vectors

JsonObject = dict[str, Any]
POISON = "ricin"  # a word that ends the process of who embeds it


class Stumbling(Scripted):  # type: ignore[misc]  # checked under its other name
    """Embeds as `scripted` does; `calls` are the texts of each call. `pause` lets each take so many seconds.

    It fails `broken` times, and from then on answers again.
    """

    class Config(Scripted.Config):  # type: ignore[misc]
        pause: float = 0.0

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pause = config.pause
        self.calls: list[list[str]] = []
        self.broken = 0
        self.refused: str | None = None  # a word that no text may have

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        texts = [str(each) for each in inputs]
        if any(POISON in text for text in texts):
            os._exit(9)
        await asyncio.sleep(self.pause)
        if self.broken:
            self.broken -= 1
            raise Unavailable("the embedding model is out of order")
        if self.refused and any(self.refused in text for text in texts):
            raise InvalidRequest(f"a text says {self.refused}")
        self.calls.append(texts)
        found: Embeddings = await super().embed(model, inputs, dimensions=dimensions)
        return found


class Exact:
    """An index in memory, without any shortcut; `held` is what it knows of each store.

    What is added stays under way while its `gate` is shut: `waiting` says how many.
    """

    class Config(BaseModel):
        pass

    def __init__(self, config: Config) -> None:
        self.held: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.broken = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = 0

    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        size = index.dimension * 4
        if self.broken:
            raise Unavailable("the index is out of order")
        assert len(vectors) == size * len(keys)
        for place, key in enumerate(keys):
            self.held[index.store][key] = vectors[place * size : (place + 1) * size]
        self.waiting += 1
        try:
            await self.gate.wait()
        finally:
            self.waiting -= 1

    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        for key in keys:
            self.held[index.store].pop(key, None)

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        held = self.held[index.store]
        known = [key for key in held if among is None or key in among]
        if not known:
            return []
        rows = np.frombuffer(b"".join(held[key] for key in known), "<f4").reshape(len(known), -1)
        found = sorted(zip(rows @ np.asarray(vector, np.float32), known, strict=True), reverse=True)
        return [(key, float(score)) for score, key in found[:limit]]

    async def drop(self, index: Index) -> None:
        self.held.pop(index.store, None)


def sections(folder: Path) -> JsonObject:
    """Of a distribution with this model, whose files are in the folder."""
    words = {"models": [], "embedding_models": ["words"], "embedding_dimension": 8}
    return {
        "inference": {"test": {"provider": "tests.support.ingesting:Stumbling", **words}},
        "files": {"disk": {"provider": "local", "folder": str(folder / "files")}},
        "storage": f"sqlite:///{folder / 'state.db'}",
        "fetch": {"allow": ["127.0.0.1"]},
    }


def config(folder: Path, *, documents: JsonObject | None = None, **others: Any) -> StackConfig:
    """A distribution with the model and the index of this module."""
    here = {"exact": {"provider": "tests.support.ingesting:Exact"}}
    fast = {"lease": 2, **(documents or {})}
    return StackConfig.model_validate({**sections(folder), "vector_io": here, "documents": fast, **others})


@asynccontextmanager
async def built(config: StackConfig) -> AsyncIterator[Stack]:
    stack = await Stack.build(config)
    try:
        yield stack
    finally:
        await stack.aclose()


def model_of(stack: Stack) -> Stumbling:
    found = stack.inference["test"]
    assert isinstance(found, Stumbling)
    return found


def index_of(stack: Stack) -> Exact:
    found = stack.vector_io["exact"]
    assert isinstance(found, Exact)
    return found


async def claimed(store: Store, worker: str, *, lease: float = 30) -> leases.Work:
    found = await leases.claim(store, worker, lease=lease)
    assert found
    return found


async def upload(stack: Stack, name: str, content: bytes | str) -> str:
    """Keep a file as `POST /v1/files` does; its id."""
    data = content.encode() if isinstance(content, str) else content
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        given = Upload(Path(file.name), name, len(data), hashlib.sha256(data).hexdigest())
        kept = await uploads.keep(stack, given, purpose="assistants", expiry=None)
    return kept.id


async def store_of(stack: Stack, *files: str, **fields: Any) -> str:
    """A new vector store with these files."""
    found = await stores.create(stack, VectorStoreRequest(file_ids=[*files], **fields))
    return found.id


async def attach(stack: Stack, store: str, file: str, **fields: Any) -> None:
    await stores.attach(stack, store, StoreFileRequest(file_id=file, **fields))


async def counted(stack: Stack, store: str) -> FileCounts:
    return await stack.store.read(lambda connection: state.counts(connection, store=store))


async def settled(stack: Stack, store: str, *, within: float = 40) -> FileCounts:
    """The counts of a store once nothing is in progress."""
    late = time.monotonic() + within
    while (found := await counted(stack, store)).in_progress:
        assert time.monotonic() < late, found
        await asyncio.sleep(0.02)
    return found


async def until(condition: Any, *, within: float = 10) -> None:
    late = time.monotonic() + within
    while not condition():
        assert time.monotonic() < late
        await asyncio.sleep(0.01)


async def shown(stack: Stack, store: str, file: str) -> JsonObject:
    """A file of a store, as the API answers it."""
    found = await stack.store.read(lambda connection: store_files.file(connection, store, file))
    answer: JsonObject = found.model_dump(mode="json")
    return answer


async def until_embedded(stack: Stack, store: str, file: str) -> None:
    """Wait for the first vectors of a file."""
    late = time.monotonic() + 20
    while not (found := await shown(stack, store, file))["progress"]:
        assert time.monotonic() < late, found
        await asyncio.sleep(0.02)


async def kept(stack: Stack) -> dict[str, int]:
    """How many rows of documents, chunks and vectors there are."""

    def work(connection: Any) -> dict[str, int]:
        tables = (documents, chunks, vectors)
        return {table.name: connection.scalar(select(func.count()).select_from(table)) for table in tables}

    return await stack.store.read(work)


def article(mark: str, *, paragraphs: int = 4) -> str:
    """A text of several chunks, each of which has the mark."""
    lines = [f"# About {mark}"]
    for number in range(paragraphs):
        sentence = f"Part {number} of {mark} says what {mark} is good for, and where it was found. "
        lines += [f"## {mark} part {number}", sentence * 6]
    return "\n\n".join(lines)
