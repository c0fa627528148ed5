"""How long one user waits: in a second turn, beside a long prompt, after somebody left, and in a crowd.

- turns: time to the first token of a conversation's second turn against its first, and of an agent's second
  step against its first, behind a prefix of 1,000 tokens;
- arrival: time between the tokens of running streams while a prompt of 2,000 tokens comes, against before,
  and what that prompt's first token costs beside them, against alone;
- crowd: clients that come at once with one new system prompt of 1,000 tokens, against one of them alone;
- leaving: how long a model with a single slot stays busy after its client has left.

Starts `llama-lite run starter`, or asks a server at `--url`. Every prompt is new to the server.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.support import (
    Answer,
    JsonObject,
    Server,
    gaps,
    gguf,
    machine,
    ours,
    percentile,
    system,
    table,
    user,
    words,
)

PREFIX = 1000  # tokens
LONG = 2000  # tokens
COUNT = "Count from 1 to 2000 and write every number:"  # an answer that goes on
NATIVE = "native"  # the starter's weights again, with calls in the prompt instead of made for it
Results = dict[str, list[float]]

# ---------------------------------------------------------------- turns


async def conversation(server: Server) -> Results:
    """Seconds to the first token of two turns, and their ratio."""
    turns = [system(words(PREFIX)), user("What is the weather like?")]
    first = await server.stream(turns, max_tokens=24)
    turns += [{"role": "assistant", "content": first.text}, user("And what was it like yesterday?")]
    second = await server.stream(turns, max_tokens=8)
    return compared("conversation: first turn", first.first, "second turn", second.first)


def lookup() -> JsonObject:
    """A tool whose description takes about 100 tokens."""
    parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    name = "_".join(words(2).split())
    function = {"name": name, "description": words(60), "parameters": parameters}
    return {"type": "function", "function": function}


async def agent(server: Server, *, kind: str) -> Results:
    """The same of an agent's two steps: it is asked, and comes back with a tool's result."""
    tools = [lookup() for _ in range(4)]
    manual = f"{words(PREFIX - 400)} {json.dumps(tools)}"  # small models' templates leave `tools` out
    steps = [system(manual), user("Find out how tall the tower of the old bridge is.")]
    first = await server.stream(steps, tools=tools, max_tokens=24)
    function = {"name": tools[0]["function"]["name"], "arguments": '{"query": "tower of the old bridge"}'}
    call = {"id": "call_1", "type": "function", "function": function}
    steps += [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {
            "role": "tool",
            "tool_call_id": "call_1",
            "content": "The tower of the old bridge is 48 metres tall.",
        },
    ]
    second = await server.stream(steps, tools=tools, max_tokens=8)
    return compared(f"agent, {kind}: first step", first.first, "second step", second.first)


def compared(name: str, first: float, other: str, second: float) -> Results:
    """Two times in seconds, and the ratio of the second to the first."""
    group = name.partition(":")[0]
    return {f"{name}, s": [first], f"{group}: {other}, s": [second], f"{group}: ratio": [second / first]}


# ---------------------------------------------------------------- arrival


class Writers:
    """Streams that go on writing until the block ends; the arrivals of every answer are kept."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answers: list[Answer] = []

    async def _write(self) -> None:
        while True:
            answer = Answer(time.perf_counter())
            self.answers.append(answer)
            await self.server.stream([user(f"{words(20)}. {COUNT}")], into=answer, max_tokens=2000)

    @asynccontextmanager
    async def running(self, count: int) -> AsyncGenerator[None, None]:
        tasks = [asyncio.create_task(self._write()) for _ in range(count)]
        try:
            while sum(len(answer.received) > 2 for answer in self.answers) < count:
                failed = [task for task in tasks if task.done()]
                await asyncio.gather(*failed)
                await asyncio.sleep(0.05)
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def gaps(self, start: float, end: float) -> list[float]:
        """Milliseconds between tokens, of the gaps that were open between two times."""
        return [
            1e3 * gap
            for answer in self.answers
            for when, gap in zip(answer.arrivals[1:], gaps(answer.arrivals), strict=True)
            if when >= start and when - gap <= end
        ]


async def arrival(server: Server, *, streams: int, before: float) -> Results:
    """Inter-token milliseconds of running streams, and seconds to the first token of a long prompt."""
    alone = await server.stream([user(words(LONG))], max_tokens=1)
    writers = Writers(server)
    async with writers.running(streams):
        start = time.perf_counter()
        await asyncio.sleep(before)
        coming = time.perf_counter()
        beside = await server.stream([user(words(LONG))], max_tokens=1)
        there = beside.began + beside.first
    calm, busy = writers.gaps(start, coming), writers.gaps(coming, there)
    found = {
        f"{streams} streams: gap p50 before, ms": [percentile(calm, 50)],
        f"{streams} streams: gap p50 while a long prompt comes, ms": [percentile(busy, 50)],
        f"{streams} streams: gap p95 before, ms": [percentile(calm, 95)],
        f"{streams} streams: gap p95 while a long prompt comes, ms": [percentile(busy, 95)],
        f"{streams} streams: ratio of gap p95": [percentile(busy, 95) / percentile(calm, 95)],
        f"{streams} streams: longest gap while a long prompt comes, ms": [max(busy)],
    }
    return found | compared("long prompt: alone", alone.first, f"beside {streams} streams", beside.first)


