"""Compaction: a conversation in a few words, for the turns that come after it."""

import base64
import binascii

from llama_stack_lite.api.responses import CompactionItem, InputText, Item, MessageItem
from llama_stack_lite.errors import InvalidRequest

ASKED = (
    "Summarise the conversation up to here for yourself, so that you can go on with it: what the user wants, "
    "what was found out and decided, names and numbers, and what is still open. Write only the summary."
)
ABOUT = "Summary of the conversation so far:\n\n"


def closed(summary: str) -> str:
    """A summary as clients carry it about: it is no secret, as it is of their own words."""
    return base64.b64encode(summary.encode()).decode()


def opened(items: list[Item]) -> list[Item]:
    """Items as a model reads them: the summary in the place of a compaction, and nothing before the last."""
    last = max((place for place, item in enumerate(items) if isinstance(item, CompactionItem)), default=0)
    return [_opened(item) for item in items[last:]]


def _opened(item: Item) -> Item:
    if not isinstance(item, CompactionItem):
        return item
    try:
        summary = base64.b64decode(item.encrypted_content, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise InvalidRequest(
            "input: the `compaction` item is none of this server's", param="input"
        ) from error
    return MessageItem(id=item.id, role="user", content=[InputText(type="input_text", text=ABOUT + summary)])
