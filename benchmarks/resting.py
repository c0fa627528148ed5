"""What a model that has nothing to do costs another one of the same server: tokens a second of the one,
after the other has answered too, where the threads of an engine that rests are ended and where they stay,
in turns.

    python -m benchmarks.resting --clients 1
"""

import argparse
import asyncio
import random
import statistics
import time

from benchmarks.support import gguf, machine
from llama_stack_lite.local.engine import Job, Sampling
from llama_stack_lite.providers.inference.llama_cpp.batch import BATCH
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from llama_stack_lite.providers.inference.llama_cpp.threads import Threads, cores, default_threads, rest

PROMPT = 64  # tokens
ANSWER = 64
TOKENS = range(500, 40_000)  # ids of ordinary text


def stay() -> None:
    """Leave the threads where they are."""


async def answer(engine: Engine) -> None:
    job = Job(prompt=random.choices(TOKENS, k=PROMPT), max_tokens=ANSWER, sampling=Sampling(temperature=0))
    async for _ in engine.generate(job):
        pass


async def rate(engine: Engine, other: Engine, clients: int) -> float:
    """Tokens a second of some clients at once, when the other has answered and rests."""
    await answer(engine)
    await answer(other)
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await asyncio.gather(*[answer(engine) for _ in range(clients)])
    return clients * ANSWER / (time.monotonic() - began)


def main() -> None:
    """Measure both ways in turns, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10)
    chosen = parser.parse_args()
    few, most = default_threads(), cores()

    def load() -> Engine:
        loaded = Loaded(gguf(chosen.model), context=512, slots=chosen.clients, threads=few, batch=BATCH)
        return Engine(loaded, slots=chosen.clients, queue=chosen.clients, threads=Threads(few, most))

    engine, other = load(), load()
    found: dict[str, list[float]] = {"stay": [], "end": []}
    for number in range(chosen.rounds):
        for way in sorted(found, reverse=bool(number % 2)):
            for each in (engine, other):
                each.line.rest = rest if way == "end" else stay
            found[way].append(asyncio.run(rate(engine, other, chosen.clients)))
    for each in (engine, other):
        each.close()
    stayed, ended = (statistics.median(rates) for rates in found.values())
    ratio = statistics.median(end / stay for stay, end in zip(*found.values(), strict=True))
    print(machine("llama-cpp-python"))
    print(
        f"{chosen.clients} at once beside a model that rests: {stayed:.0f} tokens/s where its threads stay, "
        f"{ended:.0f} where they end ({ratio:.2f})"
    )


if __name__ == "__main__":
    main()
