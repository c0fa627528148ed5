"""The one way to open a URL that came with a request: its address checked, its size and time limited."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache

import httpx

from .config import Fetch
from .errors import InvalidRequest, UpstreamError, UpstreamTimeout
from .reach import Reach, first_reached

REDIRECTS = 5
LONGEST_URL = 8192  # characters
PORTS = {"http": 80, "https": 443}
# a compressed body could be any size once unpacked, so none is asked for, and none is taken
HEADERS = {"accept-encoding": "identity", "user-agent": "llama-stack-lite"}


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file: its bytes, and what its server calls it, such as `image/png`."""

    content: bytes
    media_type: str


class Pinned(httpx.AsyncBaseTransport):
    """Connects to the very addresses that `reach` checked; the name stays what TLS and `Host` speak of.

    Proxies of the environment are ignored, as they would resolve the name again. Raises `InvalidRequest`
    naming `param` where an address may not be reached.
    """

    def __init__(self, reach: Reach, *, param: str | None, verify: ssl.SSLContext | None = None) -> None:
        self.reach = reach
        self.param = param
        # no connection is kept: by its address alone it might be taken for another name's
        limits = httpx.Limits(max_keepalive_connections=0)
        self.inner = httpx.AsyncHTTPTransport(verify=verify or _trusted(), trust_env=False, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url, name = request.url, request.url.raw_host.decode("ascii")
        addresses = await self.reach.addresses(name, url.port or PORTS[url.scheme], param=self.param)

        async def ask(address: str) -> httpx.Response:
            pinned = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions | {"sni_hostname": name.removesuffix(".")},
            )
            return await self.inner.handle_async_request(pinned)

        return await first_reached(addresses, ask, unreached=(httpx.ConnectError, httpx.ConnectTimeout))

    async def aclose(self) -> None:
        await self.inner.aclose()


@cache
def _trusted() -> ssl.SSLContext:
    """The certificates that are trusted; reading them takes longer than a request."""
    return httpx.create_ssl_context()


async def fetch(
    url: str,
    config: Fetch,
    *,
    types: Sequence[str],
    param: str,
    max_bytes: int | None = None,
    reach: Reach | None = None,
) -> Fetched:
    """Get a file of one of the media `types`, within the time and the bytes that `config` grants.

    Redirects are followed, each checked like the first URL, and nothing is sent but a plain GET. Raises
    `InvalidRequest` naming `param` for what may not or cannot be had by that URL, `UpstreamError` and
    `UpstreamTimeout` where its server fails.
    """
    reach = reach or Reach(config.allow)
    limit = min(config.max_bytes, config.max_bytes if max_bytes is None else max_bytes)
    try:
        async with asyncio.timeout(config.timeout):
            return await _followed(_checked(url, param), reach, types=types, param=param, limit=limit)
    except TimeoutError as error:
        message = f"the URL's server took longer than {config.timeout:g} s (`fetch.timeout`)"
        raise UpstreamTimeout(message, param=param) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        message = f"the URL's server cannot be reached, or speaks no HTTP ({type(error).__name__})"
        raise UpstreamError(message, param=param) from error


def _checked(url: str, param: str) -> httpx.URL:
    """The URL as it will be used: it is never read a second time by another parser."""
    if len(url) > LONGEST_URL or any(c.isspace() or not c.isprintable() or c == "\\" for c in url):
        raise InvalidRequest("the URL is too long, or holds a character that none can", param=param)
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidRequest(f"this is no URL: {error}", param=param) from error
    if found.scheme not in PORTS or not found.host:
        raise InvalidRequest("only http:// and https:// URLs are fetched", param=param)
    if found.userinfo:
        raise InvalidRequest("a URL that is fetched may not hold a user or a password", param=param)
    return found


async def _followed(url: httpx.URL, reach: Reach, *, types: Sequence[str], param: str, limit: int) -> Fetched:
    for _ in range(REDIRECTS + 1):
        async with _asked(url, reach, param) as response:
            if not response.has_redirect_location:
                return await _read(response, types=types, param=param, limit=limit)
            target = str(url.join(response.headers["location"]))
        url = _checked(target, param)
    raise InvalidRequest(f"the URL redirects more than {REDIRECTS} times", param=param)


@asynccontextmanager
async def _asked(url: httpx.URL, reach: Reach, param: str) -> AsyncIterator[httpx.Response]:
    """One request by a client of its own, so that no cookie goes from one server to the next."""
    async with (
        httpx.AsyncClient(
            transport=Pinned(reach, param=param), trust_env=False, timeout=None, headers=HEADERS
        ) as client,
        client.stream("GET", url) as response,
    ):
        yield response


async def _read(response: httpx.Response, *, types: Sequence[str], param: str, limit: int) -> Fetched:
    if response.status_code >= 500:
        raise UpstreamError(f"the URL's server answered {response.status_code}", param=param)
    if response.status_code != 200:
        raise InvalidRequest(f"the URL's server answered {response.status_code}", param=param)
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in types:
        raise InvalidRequest(
            f"the URL leads to `{media_type[:100]}`; it should be {' or '.join(types)}", param=param
        )
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UpstreamError("the URL's server compresses what should come as it is", param=param)
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > limit:
            raise InvalidRequest(f"the URL leads to more than {limit:,} bytes", param=param)
    return Fetched(bytes(content), media_type)
