"""How fast files become searchable, and what a chat that goes on meanwhile feels of it.

- rate: files and chunks a second from the moment at which files are attached to a vector store until all
  are found, against the embedding model alone on the very same chunks, in batches;
- beside: time between the tokens of a chat while files are ingested, against before.

Both with the starter's models and real documents: at most `--files` of them below `--folder`.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
from sqlalchemy import select

from benchmarks.support import Answer, Server, gaps, launched, machine, percentile, table, user
from llama_stack_lite.config import load
from llama_stack_lite.rag.embedding import BATCH
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.tables import chunks

FOLDERS = ("/usr/share/doc", Path(json.__file__).parents[1])  # Debian's documents, or Python's own sources
SUFFIXES = {".txt", ".md", ".rst", ".html", ".py", ""}
COUNT = "Count from 1 to 2000 and write every number:"  # an answer that goes on
CHATS = "local/smollm2-135m"


def documents(folder: Path, most: int, *, largest: int) -> list[Path]:
    """Real documents below a folder: the same ones each time, from all of it."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink()
        if 0 < path.stat().st_size <= largest
    ]
    step = max(1, len(found) // most)
    return found[::step][:most]


def settings(folder: Path) -> list[str]:
    """Of the starter, with its state in a folder of this run's own."""
    return [
        f"storage=sqlite:///{folder / 'state.db'}",
        "files.local.provider=local",
        f"files.local.folder={folder / 'files'}",
        "vector_io.faiss.provider=faiss",
        f"vector_io.faiss.folder={folder / 'vectors'}",
    ]


class Client:
    """What a program does over HTTP: upload, attach, wait."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def ask(self, method: str, path: str, **options: object) -> dict[str, object]:
        async with self.session.request(method, f"{self.url}{path}", **options) as answer:  # type: ignore[arg-type]
            if answer.status != 200:
                raise RuntimeError(f"{path} answered {answer.status}: {await answer.text()}")
            found: dict[str, object] = await answer.json()
            return found

    async def upload(self, name: str, content: bytes) -> str:
        form = aiohttp.FormData({"purpose": "assistants"})
        form.add_field("file", content, filename=name)
        return str((await self.ask("POST", "/files", data=form))["id"])

    async def ingest(self, files: Sequence[str]) -> tuple[float, dict[str, int]]:
        """Seconds until all files are in a new store, and how they ended."""
        store = (await self.ask("POST", "/vector_stores", json={"name": "benchmark"}))["id"]
        began = time.perf_counter()
        batch = await self.ask("POST", f"/vector_stores/{store}/file_batches", json={"file_ids": [*files]})
        while batch["status"] == "in_progress":
            await asyncio.sleep(0.1)
            batch = await self.ask("GET", f"/vector_stores/{store}/file_batches/{batch['id']}")
        counts = batch["file_counts"]
        assert isinstance(counts, dict)
        return time.perf_counter() - began, counts


@contextmanager
def served(folder: Path, extra: Sequence[str]) -> Iterator[str]:
    """The starter as a process of its own; its address."""
    chosen = [part for each in [*settings(folder), *extra] for part in ("--set", each)]
    with launched("starter", "--offline", *chosen) as (url, _):
        yield url


# ---------------------------------------------------------------- how fast


async def raw(folder: Path, most: int) -> tuple[int, float]:
    """How many chunks a server left, and seconds to embed them, told from `most` of them."""
    stack = await Stack.build(load(["starter"], overrides=[*settings(folder), "documents.workers=0"]))
    try:
        query = select(chunks.c.text).order_by(chunks.c.key)
        texts = await stack.store.read(lambda connection: [*connection.scalars(query)])
        model = stack.model(stack.config.defaults.embedding_model or "", "embedding")
        some = texts[:: max(1, len(texts) // most)]
        await model.provider.embed(model.name, some[:BATCH])
        began = time.perf_counter()
        for start in range(0, len(some), BATCH):
            await model.provider.embed(model.name, some[start : start + BATCH])
        return len(texts), (time.perf_counter() - began) * len(texts) / len(some)
    finally:
        await stack.aclose()


# ---------------------------------------------------------------- beside a chat


@asynccontextmanager
async def chatting(url: str) -> AsyncIterator[list[Answer]]:
    """A chat that goes on, one answer after the other, until the block ends."""
    answers: list[Answer] = []

    async def talk() -> None:
        async with Server("llama-stack-lite", url, CHATS) as server:
            while True:
                answers.append(Answer(time.perf_counter()))
                await server.stream([user(COUNT)], into=answers[-1], max_tokens=400)

    task = asyncio.create_task(talk())
    try:
        yield answers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def between(answers: Sequence[Answer]) -> list[float]:
    """Milliseconds between one token and the next."""
    return [gap * 1000 for answer in answers for gap in gaps(answer.arrivals)]


async def measured(
    arguments: argparse.Namespace, given: Sequence[tuple[str, bytes]], folder: Path
) -> list[list[str]]:
    rows = []
    with served(folder, arguments.set) as url:
        async with aiohttp.ClientSession() as session:
            client = Client(url, session)
            files = [await client.upload(name, content) for name, content in given]
            await client.ingest(files[:2])  # what is loaded once
            took, counts = await client.ingest(files)
            rows.append(["files a second", f"{counts['completed'] / took:.1f}"])
            rows.append(["files that failed", str(counts["failed"])])
            async with chatting(url) as alone:
                await asyncio.sleep(arguments.seconds)
            async with chatting(url) as beside:
                await asyncio.sleep(1)
                slower, _ = await client.ingest(files)
    before, after = between(alone), between(beside)
    for percent in (50, 95, 99):
        one, two = percentile(before, percent), percentile(after, percent)
        rows.append([f"ms between tokens, p{percent}", f"{one:.1f} alone, {two:.1f} beside: {two / one:.2f}"])
    rows.append(["ingestion beside the chat, of its rate alone", f"{took / slower:.2f}"])
    return [*rows, ["seconds", f"{took:.2f}"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where documents are")
    parser.add_argument("--files", type=int, default=200)
    parser.add_argument("--bytes", type=int, default=32 * 1024, help="of the largest file")
    parser.add_argument("--seconds", type=float, default=10, help="of the chat alone")
    parser.add_argument("--set", action="append", default=[], help="settings of the distribution, for both")
    arguments = parser.parse_args()
    folder = arguments.folder or next(
        Path(each) for each in FOLDERS if documents(Path(each), 1, largest=arguments.bytes)
    )
    given = [
        (path.name, path.read_bytes()) for path in documents(folder, arguments.files, largest=arguments.bytes)
    ]
    with tempfile.TemporaryDirectory() as state:
        rows = asyncio.run(measured(arguments, given, Path(state)))
        took = float(rows.pop()[1])
        all_chunks, alone = asyncio.run(raw(Path(state), 1500))
    here = all_chunks * len(given) / (2 * len(given) + 2)  # the files were ingested twice, two of them again
    alone *= here / all_chunks
    rows.insert(0, ["files, chunks", f"{len(given)}, {here:.0f}"])
    rows.insert(1, ["chunks a second", f"{here / took:.1f} ingested, {here / alone:.1f} only embedded"])
    rows.insert(2, ["ingested / embedded", f"{alone / took:.2f}"])
    print(machine("onnxruntime"))
    print(table(["what", "figure"], rows))


if __name__ == "__main__":
    main()
