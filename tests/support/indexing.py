"""A process that puts vectors into a faiss index until it is killed, and says which are kept."""

import asyncio
import sys
from pathlib import Path

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.config import StackConfig
from llama_stack_lite.providers.vector_io.faiss import Faiss
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.store import Store
from tests.conformance.vector_io import some

INDEX = Index("vs_killed", 32, 0)
EACH = 20  # keys of one call


async def main(url: str, folder: str) -> None:
    stack = Stack(StackConfig())
    stack.store = await Store.open(url)
    faiss = Faiss(Faiss.Config(folder=Path(folder), exact=300), stack)
    rows = some(20_000)
    for start in range(0, len(rows), EACH):
        keys = range(start, start + EACH)
        await faiss.add(INDEX, keys, rows[start : start + EACH].tobytes())
        print(start, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
