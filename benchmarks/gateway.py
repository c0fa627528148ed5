"""What a gateway costs: the time it adds to an answer and to a chunk, and how much it carries.

A trivial upstream stands behind several gateways: two bare pass-throughs (FastAPI over aiohttp and over
httpx), ours (`llama-lite run` with the `openai` provider), and whatever `--url NAME=URL` names. Each has a
process of its own, and this one makes the load. Rounds are interleaved; a figure is the median of its rounds.

    python -m benchmarks.gateway
    python -m benchmarks.gateway --upstream-port 9000 --url other=http://127.0.0.1:4000/v1#its-model
"""

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.support import Figures, launched, machine
from benchmarks.upstream import LOOPBACK, process, run_aiohttp, run_httpx, run_upstream

MODEL = "bench/echo"
DIRECT, BASELINE = "upstream, direct", "FastAPI + aiohttp"
FILLED = {"chunks": 16}  # an answer that is there at once
PACED = {"chunks": 200, "pause": 0.001}
DENSE = {"chunks": 64, "pause": 0}  # as fast as they can be written one by one
WARM_UP = 20


@contextmanager
def ours(upstream: str) -> Iterator[str]:
    """`llama-lite run` with one provider; yields its address up to and with `/v1`."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gateway.yaml"
        file.write_text(
            f"inference: {{bench: {{provider: openai, base_url: '{upstream}'}}}}\n", encoding="utf-8"
        )
        with launched(file, env={"LLAMA_LITE_HOME": folder, "NO_PROXY": "*"}) as (url, _):
            yield url


class Client(asyncio.Protocol):
    """A connection that asks, and reads no more of an answer than it has to."""

    def __init__(self) -> None:
        self.received = b""
        self.delays: list[int] = []
        self.keep_delays = False
        self.chunks = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self.answered and not self.answered.done():
            self.answered.set_exception(ConnectionError("the gateway hung up"))

    answered: asyncio.Future[None] | None = None

    async def ask(self, request: bytes) -> None:
        """Send a request and wait for the end of its answer; raises where it is no answer."""
        self.received = b""
        self.answered = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        await asyncio.wait_for(self.answered, 30)

    def data_received(self, data: bytes) -> None:
        assert self.answered
        if self.keep_delays:
            now = time.monotonic_ns()
            self.delays += [now - int(stamp) for stamp in re.findall(rb'"content": ?"(\d+) "', data)]
        self.chunks += data.count(b'"content"')
        self.received += data
        if self._is_whole() and not self.answered.done():
            if self.received.startswith(b"HTTP/1.1 200") and b'"error"' not in self.received:
                self.answered.set_result(None)
            else:
                self.answered.set_exception(RuntimeError(self.received.decode()))

    def _is_whole(self) -> bool:
        if self.received.endswith(b"\r\n0\r\n\r\n"):
            return True
        head, separator, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        return bool(separator and length) and len(body) >= int(length[1]) if length else False


class Gateway:
    """An address to measure."""

    def __init__(self, name: str, url: str) -> None:
        parts = urlsplit(url)
        self.name = name
        self.host, self.port = parts.hostname or LOOPBACK, parts.port or 80
        self.path = f"{parts.path.rstrip('/')}/chat/completions"
        self.model = parts.fragment or MODEL

    def request(self, *, stream: bool, **asked: float) -> bytes:
        prompt = " ".join(f"{key}={value}" for key, value in asked.items())
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}]}
        raw = json.dumps(body | ({"stream": True} if stream else {})).encode()
        head = [
            f"POST {self.path} HTTP/1.1",
            f"host: {self.host}:{self.port}",
            "content-type: application/json",
            "authorization: Bearer none",
            f"content-length: {len(raw)}",
        ]
        return "\r\n".join([*head, "", ""]).encode() + raw

    @asynccontextmanager
    async def clients(self, count: int) -> AsyncGenerator[list[Client], None]:
        loop = asyncio.get_running_loop()
        pairs = [await loop.create_connection(Client, self.host, self.port) for _ in range(count)]
        yield [client for _, client in pairs]
        for transport, _ in pairs:
            transport.close()


async def answer_delay(gateway: Gateway) -> Figures:
    """Milliseconds for a whole answer, one request at a time."""
    request = gateway.request(stream=False, **FILLED)
    taken = []
    async with gateway.clients(1) as (client,):
        for _ in range(WARM_UP + 200):
            started = time.perf_counter()
            await client.ask(request)
            taken.append(time.perf_counter() - started)
    return percentiles("answer", [1e3 * seconds for seconds in taken[WARM_UP:]])


async def chunk_delay(gateway: Gateway) -> Figures:
    """Milliseconds that a chunk takes from the upstream's hand, in one stream."""
    request = gateway.request(stream=True, **PACED)
    async with gateway.clients(1) as (client,):
        client.keep_delays = True
        await client.ask(request)
    return percentiles("chunk", [delay / 1e6 for delay in client.delays[WARM_UP:]])


