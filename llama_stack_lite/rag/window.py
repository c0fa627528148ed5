"""What stands around the chunks that were found."""

from collections.abc import Sequence

from sqlalchemy import or_, select

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
