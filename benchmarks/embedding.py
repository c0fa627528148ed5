"""How fast texts become vectors, against onnxruntime alone, and what a chat and a query notice of it.

- rate: passages a second through the `onnx` provider, against a loop of our own around onnxruntime with the
  same threads, texts sorted by length, and the best of several batch sizes; in turns, in one process, in
  threads of one priority. `cpu` compares processor time, which says more on a busy machine;
- chat: time between the tokens of a stream of the starter while it embeds, against before, and how long a
  short query waits meanwhile.
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.support import Answer, Server, gaps, machine, ours, percentile, table, user
from llama_stack_lite.models import card
from llama_stack_lite.providers.inference.onnx import Onnx, default_threads, give_way, load, padded

MODEL = "all-minilm-l6-v2"
DOCS = Path(__file__).parent.parent / "docs"
SIZES = (4, 8, 16, 32)
COUNT = "Count from 1 to 2000 and write every number:"


def passages(count: int) -> list[str]:
    """Runs of words of our own documentation, of about 100 tokens each, some half and some twice that."""
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))).split()
    generator = random.Random(7)
    found = []
    for _ in range(count):
        length = max(8, int(generator.gauss(52, 14)))
        start = generator.randrange(len(words) - length)
        found.append(" ".join(words[start : start + length]))
    return found


# ---------------------------------------------------------------- against onnxruntime


class Raw:
    """What one would write by hand: unit vectors of sorted texts, as one array of float32."""

    def __init__(self, threads: int) -> None:
        self.tokenizer, self.session = load(card(MODEL), threads)
        self.inputs = [given.name for given in self.session.get_inputs()]

    def embed(self, texts: list[str], size: int) -> None:
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        found = np.zeros((len(rows), 384), np.float32)
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            given = padded([rows[index] for index in batch])
            hidden = self.session.run(None, {name: given[name] for name in self.inputs})[0]
            mask = given["attention_mask"][..., None].astype(np.float32)
            pooled = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
            found[batch] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    began, worked = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - began, time.process_time() - worked


def rates(texts: list[str], *, threads: int, rounds: int) -> Iterator[list[str]]:
    raw = Raw(threads)
    ours = Onnx(Onnx.Config(models=[MODEL], threads=threads))
    with ThreadPoolExecutor(1, initializer=give_way) as worker, asyncio.Runner() as loop:

        def by_hand(size: int, some: list[str]) -> tuple[float, float]:
            return worker.submit(timed, lambda: raw.embed(some, size)).result()

        few = texts[: max(64, len(texts) // 8)]
        best = min(SIZES, key=lambda size: min(by_hand(size, few)[1] for _ in range(2)))
        theirs, own = [], []
        for _ in range(rounds):
            theirs.append(by_hand(best, texts))
            own.append(timed(lambda: loop.run(ours.embed(MODEL, texts))))
        loop.run(ours.aclose())
    wall, cpu = (
        statistics.median(one[i] / other[i] for one, other in zip(theirs, own, strict=True)) for i in (0, 1)
    )
    for name, found in ((f"onnxruntime, {best} texts a batch", theirs), ("the provider", own)):
        seconds, worked = (statistics.median(values) for values in zip(*found, strict=True))
        yield [name, f"{len(texts) / seconds:.0f}", f"{len(texts) / worked:.0f}"]
    yield ["ratio", f"{wall:.2f}", f"{cpu:.2f}"]


# ---------------------------------------------------------------- beside a chat


async def embedded(server: Server, texts: list[str]) -> float:
    """Seconds for one request."""
    began = time.perf_counter()
    body = {"model": f"embed/{MODEL}", "input": texts, "encoding_format": "base64"}
    async with server.session.post(f"{server.url}/embeddings", json=body) as reply:
        await reply.read()
        reply.raise_for_status()
    return time.perf_counter() - began


async def beside(
    server: Server, texts: list[str], *, seconds: float
) -> list[tuple[str, list[float], list[float]]]:
    """Gaps of a stream, and waits of queries, before and while passages are embedded, over and over."""
    found = []
    for name, busy in (("nothing", False), ("embedding", True)):
        stop = asyncio.Event()

        async def work(stop: asyncio.Event = stop) -> None:
            while not stop.is_set():
                await embedded(server, texts)

        working = asyncio.create_task(work()) if busy else None
        answer = Answer(time.perf_counter())
        talking = asyncio.create_task(server.stream([user(COUNT)], into=answer, max_tokens=1500))
        waits = []
        until = time.perf_counter() + seconds
        while time.perf_counter() < until and not talking.done():
            waits.append(await embedded(server, ["where does the cat sleep"]))
            await asyncio.sleep(1)
        talking.cancel()
        stop.set()
        await asyncio.wait([talking, *([working] if working else [])])
        found.append((name, gaps(answer.arrivals), waits))
    return found


async def chats(texts: list[str], *, rounds: int, seconds: float) -> Iterator[list[str]]:
    gathered: dict[str, tuple[list[float], list[float]]] = {}
    with ours("smollm2-135m") as started:
        async with started as server:
            await server.stream([user("hello")], max_tokens=4)
            await embedded(server, texts[:8])
            for _ in range(rounds):
                for name, between, waits in await beside(server, texts[:64], seconds=seconds):
                    one, other = gathered.setdefault(name, ([], []))
                    one += between
                    other += waits
    rows = []
    for name, (between, waits) in gathered.items():
        values = [1000 * percentile(between, each) for each in (50, 95)]
        values += [1000 * percentile(waits, each) for each in (50, 95)]
        rows.append([name, *(f"{value:.0f}" for value in values)])
    (idle, _), (busy, _) = gathered.values()
    ratios = [percentile(busy, each) / percentile(idle, each) for each in (50, 95)]
    return iter([*rows, ["ratio", *(f"{ratio:.2f}" for ratio in ratios), "", ""]])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each stream beside which is embedded")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--only", choices=["rate", "chat"])
    arguments = parser.parse_args()
    texts = passages(arguments.passages)
    print(machine("onnxruntime", "tokenizers"), f"threads {arguments.threads}", sep=", ")
    if arguments.only != "chat":
        rows = rates(texts, threads=arguments.threads, rounds=arguments.rounds)
        print(table(["", "passages a second", "a processor second"], rows))
    if arguments.only != "rate":
        found = asyncio.run(chats(texts, rounds=arguments.rounds, seconds=arguments.seconds))
        print(table(["beside", "gap p50, ms", "gap p95", "query p50", "query p95"], found))


if __name__ == "__main__":
    main()
