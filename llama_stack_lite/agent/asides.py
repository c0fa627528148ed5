"""What is asked of a model beside a turn: how long its prompt is, and what it says in short."""

import time
from contextlib import aclosing

from llama_stack_lite import answer, counting, enforcement
from llama_stack_lite.api.ids import new_id
from llama_stack_lite.api.inference import ChatRequest, Message
from llama_stack_lite.api.responses import (
    Compaction,
    CompactionItem,
    CompactRequest,
    ResponseRequest,
    ResponseUsage,
    TokensRequest,
)
from llama_stack_lite.errors import UpstreamError

from .compaction import ASKED, closed
from .turn import Turns


async def tokens(turns: Turns, request: TokensRequest) -> int:
    """How many tokens the model would read."""
    return await counting.prompt_tokens(turns.stack, await _asked(turns, request))


async def compacted(turns: Turns, request: CompactRequest) -> Compaction:
    """The conversation in a few words of the model's own."""
    asked = await _asked(turns, request)
    asked.messages = [*asked.messages, Message(role="user", content=ASKED)]
    said = await answer.chat_completion(enforcement.chat(turns.stack, asked))
    message = said.choices[0].message
    if not message.content:
        raise UpstreamError(message.refusal or "the model wrote no summary")
    item = CompactionItem(id=new_id("cmp"), encrypted_content=closed(message.content))
    usage = ResponseUsage().plus(said.usage) if said.usage else ResponseUsage()
    return Compaction(id=new_id("resp"), created_at=int(time.time()), output=[item], usage=usage)


async def _asked(turns: Turns, request: TokensRequest | CompactRequest) -> ChatRequest:
    """What the model would be asked first, with its tools."""
    known = request.model_fields_set & set(type(request).model_fields)
    fields = {name: getattr(request, name) for name in known}
    turn = await turns.begin(ResponseRequest(**fields, store=False))
    try:
        if turn.tools:
            async with aclosing(turn.tools.listed()) as events:
                async for _ in events:
                    pass
        return turn.asks()
    finally:
        if turn.tools:
            await turn.tools.aclose()
