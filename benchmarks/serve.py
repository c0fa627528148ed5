"""Many users on one model over HTTP: tokens a second, time to the first token, and time between tokens.

Streaming chat completions of random prompts, 1, 4 and 16 at once, asked of several servers in turn: ours,
`llama_cpp.server`, any other by its address, and the floor of `engine.py`, which is no server at all. Each
round begins with another one; a figure is the median of its rounds, a ratio the median of their ratios.
No answer may end before it has all its tokens: a `logit_bias` forbids the tokens that would end it.

    python -m benchmarks.serve --ours --floor --llama-cpp-server --python other/bin/python
    python -m benchmarks.serve --ours --url llama.cpp=http://127.0.0.1:8080/v1

What is started here loads one and the same file, which is named above the table; load it elsewhere too.
"""

import argparse
import asyncio
import itertools
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks.engine import Setting, contexts
from benchmarks.support import (
    START,
    Figures,
    JsonObject,
    Server,
    child,
    gaps,
    gguf,
    machine,
    ours,
    percentile,
    system,
    table,
    user,
    vocabulary,
    words,
)
from llama_stack_lite.providers.inference.llama_cpp.threads import cores

FLOOR = "floor, no server"
ONE_BY_ONE = "llama_cpp.server"  # serves one request at a time: slow under many streams
TASK = "Write a very long story in which all of these words appear."
SAMPLE = 20  # words of the prompt that shows how many tokens a prompt has besides its words
Load = tuple[int, int]  # streams at once, tokens of a prompt


class Target(Protocol):
    """Something that can be put under load."""

    name: str

    async def warm_up(self) -> None: ...
    async def measure(self, load: Load, *, tokens: int) -> Figures: ...


class Floor:
    """llama.cpp in this process, with the provider's settings."""

    name = FLOOR

    def __init__(self, model: str, *, slots: int, room: int, threads: int, flash: bool) -> None:
        settings = [Setting(model, flash="on" if flash else "off")]
        (self.context,) = contexts(settings, slots=slots, room=room, threads=threads).values()

    async def warm_up(self) -> None:
        await self.measure((1, 16), tokens=4)

    async def measure(self, load: Load, *, tokens: int) -> Figures:
        streams, prompt = load
        found = self.context.generate(streams=streams, prompt=prompt, tokens=tokens)
        return {"tok/s": found["tok/s"], "tokens": tokens}


def prompt_of(count: int) -> list[JsonObject]:
    """So many words by chance, and a task that goes on; the words first, so that no cache can help."""
    return [system(words(count)), user(TASK)]


class Client:
    """A server under load; `ends` are the tokens that would end an answer."""

    def __init__(self, server: Server, ends: Iterable[int]) -> None:
        self.server, self.name = server, server.name
        self.bias = {str(token): -100 for token in ends}
        self.besides = 0  # tokens of a prompt that are not its words

    async def warm_up(self) -> None:
        self.besides = await self.server.prompt_tokens(prompt_of(SAMPLE)) - SAMPLE

    async def measure(self, load: Load, *, tokens: int) -> Figures:
        streams, prompt = load
        prompts = [prompt_of(max(1, prompt - self.besides)) for _ in range(streams)]
        options: JsonObject = {"max_tokens": tokens, "logit_bias": self.bias}
        began = time.perf_counter()
        answers = await asyncio.gather(*[self.server.stream(each, **options) for each in prompts])
        taken = max(answer.ended for answer in answers) - began
        first = [1e3 * answer.first for answer in answers]
        between = [1e3 * gap for answer in answers for gap in gaps(answer.arrivals)]
        written = [answer.tokens for answer in answers]
        return {
            "tok/s": sum(written) / taken,
            "TTFT p50": percentile(first, 50),
            "TTFT p95": percentile(first, 95),
            "gap p50": percentile(between, 50),
            "gap p95": percentile(between, 95),
            "tokens": statistics.mean(written),
            "cached": statistics.mean(answer.cached for answer in answers),
        }


