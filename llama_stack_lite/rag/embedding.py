"""Texts of many files embedded together, so that small files take no longer than one large."""

import asyncio
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from llama_stack_lite.errors import InvalidRequest, UpstreamError
from llama_stack_lite.stack import Model

BATCH = 32  # texts of one call: few enough that a query which comes meanwhile does not wait for long
LANES = 2  # calls at once: while one is answered the next is under way


@dataclass(frozen=True, slots=True)
class Wanted:
    text: str
    vector: "asyncio.Future[bytes]"


@dataclass
class Line:
    """Those who wait for one model."""

    model: Model
    dimension: int
    waiting: deque[Wanted] = field(default_factory=deque)
    lanes: "set[asyncio.Task[None]]" = field(default_factory=set)


class Embedder:
    """Embeds for all who ask at once: what comes while a call is under way goes together into the next."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, int], Line] = {}

    async def vectors(self, model: Model, texts: list[str], *, dimension: int) -> bytes:
        """Little-endian float32, a row of `dimension` for each text, of length 1.

        Raises the model's own errors, and `UpstreamError` where it answers something else than such vectors.
        """
        line = self._lines.setdefault((model.id, dimension), Line(model, dimension))
        loop = asyncio.get_running_loop()
        wanted = [Wanted(text, loop.create_future()) for text in texts]
        line.waiting.extend(wanted)
        if not line.lanes or (len(line.lanes) < LANES and len(line.waiting) >= BATCH):
            line.lanes.add(asyncio.create_task(_lane(line)))
        return b"".join(await asyncio.gather(*(each.vector for each in wanted)))

    async def aclose(self) -> None:
        """Stop; nobody asks any more."""
        lanes = [lane for line in self._lines.values() for lane in line.lanes]
        for lane in lanes:
            lane.cancel()
        await asyncio.gather(*lanes, return_exceptions=True)


async def _lane(line: Line) -> None:
    """Embed as long as somebody waits."""
    task = asyncio.current_task()
    try:
        await _serve(line)
    finally:  # before anybody can join and think that this lane still looks
        line.lanes.discard(task)


async def _serve(line: Line) -> None:
    while line.waiting:
        batch = [line.waiting.popleft() for _ in range(min(BATCH, len(line.waiting)))]
        batch = [each for each in batch if not each.vector.done()]  # its file may have been given up
        try:
            await _answer(line, batch)
        except InvalidRequest as error:  # one text's fault, which is nobody else's
            if len(batch) == 1:
                _fail(batch, error)
            for each in batch if len(batch) > 1 else ():
                await _alone(line, each)
        except asyncio.CancelledError:
            _fail(batch, UpstreamError("the server is stopping"))
            raise
        except Exception as error:  # noqa: BLE001 - it is raised where the vectors are awaited
            _fail(batch, error)


async def _alone(line: Line, wanted: Wanted) -> None:
    try:
        await _answer(line, [wanted])
    except Exception as error:  # noqa: BLE001 - it is raised where the vector is awaited
        _fail([wanted], error)


def _fail(batch: list[Wanted], error: Exception) -> None:
    for each in batch:
        if not each.vector.done():
            each.vector.set_exception(error)


async def _answer(line: Line, batch: list[Wanted]) -> None:
    if not batch:
        return
    model, dimension = line.model, line.dimension
    found = await model.provider.embed(model.name, [each.text for each in batch])
    rows = await asyncio.to_thread(checked, found.vectors, len(batch), dimension)
    if rows is None:
        raise UpstreamError(f"`{model.id}` did not answer {len(batch)} vectors of {dimension} numbers")
    for each, row in zip(batch, rows, strict=True):
        if not each.vector.done():
            each.vector.set_result(row)


def checked(vectors: list[list[float]], count: int, dimension: int) -> list[bytes] | None:
    """Vectors as they are kept, of length 1; None where they are not what was asked for."""
    if len(vectors) != count or any(len(vector) != dimension for vector in vectors):
        return None
    rows = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not (lengths > 0).all():
        return None
    return [row.tobytes() for row in (rows / lengths).astype("<f4")]
