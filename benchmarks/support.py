"""What the benchmarks share: model files, a server of our own, timed answers over HTTP, and tables."""

import asyncio
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import h11

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.models import card, paths
from llama_stack_lite.providers.inference.llama_cpp.loading import Weights
from llama_stack_lite.providers.inference.llama_cpp.quantizing import prepared
from llama_stack_lite.providers.inference.llama_cpp.vocab import Vocab

Figures = dict[str, float]
JsonObject = dict[str, Any]

START = 180  # seconds that a server may take to start
# ours from this Python, also where its scripts are not on the path
LITE = [sys.executable, "-c", "from llama_stack_lite.cli import main; main()"]
# each one token in the vocabularies of Llama's kind, so that a prompt's length can be chosen
COMMON = """
river stone apple cloud window garden mountain letter music summer winter silver golden bridge
forest island market paper number yellow orange purple green black white happy strong gentle early
small large house school table chair water fire earth light night morning evening friend family
teacher doctor farmer driver writer reader story picture color sound voice dance travel train
plane ship road street city town village country world space planet moon star ocean beach sand
snow rain wind storm heart hand head foot finger shoulder bread butter cheese sugar coffee tea
milk fruit flower tree leaf grass bird horse sheep tiger lion wolf fish whale
"""
WORDS = COMMON.split()


def words(count: int) -> str:
    """So many words by chance: a prompt that no cache has seen."""
    return " ".join(random.choices(WORDS, k=count))


def user(text: str) -> JsonObject:
    return {"role": "user", "content": text}


def system(text: str) -> JsonObject:
    return {"role": "system", "content": text}


def gguf(model: str) -> Path:
    """The very file that the `llama-cpp` provider loads for a model, so that all are measured on the same."""
    found = card(model)
    source = next(path for name, path in paths(found).items() if name.endswith(".gguf"))
    file: Path = prepared(found, source)
    return file


@contextmanager
def vocabulary(path: Path) -> Iterator[Vocab]:
    """The tokenizer inside a GGUF, without its weights."""
    weights = Weights(path, vocab_only=True)
    try:
        yield Vocab(weights.model)
    finally:
        weights.close()


# ---------------------------------------------------------------- servers


@dataclass
class Server:
    """Where to ask, and for which model; `pid` of a process that was started here."""

    name: str
    url: str
    model: str
    pid: int | None = None
    session: aiohttp.ClientSession = field(init=False, repr=False)

    async def __aenter__(self) -> "Server":
        # a connection for each request: an idle one is closed by servers after seconds of their choice
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        self.session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(600))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    def body(self, messages: list[JsonObject], **options: Any) -> JsonObject:
        return {"model": self.model, "messages": messages, "temperature": 0, **options}

    async def stream(
        self, messages: list[JsonObject], *, into: "Answer | None" = None, **options: Any
    ) -> "Answer":
        """A streamed chat completion; raises `RuntimeError` with the server's words where it is none.

        Given `into`, it can be looked at before it ends.
        """
        body = self.body(messages, stream=True, stream_options={"include_usage": True}, **options)
        payload = json.dumps(body).encode()
        url = urlsplit(f"{self.url}/chat/completions")
        head = f"POST {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
        answer = into or Answer(time.perf_counter())
        transport, recorder = await asyncio.get_running_loop().create_connection(
            lambda: Recorder(answer.received), str(url.hostname), url.port or 80
        )
        try:
            transport.write(head.encode() + payload)
            await recorder.ended
        finally:
            transport.abort()
        answer.check(self.name)
        return answer

    async def prompt_tokens(self, messages: list[JsonObject]) -> int:
        """How long the server says a prompt is."""
        body = self.body(messages, max_tokens=1)
        async with self.session.post(f"{self.url}/chat/completions", json=body) as reply:
            if reply.status != 200:
                raise RuntimeError(f"{self.name} answered {reply.status}: {await reply.text()}")
            return int((await reply.json())["usage"]["prompt_tokens"])


class Recorder(asyncio.Protocol):
    """Notes what comes and when, and no more: it shares its cores with the model that it measures.

    A whole HTTP client takes twice as long for a token, and about as long as the server.
    """

    def __init__(self, received: list[tuple[float, bytes]]) -> None:
        self.received = received
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


