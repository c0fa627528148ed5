"""What gaps between busy slots cost: tokens a second of clients that ask again and again, for answers of
different lengths, with a row for idle slots between busy ones and without, in turns.

    python -m benchmarks.gaps --clients 8 --slots 16
"""

import argparse
import asyncio
import random
import statistics
import time

from benchmarks.support import gguf, machine
from llama_stack_lite.local.engine import Job, Sampling
from llama_stack_lite.providers.inference.llama_cpp import cache
from llama_stack_lite.providers.inference.llama_cpp.batch import BATCH
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from llama_stack_lite.providers.inference.llama_cpp.threads import Threads, cores, default_threads

PROMPT = range(10, 50)  # tokens
ANSWER = range(16, 150)
TOKENS = range(500, 40_000)  # ids of ordinary text
NONE = -1  # no gap is as narrow as that


async def client(engine: Engine, end: float) -> int:
    """Ask until then; how many tokens came."""
    count = 0
    while time.monotonic() < end:
        prompt = random.choices(TOKENS, k=random.choice(PROMPT))
        job = Job(prompt=prompt, max_tokens=random.choice(ANSWER), sampling=Sampling(temperature=0))
        async for _ in engine.generate(job):
            count += 1
    return count


async def rate(engine: Engine, clients: int, seconds: float) -> float:
    """Tokens a second."""
    began = time.monotonic()
    counts = await asyncio.gather(*[client(engine, began + seconds) for _ in range(clients)])
    return sum(counts) / (time.monotonic() - began)


def main() -> None:
    """Measure both ways in turns, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5)
    chosen = parser.parse_args()
    few = default_threads()
    loaded = Loaded(gguf(chosen.model), context=chosen.context, slots=chosen.slots, threads=few, batch=BATCH)
    engine = Engine(loaded, slots=chosen.slots, queue=chosen.clients, threads=Threads(few, cores()))
    ways: dict[int, list[float]] = {NONE: [], cache.WORTH_BRIDGING: []}
    for number in range(chosen.rounds):
        for way in sorted(ways, reverse=bool(number % 2)):
            cache.WORTH_BRIDGING = way
            ways[way].append(asyncio.run(rate(engine, chosen.clients, chosen.seconds)))
    engine.close()
    without, with_rows = ways.values()
    ratio = statistics.median(after / before for before, after in zip(without, with_rows, strict=True))
    print(machine("llama-cpp-python"))
    print(
        f"{chosen.clients} clients, {chosen.slots} slots: {statistics.median(without):.0f} tokens/s without, "
        f"{statistics.median(with_rows):.0f} with rows for idle slots ({ratio:.2f})"
    )


if __name__ == "__main__":
    main()
