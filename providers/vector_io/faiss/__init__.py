"""Vectors in this process: exact while they are few, by a graph (HNSW) of faiss where they are many."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.config.sections import home
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.vectors import UNIT, matrix, row

from .mirror import Mirror


class Faiss:
    """Indexes in memory, kept in files, each following the database by the version of its store.

    So each server of several has its own, and all find the same.
    """

    class Config(BaseModel):
        model_config = ConfigDict(extra="forbid")
        folder: Path | None = Field(
            None, description="of the files; by default `vectors` beside the distribution's state"
        )
        exact: int = Field(10_000, ge=0, description="vectors of a store up to which all are looked at")
        memory: int | None = Field(
            None, ge=0, description="bytes; beyond it the indexes longest unused are let go of"
        )

    def __init__(self, config: Config, stack: Stack) -> None:
        self.config = config
        self.stack = stack
        self.folder = config.folder or home() / stack.config.name / "vectors"
        self._mirrors: dict[str, Mirror] = {}  # the longest unused first
        self._closed = False

    async def add(self, index: Index, keys: Sequence[int], vectors: bytes) -> None:
        rows = matrix(index, vectors, count=len(keys))
        async with self._mirror(index) as mirror:
            await mirror.add(keys, rows)

    async def remove(self, index: Index, keys: Sequence[int]) -> None:
        async with self._mirror(index) as mirror:
            await mirror.remove(keys)

    async def nearest(
        self, index: Index, vector: Sequence[float], *, limit: int, among: Sequence[int] | None = None
    ) -> list[tuple[int, float]]:
        point = np.asarray(vector, np.float32)
        if point.shape != (index.dimension,) or not abs(float(point @ point) - 1) < UNIT:
            row(index, vector)  # which says what is wrong
        async with self._mirror(index) as mirror:
            return await mirror.nearest(point, limit=limit, among=among)

    async def drop(self, index: Index) -> None:
        mirror = self._mirrors.pop(index.store, None) or self._new(index)
        await mirror.drop()

    @asynccontextmanager
    async def _mirror(self, index: Index) -> AsyncIterator[Mirror]:
        """The mirror of a store, at the index's version; it is not let go of meanwhile."""
        if self._closed:
            raise Unavailable("the server is stopping")
        mirror = self._mirrors.pop(index.store, None) or self._new(index)
        self._mirrors[index.store] = mirror
        mirror.users += 1
        try:
            await mirror.follow(index.version)
            yield mirror
        finally:
            mirror.users -= 1
        await self._spare()

    def _new(self, index: Index) -> Mirror:
        path = self.folder / f"{quote(index.store, safe='')}.log"
        return Mirror(self.stack.store, index, path, exact=self.config.exact)

    async def _spare(self) -> None:
        """Let go of the longest unused while all are too large, but never of the last used."""
        if self.config.memory is None:
            return
        *others, last = self._mirrors.values()
        total = last.vectors.size + sum(mirror.vectors.size for mirror in others)
        for mirror in others:
            if total > self.config.memory and not mirror.users:
                total -= mirror.vectors.size
                await mirror.release()

    async def aclose(self) -> None:
        self._closed = True
        await asyncio.gather(*(mirror.release() for mirror in self._mirrors.values()))
        self._mirrors.clear()
