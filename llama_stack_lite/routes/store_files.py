"""/v1/vector_stores/{id}/files and /file_batches"""

from typing import Annotated

from fastapi import APIRouter, Query, Request

from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.vector_stores import (
    FileBatch,
    FileBatchRequest,
    FileContent,
    FileContentPage,
    Status,
    StoreFileDeleted,
    StoreFileList,
    StoreFileRequest,
    StoreFileUpdate,
    VectorStoreFile,
)
from llama_stack_lite.rag import stores
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import store_files

from .vector_stores import Asked

router = APIRouter(
    prefix="/v1/vector_stores/{vector_store_id}", tags=["vector stores"], route_class=BodyRoute
)

Filter = Annotated[Status | None, Query(alias="filter")]
Start = Annotated[int, Query(ge=0, description="the `next_page` of the page before")]
Limit = Annotated[int, Query(ge=1, le=10_000, description="chunks at most")]


@router.post("/files")
async def create_vector_store_file(
    request: StoreFileRequest, http: Request, vector_store_id: str
) -> VectorStoreFile:
    """Begin to put a file into a vector store; it is found once its `status` is `completed`."""
    return await stores.attach(Stack.of(http), vector_store_id, request)


@router.get("/files")
async def list_vector_store_files(
    vector_store_id: str, http: Request, asked: Asked, status: Filter = None
) -> StoreFileList:
    """The files of a vector store, or those of one `status`."""
    return await _page(Stack.of(http), vector_store_id, asked, status=status)


@router.get("/files/{file_id}")
async def get_vector_store_file(vector_store_id: str, file_id: str, http: Request) -> VectorStoreFile:
    """A file of a vector store: how far it is, and why it is not."""
    store = Stack.of(http).store
    return await store.read(lambda connection: store_files.file(connection, vector_store_id, file_id))


@router.post("/files/{file_id}")
async def update_vector_store_file(
    request: StoreFileUpdate, http: Request, vector_store_id: str, file_id: str
) -> VectorStoreFile:
    """Put attributes in the place of what a file had; searches filter by them from then on."""
    return await Stack.of(http).store.write(
        lambda connection: store_files.change(connection, vector_store_id, file_id, request.attributes or {})
    )


@router.delete("/files/{file_id}")
async def delete_vector_store_file(vector_store_id: str, file_id: str, http: Request) -> StoreFileDeleted:
    """Take a file out of a vector store; the file itself stays."""
    await stores.detach(Stack.of(http), vector_store_id, file_id)
    return StoreFileDeleted(id=file_id)


@router.get("/files/{file_id}/content")
async def get_vector_store_file_content(
    vector_store_id: str, file_id: str, http: Request, page: Start = 0, limit: Limit = 1000
) -> FileContentPage:
    """The text that was found in a file, chunk by chunk."""
    found, more = await Stack.of(http).store.read(
        lambda connection: store_files.texts(connection, vector_store_id, file_id, start=page, limit=limit)
    )
    following = str(page + limit) if more else None
    return FileContentPage(
        data=[FileContent(text=text) for text in found], has_more=more, next_page=following
    )


@router.post("/file_batches")
async def create_file_batch(request: FileBatchRequest, http: Request, vector_store_id: str) -> FileBatch:
    """Begin to put many files into a vector store: all of them, or none where something is wrong with one."""
    return await stores.attach_batch(Stack.of(http), vector_store_id, request)


@router.get("/file_batches/{batch_id}")
async def get_file_batch(vector_store_id: str, batch_id: str, http: Request) -> FileBatch:
    """A batch, and how many of its files are done."""
    store = Stack.of(http).store
    return await store.read(lambda connection: store_files.batch(connection, vector_store_id, batch_id))


@router.post("/file_batches/{batch_id}/cancel")
async def cancel_file_batch(vector_store_id: str, batch_id: str, http: Request) -> FileBatch:
    """Cancel what is in progress of a batch; its files that are done stay."""
    store = Stack.of(http).store
    return await store.write(lambda connection: store_files.cancel(connection, vector_store_id, batch_id))


@router.get("/file_batches/{batch_id}/files")
async def list_file_batch_files(
    vector_store_id: str, batch_id: str, http: Request, asked: Asked, status: Filter = None
) -> StoreFileList:
    """The files of a batch, or those of one `status`."""
    return await _page(Stack.of(http), vector_store_id, asked, status=status, batch=batch_id)


async def _page(
    stack: Stack, store_id: str, asked: Asked, *, status: Status | None, batch: str | None = None
) -> StoreFileList:
    found, more = await stack.store.read(
        lambda connection: store_files.listed(connection, store_id, asked, status=status, batch=batch)
    )
    return StoreFileList.of(found, more=more)
