"""What was found, as it is told: with what stands around it, and without what a shield flags."""

import asyncio
from collections.abc import Sequence

from sqlalchemy import or_, select

from llama_stack_lite import enforcement
from llama_stack_lite.api.vector_stores import SearchHit
from llama_stack_lite.safety.texts import strings
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import chunks

from .found import Found


async def around(store: Store, found: Sequence[Found], window: int) -> dict[int, list[str]]:
    """By the key of each chunk its text between those of its neighbours, `window` on each side."""
    spans = [
        (chunks.c.document == each.row.document)
        & chunks.c.position.between(each.row.position - window, each.row.position + window)
        for each in found
    ]
    if not spans:
        return {}
    query = select(chunks.c.document, chunks.c.position, chunks.c.text).where(or_(*spans))
    rows = await store.read(lambda connection: list(connection.execute(query)))
    texts = {(row.document, row.position): row.text for row in rows}
    return {
        each.row.key: [
            texts[each.row.document, place]
            for place in range(each.row.position - window, each.row.position + window + 1)
            if (each.row.document, place) in texts
        ]
        for each in found
    }


async def judged(stack: Stack, hits: list[SearchHit], guardrails: Sequence[str]) -> list[SearchHit]:
    """Those in which no shield found anything: neither in the text nor in what stands beside it."""
    if not (await stack.judge.watch(guardrails)).shields("retrieval"):
        return hits
    verdicts = await asyncio.gather(
        *(
            enforcement.judged(stack, "retrieval", "\n".join(strings(hit)), guardrails=guardrails)
            for hit in hits
        )
    )
    return [hit for hit, blocked in zip(hits, verdicts, strict=True) if not blocked]
