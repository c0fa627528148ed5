"""What indexes of vectors cost: `python -m benchmarks.vectors [--count 100000] [--providers faiss pgvector]`.

Vectors of 384 dimensions in groups of about fifty. For each provider, in a process of its own: the seconds to
take all in, in calls of 1,024; how much the process has grown, as a multiple of the vectors alone; a search
for ten, with its recall against looking at all; and the seconds of a restart to its first answer.
"""

import argparse
import asyncio
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.config import StackConfig
from llama_stack_lite.plugins import find
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.store import Store
from tests.conformance.vector_io import Matrix, closed, unit
from tests.support.postgres import postgres

DIMENSION = 384
CALL = 1024  # keys of one call
QUERIES = 300
COLUMNS = ("provider", "vectors", "build s", "memory / vectors", "p50 ms", "p95 ms", "recall@10", "restart s")


def vectors(count: int) -> tuple[Matrix, Matrix]:
    """The vectors, and others near to some of them to ask for."""
    random = np.random.default_rng(1)
    middles = random.standard_normal((count // 50 + 1, DIMENSION), np.float32)
    rows = np.empty((count, DIMENSION), np.float32)
    for start in range(0, count, CALL):
        size = min(CALL, count - start)
        near = middles[random.integers(len(middles), size=size)]
        rows[start : start + size] = unit(near + 0.6 * random.standard_normal((size, DIMENSION), np.float32))
    asked = rows[random.integers(count, size=QUERIES)]
    return rows, unit(asked + 0.02 * random.standard_normal(asked.shape, np.float32))


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * 4096


@contextmanager
def place(name: str, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A database for the provider, and its settings."""
    if name == "pgvector":
        with postgres() as url:
            yield url, {}
    else:
        settings: dict[str, dict[str, Any]] = {
            "faiss": {"folder": Path(folder)},
            "qdrant": {"path": ":memory:"},
        }
        yield f"sqlite:///{folder}/state.db", settings[name]


async def measured(name: str, count: int, url: str, settings: dict[str, Any]) -> list[str]:
    rows, asked = vectors(count)
    expected = [set(np.argpartition(rows @ each, count - 10)[-10:].tolist()) for each in asked]
    stack = Stack(StackConfig())
    stack.store = await Store.open(url)
    kind, index = find("vector_io", name), Index("vs_benchmark", DIMENSION, 0)
    provider = kind(kind.Config(**settings), stack)
    # with all that it imports, and the space that libraries make for themselves when they are first called
    await provider.add(index, range(count, count + 200), rows[:200].tobytes())
    await provider.nearest(index, asked[0].tolist(), limit=10)
    await provider.remove(index, range(count, count + 200))
    before, start = resident(), time.perf_counter()
    for first in range(0, count, CALL):
        piece = rows[first : first + CALL]
        await provider.add(index, range(first, first + len(piece)), piece.tobytes())
    build, grown = time.perf_counter() - start, resident() - before
    seconds, hits = [], 0
    for vector, best in zip(asked.tolist(), expected, strict=True):
        start = time.perf_counter()
        found = await provider.nearest(index, vector, limit=10)
        seconds.append(time.perf_counter() - start)
        hits += len(best & {key for key, _ in found})
    await closed(provider)
    restart = await restarted(kind, settings, stack, index, asked[0].tolist())
    await stack.store.aclose()
    p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
    cells = (build, grown / rows.nbytes, p50, p95, hits / QUERIES / 10)
    own = name != "qdrant"  # in memory, it would read nothing
    return [name, f"{count:,}", *(f"{cell:.3g}" for cell in cells), f"{restart:.2f}" if own else ""]


async def restarted(
    kind: Any, settings: dict[str, Any], stack: Stack, index: Index, vector: list[float]
) -> float:
    start = time.perf_counter()
    provider = kind(kind.Config(**settings), stack)
    await provider.nearest(index, vector, limit=10)
    seconds = time.perf_counter() - start
    await closed(provider)
    return seconds


def run(name: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as folder, place(name, folder) as (url, settings):
        print("| " + " | ".join(asyncio.run(measured(name, count, url, settings))) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--providers", nargs="+", default=["faiss"], choices=["faiss", "pgvector", "qdrant"])
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|", flush=True)
    for name in arguments.providers:
        process = multiprocessing.get_context("spawn").Process(target=run, args=(name, arguments.count))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
