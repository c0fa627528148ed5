"""/v1/vector_stores: stores, and searches of them"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.vector_stores import (
    SearchPage,
    SearchRequest,
    VectorStore,
    VectorStoreDeleted,
    VectorStoreList,
    VectorStoreRequest,
    VectorStoreUpdate,
)
from llama_stack_lite.rag import stores
from llama_stack_lite.rag.search import search
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import vector_stores
from llama_stack_lite.state.paging import Paging

router = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"], route_class=BodyRoute)
searching = APIRouter(prefix="/v1/vector_stores", tags=["vector stores"])


async def paging(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    before: str | None = None,
) -> Paging:
    """By the time at which they were made, the newest first unless `order` is `asc`."""
    return Paging(limit, order, after, before)


Asked = Annotated[Paging, Depends(paging)]


@router.post("")
async def create_vector_store(request: VectorStoreRequest, http: Request) -> VectorStore:
    """Make a vector store, and begin to put `file_ids` into it."""
    return await stores.create(Stack.of(http), request)


@router.get("")
async def list_vector_stores(http: Request, asked: Asked) -> VectorStoreList:
    """The vector stores that there are."""
    found, more = await Stack.of(http).store.read(lambda connection: vector_stores.listed(connection, asked))
    return VectorStoreList.of(found, more=more)


@router.get("/{vector_store_id}")
async def get_vector_store(vector_store_id: str, http: Request) -> VectorStore:
    """A vector store, with how much is in it."""
    return await stores.get(Stack.of(http), vector_store_id)


@router.post("/{vector_store_id}")
async def update_vector_store(request: VectorStoreUpdate, http: Request, vector_store_id: str) -> VectorStore:
    """Change a vector store's name, metadata or expiry; what is `null` is cleared."""
    return await stores.update(Stack.of(http), vector_store_id, request)


@router.delete("/{vector_store_id}")
async def delete_vector_store(vector_store_id: str, http: Request) -> VectorStoreDeleted:
    """Delete a vector store and all that was made of its files; the files themselves stay."""
    await stores.remove(Stack.of(http), vector_store_id)
    return VectorStoreDeleted(id=vector_store_id)


@searching.post("/{vector_store_id}/search")
async def search_vector_store(vector_store_id: str, request: SearchRequest, http: Request) -> SearchPage:
    """The chunks that fit a query best, by vectors and by keywords unless `search_mode` says otherwise."""
    return await search(Stack.of(http), [vector_store_id], request.queries(), request)