@dataclass
class Answer:
    """A stream as it came, read only when the load is over; times in seconds of `time.perf_counter`."""

    began: float
    received: list[tuple[float, bytes]] = field(default_factory=list)

    @property
    def blocks(self) -> Iterator[tuple[float, bytes]]:
        """The body's bytes, and when they came."""
        connection = h11.Connection(h11.CLIENT)
        connection.send(h11.Request(method="POST", target="/", headers=[("Host", "any")]))
        connection.send(h11.EndOfMessage())
        for when, data in self.received:
            connection.receive_data(data)
            while isinstance(part := connection.next_event(), h11.Event):
                if isinstance(part, h11.Data):
                    yield when, bytes(part.data)

    def events(self) -> Iterator[tuple[float, JsonObject]]:
        """Every event, and when the last byte of it came."""
        rest = b""
        for when, block in self.blocks:
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.startswith(b"data: {"):
                    yield when, json.loads(line[6:])

    def check(self, server: str) -> None:
        """Raise `RuntimeError` where it is no stream, or one that broke."""
        raw = b"".join(data for _, data in self.received[:1] + self.received[-2:])
        if not raw.startswith(b"HTTP/1.1 200 ") or b'"error"' in raw:
            raise RuntimeError(f"{server} answered: {raw.decode(errors='replace')}")

    @cached_property
    def deltas(self) -> list[tuple[float, JsonObject]]:
        """The pieces that hold text or a call."""
        return [
            (when, choice["delta"])
            for when, event in self.events()
            for choice in event.get("choices", [])
            if choice["delta"].get("content") or choice["delta"].get("tool_calls")
        ]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        if not self.deltas:
            raise RuntimeError(f"an answer without a token: {[*self.blocks]}")
        return self.deltas[0][0] - self.began

    @property
    def ended(self) -> float:
        return self.received[-1][0]

    @property
    def arrivals(self) -> list[float]:
        return [when for when, _ in self.deltas]

    @property
    def text(self) -> str:
        return "".join(delta.get("content") or "" for _, delta in self.deltas)

    @cached_property
    def usage(self) -> JsonObject:
        """The server's own count; empty where it keeps none."""
        found = [event["usage"] for _, event in self.events() if event.get("usage")]
        return found[-1] if found else {}

    @property
    def tokens(self) -> int:
        """How many were written; by pieces where the server keeps no count."""
        return int(self.usage.get("completion_tokens") or len(self.deltas))

    @property
    def cached(self) -> int:
        """How many tokens of the prompt were not read again, as far as the server says."""
        return int((self.usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)


def gaps(arrivals: list[float]) -> list[float]:
    """Seconds between one piece and the next."""
    return [after - before for before, after in zip(arrivals, arrivals[1:], strict=False)]


@contextmanager
def child(
    command: list[str], *, output: int = subprocess.DEVNULL, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, in our environment with `env` added."""
    process = subprocess.Popen(command, stdout=output, text=True, env=os.environ | (env or {}))
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.communicate(timeout=15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def launched(*arguments: str | Path, env: Mapping[str, str] | None = None) -> Iterator[tuple[str, int]]:
    """`llama-lite run ARGUMENTS` without guards on a free port; its address (with `/v1`), its process."""
    options = ["--no-guard", "--port", "0", "--log-level", "error"]
    command = [*LITE, "run", *map(str, arguments), *options]
    with child(command, output=subprocess.PIPE, env=env) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("export OPENAI_BASE_URL="):
                yield line.strip().partition("=")[2], process.pid
                return
        raise SystemExit("llama-lite did not start")


@contextmanager
def ours(model: str | JsonObject, **settings: object) -> Iterator[Server]:
    """`llama-lite run starter` on a free port, with one model (a name, a GGUF file or a card) and settings
    of the `llama-cpp` provider."""
    name = f"local/{card(model if isinstance(model, str) else ModelCard.model_validate(model)).id}"
    chosen = {f"inference.local.{key}": value for key, value in settings.items()}
    chosen |= {"inference.local.models": json.dumps([model]), "defaults.model": name}
    overrides = [part for key, value in chosen.items() for part in ("--set", f"{key}={value}")]
    with launched("starter", "--offline", *overrides) as (url, pid):
        yield Server("llama-stack-lite", url, name, pid)


# ---------------------------------------------------------------- figures


def percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def machine(*packages: str) -> str:
    """Where figures come from: processor, cores, Python, versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    found = [names[0] if names else platform.processor(), f"{os.cpu_count()} cores"]
    found += [f"python {platform.python_version()}"]
    return ", ".join(found + [f"{package} {version(package)}" for package in packages])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
