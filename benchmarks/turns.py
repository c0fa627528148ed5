"""What an agent costs: the time it adds to each step of a turn, and the memory of streams that are held.

The model is scripted, with a fixed delay, and calls a tool of the server's own process in every step but
the last; state is on SQLite. Against it stand the same calls of the same model by /v1/chat/completions of the
same server, one after the other on one connection. Rounds are interleaved.

Then so many clients stream a slow answer at once: how much memory (RSS) the server has more than before, and
how much of a processor it takes.

    python -m benchmarks.turns
    python -m benchmarks.turns --rounds 50 --streams 200 --url postgresql://user:password@host/database
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from pydantic import BaseModel

from benchmarks.support import JsonObject, launched, machine, percentile, table, user
from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.tools import ToolKind, ToolResult

STEPS = (1, 2, 4, 8)
DELAY = 0.005  # seconds before each chunk of the model's
CALL = {"tool_calls": [{"name": "echo", "arguments": {}}], "delay": DELAY}
ANSWER = {"chunks": ["done"], "delay": DELAY}
MODEL = "test/scripted"
TOOLS = [{"type": "mcp", "server_label": "echo", "require_approval": "never"}]
SLOW: JsonObject = {"chunks": ["word "] * 20, "delay": 0.5}  # the answers that are held
WARM_UP = 20
HOLD = 5  # seconds after which the held streams are looked at
TICKS = os.sysconf("SC_CLK_TCK")


class Echo:
    """A tool that answers at once."""

    kind: ToolKind = "mcp"

    class Config(BaseModel):
        pass

    def __init__(self, config: Config) -> None:
        pass

    async def tools(self) -> list[FunctionDefinition]:
        return [FunctionDefinition(name="echo", description="Says nothing.")]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        return ToolResult(text="nothing")


@contextmanager
def served(replies: list[JsonObject], url: str | None, **turns: int) -> Iterator[tuple[str, int]]:
    """`llama-lite run` with a scripted model; its address, and its process."""
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "inference": {"test": {"provider": "scripted", "replies": replies, "loop": True}},
            "tools": {"echo": {"provider": "benchmarks.turns:Echo"}},
            "storage": url or f"sqlite:///{folder}/state.db",
            "turns": turns,
        }
        file = Path(folder) / "turns.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        env = {"LLAMA_LITE_HOME": folder, "NO_PROXY": "*", "PYTHONPATH": os.getcwd()}
        with launched(file, env=env) as found:
            yield found


@asynccontextmanager
async def session() -> AsyncGenerator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as found:
        yield found


async def post(client: aiohttp.ClientSession, url: str, body: JsonObject) -> JsonObject:
    async with client.post(url, json=body) as answer:
        found: JsonObject = await answer.json()
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {found}")
        return found


async def events(answer: aiohttp.ClientResponse) -> AsyncGenerator[JsonObject]:
    async for line in answer.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


# ---------------------------------------------------------------- time


async def chats(client: aiohttp.ClientSession, url: str, steps: int) -> None:
    """The model's calls alone, with the messages that they would have in a turn."""
    schema = {"type": "object", "properties": {}}
    tools = [{"type": "function", "function": {"name": "echo", "parameters": schema}}]
    messages: list[JsonObject] = [user("go")]
    for step in range(steps):
        body = {"model": MODEL, "messages": messages, "tools": tools}
        found = (await post(client, f"{url}/chat/completions", body))["choices"][0]
        assert (found["finish_reason"] == "tool_calls") == (step < steps - 1)
        for call in found["message"].get("tool_calls") or []:
            said = {"role": "assistant", "tool_calls": [call]}
            messages += [said, {"role": "tool", "tool_call_id": call["id"], "content": "nothing"}]


async def whole(client: aiohttp.ClientSession, url: str, steps: int) -> None:
    found = await post(client, f"{url}/responses", {"model": MODEL, "input": "go", "tools": TOOLS})
    assert len(found["output"]) == steps + 1 and found["status"] == "completed", found


