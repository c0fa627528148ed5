"""Vector stores with passages in them, put there without files and their parsers."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.rag.chunking import Chunk, passages
from llama_stack_lite.rag.search import words
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import documents, vector_stores

INDEX: dict[str, Any] = {"faiss": {"provider": "faiss"}}


def passage(text: str, *headings: str, page: int | None = None) -> Chunk:
    return Chunk(text=text, headings=list(headings), page=page, tokens=len(text.split()), context=None)


async def shelved(
    stack: Stack,
    name: str,
    files: Mapping[str, Sequence[Chunk | str]],
    *,
    description: str | None = None,
    attributes: Mapping[str, str | bool | float] | None = None,
    model: str = "test/embedder",
) -> str:
    """A new store of that name with the files, each of its passages; the store's id."""
    embedder = stack.model(model, "embedding")
    found = {
        filename: [each if isinstance(each, Chunk) else passage(each) for each in given]
        for filename, given in files.items()
    }
    vectors = {}
    for filename, given in found.items():
        rows = await embedder.provider.embed(embedder.name, passages(embedder, given))
        array = np.array(rows.vectors, "<f4")
        vectors[filename] = array / np.linalg.norm(array, axis=1, keepdims=True)
    store = new_id("vs")
    row = {
        "id": store,
        "created_at": time.time(),
        "name": name,
        "description": description,
        "metadata": "{}",
        "expires_days": None,
        "provider": next(iter(stack.vector_io)),
        "model": embedder.id,
        "dimension": next(iter(vectors.values())).shape[1],
        "chunking": '{"type":"auto"}',
    }

    def work(connection: Connection) -> None:
        vector_stores.add(connection, row)
        for number, (filename, chunks) in enumerate(found.items(), 1):
            key = documents.add(
                connection,
                store,
                id=f"file-{number}",
                filename=filename,
                attributes=attributes or {},
                chunking='{"type":"auto"}',
                size=1,
            )
            terms = [" ".join(words(chunk.embedded())) for chunk in chunks]
            keys = documents.add_chunks(connection, store, key, chunks, terms)
            array = vectors[filename]
            documents.put_vectors(connection, keys, array.tobytes(), array.shape[1])
            documents.publish(connection, store, key)

    await stack.store.write(work)
    return store
