"""What a search costs through HTTP, in each mode, and the memory of an index, at so many chunks of real text.

The texts are the docstrings and comments of the Python packages that are installed here, in pieces of 110
words. Their vectors are made up, clustered, of 384 dimensions, as embedding so many takes an hour; those of
the queries are the model's own, so that a search is embedded, sought both ways, fused and read as any other.
The server starts once more before it is asked, to see what it needs to be ready.

    python -m benchmarks.search
    python -m benchmarks.search --chunks 100000 --rounds 20 --url postgresql://user:password@host/database
"""

import argparse
import json
import random
import re
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from benchmarks.support import launched, machine, percentile, table

DIMENSION = 384
WORDS = 110
CLUSTERS = 500
QUERIES = [
    "how do I open a file for reading in binary mode",
    "what is the license of this package",
    "configure proxy settings for http requests",
    "raise an error when the array shape does not match",
    "list all installed packages and their versions",
    "convert string to integer",
    "security vulnerability fixed in this release",
    "thread safe queue implementation",
    "how to set the default encoding",
    "numpy array broadcasting rules",
]


def texts(count: int) -> list[str]:
    """Pieces of what Python packages say of themselves."""
    files = sorted(Path(sysconfig.get_paths()["purelib"]).rglob("*.py"))
    random.Random(1).shuffle(files)
    found: list[str] = []
    for file in files:
        said = re.findall(r'"""(.*?)"""|#(.*)', file.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
        words = " ".join(part for each in said for part in each if part).split()
        found += [" ".join(words[at : at + WORDS]) for at in range(0, len(words) - WORDS // 2, WORDS)]
        if len(found) >= count:
            return found[:count]
    raise SystemExit(f"there are only {len(found)} pieces of text here: --chunks {len(found)}")


@contextmanager
def served(folder: Path, url: str | None) -> Iterator[tuple[httpx.Client, int]]:
    """`llama-lite run` with the embedding model of the starter; its address, and its process."""
    config = {
        "inference": {"embed": {"provider": "onnx", "models": ["all-minilm-l6-v2"]}},
        "vector_io": {"faiss": {"provider": "faiss", "folder": str(folder / "vectors")}},
        "defaults": {"embedding_model": "embed/all-minilm-l6-v2"},
        "storage": url or f"sqlite:///{folder}/state.db",
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with launched(file) as (address, pid), httpx.Client(base_url=address, timeout=600) as http:
        yield http, pid


def memory(pid: int) -> float:
    """The process's resident memory, in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def filled(http: httpx.Client, count: int) -> str:
    """A store with so many chunks."""
    store: str = http.post("vector_stores", json={"name": "texts"}).json()["id"]
    dice = np.random.default_rng(1)
    centres = dice.normal(size=(CLUSTERS, DIMENSION))
    pieces = texts(count)
    for start in range(0, count, 1000):
        part = pieces[start : start + 1000]
        vectors = centres[dice.integers(0, CLUSTERS, len(part))] + dice.normal(size=(len(part), DIMENSION))
        chunks = [
            {"content": text, "embedding": vector.tolist()}
            for text, vector in zip(part, vectors, strict=True)
        ]
        http.post("vector-io/insert", json={"vector_store_id": store, "chunks": chunks}).raise_for_status()
    return store


def timed(http: HTTPConnection, path: str, body: dict[str, Any]) -> float:
    """Milliseconds of an answer, with as little of the client's own work in them as there can be."""
    given, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    start = time.perf_counter()
    http.request("POST", f"/v1/{path}", given, headers)
    with http.getresponse() as reply:
        found = reply.read()
    end = time.perf_counter()
    assert reply.status == 200, found
    return (end - start) * 1000


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--chunks", type=int, default=100_000)
    given.add_argument("--rounds", type=int, default=20)
    given.add_argument("--url", help="a PostgreSQL instead of an SQLite file")
    asked = given.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        with served(folder, asked.url) as (http, _):
            store = filled(http, asked.chunks)
        print(f"{asked.chunks} chunks in {time.perf_counter() - start:.0f} s")
        with served(folder, asked.url) as (http, pid):
            empty = http.post("vector_stores", json={"name": "empty"}).json()["id"]
            line = HTTPConnection(http.base_url.host, http.base_url.port)
            timed(line, f"vector_stores/{empty}/search", {"query": "to load the model"})
            before, path = memory(pid), f"vector_stores/{store}/search"
            first = timed(line, path, {"query": "the first search"})
            raw = asked.chunks * DIMENSION * 4 / 2**20
            times: dict[str, list[float]] = {"vector": [], "keyword": [], "hybrid": []}
            for turn in range(asked.rounds):
                for query in QUERIES:
                    for mode, found in times.items():
                        body = {"query": f"{query} {turn}", "search_mode": mode}
                        found.append(timed(line, path, body))
            grown = memory(pid) - before
    rows = [
        [mode, f"{statistics.median(found):.1f}", f"{percentile(found, 95):.1f}"]
        for mode, found in times.items()
    ]
    print(table(["mode", "p50 ms", "p95 ms"], rows))
    print(f"first search after a start {first:.0f} ms")
    print(f"memory +{grown:.0f} MB, {grown / raw:.2f} of the raw vectors")


if __name__ == "__main__":
    main()
