"""Conversations and their items, in the order in which they were said."""

import json
import time
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from llama_stack_lite.api.conversations import Conversation
from llama_stack_lite.api.ids import new_id, well_formed
from llama_stack_lite.api.responses import Item, ItemReference
from llama_stack_lite.errors import InvalidRequest, NotFound

from .store import Store
from .tables import conversation_items, conversations

JsonObject = dict[str, Any]
column = conversation_items.c


def prepared(items: Sequence[Item], *, param: str = "items") -> list[JsonObject]:
    """Items as they are kept and answered; raises `InvalidRequest` where one only refers to another."""
    for number, each in enumerate(items):
        if isinstance(each, ItemReference):
            raise InvalidRequest("a reference is no item; send the item itself", param=f"{param}[{number}]")
    return [each.model_dump(mode="json", by_alias=True) for each in items]


async def create(store: Store, *, items: Sequence[JsonObject], metadata: dict[str, str]) -> Conversation:
    """Keep a new conversation with its first items, which are `prepared`."""
    found = Conversation(id=new_id("conv"), created_at=int(time.time()), metadata=metadata)

    def work(connection: Connection) -> None:
        row = {"id": found.id, "created_at": found.created_at, "metadata": json.dumps(metadata)}
        connection.execute(insert(conversations), row)
        append(connection, found.id, items)

    await store.write(work)
    return found


async def get(store: Store, conversation: str) -> Conversation:
    """A conversation without its items; raises `NotFound`."""
    return await store.read(lambda connection: _get(connection, conversation))


async def set_metadata(store: Store, conversation: str, *, metadata: dict[str, str]) -> Conversation:
    """Put metadata in the place of what there was; raises `NotFound`."""

    def work(connection: Connection) -> Conversation:
        found = _get(connection, conversation, lock=True)
        change = update(conversations).where(conversations.c.id == conversation)
        connection.execute(change.values(metadata=json.dumps(metadata)))
        return found.model_copy(update={"metadata": metadata})

    return await store.write(work)


async def remove(store: Store, conversation: str) -> None:
    """Forget a conversation and its items; raises `NotFound`."""

    def work(connection: Connection) -> None:
        _get(connection, conversation, lock=True)
        connection.execute(delete(conversation_items).where(column.conversation == conversation))
        connection.execute(delete(conversations).where(conversations.c.id == conversation))

    await store.write(work)


async def items(store: Store, conversation: str) -> list[JsonObject]:
    """All items of a conversation, the oldest first; raises `NotFound`."""

    def work(connection: Connection) -> list[JsonObject]:
        _get(connection, conversation)
        return _found(connection, _items(conversation).order_by(column.position))

    return await store.read(work)


async def page(
    store: Store, conversation: str, *, limit: int, order: Literal["asc", "desc"], after: str | None
) -> tuple[list[JsonObject], bool]:
    """At most `limit` items, those next to the item `after`, and whether there are more.

    Raises `NotFound`, and `InvalidRequest` where `after` is no item of the conversation.
    """

    def work(connection: Connection) -> list[JsonObject]:
        _get(connection, conversation)
        query = _items(conversation).order_by(column.position if order == "asc" else column.position.desc())
        if after is not None:
            start = _position(connection, conversation, after)
            if start is None:
                raise InvalidRequest(f"after: there is no item `{after}` in this conversation", param="after")
            query = query.where(column.position > start if order == "asc" else column.position < start)
        return _found(connection, query.limit(limit + 1))

    found = await store.read(work)
    return found[:limit], len(found) > limit


async def item(store: Store, conversation: str, item_id: str) -> JsonObject:
    """One item; raises `NotFound`."""

    def work(connection: Connection) -> list[JsonObject]:
        _get(connection, conversation)
        position = _position(connection, conversation, item_id)
        return _found(connection, _items(conversation).where(column.position == position))

    if not (found := await store.read(work)):
        raise NotFound("item", item_id)
    return found[0]


async def add(store: Store, conversation: str, items: Sequence[JsonObject]) -> None:
    """Add `prepared` items at the end; raises as `append` does."""
    await store.write(lambda connection: append(connection, conversation, items))


async def remove_item(store: Store, conversation: str, item_id: str) -> Conversation:
    """Forget one item; raises `NotFound`."""

    def work(connection: Connection) -> Conversation:
        found = _get(connection, conversation)
        position = _position(connection, conversation, item_id)
        if position is None:
            raise NotFound("item", item_id)
        connection.execute(
            delete(conversation_items).where(column.conversation == conversation, column.position == position)
        )
        return found

    return await store.write(work)


def append(
    connection: Connection, conversation: str, items: Sequence[JsonObject], *, rename: bool = False
) -> None:
    """Add items, each with its id, at the end of a conversation, in the caller's transaction.

    Others who add to the same conversation wait until that ends. Raises `NotFound`, and, unless it is to
    `rename` such items, `InvalidRequest` where an id is there already.
    """
    _get(connection, conversation, lock=True)
    items, ids = list(items), [item["id"] for item in items]
    here = column.id.in_(ids)
    taken = set(connection.scalars(select(column.id).where(column.conversation == conversation, here)))
    for number, each in enumerate(ids):
        if each in taken and not rename:
            raise InvalidRequest(
                f"item `{each}` is in this conversation already", param=f"items[{number}].id"
            )
        if each in taken:
            items[number] = {**items[number], "id": new_id(each.partition("_")[0][:8])}
        taken.add(each)
    last = connection.scalar(select(func.max(column.position)).where(column.conversation == conversation))
    first = 0 if last is None else last + 1
    rows = [
        {"conversation": conversation, "position": first + number, "id": item["id"], "item": json.dumps(item)}
        for number, item in enumerate(items)
    ]
    if rows:
        connection.execute(insert(conversation_items), rows)


def _get(connection: Connection, conversation: str, *, lock: bool = False) -> Conversation:
    row = None
    if well_formed(conversation):
        query = select(conversations).where(conversations.c.id == conversation)
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    if row is None:
        raise NotFound("conversation", conversation)
    return Conversation(id=row.id, created_at=int(row.created_at), metadata=json.loads(row.metadata))


def _position(connection: Connection, conversation: str, item_id: str) -> int | None:
    if not well_formed(item_id):
        return None
    query = select(column.position).where(column.conversation == conversation, column.id == item_id)
    return connection.execute(query).scalar_one_or_none()


def _items(conversation: str) -> Select[str]:
    return select(column.item).where(column.conversation == conversation)


def _found(connection: Connection, query: Select[str]) -> list[JsonObject]:
    return [json.loads(item) for item in connection.scalars(query)]
