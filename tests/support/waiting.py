"""Wait for what happens in another thread or process."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0  # seconds; machines that run tests are busy


def wait_until(condition: Callable[[], Any], *, seconds: float = PATIENCE, pause: float = 0.01) -> Any:
    """Look every `pause` seconds, for so many at most; return what was found to be true."""
    late = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < late, "it never happened"
        time.sleep(pause)
    return found


async def until(condition: Callable[[], Any], *, seconds: float = PATIENCE, pause: float = 0.01) -> Any:
    """As `wait_until`, beside other tasks."""
    async with asyncio.timeout(seconds):
        while not (found := condition()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(pause)
    return found
