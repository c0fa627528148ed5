"""/v1/conversations: OpenAI's objects, and what of an item is shown only when `include` asks for it."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .inference import Wire
from .responses import Includable, Item, Metadata

MOST = 20  # items of one request

# what clients ask for by `include`: its type of item, and where in it
OPTIONAL: dict[Includable, tuple[str, str]] = {
    "file_search_call.results": ("file_search_call", "results"),
    "web_search_call.results": ("web_search_call", "results"),
    "web_search_call.action.sources": ("web_search_call", "action.sources"),
    "code_interpreter_call.outputs": ("code_interpreter_call", "outputs"),
    "reasoning.encrypted_content": ("reasoning", "encrypted_content"),
    "message.output_text.logprobs": ("message", "content.logprobs"),
}


class Conversation(BaseModel):
    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int = Field(description="seconds since 1970")
    metadata: Metadata


class ConversationRequest(BaseModel):
    """A new conversation, with its first items."""

    model_config = ConfigDict(extra="forbid")
    items: list[Item] | None = Field(None, max_length=MOST)
    metadata: Metadata | None = None


class MetadataRequest(BaseModel):
    """Metadata in the place of what there was."""

    model_config = ConfigDict(extra="forbid")
    metadata: Metadata | None


class ItemsRequest(BaseModel):
    """Items to be added at the end."""

    model_config = ConfigDict(extra="forbid")
    items: list[Item] = Field(min_length=1, max_length=MOST)


class ConversationItem(Wire):
    """An item as it is kept: of which type, and beside it all that its type has."""

    id: str
    type: str


class ConversationItems(BaseModel):
    """Some items of a conversation; the ids are empty where there is none."""

    object: Literal["list"] = "list"
    data: list[ConversationItem]
    first_id: str
    last_id: str
    has_more: bool

    @classmethod
    def of(cls, items: list[dict[str, Any]], *, has_more: bool = False) -> "ConversationItems":
        first, last = (items[0]["id"], items[-1]["id"]) if items else ("", "")
        data = [ConversationItem.model_validate(item) for item in items]
        return cls(data=data, first_id=first, last_id=last, has_more=has_more)


class DeletedConversation(BaseModel):
    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


def shown(item: dict[str, Any], include: Collection[Includable]) -> dict[str, Any]:
    """An item without what a client must ask for by name. Images always keep their URLs."""
    for name, (kind, place) in OPTIONAL.items():
        if item["type"] == kind and name not in include:
            item = _without(item, place)
    return item


def _without(item: dict[str, Any], place: str) -> dict[str, Any]:
    key, _, rest = place.partition(".")
    if key not in item or not rest:
        return {name: value for name, value in item.items() if name != key}
    value = item[key]
    if isinstance(value, list):
        return item | {key: [_without(each, rest) for each in value]}
    return item | {key: _without(value, rest)}