# ---------------------------------------------------------------- crowd


async def crowd(server: Server, *, clients: int) -> Results:
    """Seconds until all are answered who came at once with one new system prompt; and one alone."""

    async def ask(prefix: JsonObject, number: int) -> None:
        await server.stream([prefix, user(f"What is {number} and {words(5)}?")], max_tokens=8)

    began = time.perf_counter()
    await ask(system(words(PREFIX)), 0)
    alone = time.perf_counter() - began
    prefix = system(words(PREFIX))
    began = time.perf_counter()
    await asyncio.gather(*[ask(prefix, number) for number in range(clients)])
    together = time.perf_counter() - began
    return compared("crowd: alone", alone, f"{clients} at once", together)


# ---------------------------------------------------------------- leaving


async def leave(server: Server, body: JsonObject, *, blocks: int = 0, after: float = 0.0) -> None:
    """Ask, and hang up after so many blocks of the answer or so many seconds."""

    async def ask() -> None:
        async with server.session.post(f"{server.url}/chat/completions", json=body) as reply:
            for _ in range(blocks):
                await reply.content.readany()

    if blocks:
        await ask()  # leaving the block closes the connection
        return
    try:
        await asyncio.wait_for(ask(), after)
    except TimeoutError:
        return
    raise RuntimeError(f"the answer was there before its client could leave, in {after} s")


async def leaving(server: Server) -> Results:
    """Milliseconds for which a left request holds up the next, which the time of that alone is taken from."""
    ways = {
        "streaming": (server.body([user(f"{words(20)}. {COUNT}")], stream=True, max_tokens=2000), 6, 0.0),
        "whole answer": (server.body([user(f"{words(20)}. {COUNT}")], max_tokens=2000), 0, 0.4),
        "reading its prompt": (server.body([user(words(LONG))], stream=True, max_tokens=2000), 0, 0.5),
    }
    found: Results = {}
    for name, (body, blocks, after) in ways.items():
        alone = (await server.stream([user(words(8))], max_tokens=1)).first
        await leave(server, body, blocks=blocks, after=after)
        behind = (await server.stream([user(words(8))], max_tokens=1)).first
        found[f"left, {name}: the next waits, ms"] = [1e3 * (behind - alone)]
        found[f"left, {name}: first token of the next, ms"] = [1e3 * behind]
    return found


# ---------------------------------------------------------------- running


async def rounds(
    server: Server, measures: list[Callable[[Server], Awaitable[Results]]], count: int
) -> Results:
    """Every measure so many times, in turn."""
    found: Results = {}
    async with server:
        await server.stream([user("Hello")], max_tokens=1)  # unmeasured
        for number in range(count):
            print(f"round {number + 1} of {count}", file=sys.stderr)
            for measure in measures:
                for name, values in (await measure(server)).items():
                    found.setdefault(name, []).extend(values)
    return found


@contextmanager
def server_for(options: argparse.Namespace, *, slots: int, native: bool = False) -> Iterator[Server]:
    """The server at `--url`, or one of ours; `native` serves the weights with calls in the prompt."""
    if options.url:
        yield Server("server", options.url.rstrip("/"), options.model)
        return
    file = {"name": gguf(options.model).name, "sources": [f"file:{gguf(options.model)}"]}
    card = {"id": NATIVE, "tool_calling": "hermes", "files": [file]}
    with ours(card if native else options.model, slots=slots, context=4096) as server:
        yield server


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", help="a server's address up to and with /v1; `leaving` wants one slot of it")
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    every = ["turns", "arrival", "crowd", "leaving"]
    parser.add_argument("--only", nargs="+", choices=every, default=every)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=4, help="that run when the long prompt comes")
    parser.add_argument("--before", type=float, default=5, help="seconds that they run before it")
    parser.add_argument("--clients", type=int, default=4, help="of the crowd")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    return parser.parse_args()


def measured(options: argparse.Namespace) -> Results:
    """What was asked for, each on the server that it needs."""
    shared: dict[str, list[Callable[[Server], Awaitable[Results]]]] = {
        "turns": [conversation, lambda server: agent(server, kind="as the server makes calls")],
        "arrival": [lambda server: arrival(server, streams=options.streams, before=options.before)],
        "crowd": [lambda server: crowd(server, clients=options.clients)],
    }
    found: Results = {}

    def run(measures: list[Callable[[Server], Awaitable[Results]]], **settings: Any) -> None:
        with server_for(options, **settings) as server:
            found.update(asyncio.run(rounds(server, measures, options.rounds)))

    if chosen := [measure for name in options.only for measure in shared.get(name, [])]:
        run(chosen, slots=8)
    if "turns" in options.only and not options.url:
        run([lambda server: agent(server, kind="calls in the prompt")], slots=2, native=True)
    if "leaving" in options.only:
        run([leaving], slots=1)
    return found


def main() -> None:
    """Measure, and print the medians."""
    options = arguments()
    found = measured(options)
    print(machine("llama-cpp-python", "fastapi", "uvicorn"))
    print(
        f"{options.model if options.url else gguf(options.model).name}, medians of {options.rounds} rounds\n"
    )
    rows = [
        [name, f"{statistics.median(values):,.2f}", f"{min(values):,.2f} to {max(values):,.2f}"]
        for name, values in found.items()
    ]
    print(table(["", "median", "range"], rows))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
