"""Wait for what happens in another thread or process, for half a minute at most."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 30.0  # seconds; machines that run tests are busy


def wait_until(condition: Callable[[], Any], *, pause: float = 0.01) -> Any:
    """Look every `pause` seconds; return what was found to be true."""
    late = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < late, "it never happened"
        time.sleep(pause)
    return found


async def until(condition: Callable[[], Any], *, pause: float = 0.01) -> Any:
    """As `wait_until`, beside other tasks."""
    async with asyncio.timeout(PATIENCE):
        while not (found := condition()):  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(pause)
    return found