async def capacity(gateway: Gateway, *, streams: bool, connections: int, seconds: float) -> Figures:
    """Answers, or chunks, per second over many connections that ask without a pause."""
    request = gateway.request(stream=streams, **(DENSE if streams else FILLED))

    async def keep_asking(client: Client, end: float) -> int:
        count = 0
        while time.perf_counter() < end:
            await client.ask(request)
            count += 1
        return count

    async with gateway.clients(connections) as clients:
        started = time.perf_counter()
        counts = await asyncio.gather(*[keep_asking(client, started + seconds) for client in clients])
        taken = time.perf_counter() - started
    if streams:
        return {"chunks/s": sum(client.chunks for client in clients) / taken}
    return {"requests/s": sum(counts) / taken}


def percentiles(name: str, values: list[float]) -> Figures:
    found = statistics.quantiles(values, n=100, method="inclusive")
    return {f"{name} p50": found[49], f"{name} p99": found[98]}


async def measure(gateway: Gateway, *, connections: int, seconds: float) -> Figures:
    return {
        **await answer_delay(gateway),
        **await chunk_delay(gateway),
        **await capacity(gateway, streams=False, connections=connections, seconds=seconds),
        **await capacity(gateway, streams=True, connections=connections, seconds=seconds),
    }


async def interleaved(
    gateways: list[Gateway], *, rounds: int, connections: int, seconds: float
) -> dict[str, list[Figures]]:
    """The figures of every round by gateway; each round begins with another one."""
    found: dict[str, list[Figures]] = {gateway.name: [] for gateway in gateways}
    for gateway in gateways:  # unmeasured
        await measure(gateway, connections=4, seconds=0.2)
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        turn = number % len(gateways)
        for gateway in gateways[turn:] + gateways[:turn]:
            found[gateway.name].append(await measure(gateway, connections=connections, seconds=seconds))
    return found


def summary(found: dict[str, list[Figures]], name: str) -> Figures:
    """Medians over one gateway's rounds: delays as added to the upstream's own."""

    def median(of: str, key: str) -> float:
        return statistics.median(figures[key] for figures in found[of])

    keys = found[name][0]
    return {key: median(name, key) - (0 if "/s" in key else median(DIRECT, key)) for key in keys}


def table(found: dict[str, list[Figures]]) -> Iterator[str]:
    """Markdown; in brackets the ratio to the pass-through over aiohttp."""
    columns = [key if "/s" in key else f"+ {key} ms" for key in found[DIRECT][0]]
    yield f"| gateway | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    baseline = summary(found, BASELINE)
    for name in found:
        cells = []
        for column, value in summary(found, name).items():
            cell = f"{value:,.0f}" if "/s" in column else f"{value:.3f}"
            cells.append(cell if name == DIRECT else f"{cell} ({value / baseline[column]:.2f})")
        yield f"| {name} | " + " | ".join(cells) + " |"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measure of capacity")
    parser.add_argument("--connections", type=int, default=32, help="of the measures of capacity")
    parser.add_argument("--upstream-port", type=int, default=0, help="where other gateways find the upstream")
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="NAME=URL[#MODEL]",
        help=f"a further gateway, up to and with /v1, and what it calls the model (default: {MODEL})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of every round")
    return parser.parse_args()


def main() -> None:
    """Start everything, measure, print a table, stop everything."""
    chosen = options()
    with ExitStack() as stack:
        upstream = stack.enter_context(process(run_upstream, port=chosen.upstream_port))
        urls = {
            DIRECT: upstream,
            BASELINE: stack.enter_context(process(run_aiohttp, upstream=upstream)),
            "FastAPI + httpx": stack.enter_context(process(run_httpx, upstream=upstream)),
            "llama-stack-lite": stack.enter_context(ours(upstream)),
        }
        urls |= dict(each.split("=", 1) for each in chosen.url)
        gateways = [Gateway(name, url) for name, url in urls.items()]
        found = asyncio.run(
            interleaved(
                gateways, rounds=chosen.rounds, connections=chosen.connections, seconds=chosen.seconds
            )
        )
    setting = machine("fastapi", "uvicorn", "aiohttp", "httpx", "pydantic")
    print(f"{setting}; {chosen.rounds} rounds, {chosen.connections} connections\n")
    print("\n".join(table(found)))
    if chosen.json:
        chosen.json.write_text(json.dumps({"setting": setting, "rounds": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