async def streamed(client: aiohttp.ClientSession, url: str, steps: int, *, background: bool = False) -> None:
    body = {"model": MODEL, "input": "go", "tools": TOOLS, "stream": True, "background": background}
    async with client.post(f"{url}/responses", json=body) as answer:
        last = [event async for event in events(answer)][-1]
    assert last["type"] == "response.completed" and len(last["response"]["output"]) == steps + 1


async def in_background(client: aiohttp.ClientSession, url: str, steps: int) -> None:
    await streamed(client, url, steps, background=True)


async def measure(steps: int, rounds: int, storage: str | None) -> list[str]:
    """A row: milliseconds that each way adds to a step, the median and the 95th percentile."""
    ways = {"chats": chats, "whole": whole, "streamed": streamed, "background": in_background}
    took: dict[str, list[float]] = {name: [] for name in ways}
    with served([CALL] * (steps - 1) + [ANSWER], storage) as (url, _):
        async with session() as client:
            for number in range(rounds + 3):
                for name, way in ways.items():
                    began = time.perf_counter()
                    await way(client, url, steps)
                    if number >= 3:
                        took[name].append((time.perf_counter() - began) * 1000 / steps)
    base = statistics.median(took["chats"])
    row = [str(steps), f"{base:.1f}"]
    for name in ("whole", "streamed", "background"):
        added = [value - base for value in took[name]]
        ratio = statistics.median(took[name]) / base
        row.append(f"{statistics.median(added):.1f} / {percentile(added, 95):.1f} ({ratio:.2f})")
    return row


# ---------------------------------------------------------------- memory


def memory(pid: int) -> float:
    """RSS in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def processor(pid: int) -> float:
    """Seconds of processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def read(client: aiohttp.ClientSession, url: str, response_id: str | None) -> None:
    """Stream a response of one's own, or one in the background."""
    body = {"model": MODEL, "input": "go", "stream": True}
    path = f"{url}/responses/{response_id}?stream=true"
    request = client.get(path) if response_id else client.post(f"{url}/responses", json=body)
    async with request as answer:
        last = [event async for event in events(answer)][-1]
    assert last["type"] == "response.completed", last


async def held(streams: int, turns: int, storage: str | None) -> list[str]:
    """A row: what so many streams cost, each of its own turn, or all of so many turns in the background."""
    replies = [{**SLOW, "delay": 0, "repeat": WARM_UP}, {**SLOW, "repeat": 10_000}]
    with served(replies, storage, workers=max(4, turns), queue=max(4, turns)) as (url, pid):
        async with session() as client:
            for _ in range(WARM_UP):
                await read(client, url, None)
            idle = memory(pid)
            ids: list[str | None] = [None]
            if turns:
                body = {"model": MODEL, "input": "go", "background": True}
                ids = [(await post(client, f"{url}/responses", body))["id"] for _ in range(turns)]
            readers = [
                asyncio.create_task(read(client, url, ids[number % len(ids)])) for number in range(streams)
            ]
            await asyncio.sleep(HOLD)
            spent, most = processor(pid), memory(pid)
            await asyncio.sleep(2)
            spent, most = (processor(pid) - spent) / 2, max(most, memory(pid))
            await asyncio.gather(*readers)
    what = (
        f"{streams} readers of {turns} turns in the background" if turns else f"{streams} turns of their own"
    )
    return [what, f"{idle:.0f}", f"+{most - idle:.1f}", f"{most / idle:.2f}", f"{spent * 100:.0f} %"]


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--url", help="of an empty PostgreSQL database, instead of SQLite")
    options = parser.parse_args()
    print(machine("sqlalchemy", "fastapi"), "\n")
    rows = [await measure(steps, options.rounds, options.url) for steps in STEPS]
    print(table(["steps", "a step by chats, ms", "whole", "streamed", "background"], rows), "\n")
    many = options.streams
    rows = [await held(many, turns, options.url) for turns in (0, many, max(1, many // 10), 1)]
    print(table(["streams held", "idle, MB", "growth, MB", "ratio", "processor"], rows))


if __name__ == "__main__":
    asyncio.run(main())
