"""What nobody waits for: stores that are deleted or expired are cleared, and what broken inserts left."""

import logging
import time
from typing import Any

from sqlalchemy import Connection, Row, select

from llama_stack_lite.errors import StackError
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import documents as contents
from llama_stack_lite.state import vector_stores
from llama_stack_lite.state.tables import documents

HOUR = 3600
log = logging.getLogger(__name__)


async def expire(stack: Stack) -> None:
    """Clear what can be found no more; what a crash has left of this, another call finishes."""
    for store in await stack.store.read(vector_stores.expired):
        await _end(stack, store)
    for store in await stack.store.read(vector_stores.dropped):
        await clear(stack, store)
    await _drop_hidden(stack)


async def _end(stack: Stack, store: Row[Any]) -> None:
    """Clear a store that has expired; its row stays, and says so."""
    inside = documents.c.store == store.id
    await stack.store.write(lambda connection: vector_stores.stop(connection, inside))
    await _cleared(stack, store)


async def clear(stack: Stack, store: Row[Any]) -> None:
    """Clear a store that was deleted."""
    if await _cleared(stack, store):
        await stack.store.write(lambda connection: vector_stores.cleared(connection, store.id))


async def _cleared(stack: Stack, store: Row[Any]) -> bool:
    """Forget all that is in a store, and its index; whether there is nothing left to do.

    Piece by piece, so that others can write in between.
    """
    while await stack.store.write(lambda connection: vector_stores.clear(connection, store.id)):
        pass
    if store.provider not in stack.vector_io:
        log.warning(
            "the index of vector store %s stays: `vector_io` has no `%s` now", store.id, store.provider
        )
        return True
    try:
        await stack.vector_io[store.provider].drop(vector_stores.index(store))
    except StackError as error:
        log.warning("the index of vector store %s cannot be dropped now: %s", store.id, error)
        return False
    return True


async def _drop_hidden(stack: Stack) -> None:
    """Forget raw chunks that were never let be found, as the server that took them in has crashed."""
    there = documents.c
    late = (there.raw, there.status == "in_progress", there.created_at < time.time() - HOUR)
    query = select(there.store, there.id).where(*late).limit(contents.PIECE)

    def work(connection: Connection) -> None:
        for store, id in connection.execute(query).all():
            contents.remove(connection, store, [id])

    if await stack.store.read(lambda connection: connection.execute(query.limit(1)).first()):
        await stack.store.write(work)
