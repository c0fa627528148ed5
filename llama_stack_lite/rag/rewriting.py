"""A question in the words in which documents would answer it, written by the chat model."""

from contextlib import aclosing

from llama_stack_lite import enforcement
from llama_stack_lite.api.inference import ChatRequest, Message
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.stack import Stack

LONGEST = 64  # tokens
TASK = (
    "Rewrite the user's message as a short query for a search engine: keep names, numbers and quoted words, "
    "leave out politeness and what is no part of the question. Answer with the query only."
)


async def rewritten(stack: Stack, query: str) -> str:
    """The query that the distribution's chat model makes of a message; the message where it makes none.

    Raises `InvalidRequest` where there is no chat model.
    """
    model = stack.config.defaults.model
    if not model:
        raise InvalidRequest("rewrite_query: the distribution has no `defaults.model`", param="rewrite_query")
    request = ChatRequest(
        model=model,
        messages=[Message(role="system", content=TASK), Message(role="user", content=query)],
        max_completion_tokens=LONGEST,
        temperature=0,
    )
    said: list[str] = []
    async with aclosing(enforcement.chat(stack, request)) as chunks:
        async for chunk in chunks:
            said += [str(choice.delta.get("content") or "") for choice in chunk.choices]
    first = next((line for line in "".join(said).splitlines() if line.strip()), "")
    return first.strip().strip("\"'") or query
