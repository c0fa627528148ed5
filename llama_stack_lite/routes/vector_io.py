"""/v1/vector-io: chunks without files"""

from fastapi import APIRouter, Request

from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.vector_io import (
    Deleted,
    DeleteRequest,
    Inserted,
    InsertRequest,
    QueryRequest,
    QueryResult,
)
from llama_stack_lite.rag import raw
from llama_stack_lite.rag.search import search
from llama_stack_lite.stack import Stack

router = APIRouter(prefix="/v1/vector-io", tags=["vector stores"], route_class=BodyRoute)
searching = APIRouter(prefix="/v1/vector-io", tags=["vector stores"])


@router.post("/insert")
async def insert_chunks(request: InsertRequest, http: Request) -> Inserted:
    """Put chunks into a vector store: all of them can be found, or none."""
    ids = await raw.insert(Stack.of(http), request)
    return Inserted(vector_store_id=request.vector_store_id, chunk_ids=ids)


@router.post("/delete")
async def delete_chunks(request: DeleteRequest, http: Request) -> Deleted:
    """Take chunks out of a vector store; those that are not there are no error."""
    ids = await raw.remove(Stack.of(http), request)
    return Deleted(vector_store_id=request.vector_store_id, chunk_ids=ids)


@searching.post("/query")
async def query_chunks(request: QueryRequest, http: Request) -> QueryResult:
    """Search one vector store, by text, by a vector, or by attributes alone."""
    queries = [] if request.query is None else [request.query]
    found = await search(
        Stack.of(http), [request.vector_store_id], queries, request, embedding=request.embedding
    )
    return QueryResult(chunks=found.data, scores=[hit.score for hit in found.data])