@contextmanager
def llama_cpp_server(python: str, options: argparse.Namespace) -> Iterator[Server]:
    """`python -m llama_cpp.server`, ready to answer."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = {
        "model": gguf(options.model),
        "port": port,
        "n_ctx": options.context,
        "interrupt_requests": False,
        "flash_attn": options.flash,
        "verbose": False,
    }
    if options.threads:
        settings |= {"n_threads": options.threads, "n_threads_batch": options.threads}
    command = [python, "-m", "llama_cpp.server"]
    command += [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    with child(command) as process:
        url = f"http://127.0.0.1:{port}/v1"
        wait_for(url, process)
        yield Server(ONE_BY_ONE, url, options.model)


def wait_for(url: str, process: subprocess.Popen[str]) -> None:
    """Until the server lists its models."""
    end = time.monotonic() + START
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"nobody answers at {url}")


def named(text: str, model: str) -> Server:
    """`NAME=URL[,MODEL]` of the command line."""
    name, _, rest = text.partition("=")
    url, _, other = rest.partition(",")
    return Server(name, url.rstrip("/"), other or model)


async def interleaved(
    targets: list[Target], loads: list[Load], *, tokens: int, rounds: int, seconds: float
) -> dict[Load, list[dict[str, Figures]]]:
    """The figures of every round by load and target: so many rounds, or fewer where they take too long."""
    for target in targets:
        await target.warm_up()
    found: dict[Load, list[dict[str, Figures]]] = {load: [] for load in loads}
    for load in loads:
        for target in targets:  # unmeasured, as ours learns from the first steps of each size
            await target.measure(load, tokens=tokens)
        end = time.monotonic() + seconds
        for number in range(rounds):
            if number and time.monotonic() > end:
                break
            print(f"{load[0]} x {load[1]}: round {number + 1}", file=sys.stderr)
            turn = number % len(targets)
            found[load].append(
                {
                    target.name: await target.measure(load, tokens=tokens)
                    for target in targets[turn:] + targets[:turn]
                    if not (number and load[0] > 4 and target.name == ONE_BY_ONE)
                }
            )
    return found


COLUMNS = ("TTFT p50", "TTFT p95", "gap p50", "gap p95", "tokens", "cached")


def rows(found: dict[Load, list[dict[str, Figures]]], names: list[str]) -> Iterator[list[str]]:
    """A row for each load and target; the ratio says how many times as fast the first target was."""
    for (streams, prompt), rounds in found.items():
        for name in names:
            having = [each for each in rounds if name in each]
            ratios = [each[names[0]]["tok/s"] / each[name]["tok/s"] for each in having]
            cells = [
                f"{statistics.median(each[name][key] for each in having):,.0f}"
                if key in having[0][name]
                else ""
                for key in COLUMNS
            ]
            speed = statistics.median(each[name]["tok/s"] for each in having)
            load = [f"{streams} x {prompt}", name, f"{len(having)}"]
            yield [*load, f"{speed:,.1f}", f"{statistics.median(ratios):.2f}", *cells]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ours", action="store_true", help="start `llama-lite run starter`")
    parser.add_argument("--floor", action="store_true", help="llama.cpp in this process, as in engine.py")
    parser.add_argument("--llama-cpp-server", action="store_true", help="start `python -m llama_cpp.server`")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has it")
    parser.add_argument(
        "--url", action="append", default=[], metavar="NAME=URL[,MODEL]", help="a server, up to and with /v1"
    )
    parser.add_argument("--model", default="smollm2-135m", help="a name, or a GGUF file")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 512], help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write in each stream")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--flash", action="store_true", help="flash attention for all that is started here")
    parser.add_argument(
        "--threads",
        type=int,
        help="of all that is started here; by default each server's own choice, and all cores for the floor",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each load, at most")
    parser.add_argument("--seconds", type=float, default=45, help="after which a load gets no further round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    chosen = parser.parse_args()
    if not (chosen.ours or chosen.floor or chosen.llama_cpp_server or chosen.url):
        chosen.ours = chosen.floor = True
    return chosen


async def measured(
    options: argparse.Namespace, servers: list[Server]
) -> dict[Load, list[dict[str, Figures]]]:
    loads = list(itertools.product(options.streams, options.prompts))
    with vocabulary(gguf(options.model)) as vocab:
        ends = vocab.ends
    async with AsyncExitStack() as stack:
        targets: list[Target] = [Client(await stack.enter_async_context(server), ends) for server in servers]
        if options.floor:
            settings = {"slots": max(options.streams), "room": options.context, "flash": options.flash}
            targets.append(Floor(options.model, threads=options.threads or cores(), **settings))
        return await interleaved(
            targets, loads, tokens=options.tokens, rounds=options.rounds, seconds=options.seconds
        )


def main() -> None:
    """Start the servers, measure, print a table, stop what was started."""
    options = arguments()
    servers: list[Server] = []
    with ExitStack() as stack:
        if options.ours:
            settings = {"slots": max(options.streams), "context": options.context}
            settings |= {"threads": options.threads} if options.threads else {}
            settings |= {"flash_attention": "true"} if options.flash else {}
            servers.append(stack.enter_context(ours(options.model, **settings)))
        servers += [named(each, options.model) for each in options.url]
        if options.llama_cpp_server:
            servers.append(stack.enter_context(llama_cpp_server(options.python, options)))
        found = asyncio.run(measured(options, servers))
    names = [server.name for server in servers] + [FLOOR] * options.floor
    print(machine("llama-cpp-python", "fastapi", "uvicorn"))
    threads = options.threads or "each its own choice"
    print(f"{gguf(options.model).name}, threads: {threads}, {options.tokens} tokens; TTFT, gaps in ms\n")
    print(table(["load", "server", "rounds", "tok/s", f"{names[0]} is", *COLUMNS], rows(found, names)))
    if options.json:
        raw = {f"{streams} x {prompt}": rounds for (streams, prompt), rounds in found.items()}
        options.json.write_text(json.dumps(raw, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
