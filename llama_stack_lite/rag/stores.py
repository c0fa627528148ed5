"""What is done with vector stores: made of what the distribution has, filled with files, deleted."""

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, Row

from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.vector_stores import (
    Chunking,
    FileBatch,
    FileBatchRequest,
    StoreFileRequest,
    VectorStore,
    VectorStoreFile,
    VectorStoreRequest,
    VectorStoreUpdate,
)
from llama_stack_lite.errors import InvalidRequest, NotFound, did_you_mean
from llama_stack_lite.stack import Model, Stack
from llama_stack_lite.state import documents, store_files, vector_stores

from . import chunking, upkeep
from .filing import remove_from_index


async def create(stack: Stack, request: VectorStoreRequest) -> VectorStore:
    """Make a store, and begin to put its first files into it."""
    provider = _provider(stack, request.provider)
    model = _embedding_model(stack, request.embedding_model)
    await _check(stack, model, {"chunking_strategy": request.chunking_strategy})
    row = {
        "id": new_id("vs"),
        "created_at": time.time(),
        "name": documents.plain(request.name),
        "description": request.description and documents.plain(request.description),
        "metadata": json.dumps(request.metadata),
        "expires_days": request.expires_after and request.expires_after.days,
        "provider": provider,
        "model": model.id,
        "dimension": await _dimension(model, request.embedding_dimension),
        "chunking": vector_stores.written(request.chunking_strategy),
    }
    first = _placed([StoreFileRequest(file_id=each) for each in request.file_ids], "file_ids[{}]")

    def work(connection: Connection) -> VectorStore:
        store = vector_stores.add(connection, row)
        store_files.attach(connection, store, first)
        return vector_stores.described(connection, [vector_stores.get(connection, store.id)])[0]

    found = await stack.store.write(work)
    stack.ingestion.wake()
    return found


async def get(stack: Stack, store_id: str) -> VectorStore:
    """A store, with what is in it; raises `NotFound`."""

    def work(connection: Connection) -> VectorStore:
        return vector_stores.described(connection, [vector_stores.get(connection, store_id)])[0]

    return await stack.store.read(work)


async def update(stack: Stack, store_id: str, request: VectorStoreUpdate) -> VectorStore:
    """Change what a request says of a store; raises `NotFound`, `InvalidRequest` where it has expired."""
    said = request.model_fields_set
    values: dict[str, Any] = {}
    if "name" in said:
        values["name"] = documents.plain(request.name or "")
    if "metadata" in said:
        values["metadata"] = json.dumps(request.metadata or {})
    if "expires_after" in said:
        values["expires_days"] = request.expires_after and request.expires_after.days

    def work(connection: Connection) -> VectorStore:
        return vector_stores.described(connection, [vector_stores.change(connection, store_id, values)])[0]

    return await stack.store.write(work)


async def remove(stack: Stack, store_id: str) -> None:
    """Delete a store with all that is in it, but not the files themselves; raises `NotFound`."""
    dropped = await stack.store.write(lambda connection: vector_stores.drop(connection, store_id))
    await upkeep.clear(stack, dropped)


async def attach(stack: Stack, store_id: str, request: StoreFileRequest) -> VectorStoreFile:
    """Begin to put a file into a store, or do nothing where it is there already in the same way."""
    await _check_files(stack, store_id, {"chunking_strategy": request.chunking_strategy})

    def work(connection: Connection) -> VectorStoreFile:
        store = vector_stores.usable(connection, store_id, lock=True)
        store_files.attach(connection, store, {"file_id": request})
        return store_files.file(connection, store_id, request.file_id)

    found = await stack.store.write(work)
    stack.ingestion.wake()
    return found


async def attach_batch(stack: Stack, store_id: str, request: FileBatchRequest) -> FileBatch:
    """Begin to put files into a store: all of them, or none where something is wrong with one."""
    if request.files:
        given = _placed(request.files, "files[{}].file_id")
        strategies = {
            f"files[{place}].chunking_strategy": each.chunking_strategy
            for place, each in enumerate(request.files)
        }
    else:
        given = _placed(request.each(), "file_ids[{}]")
        strategies = {"chunking_strategy": request.chunking_strategy}
    await _check_files(stack, store_id, strategies)
    found = await stack.store.write(lambda connection: store_files.add_batch(connection, store_id, given))
    stack.ingestion.wake()
    return found


async def detach(stack: Stack, store_id: str, file_id: str) -> None:
    """Take a file out of a store; raises `NotFound`."""
    store, keys = await stack.store.write(
        lambda connection: store_files.detach(connection, store_id, file_id)
    )
    await remove_from_index(stack, store.provider, vector_stores.index(store), keys)


def embedding_model(stack: Stack, store: Row[Any]) -> Model:
    """The model that a store was made with; raises `InvalidRequest` where the distribution has it no more."""
    try:
        return stack.model(store.model, "embedding")
    except (NotFound, InvalidRequest) as error:
        raise InvalidRequest(
            f"vector store `{store.id}` was made with a model that is gone: {error}"
        ) from error


# ---------------------------------------------------------------- what a request says


def _placed(given: Iterable[StoreFileRequest], place: str) -> dict[str, StoreFileRequest]:
    return {place.format(number): each for number, each in enumerate(given)}


async def _check_files(stack: Stack, store_id: str, strategies: Mapping[str, Chunking | None]) -> None:
    store = await stack.store.read(lambda connection: vector_stores.usable(connection, store_id))
    await _check(stack, embedding_model(stack, store), strategies)


async def _check(stack: Stack, model: Model, strategies: Mapping[str, Chunking | None]) -> None:
    """Raise `InvalidRequest` for the first strategy that does not fit the model, naming where it stands."""
    passed: list[Chunking] = []
    for place, strategy in strategies.items():
        if strategy is None or strategy in passed:
            continue
        try:
            await chunking.check(stack, model, strategy)
        except InvalidRequest as error:
            inner = (error.param or "").removeprefix("chunking_strategy")
            error.param = place + inner
            raise
        passed.append(strategy)


def _provider(stack: Stack, name: str | None) -> str:
    name = name or stack.config.defaults.vector_io or next(iter(stack.vector_io))
    if name not in stack.vector_io:
        close = did_you_mean(name, stack.vector_io) or f"; there is {', '.join(stack.vector_io)}"
        raise InvalidRequest(f"provider: there is no `{name}` under `vector_io`{close}", param="provider")
    return name


def _embedding_model(stack: Stack, name: str | None) -> Model:
    name = name or stack.config.defaults.embedding_model
    if name is None:
        there = [model.id for model in stack.models.values() if model.card.kind == "embedding"]
        if len(there) != 1:
            way = (
                f"say one of {', '.join(there)}" if there else "the distribution needs one under `inference`"
            )
            raise InvalidRequest(
                f"embedding_model: {way}, or name it in `defaults.embedding_model`", param="embedding_model"
            )
        name = there[0]
    try:
        return stack.model(name, "embedding")
    except (NotFound, InvalidRequest) as error:
        raise InvalidRequest(f"embedding_model: {error}", param="embedding_model") from error


async def _dimension(model: Model, wanted: int | None) -> int:
    """How long the model's vectors are; it is asked where its card does not say so."""
    found = model.card.embedding_dimension
    if found is None:
        found = len((await model.provider.embed(model.name, ["dimension"])).vectors[0])
    if wanted not in (None, found):
        raise InvalidRequest(
            f"embedding_dimension: `{model.id}` makes vectors of {found}, not {wanted}",
            param="embedding_dimension",
        )
    return found
