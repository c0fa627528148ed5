"""Hold-back: a chunk leaves only after a verdict that covered it, while the model writes on."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Generic, TypeVar

from llama_stack_lite.config import Window

T = TypeVar("T")

AHEAD = 8  # windows that a model may be ahead of its shields


async def held(
    chunks: AsyncGenerator[T, None],
    *,
    judged: Callable[[list[T]], Awaitable[tuple[list[T], bool]]],
    tokens: Callable[[T], int],
    window: Window | None,
) -> AsyncGenerator[T, None]:
    """Yield what `judged` lets pass of each batch of chunks, of which it is given one at a time.

    A batch is a window, or all that came while the last one was judged; without a window it is the whole
    answer. `judged` also says whether to go on. An error of the model's comes after what it said before.
    """
    hold = _Hold(chunks, judged, tokens, window)
    try:
        while not hold.over:
            for chunk in await hold.step():
                yield chunk
    finally:
        await hold.close()


@asynccontextmanager
async def begun(chunks: AsyncGenerator[T, None]) -> AsyncIterator[AsyncGenerator[T, None]]:
    """The same stream, which begins before anybody reads it; it is closed with the block."""
    first = asyncio.ensure_future(anext(chunks, None))

    async def all_of_it() -> AsyncGenerator[T, None]:
        chunk = await first
        while chunk is not None:
            yield chunk
            chunk = await anext(chunks, None)

    try:
        yield all_of_it()
    finally:
        await _stop(first)
        await chunks.aclose()


async def _stop(task: "asyncio.Future[Any]") -> None:
    """Cancel it; its own error has nobody left to tell."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task


class _Hold(Generic[T]):
    def __init__(
        self,
        chunks: AsyncGenerator[T, None],
        judged: Callable[[list[T]], Awaitable[tuple[list[T], bool]]],
        tokens: Callable[[T], int],
        window: Window | None,
    ) -> None:
        self.chunks, self.judged, self.tokens, self.window = chunks, judged, tokens, window
        self.waiting: list[T] = []
        self.weight = 0  # tokens in `waiting`
        self.due = 0.0  # when `waiting` is judged even if it is no whole window
        self.reading: asyncio.Task[T | None] | None = None
        self.judging: asyncio.Task[tuple[list[T], bool]] | None = None
        self.ended = False  # nothing more comes from the model
        self.failure: BaseException | None = None
        self.over = False

    async def step(self) -> list[T]:
        """Wait for the model or for a verdict; return what may leave now."""
        if self.reading is None and not self.ended and not self._far_ahead():
            self.reading = asyncio.ensure_future(anext(self.chunks, None))
        if self.judging is None and self.waiting and self._ripe():
            batch, self.waiting, self.weight = self.waiting, [], 0
            self.judging = asyncio.ensure_future(self.judged(batch))
        busy: set[asyncio.Task[Any]] = {task for task in (self.reading, self.judging) if task}
        if not busy:
            self.over = True
            if self.failure:
                raise self.failure
            return []
        await asyncio.wait(busy, timeout=self._patience(), return_when=asyncio.FIRST_COMPLETED)
        if self.reading and self.reading.done():
            self._take(self.reading)
            self.reading = None
        if self.judging and self.judging.done():
            judging, self.judging = self.judging, None
            passed, go_on = judging.result()
            self.over = not go_on
            return passed
        return []

    def _take(self, reading: "asyncio.Task[T | None]") -> None:
        self.failure = reading.exception()
        chunk = None if self.failure else reading.result()
        if chunk is None:
            self.ended = True
            return
        if not self.waiting and self.window:
            self.due = time.monotonic() + self.window.milliseconds / 1000
        self.waiting.append(chunk)
        self.weight += self.tokens(chunk)

    def _ripe(self) -> bool:
        if self.ended or self.window is None:
            return self.ended
        return self.weight >= self.window.tokens or self.weight > 0 and time.monotonic() >= self.due

    def _far_ahead(self) -> bool:
        return self.window is not None and self.weight >= AHEAD * self.window.tokens

    def _patience(self) -> float | None:
        if self.judging or self.window is None or not self.weight:
            return None
        return max(0.0, self.due - time.monotonic())

    async def close(self) -> None:
        """Stop the verdict and the model."""
        for task in (self.reading, self.judging):
            if task:
                await _stop(task)
        await self.chunks.aclose()
