"""/v1/conversations"""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request

from llama_stack_lite.answer import BodyRoute
from llama_stack_lite.api.conversations import (
    Conversation,
    ConversationItem,
    ConversationItems,
    ConversationRequest,
    DeletedConversation,
    ItemsRequest,
    MetadataRequest,
    shown,
)
from llama_stack_lite.api.responses import Includable
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import conversations

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], route_class=BodyRoute)

Limit = Annotated[int, Query(ge=1, le=100)]


async def _include(
    include: Annotated[list[Includable] | None, Query()] = None,
    array: Annotated[list[Includable] | None, Query(alias="include[]", include_in_schema=False)] = None,
) -> set[Includable]:
    """What a client asks for beside what is always shown; OpenAI's package writes `include[]`."""
    return {*(include or ()), *(array or ())}


Include = Annotated[set[Includable], Depends(_include)]


@router.post("")
async def create_conversation(request: ConversationRequest, http: Request) -> Conversation:
    """Begin a conversation, with up to 20 items."""
    items = conversations.prepared(request.items or [])
    return await conversations.create(Stack.of(http).store, items=items, metadata=request.metadata or {})


@router.get("/{conversation_id}")
async def get_conversation(conversation_id: str, http: Request) -> Conversation:
    """A conversation, without its items."""
    return await conversations.get(Stack.of(http).store, conversation_id)


@router.post("/{conversation_id}")
async def update_conversation(request: MetadataRequest, http: Request, conversation_id: str) -> Conversation:
    """Put metadata in the place of what there was."""
    metadata = request.metadata or {}
    return await conversations.set_metadata(Stack.of(http).store, conversation_id, metadata=metadata)


@router.delete("/{conversation_id}")
async def delete_conversation(conversation_id: str, http: Request) -> DeletedConversation:
    """Forget a conversation and its items; responses that were made in it stay."""
    await conversations.remove(Stack.of(http).store, conversation_id)
    return DeletedConversation(id=conversation_id)


@router.post("/{conversation_id}/items")
async def create_items(request: ItemsRequest, http: Request, conversation_id: str) -> ConversationItems:
    """Add up to 20 items at the end."""
    items = conversations.prepared(request.items)
    await conversations.add(Stack.of(http).store, conversation_id, items)
    return ConversationItems.of(items)


@router.get("/{conversation_id}/items")
async def list_items(
    conversation_id: str,
    http: Request,
    include: Include,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> ConversationItems:
    """Items of a conversation, the newest first unless `order` is `asc`; `after` is the last one seen."""
    items, more = await conversations.page(
        Stack.of(http).store, conversation_id, limit=limit, order=order, after=after
    )
    return ConversationItems.of([shown(item, include) for item in items], has_more=more)


@router.get("/{conversation_id}/items/{item_id}")
async def get_item(conversation_id: str, item_id: str, http: Request, include: Include) -> ConversationItem:
    """One item of a conversation."""
    item = await conversations.item(Stack.of(http).store, conversation_id, item_id)
    return ConversationItem.model_validate(shown(item, include))


@router.delete("/{conversation_id}/items/{item_id}")
async def delete_item(conversation_id: str, item_id: str, http: Request) -> Conversation:
    """Forget one item; answers the conversation."""
    return await conversations.remove_item(Stack.of(http).store, conversation_id, item_id)
