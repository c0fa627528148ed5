"""A server with vector stores that is killed and started again, and clients that upload and search.

As a program, it is what `tests.support.launcher` is, with all that such a server imports.
"""

import asyncio
import importlib
import random
import secrets
import sys
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from tests.support import launcher
from tests.support.durable import Server, patiently
from tests.support.ingesting import article, sections

JsonObject = dict[str, Any]
USED = (
    "llama_stack_lite.providers.files.local",
    "llama_stack_lite.providers.vector_io.faiss",
    "llama_stack_lite.rag.ingestion",
    "llama_stack_lite.rag.search",
    "llama_stack_lite.routes.vector_stores",
)
ENDED = ("completed", "failed", "cancelled")


class IngestingServer(Server):
    """`llama-lite run` with vector stores, on the same state each time."""

    launcher_module = "tests.support.uploading"

    def __init__(self, folder: Path, *, pause: float = 0.02) -> None:
        super().__init__(folder)
        mine = sections(folder) | {
            "vector_io": {"near": {"provider": "faiss", "folder": str(folder / "vectors")}},
            "documents": {"lease": 1, "attempts": 1000},
        }
        mine["inference"]["test"]["pause"] = pause
        Path(self.command[0]).write_text(yaml.safe_dump(mine), encoding="utf-8")


class Clients:
    """They upload files, put them into one store, take some out again, and look what can be found meanwhile.

    Each file has a mark of its own, in each of its chunks and as an attribute.
    """

    def __init__(self, url: str, chance: random.Random, *, most: int = 3) -> None:
        self.client = httpx.AsyncClient(base_url=url, timeout=30, trust_env=False)
        self.chance = chance
        self.most = most
        self.stopped = False
        self.store = ""
        self.marks: dict[str, str] = {}  # of files whose attachment was acknowledged
        self.removed: set[str] = set()  # those of them that were asked to be taken out again
        self.seen: dict[str, set[tuple[int, ...]]] = {}  # what was found of each mark, when anything was
        self.searches = self.answers = 0
        self._news = asyncio.Event()  # set by each answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def _ask(self, method: str, path: str, **options: Any) -> JsonObject:
        answer = await patiently(self.client, method, path, **options)
        while answer.status_code == 503:  # it is stopping, or its database is busy with the start
            await asyncio.sleep(0.05)
            answer = await patiently(self.client, method, path, **options)
        assert answer.status_code == 200, answer.text
        self.answers += 1
        self._news.set()
        found: JsonObject = answer.json()
        return found

    async def answered(self, enough: int) -> None:
        """Wait until there were so many answers."""
        while self.answers < enough:
            self._news.clear()
            await self._news.wait()

    async def run(self) -> None:
        """Everything at once, until `stopped`."""
        self.store = (await self._ask("POST", "/v1/vector_stores", json={"name": "beasts"}))["id"]
        async with asyncio.TaskGroup() as group:
            for _ in range(self.most):
                group.create_task(self._uploading())
            group.create_task(self._searching())

    async def _uploading(self) -> None:
        while not self.stopped:
            marks = [f"beast{secrets.token_hex(4)}" for _ in range(self.chance.choice([1, 1, 4]))]
            files = [await self._uploaded(mark) for mark in marks]
            await self._attached(dict(zip(files, marks, strict=True)))
            if self.chance.random() < 0.2:
                file = self.chance.choice(files)
                self.removed.add(file)
                url = f"/v1/vector_stores/{self.store}/files/{file}"
                answer = await patiently(self.client, "DELETE", url)
                assert answer.status_code in (200, 404), answer.text  # the first try may have come through
            await asyncio.sleep(self.chance.uniform(0, 0.1))

    async def _uploaded(self, mark: str) -> str:
        content = article(mark, paragraphs=self.chance.choice([1, 3, 12, 40]))
        given = {"file": (f"{mark}.md", content.encode())}
        found = await self._ask("POST", "/v1/files", files=given, data={"purpose": "assistants"})
        return str(found["id"])

    async def _attached(self, files: dict[str, str]) -> None:
        """Alone or as a batch; each `file` with its mark."""
        given = [{"file_id": file, "attributes": {"mark": mark}} for file, mark in files.items()]
        where = f"/v1/vector_stores/{self.store}"
        if len(given) == 1:
            await self._ask("POST", f"{where}/files", json=given[0])
        else:
            await self._ask("POST", f"{where}/file_batches", json={"files": given})
        self.marks |= files

    async def _searching(self) -> None:
        while not self.stopped:
            await asyncio.sleep(0.02)
            if self.marks:
                await self._look(self.chance.choice([*self.marks.values()][-12:]))

    async def _look(self, mark: str) -> tuple[int, ...]:
        """The positions of all that is found of a mark, by its attribute or by its word."""
        asked: JsonObject = {
            "vector_store_id": self.store,
            "max_num_results": 50,
            "filters": {"type": "eq", "key": "mark", "value": mark},
        }
        if self.chance.random() < 0.5:
            asked |= {"query": mark, "search_mode": self.chance.choice(["vector", "keyword", "hybrid"])}
        found = await self._ask("POST", "/v1/vector-io/query", json=asked)
        self.searches += 1
        places = [chunk["position"] for chunk in found["chunks"]]
        assert len(places) == len({*places}), places
        assert all(mark in part["text"] for chunk in found["chunks"] for part in chunk["content"])
        if places:
            self.seen.setdefault(mark, set()).add(tuple(sorted(places)))
        return tuple(sorted(places))

    async def finals(self) -> dict[str, JsonObject]:
        """All files that were acknowledged and not taken out, once each of them has ended."""
        found = {}
        for file in self.marks.keys() - self.removed:
            url = f"/v1/vector_stores/{self.store}/files/{file}"
            found[file] = await self._ask("GET", url)
            while found[file]["status"] not in ENDED:
                await asyncio.sleep(0.05)
                found[file] = await self._ask("GET", url)
        return found

    async def check(self, files: dict[str, JsonObject]) -> None:
        """Each file is there, whole; whoever found some of one, found all of it."""
        for file, found in files.items():
            assert found["status"] == "completed", found
            whole = tuple(range(found["chunks"]))
            for _ in range(3):
                assert await self._look(self.marks[file]) == whole
            assert self.seen[self.marks[file]] == {whole}
        for file in self.removed:
            assert len(self.seen.get(self.marks[file], ())) <= 1
            assert await self._look(self.marks[file]) == ()


if __name__ == "__main__":
    for name in (*launcher.USED, *USED):
        importlib.import_module(name)
    print("imported", flush=True)
    for _ in sys.stdin:
        launcher.start(sys.argv[1:])
