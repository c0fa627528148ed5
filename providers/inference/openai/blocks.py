"""The bytes of a response as they come, until one side has enough of the other."""

import asyncio
from contextlib import suppress
from typing import Self

import aiohttp


class Blocks:
    """An iterator over what each network read brings; raises `TimeoutError` after `wait` seconds of silence.

    Only time spent waiting for a block counts. One timer looks on: aiohttp's own read timeout would set one
    anew for every block, at a tenth of what a chunk costs.
    """

    def __init__(self, response: aiohttp.ClientResponse, *, wait: float) -> None:
        self.response = response
        self.wait = wait
        self._loop = asyncio.get_running_loop()
        self._waiting_since: float | None = None
        self._is_silent = False
        self._timer = self._loop.call_later(wait, self._look)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._waiting_since = self._loop.time()
        try:
            block = await self.response.content.readany()
        except aiohttp.ClientConnectionError as error:
            if self._is_silent:
                raise TimeoutError from error
            raise
        finally:
            self._waiting_since = None
        if not block:
            raise StopAsyncIteration
        return block

    def _look(self) -> None:
        since = self._loop.time() if self._waiting_since is None else self._waiting_since
        if self._loop.time() - since < self.wait:
            self._timer = self._loop.call_at(since + self.wait, self._look)
        else:
            self._is_silent = True
            self.response.close()

    async def drain(self) -> None:
        """Read on to the very end, if that is near: it leaves the connection to the next request."""
        if not self.response.content.at_eof():
            with suppress(TimeoutError, aiohttp.ClientError):
                async with asyncio.timeout(0.2):
                    await self.response.content.read()

    def close(self) -> None:
        self._timer.cancel()
