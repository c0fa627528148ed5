"""Mixed traffic for minutes, and what it leaves behind: memory, threads, open files, slots.

Starts `llama-lite run starter`; clients ask for all it can do and for what it must refuse, and some leave
before the answer is there. Ends by itself, with exit code 1 where an answer was wrong or a slot is stuck.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support import JsonObject, Server, machine, ours, system, table, user, words

SETTLE = 5  # seconds without traffic before the last sample
PATIENCE = 120  # seconds in which every request has to be answered
EMBEDDER = "embed/all-minilm-l6-v2"
SCHEMA: JsonObject = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather for a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


# ---------------------------------------------------------------- traffic


@dataclass(frozen=True)
class Request:
    """What is asked, and which statuses are right; `leaves` after so many seconds."""

    kind: str
    path: str
    body: JsonObject
    right: tuple[int, ...] = (200, 429)
    leaves: float | None = None


def chat(server: Server) -> Request:
    size = random.choice([5, 5, 30, 300])
    messages = [system("You are helpful."), user(f"Tell a story of {words(size)}")]
    stream = random.random() < 0.5
    body = server.body(messages, max_tokens=random.randint(1, 48), temperature=random.choice([0, 0.8]))
    return Request("chat, streamed" if stream else "chat", "chat/completions", body | {"stream": stream})


def leaver(server: Server) -> Request:
    request = chat(server)
    body = request.body | {"max_tokens": 500}
    return Request(f"{request.kind}, left", request.path, body, leaves=random.uniform(0.01, 3))


def structured(server: Server) -> Request:
    body = server.body([user("Anna is 31 years old.")], response_format=FORM, max_tokens=48)
    return Request("json_schema", "chat/completions", body)


def tools(server: Server) -> Request:
    messages = [user(f"How is the weather in {random.choice(['Oslo', 'Rome', 'Lima'])}?")]
    body = server.body(messages, tools=[TOOL], tool_choice="required", max_tokens=48)
    return Request("tools", "chat/completions", body)


def several(server: Server) -> Request:
    body = server.body([user(words(6))], n=2, logprobs=True, top_logprobs=3, max_tokens=8, temperature=1)
    return Request("n=2 with logprobs", "chat/completions", body)


def completion(server: Server) -> Request:
    body = {"model": server.model, "prompt": words(12), "max_tokens": 16, "stream": random.random() < 0.5}
    return Request("completion", "completions", body)


def embedding(server: Server) -> Request:
    return Request("embeddings", "embeddings", {"model": EMBEDDER, "input": [words(20), words(5)]})


def bad(server: Server) -> Request:
    body = server.body([user("Hello")])
    wrong: Sequence[JsonObject] = (
        body | {"messages": []},
        body | {"temperature": 9},
        body | {"messages": [user(words(20_000))]},
        body | {"model": "nobody"},
        body
        | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 1}}}},
    )
    return Request("bad", "chat/completions", random.choice(wrong), right=(400, 404, 413, 422))


KINDS: dict[Callable[[Server], Request], int] = {
    chat: 8,
    leaver: 4,
    structured: 2,
    tools: 2,
    several: 1,
    completion: 2,
    embedding: 2,
    bad: 2,
}


async def send(server: Server, request: Request) -> int:
    """The status; raises `ValueError` where a stream did not end as it should."""
    async with server.session.post(f"{server.url}/{request.path}", json=request.body) as reply:
        text = await reply.text()
        if reply.status == 200 and request.body.get("stream") and not text.endswith("data: [DONE]\n\n"):
            raise ValueError(f"the stream ended with {text[-200:]!r}")
        return reply.status


class Traffic:
    """Clients that ask without a pause; `counts` by kind and outcome, `wrong` what should not have been."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.counts: Counter[tuple[str, str]] = Counter()
        self.wrong: list[str] = []

    async def client(self, end: float) -> None:
        while time.monotonic() < end:
            (make,) = random.choices(list(KINDS), weights=list(KINDS.values()))
            request = make(self.server)
            outcome = await self._outcome(request)
            self.counts[request.kind, outcome] += 1

    async def _outcome(self, request: Request) -> str:
        try:
            status = await asyncio.wait_for(send(self.server, request), request.leaves or PATIENCE)
        except TimeoutError:
            if request.leaves is not None:
                return "left"
            self.wrong.append(f"{request.kind}: no answer")
            return "no answer"
        except (OSError, ValueError) as error:
            self.wrong.append(f"{request.kind}: {error!r}")
            return type(error).__name__
        if status not in request.right:
            self.wrong.append(f"{request.kind}: {status} for {json.dumps(request.body)[:300]}")
        if status == 429:
            await asyncio.sleep(0.5)
        return str(status)


