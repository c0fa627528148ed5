"""Bring documents into a vector store: what is there stays, what is new or has changed is uploaded."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from llama_stack_lite.errors import StackError, UpstreamError

from .conversation import check, unreachable
from .gathering import Document, LeftOut

FLYING = 64  # files that the server is at work on at once, so that a stop leaves little behind
TICKS = 0.05, 0.8  # seconds between two looks at what it has done: the more often, the more there is
PAGE = 100
PATH = 512  # characters of an attribute


@dataclass(slots=True)
class Tally:
    """How far it is; `bytes` of the files that are done, of `total_bytes`."""

    files: int
    total_bytes: int
    bytes: int = 0
    chunks: int = 0
    added: int = 0
    replaced: int = 0
    updated: int = 0
    unchanged: int = 0
    failed: list[LeftOut] = field(default_factory=list)
    same: list[LeftOut] = field(default_factory=list)

    @property
    def done(self) -> int:
        others = self.added + self.replaced + self.updated + self.unchanged
        return others + len(self.failed) + len(self.same)


class Shown(Protocol):
    def __call__(self, tally: Tally) -> None: ...


@dataclass(frozen=True, slots=True)
class Flight:
    """A file that the server is at work on."""

    document: Document
    kind: str  # the count of the tally that it will be in
    stored: bool = False  # it was uploaded before


class Ingest:
    """One run into one store.

    A file is known by the attributes that it is given: `sha256` of what is in it, and `path`. So a second run
    uploads only what has changed, one after a stop goes on, and a file that was moved is not embedded again.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        store: str,
        *,
        attributes: dict[str, Any],
        chunking: dict[str, Any] | None,
        workers: int,
        shown: Shown,
    ) -> None:
        self.tally = Tally(0, 0)
        self._client, self._files = client, f"vector_stores/{store}/files"
        self._attributes, self._chunking = attributes, chunking
        self._workers, self._shown = workers, shown
        self._known: dict[str, dict[str, Any]] = {}  # files of the store by their SHA-256
        self._here: dict[str, str] = {}  # the path of each document of this run, by its SHA-256
        self._flying: dict[str, Flight] = {}
        self._room = asyncio.Semaphore(FLYING)
        self._turn = asyncio.Lock()  # its waiters are served in the order they came, that of the documents

    async def run(self, documents: Sequence[Document]) -> Tally:
        """Ingest; raises `StackError` where the server is gone, and leaves then what it was given."""
        self.tally = Tally(len(documents), sum(document.size for document in documents))
        self._tell(0)
        try:
            self._known = {
                str(entry["attributes"]["sha256"]): entry
                async for entry in self._entries()
                if "sha256" in entry["attributes"]
            }
            await self._send_and_watch(iter(documents))
            await self._remove_old()
        except httpx.HTTPError as error:
            raise unreachable(self._client, error) from error
        return self.tally

    @property
    def flying(self) -> int:
        """The files that the server goes on with if this stops."""
        return len(self._flying)

    # ------------------------------------------------------------ on the way

    async def _send_and_watch(self, documents: Iterator[Document]) -> None:
        senders = [asyncio.create_task(self._send_all(documents)) for _ in range(self._workers)]
        watch = asyncio.create_task(self._watch(senders))
        try:
            await asyncio.gather(*senders, watch)
        finally:
            for task in (*senders, watch):
                task.cancel()
            await asyncio.gather(*senders, watch, return_exceptions=True)

    async def _send_all(self, documents: Iterator[Document]) -> None:
        for document in documents:
            await self._room.acquire()
            try:
                flying = await self._send(document)
            except (OSError, UpstreamError) as error:
                self._fail(document, str(error))
                flying = False
            if not flying:
                self._room.release()

    async def _send(self, document: Document) -> bool:
        """Whether the server is now at work on the document; raises what stands in the way."""
        path = str(document.path)[-PATH:]
        async with self._turn:  # so that every run keeps the first of two that are the same
            digest = await asyncio.to_thread(_digest, document)
            same = digest in self._here
            self._here.setdefault(digest, path)
        if same:
            self.tally.same.append(LeftOut(document.path, "the same as another file"))
            self._tell(document.size)
            return False
        entry = self._known.get(digest)
        attributes = self._attributes | {"path": path, "sha256": digest}
        if entry and entry["status"] == "completed" and not self._differs(entry, attributes):
            self.tally.unchanged += 1
            self._tell(document.size)
            return False
        if entry:
            return await self._attach(entry["id"], attributes, Flight(document, "updated", stored=True))
        old = any(_path(each) == path for each in self._known.values())
        flight = Flight(document, "replaced" if old else "added")
        return await self._attach(await self._upload(document), attributes, flight)

    def _differs(self, entry: dict[str, Any], attributes: dict[str, Any]) -> bool:
        rechunked = self._chunking is not None and entry["chunking_strategy"] != self._chunking
        return rechunked or bool(entry["attributes"] != attributes)

    async def _upload(self, document: Document) -> str:
        with document.path.open("rb") as file:
            response = await self._client.post(
                "files", data={"purpose": "assistants"}, files={"file": (document.path.name, file)}
            )
        await check(response)
        return str(response.json()["id"])

    async def _attach(self, file_id: str, attributes: dict[str, Any], flight: Flight) -> bool:
        body: dict[str, Any] = {"file_id": file_id, "attributes": attributes}
        if self._chunking:
            body["chunking_strategy"] = self._chunking
        response = await self._client.post(self._files, json=body)
        try:
            await check(response)
        except UpstreamError:
            if not flight.stored:
                await self._client.delete(f"files/{file_id}")
            raise
        self._flying[file_id] = flight
        return True

    # ------------------------------------------------------------ what the server has done

    async def _watch(self, senders: Sequence["asyncio.Task[None]"]) -> None:
        pause, longest = TICKS
        while self._flying or not all(sender.done() for sender in senders):
            await asyncio.sleep(pause)
            flown = list(self._flying)
            busy = {entry["id"] async for entry in self._entries(filter="in_progress")} if flown else set()
            landed = [file_id for file_id in flown if file_id not in busy]
            for file_id in landed:
                await self._land(file_id)
            pause = TICKS[0] if landed else min(2 * pause, longest)

    async def _land(self, file_id: str) -> None:
        response = await self._client.get(f"{self._files}/{file_id}")
        await check(response)
        entry = response.json()
        if entry["status"] == "in_progress":
            return
        flight = self._flying.pop(file_id)
        self._room.release()
        if entry["status"] == "completed":
            setattr(self.tally, flight.kind, getattr(self.tally, flight.kind) + 1)
            self.tally.chunks += entry.get("chunks") or 0
            self._tell(flight.document.size)
            return
        self._fail(flight.document, (entry["last_error"] or {}).get("message") or entry["status"])

    async def _remove_old(self) -> None:
        """Remove what stands in the store under the path of a document that is in there newly."""
        failed = {str(each.path)[-PATH:] for each in self.tally.failed}
        paths = set(self._here.values()) - failed
        old = [self._known[digest] for digest in self._known.keys() - self._here.keys()]
        for entry in old:
            if _path(entry) in paths:
                await self._delete(f"{self._files}/{entry['id']}")
                await self._delete(f"files/{entry['id']}")

    async def _delete(self, place: str) -> None:
        response = await self._client.delete(place)
        if response.status_code != httpx.codes.NOT_FOUND:
            await check(response)

    async def _entries(self, **query: str) -> AsyncIterator[dict[str, Any]]:
        """The store's files."""
        params: dict[str, Any] = {"limit": PAGE, "order": "asc", **query}
        while True:
            response = await self._client.get(self._files, params=params)
            await check(response)
            page = response.json()
            for entry in page["data"]:
                yield entry
            if not page["has_more"]:
                return
            params["after"] = page["last_id"]

    def _fail(self, document: Document, reason: str) -> None:
        self.tally.failed.append(LeftOut(document.path, reason))
        self._tell(document.size)

    def _tell(self, size: int) -> None:
        self.tally.bytes += size
        self._shown(self.tally)


def _path(entry: dict[str, Any]) -> Any:
    return entry["attributes"].get("path")


def _digest(document: Document) -> str:
    with document.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def store_named(client: httpx.AsyncClient, name: str) -> str | None:
    """The id of the store of that name, or with that id; raises `StackError` where there are several."""
    found: list[str] = []
    params: dict[str, Any] = {"limit": PAGE}
    try:
        while True:
            response = await client.get("vector_stores", params=params)
            if response.status_code == httpx.codes.NOT_FOUND:
                raise StackError(
                    f"{client.base_url} has no vector stores: its distribution has no `vector_io`"
                )
            await check(response)
            page = response.json()
            if any(store["id"] == name for store in page["data"]):
                return name
            found += [str(store["id"]) for store in page["data"] if store["name"] == name]
            if not page["has_more"]:
                break
            params["after"] = page["last_id"]
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error
    if len(found) > 1:
        raise StackError(f"{len(found)} stores are called {name}; say which by its id: {', '.join(found)}")
    return found[0] if found else None
