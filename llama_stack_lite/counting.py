"""How many tokens a prompt has, counted by the model that would read it."""

from contextlib import aclosing

from . import enforcement
from .api.inference import ChatRequest
from .errors import InvalidRequest, UpstreamError
from .stack import Stack


async def prompt_tokens(stack: Stack, request: ChatRequest) -> int:
    """The tokens of the prompt that a chat with this request has.

    A provider that cannot count is asked for an answer of one token, and says what it read. Raises
    `InvalidRequest` where a shield does not let that be asked.
    """
    model = stack.model(request.model, "chat")
    if hasattr(model.provider, "count"):
        counted: int = await model.provider.count(model.name, request)
        return counted
    short = {"max_completion_tokens": 1, "max_tokens": None, "n": 1, "stream": False, "stream_options": None}
    async with aclosing(enforcement.chat(stack, request.model_copy(update=short))) as chunks:
        async for chunk in chunks:
            if blocked := next((choice.safety for choice in chunk.choices if choice.safety), None):
                raise InvalidRequest(blocked.refusal())
            if chunk.usage:
                return chunk.usage.prompt_tokens
    raise UpstreamError(f"`{model.id}` does not say how many tokens it reads")
