"""The door to every model: all generation of every route passes here, and nowhere else.

Shields are not built yet; what stands is the one place where they will judge what goes in and comes out.
"""

import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from .api.inference import ChatChunk, ChatRequest, Completion, CompletionRequest
from .errors import InvalidRequest
from .stack import Stack


async def chat(stack: Stack, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
    """Answer a chat request, chunk by chunk; closing the generator stops the model."""
    model = stack.model(request.model, "chat")
    answer_id, created = _id("chatcmpl"), int(time.time())
    async with aclosing(model.provider.chat(model.name, request)) as chunks:
        async for chunk in chunks:
            chunk.id, chunk.created, chunk.model = answer_id, chunk.created or created, model.id
            if chunk.choices or request.wants_usage():
                yield chunk


async def complete(stack: Stack, request: CompletionRequest) -> AsyncGenerator[Completion, None]:
    """Continue plain prompts, chunk by chunk; closing the generator stops the model."""
    model = stack.model(request.model, "chat")
    if not hasattr(model.provider, "complete"):
        raise InvalidRequest(f"`{model.id}` takes conversations only: /v1/chat/completions", param="model")
    answer_id, created = _id("cmpl"), int(time.time())
    async with aclosing(model.provider.complete(model.name, request)) as chunks:
        async for chunk in chunks:
            chunk.id, chunk.created, chunk.model = answer_id, chunk.created or created, model.id
            if chunk.choices or request.wants_usage():
                yield chunk


def _id(kind: str) -> str:
    """A name that no other answer has; it is no secret, so it need not come from the system's entropy."""
    return f"{kind}-{random.getrandbits(128):032x}"
