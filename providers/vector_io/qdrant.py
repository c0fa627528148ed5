"""Vectors in a Qdrant: a collection for each vector store."""

import asyncio
import logging
import warnings
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Self
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.errors import Busy, ConfigError, Unavailable, UpstreamError, UpstreamTimeout
from llama_stack_lite.stack import Stack
from llama_stack_lite.state import vectors as kept
from llama_stack_lite.state.vectors import Matrix

BREADTH = 128  # nodes of the graph that a search keeps in view at least
PIECE = 250_000  # numbers of one request, about 5 MB of JSON
log = logging.getLogger(__name__)


class Qdrant:
    """A collection of keys and vectors for each store; one that was lost is made of the database's."""

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        url: str | None = Field(None, pattern=r"^https?://", description="of a Qdrant server")
        api_key: SecretStr | None = None
        path: str | None = Field(
            None,
            description="a folder, or `:memory:`: without a server, for trials with some thousand vectors",
        )
        prefix: str = Field("llama-lite-", description="of the collections' names")
        timeout: float = Field(30, gt=0, description="seconds for a request")

        @model_validator(mode="after")
        def _one_place(self) -> Self:
            if (self.url is None) == (self.path is None):
                raise ValueError("say either `url` or `path`")
            return self

    def __init__(self, config: Config, stack: Stack) -> None:
        self.config = config
        self.stack = stack
        self.client = _client(config)
        self._known: set[str] = set()  # stores whose collection is there
        self._making = asyncio.Lock()

    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        rows = kept.matrix(index, vectors, count=len(keys))
        await self._run(index, partial(self._upsert, index, keys, rows))

    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        points = models.PointIdsList(points=[*keys])
        name = self._name(index)
        await self._run(index, partial(self.client.delete, name, points_selector=points, wait=True))

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        point = kept.row(index, vector).tolist()
        if limit < 1 or (among is not None and not len(among)):
            return []
        search = partial(self._search, index, point, limit, among)
        found: list[tuple[int, float]] = await self._run(index, search)
        if not found and among is None and await kept.count(self.stack.store, index.store):
            self._known.discard(index.store)  # somebody emptied it
            found = await self._run(index, search)
        return found

    async def drop(self, index: Index) -> None:
        self._known.discard(index.store)
        with suppress(_Missing):
            await self._explained(partial(self.client.delete_collection, self._name(index)))

    async def aclose(self) -> None:
        client, self.client = self.client, _Closed()
        await client.close()

    # ------------------------------------------------------------ requests

    def _name(self, index: Index) -> str:
        return f"{self.config.prefix}{quote(index.store, safe='')}"

    async def _upsert(self, index: Index, keys: Sequence[int], rows: Matrix) -> None:
        step = max(1, PIECE // index.dimension)
        for start in range(0, len(keys), step):
            points = models.Batch(
                ids=[*keys[start : start + step]], vectors=rows[start : start + step].tolist()
            )
            await self.client.upsert(self._name(index), points=points, wait=True)

    async def _search(
        self, index: Index, point: list[float], limit: int, among: Sequence[int] | None
    ) -> list[tuple[int, float]]:
        given = None
        if among is not None:
            given = models.Filter(must=[models.HasIdCondition(has_id=[*dict.fromkeys(among)])])
        found = await self.client.query_points(
            self._name(index),
            query=point,
            limit=limit,
            query_filter=given,
            search_params=None if self.config.path else self._params(limit, exact=among is not None),
            with_payload=False,
            with_vectors=False,
        )
        return [(int(hit.id), min(1.0, max(-1.0, float(hit.score)))) for hit in found.points]

    def _params(self, limit: int, *, exact: bool) -> models.SearchParams:
        return models.SearchParams(exact=exact, hnsw_ef=max(BREADTH, 2 * limit))

    # ------------------------------------------------------------ collections

    async def _run(self, index: Index, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Ask about a collection that is there; also where it had been lost since it was seen."""
        for _ in range(2):
            await self._ready(index)
            with suppress(_Missing):
                return await self._explained(call)
            self._known.discard(index.store)
        raise Unavailable(f"the collection `{self._name(index)}` is deleted again and again")

    async def _ready(self, index: Index) -> None:
        """See that the collection is there, with at least as many vectors as can be found."""
        if index.store in self._known:
            return
        async with self._making:
            count = await kept.count(self.stack.store, index.store)
            try:
                there = await self._explained(partial(self.client.count, self._name(index), exact=True))
                whole = there.count >= count
            except _Missing:
                await self._explained(partial(self._create, index))
                whole = not count
            if not whole:
                async for keys, rows in kept.everything(self.stack.store, index):
                    await self._explained(partial(self._upsert, index, keys, rows))
            self._known.add(index.store)

    async def _create(self, index: Index) -> None:
        vectors = models.VectorParams(size=index.dimension, distance=models.Distance.COSINE)
        try:
            await self.client.create_collection(self._name(index), vectors_config=vectors)
        except UnexpectedResponse as error:
            if error.status_code != 409:  # another server made it
                raise

    async def _explained(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return await call()
        except UnexpectedResponse as error:
            raise _told(error) from error
        except ResourceExhaustedResponse as error:
            raise Busy("Qdrant has too much to do", retry_after=str(error.retry_after_s)) from error
        except ResponseHandlingException as error:
            if isinstance(error.source, httpx.TimeoutException):
                raise UpstreamTimeout(f"Qdrant did not answer in {self.config.timeout:g} s") from error
            raise Unavailable(f"Qdrant at {self.config.url} cannot be reached: {error.source}") from error
        except ValueError as error:  # by which the client's own storage says so
            if "not found" in str(error):
                raise _Missing from error
            raise UpstreamError(f"Qdrant: {error}") from error


class _Missing(Exception):
    """The collection is not there."""


class _Closed:
    """A client that was closed."""

    def __getattr__(self, name: str) -> Any:
        raise Unavailable("the server is stopping")

    async def close(self) -> None:
        pass


def _told(error: UnexpectedResponse) -> Exception:
    """What a server's answer means to who asked."""
    if error.status_code == 404:
        return _Missing()
    if error.status_code in (401, 403):
        return UpstreamError("Qdrant refused the key: look at `api_key` of this provider")
    reason = " ".join(error.content.decode(errors="replace").split())[:300]
    if (error.status_code or 0) >= 500:
        return Unavailable(f"Qdrant failed with status {error.status_code}: {reason}")
    return UpstreamError(f"Qdrant answered with status {error.status_code}: {reason}")


def _client(config: Qdrant.Config) -> Any:
    """A client that has not connected yet; its warnings are said in the log, where they belong."""
    if config.url and config.url.startswith("http:") and config.api_key:
        log.warning("the key for %s is sent without encryption", config.url)
    key = config.api_key.get_secret_value() if config.api_key else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if config.path:
                memory = config.path == ":memory:"
                return AsyncQdrantClient(":memory:") if memory else AsyncQdrantClient(path=config.path)
            return AsyncQdrantClient(
                config.url, api_key=key, timeout=int(config.timeout) or 1, check_compatibility=False
            )
        except (RuntimeError, OSError, ValueError) as error:
            raise ConfigError(f"qdrant: {error}") from error
