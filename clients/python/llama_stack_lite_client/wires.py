"""The two ways of doing what a call wants done: by blocking, and by awaiting.

Calls are written once, as coroutines that await a `Wire`. Those of `Blocking` never suspend, so that a plain
function can run such a coroutine to its end.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import httpx

from .errors import ClientError, ConnectionFailed, TimedOut

log = logging.getLogger(__name__)
T = TypeVar("T")
UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
Job = Callable[[], Any]
"""Something to do beside the server's work; it may return an awaitable."""


@dataclass(frozen=True)
class Outcome:
    """What a job returned, or raised."""

    number: int
    value: Any = None
    error: Exception | None = None

    def get(self) -> Any:
        if self.error:
            raise self.error
        return self.value


class Wire(Protocol):
    """What a call needs of the world. Raises `ConnectionFailed` where the server cannot be heard."""

    retries: int

    def request(self, method: str, path: str, **options: Any) -> httpx.Request: ...

    async def send(self, request: httpx.Request) -> httpx.Response:
        """The answer, whose body has not been read."""
        ...

    async def read(self, response: httpx.Response) -> bytes: ...

    def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]: ...

    async def close(self, response: httpx.Response) -> None: ...

    async def sleep(self, seconds: float) -> None: ...

    def run(self, jobs: Sequence[Job]) -> AsyncGenerator[Outcome, None]:
        """Do the jobs side by side; yields what comes of each as it ends."""
        ...


class Blocking:
    """Calls that block."""

    def __init__(self, http: httpx.Client, retries: int) -> None:
        self.http = http
        self.retries = retries

    def request(self, method: str, path: str, **options: Any) -> httpx.Request:
        return self.http.build_request(method, path, **options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        with heard(request):
            return self.http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> bytes:
        with heard(response.request):
            return response.read()

    async def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        with heard(response.request):
            for piece in response.iter_bytes():
                yield piece

    async def close(self, response: httpx.Response) -> None:
        response.close()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - it is made to block

    async def run(self, jobs: Sequence[Job]) -> AsyncGenerator[Outcome, None]:
        if len(jobs) == 1 and not _is_async(jobs[0]):  # in the caller's own thread, where it may ask a user
            yield _done(0, jobs[0])
            return
        pool = ThreadPoolExecutor(len(jobs), thread_name_prefix="tool")
        try:
            futures = [
                pool.submit(contextvars.copy_context().run, _done, number, job)
                for number, job in enumerate(jobs)
            ]
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Awaiting:
    """Calls that are awaited."""

    def __init__(self, http: httpx.AsyncClient, retries: int) -> None:
        self.http = http
        self.retries = retries

    def request(self, method: str, path: str, **options: Any) -> httpx.Request:
        return self.http.build_request(method, path, **options)

    async def send(self, request: httpx.Request) -> httpx.Response:
        with heard(request):
            return await self.http.send(request, stream=True)

    async def read(self, response: httpx.Response) -> bytes:
        with heard(response.request):
            return await response.aread()

    async def pieces(self, response: httpx.Response) -> AsyncGenerator[bytes, None]:
        with heard(response.request):
            async for piece in response.aiter_bytes():
                yield piece

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, jobs: Sequence[Job]) -> AsyncGenerator[Outcome, None]:
        tasks = [asyncio.create_task(_awaited(number, job)) for number, job in enumerate(jobs)]
        try:
            for done in asyncio.as_completed(tasks):
                yield await done
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def finished(call: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends; returns what it returns."""
    try:
        call.send(None)
    except StopIteration as end:
        found: T = end.value
        return found
    call.close()
    raise RuntimeError("a blocking call has awaited something")


@contextmanager
def heard(request: httpx.Request) -> Iterator[None]:
    """Turn httpx's errors into ours."""
    where = f"{request.url.scheme}://{request.url.netloc.decode()}"
    try:
        yield
    except httpx.TimeoutException as error:
        raise TimedOut(f"no answer from {where} in time", sent=not isinstance(error, UNSENT)) from error
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        message = f"no answer from {where}: {reason}"
        raise ConnectionFailed(message, sent=not isinstance(error, UNSENT)) from error
    except httpx.HTTPError as error:
        raise ClientError(f"{where} answered nonsense: {error}") from error


def _is_async(job: Job) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(job, "func", job)))


def _done(number: int, job: Job) -> Outcome:
    """Do a job in this thread."""
    try:
        result = job()
        return Outcome(number, asyncio.run(_result(result)) if inspect.isawaitable(result) else result)
    except Exception as error:
        log.debug("a function broke", exc_info=error)
        return Outcome(number, error=error)


async def _awaited(number: int, job: Job) -> Outcome:
    """Do a job in this loop, or in a thread where it would hold the loop up."""
    try:
        result = job() if _is_async(job) else await asyncio.to_thread(job)
        return Outcome(number, await result if inspect.isawaitable(result) else result)
    except Exception as error:
        log.debug("a function broke", exc_info=error)
        return Outcome(number, error=error)


async def _result(awaitable: Any) -> Any:
    return await awaitable
