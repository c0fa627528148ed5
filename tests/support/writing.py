"""A process of its own that writes to a store, and says on its standard output what it was told is kept.

`python -m tests.support.writing URL` writes until it is killed; with `--limit BYTES` no file may outgrow
that, and with `--count N` it ends after so many writes of each of its eight writers.
"""

import argparse
import asyncio
import resource
import secrets

from sqlalchemy import Connection, insert, select

from llama_stack_lite.errors import Unavailable
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import conversation_items

WRITERS = 8


async def keep(store: Store, conversation: str, position: int, *, size: int = 100) -> str:
    """Write one row, and return its id once it is kept."""
    row = {"conversation": conversation, "position": position, "id": secrets.token_hex(8), "item": "x" * size}

    def work(connection: Connection) -> None:
        connection.execute(insert(conversation_items), row)

    await store.write(work)
    return str(row["id"])


async def kept(store: Store) -> set[str]:
    """The ids of all rows."""
    return set(await store.read(lambda connection: connection.scalars(select(conversation_items.c.id)).all()))


async def main(url: str, count: int | None, limit: int | None) -> None:
    store = await Store.open(url)
    print("open", flush=True)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    async def writer(number: int) -> None:
        conversation, position = f"{secrets.token_hex(8)}-{number}", 0
        while count is None or position < count:
            try:
                print(await keep(store, conversation, position), flush=True)
            except Unavailable as error:
                print("full", error, flush=True)
                break
            position += 1

    await asyncio.gather(*(writer(number) for number in range(WRITERS)))
    if limit:  # there is room again
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(await keep(store, "afterwards", 0), flush=True)
    await store.aclose()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--count", type=int)
    parser.add_argument("--limit", type=int)
    options = parser.parse_args()
    asyncio.run(main(options.url, options.count, options.limit))