# ---------------------------------------------------------------- what it leaves behind


@dataclass(frozen=True)
class Sample:
    """A process at a time: seconds since the start, MB in memory, threads, open files."""

    seconds: float
    memory: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int, seconds: float) -> "Sample":
        process = Path("/proc", str(pid))
        lines = (process / "status").read_text(encoding="ascii").splitlines()
        found = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        files = sum(1 for _ in (process / "fd").iterdir())
        return cls(seconds, int(found["VmRSS"][0]) / 1024, int(found["Threads"][0]), files)

    def row(self, name: str) -> list[str]:
        return [name, f"{self.seconds:.0f}", f"{self.memory:,.1f}", str(self.threads), str(self.files)]


async def watch(pid: int, samples: list[Sample], *, began: float, every: float) -> None:
    while True:
        samples.append(Sample.of(pid, time.monotonic() - began))
        await asyncio.sleep(every)


def slope(samples: list[Sample]) -> float:
    """MB a minute, by least squares."""
    line = statistics.linear_regression([each.seconds for each in samples], [each.memory for each in samples])
    return 60 * line.slope


async def answering(server: Server, slots: int) -> int:
    """How many of as many requests at once as there are slots are answered."""
    asked: list[Awaitable[object]] = [server.stream([user(words(8))], max_tokens=16) for _ in range(slots)]
    answers = await asyncio.gather(
        *[asyncio.wait_for(each, PATIENCE) for each in asked], return_exceptions=True
    )
    return sum(not isinstance(each, BaseException) for each in answers)


async def soak(server: Server, options: argparse.Namespace) -> tuple[Traffic, list[Sample], int]:
    """The traffic, the samples of the server, and how many slots answer at the end."""
    assert server.pid
    samples: list[Sample] = []
    traffic = Traffic(server)
    async with server:
        await answering(server, options.slots)  # all is loaded before the first sample
        began = time.monotonic()
        watcher = asyncio.create_task(watch(server.pid, samples, began=began, every=options.every))
        end = began + 60 * options.minutes
        await asyncio.gather(*[traffic.client(end) for _ in range(options.clients)])
        watcher.cancel()
        left = await answering(server, options.slots)
        await asyncio.sleep(SETTLE)
        samples.append(Sample.of(server.pid, time.monotonic() - began))
        return traffic, samples, left


def report(traffic: Traffic, samples: list[Sample]) -> str:
    """Markdown: what was answered, and the process at the start, in the middle and at the end."""
    outcomes = [[kind, outcome, str(count)] for (kind, outcome), count in sorted(traffic.counts.items())]
    middle = len(samples) // 2
    named = {"start": samples[0], "middle": samples[middle], "end": samples[-2], "end, idle": samples[-1]}
    parts = [
        table(["request", "outcome", "times"], outcomes),
        table(
            ["", "seconds", "memory, MB", "threads", "open files"],
            [sample.row(name) for name, sample in named.items()],
        ),
    ]
    if len(busy := samples[middle:-1]) > 1:
        parts.append(f"Memory grows by {slope(busy):+.2f} MB a minute in the second half.")
    if traffic.wrong:
        parts.append(f"{len(traffic.wrong)} wrong:\n" + "\n".join(traffic.wrong[:10]))
    return "\n\n".join(parts)


def main() -> None:
    """Start the server, load it, print what became of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--every", type=float, default=5, help="seconds between two samples")
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample")
    options = parser.parse_args()
    with ours(options.model, slots=options.slots, context=2048) as server:
        traffic, samples, left = asyncio.run(soak(server, options))
    print(machine("llama-cpp-python", "fastapi", "uvicorn"))
    print(f"{options.minutes} minutes, {options.clients} clients, {options.slots} slots\n")
    print(report(traffic, samples))
    print(f"\n{left} of {options.slots} slots answer at the end.")
    if options.json:
        options.json.write_text(json.dumps([vars(each) for each in samples], indent=1), encoding="utf-8")
    sys.exit(1 if traffic.wrong or left < options.slots else 0)


if __name__ == "__main__":
    main()
