"""Calls of a server, each written once: blocking on a `Client`, awaited on an `AsyncClient`."""

from __future__ import annotations

import functools
import json
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import httpx
from pydantic import BaseModel

from .errors import APIError, ClientError, ConnectionFailed, answered
from .sse import Decoder
from .wires import Awaiting, Blocking, Wire, finished

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
P = ParamSpec("P")
W_co = TypeVar("W_co", bound=Wire, covariant=True)

LONGEST_WAIT = 60  # seconds of a `Retry-After` that are waited for; more is for the caller to decide


class Resource(Generic[W_co]):
    """Calls that belong together, made over one wire."""

    def __init__(self, wire: W_co) -> None:
        self.wire = wire


class call(Generic[P, T]):
    """A coroutine method that blocks where its resource's wire does."""

    def __init__(self, written: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> None:
        self.written = written
        self.__doc__ = written.__doc__

    @overload
    def __get__(self, of: Resource[Blocking], owner: Any = None) -> Callable[P, T]: ...
    @overload
    def __get__(self, of: Resource[Awaiting], owner: Any = None) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __get__(self, of: None, owner: Any = None) -> call[P, T]: ...
    def __get__(self, of: Any, owner: Any = None) -> Any:
        if of is None:
            return self
        bound = functools.partial(self.written, of)
        if isinstance(of.wire, Awaiting):
            return functools.update_wrapper(bound, self.written)

        def blocking(*args: P.args, **options: P.kwargs) -> T:
            return finished(bound(*args, **options))

        return functools.wraps(self.written)(blocking)


class streaming(Generic[P, T]):
    """An async generator method that becomes a `Stream` where its resource's wire blocks."""

    def __init__(self, written: Callable[Concatenate[Any, P], AsyncGenerator[T, None]]) -> None:
        self.written = written
        self.__doc__ = written.__doc__

    @overload
    def __get__(self, of: Resource[Blocking], owner: Any = None) -> Callable[P, Stream[T]]: ...
    @overload
    def __get__(self, of: Resource[Awaiting], owner: Any = None) -> Callable[P, AsyncStream[T]]: ...
    @overload
    def __get__(self, of: None, owner: Any = None) -> streaming[P, T]: ...
    def __get__(self, of: Any, owner: Any = None) -> Any:
        if of is None:
            return self
        kind: Any = AsyncStream if isinstance(of.wire, Awaiting) else Stream

        def begin(*args: P.args, **options: P.kwargs) -> Any:
            return kind(self.written(of, *args, **options))

        return functools.wraps(self.written)(begin)


class Stream(Iterator[T]):
    """Iterate it to its end, or close it, as `with` does: then the server stops."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items

    def __next__(self) -> T:
        try:
            return finished(self._items.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def close(self) -> None:
        finished(self._items.aclose())

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(AsyncIterator[T]):
    """Iterate it to its end, or close it, as `async with` does: then the server stops."""

    def __init__(self, items: AsyncGenerator[T, None]) -> None:
        self._items = items

    async def __anext__(self) -> T:
        return await self._items.__anext__()

    async def aclose(self) -> None:
        await self._items.aclose()

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def ask(
    wire: Wire,
    method: str,
    path: str,
    kind: type[M],
    *,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> M:
    """Call the server; returns its answer as an object of that kind."""
    response = await begun(wire, method, path, body=body, query=query)
    try:
        read = await wire.read(response)
    finally:
        await wire.close(response)
    with understood(response, kind.__name__):
        return kind.model_validate_json(read)


async def frames(
    wire: Wire,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """Call the server; yields the data of each event it streams."""
    response = await begun(wire, method, path, body=body, query=query)
    decoder = Decoder()
    try:
        async with aclosing(wire.pieces(response)) as pieces:
            async for piece in pieces:
                for data in decoder.feed(piece):
                    if data != "[DONE]":  # behind which there is still the end, that frees the connection
                        with understood(response, "JSON"):
                            fields = json.loads(data)
                        yield fields
    finally:
        await wire.close(response)


@contextmanager
def understood(response: httpx.Response, what: str) -> Iterator[None]:
    """Raise `ClientError` where an answer is not what it should be."""
    try:
        yield
    except ValueError as error:
        raise ClientError(f"{response.url} answered what is no {what}: {error}") from error


async def begun(
    wire: Wire,
    method: str,
    path: str,
    *,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, Any] | None = None,
) -> httpx.Response:
    """Send a request, again where that is safe and may help; returns the answer once its first byte is here.

    Raises the `ClientError` that tells what went wrong.
    """
    attempt = 0
    while True:
        try:
            return await _sent(wire, wire.request(method, path, json=_given(body), params=_given(query)))
        except ClientError as error:
            wait = _wait(error, method, attempt)
            if wait is None or attempt == wire.retries:
                raise
        await wire.sleep(wait)
        attempt += 1


async def _sent(wire: Wire, request: httpx.Request) -> httpx.Response:
    response = await wire.send(request)
    if response.is_success:
        return response
    try:
        raise answered(response.status_code, response.headers, await wire.read(response))
    finally:
        await wire.close(response)


def _wait(error: ClientError, method: str, attempt: int) -> float | None:
    """After how many seconds to try again; None where that is not safe, or would not help.

    A GET changes nothing. Anything else is sent again only if the server has not begun to work on it.
    """
    told = None
    if isinstance(error, ConnectionFailed):
        again = method == "GET" or not error.sent
    elif isinstance(error, APIError):
        again = error.status in (429, 503) or (method == "GET" and error.status >= 500)
        told = error.retry_after
    else:
        again = False
    if not again or (told or 0) > LONGEST_WAIT:
        return None
    return told if told is not None else backoff(attempt)


def backoff(attempt: int) -> float:
    """Seconds to wait after an attempt that failed, the first being number 0."""
    return min(8.0, 0.5 * 2.0**attempt) * random.uniform(0.75, 1)


def _given(fields: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The fields that are not None."""
    if fields is None:
        return None
    return {name: value for name, value in fields.items() if value is not None}
