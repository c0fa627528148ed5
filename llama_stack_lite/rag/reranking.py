"""Hits in a better order: by a model made to rank, or by how sure a chat model is that they answer."""

import asyncio
import math
from contextlib import aclosing

from llama_stack_lite import enforcement
from llama_stack_lite.api.inference import ChatRequest, Message
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.stack import Model, Stack

from .found import Found

AT_ONCE = 4  # questions to a chat model
TASK = (
    "Does the passage help to answer the question? Answer Yes or No.\n\nPassage: {text}\n\nQuestion: {query}"
)


def ranker(stack: Stack, name: str) -> Model | None:
    """The model that a search names; raises `NotFound`, and `InvalidRequest` for one that cannot rank.

    OpenAI's own names, such as `default-2024-11-15`, mean the distribution's, where it has one.
    """
    if name.startswith("default-"):
        name = stack.config.defaults.rerank_model or ""
    if not name:
        return None
    model = stack.named(name, "rerank")
    if model.card.kind not in ("rerank", "chat"):
        raise InvalidRequest(
            f"`{model.id}` can neither rank nor chat: `ranking_options.ranker` is another kind of model",
            param="ranking_options.ranker",
        )
    return model


async def reranked(stack: Stack, model: Model, query: str, found: list[Found]) -> list[Found]:
    """The chunks in the order that a model gives them, with its scores."""
    scores = await _scores(stack, model, query, [each.row.text for each in found])
    again = [Found(each.row, score) for each, score in zip(found, scores, strict=True)]
    return sorted(again, key=lambda each: -each.score)


async def _scores(stack: Stack, model: Model, query: str, texts: list[str]) -> list[float]:
    """How well each text answers the query, from 0 to 1."""
    if not texts:
        return []
    if model.card.kind == "rerank":
        return list((await model.provider.rerank(model.name, query, texts)).scores)
    free = asyncio.Semaphore(AT_ONCE)

    async def one(text: str) -> float:
        async with free:
            return await _sure(stack, model, TASK.format(text=text, query=query))

    return list(await asyncio.gather(*(one(text) for text in texts)))


async def _sure(stack: Stack, model: Model, question: str) -> float:
    """The probability of Yes among Yes and No, by the log-probabilities of the answer's first token."""
    request = ChatRequest(
        model=model.id,
        messages=[Message(role="user", content=question)],
        max_completion_tokens=1,
        temperature=0,
        logprobs=True,
        top_logprobs=20,
    )
    weights = {"yes": 0.0, "no": 0.0}
    async with aclosing(enforcement.chat(stack, request)) as chunks:
        async for chunk in chunks:
            for choice in chunk.choices:
                for token in (choice.logprobs.content or [])[:1] if choice.logprobs else []:
                    for each in token.top_logprobs:
                        if (word := each.token.strip().lower()) in weights:
                            weights[word] += math.exp(each.logprob)
    total = sum(weights.values())
    return weights["yes"] / total if total else 0.0
