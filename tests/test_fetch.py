"""What URLs in requests may lead to: a table of detours to a trap, redirects, rebinding, and limits."""

import asyncio
import base64
import gzip
import json
import ssl
import time
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest

from llama_stack_lite import images
from llama_stack_lite.api.inference import ChatRequest
from llama_stack_lite.config import Fetch, StackConfig
from llama_stack_lite.errors import InvalidRequest, StackError, UpstreamError, UpstreamTimeout
from llama_stack_lite.fetch import Pinned, fetch
from llama_stack_lite.providers.tools.mcp import MCP
from llama_stack_lite.providers.tools.mcp import http as mcp_http
from llama_stack_lite.reach import Reach, Rule, is_public
from llama_stack_lite.stack import Stack

from .support.certificates import contexts
from .support.mcp_servers import listening
from .support.serving import serve
from .support.tiny import write_llama
from .support.tiny_vision import data_url, image_file, write_mmproj
from .support.trap import Trap, trap, urls

PUBLIC = "93.184.215.14"
PNG = image_file("red")
TYPES = ("image/png",)
BOMB = gzip.compress(bytes(50_000_000))


@pytest.fixture(scope="module")
def caught() -> Iterator[Trap]:
    with trap() as found:
        yield found


def get(url: str, *, reach: Reach | None = None, **config: Any) -> bytes:
    found = fetch(url, Fetch(**config), types=TYPES, param="there", reach=reach)
    return asyncio.run(found).content


# ------------------------------------------------------------------ every URL, from every place


async def by_fetch(url: str) -> None:
    await fetch(url, Fetch(timeout=5), types=TYPES, param="image", reach=None)


async def by_image(url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    body = {"model": "m", "messages": [{"role": "user", "content": [part]}]}
    await images.fetched(Stack(StackConfig()), ChatRequest.model_validate(body))


def by_mcp(transport: str) -> Callable[[str], Coroutine[Any, Any, None]]:
    async def ask(url: str) -> None:
        config = {"url": url, "transport": transport, "guarded": True, "timeout": 5}
        config["authorization"] = "secret"
        try:
            checked = MCP.Config.model_validate(config)
        except ValueError as error:
            raise InvalidRequest(str(error)) from error
        mcp = MCP(checked, Stack(StackConfig()))
        try:
            await mcp.tools()
        finally:
            await mcp.aclose()

    return ask


PLACES = {
    "fetch": by_fetch,
    "image_url": by_image,
    "server_url": by_mcp("auto"),
    "server_url over sse": by_mcp("sse"),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_url_of_a_request_reaches_the_trap(caught: Trap, place: str) -> None:
    async def all_of_them() -> list[str]:
        wrong = []
        for url in urls(caught.port):
            try:
                await PLACES[place](url)
                wrong.append(f"{url} was opened")
            except InvalidRequest:
                pass
            except StackError as error:
                wrong.append(f"{url}: {error.status} {error}")
        return wrong

    assert asyncio.run(all_of_them()) == []
    assert caught.caught == 0


def test_the_trap_does_catch(caught: Trap) -> None:
    """Or the test above would say nothing."""
    with trap() as other:
        assert get(f"http://127.0.0.1:{other.port}/x.png", allow=["127.0.0.1"]) == b"secret"
        assert get(f"http://localhost:{other.port}/x.png", allow=[f"localhost:{other.port}"]) == b"secret"
        assert other.caught == 2
    assert caught.caught == 0


def test_a_refusal_names_the_field_and_never_the_address() -> None:
    with pytest.raises(InvalidRequest) as inside:
        get("http://localhost/x.png")
    with pytest.raises(InvalidRequest) as unknown:
        get("http://no-such-host.invalid/x.png")
    assert inside.value.param == "there" and inside.value.status == 400
    assert str(inside.value) == str(unknown.value).replace("no-such-host.invalid", "localhost")
    assert "127.0.0.1" not in str(inside.value) and "fetch.allow" in str(inside.value)


# ------------------------------------------------------------------ names that change their mind


def answers(*each: list[str]) -> tuple[Reach, list[str]]:
    """A resolver that gives another answer each time, and the names it was asked for."""
    asked: list[str] = []
    left = list(each)

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return left.pop(0) if len(left) > 1 else left[0]

    return Reach(resolve=resolve), asked


def watch(transport: Any, library: Any) -> list[str]:
    """The hosts that a pinning transport hands on, of which none is ever connected to."""
    seen: list[str] = []

    async def handle(request: Any) -> Any:
        seen.append(request.url.host)
        raise library.ConnectError("not here")

    transport.inner.handle_async_request = handle
    return seen


def test_a_name_is_resolved_once_and_its_address_kept() -> None:
    """A name that is public when checked and loopback when connected to: the second is never asked for."""

    async def ask() -> None:
        reach, asked = answers([PUBLIC], ["127.0.0.1"])
        pinned = Pinned(reach, param="p")
        seen = watch(pinned, httpx)
        with pytest.raises(httpx.ConnectError):
            await pinned.handle_async_request(httpx.Request("GET", "http://rebind.example:81/"))
        assert (asked, seen) == (["rebind.example"], [PUBLIC])

        reach, asked = answers([PUBLIC], ["127.0.0.1"])
        other = mcp_http.Pinned(reach)
        seen = watch(other, httpx2)
        for _ in range(3):
            with pytest.raises(httpx2.ConnectError):
                await other.handle_async_request(httpx2.Request("POST", "http://rebind.example:81/"))
        assert (asked, seen) == (["rebind.example"], [PUBLIC] * 3)
        await pinned.aclose()
        await other.aclose()

    asyncio.run(ask())


def test_rebinding_never_reaches_the_trap(caught: Trap) -> None:
    for family in (["127.0.0.1"], [PUBLIC, "127.0.0.1"], ["127.0.0.1", PUBLIC], ["::1"], ["fe80::1%lo"]):
        reach, _ = answers(family)
        with pytest.raises(InvalidRequest):
            get(f"http://rebind.example:{caught.port}/", reach=reach)
    assert caught.caught == 0


def test_all_addresses_of_a_name_are_tried() -> None:
    async def ask() -> list[str]:
        reach, _ = answers([PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"])
        pinned = Pinned(reach, param=None)
        seen = watch(pinned, httpx)
        with pytest.raises(httpx.ConnectError):
            await pinned.handle_async_request(httpx.Request("GET", "https://two.example/"))
        await pinned.aclose()
        return seen

    assert asyncio.run(ask()) == [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"]


def test_tls_speaks_of_the_name_though_the_address_is_pinned(tmp_path: Path) -> None:
    ours, theirs = contexts("good.example", tmp_path)
    named: list[str] = []

    def note(_: ssl.SSLObject, name: str, __: ssl.SSLContext) -> None:
        named.append(name)

    theirs.sni_callback = note

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        host = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"host:"))
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(host) + host)
        await writer.drain()
        writer.close()

    async def ask(name: str) -> str:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=theirs)
        port = server.sockets[0].getsockname()[1]

        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        pinned = Pinned(Reach(["127.0.0.1"], resolve=resolve), param=None, verify=ours)
        async with server, httpx.AsyncClient(transport=pinned, trust_env=False) as client:
            return (await client.get(f"https://{name}:{port}/")).text

    assert asyncio.run(ask("good.example")).lower().startswith("host: good.example:")
    assert named == ["good.example"]
    with pytest.raises(httpx.ConnectError, match="(?i)certificate"):
        asyncio.run(ask("evil.example"))


# ------------------------------------------------------------------ servers of all kinds


PLAIN = [(b"content-type", b"image/png")]


def page(path: str, query: str, headers: Any) -> tuple[int, list[tuple[bytes, bytes]], list[bytes]]:
    """The status, headers and body of each path; every one is another kind of server."""
    if path == "/hop":
        left, _, target = query.partition("&")
        place = f"/hop?{int(left) - 1}&{target}" if int(left) > 1 else target
        return 302, [(b"location", place.encode()), (b"set-cookie", b"a=b")], [b""]
    pages: dict[str, tuple[int, list[tuple[bytes, bytes]], list[bytes]]] = {
        "/seen": (200, PLAIN, [json.dumps([[k.decode(), v.decode()] for k, v in headers]).encode()]),
        "/status": (int(query) if query.isdecimal() else 0, PLAIN, [PNG]),
        "/type": (200, [(b"content-type", query.encode())], [PNG]),
        "/gzip": (200, [*PLAIN, (b"content-encoding", b"gzip")], [BOMB]),
        "/large": (200, PLAIN, [bytes(1 << 16)] * 1600),
    }
    return pages.get(path, (200, PLAIN, [PNG]))


async def site(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    status, headers, chunks = page(scope["path"], scope["query_string"].decode(), scope["headers"])
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    if scope["path"] == "/slow":
        await asyncio.sleep(30)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


@pytest.fixture(scope="module")
def http() -> Iterator[str]:
    with listening(site) as url:
        yield url


def allowed(url: str) -> list[str]:
    return [url.removeprefix("http://")]


def test_a_file_is_fetched_with_its_type(http: str) -> None:
    found = asyncio.run(fetch(f"{http}/x", Fetch(allow=allowed(http)), types=TYPES, param="p"))
    assert (found.content, found.media_type) == (PNG, "image/png")


def test_nothing_is_sent_but_a_plain_get(http: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    hop = f"{http}/hop?2&{http}/seen"
    seen = dict(json.loads(get(hop, allow=allowed(http))))
    assert set(seen) == {"host", "accept", "accept-encoding", "connection", "user-agent"}
    assert seen["accept-encoding"] == "identity"


def test_five_redirects_and_no_more(http: str) -> None:
    assert get(f"{http}/hop?5&/x", allow=allowed(http)) == PNG
    with pytest.raises(InvalidRequest, match="more than 5 times"):
        get(f"{http}/hop?6&/x", allow=allowed(http))


def test_redirects_never_reach_the_trap(http: str, caught: Trap) -> None:
    for url in urls(caught.port):
        for hops in (1, 3):
            if url.isascii() and url.isprintable() and "://" in url:
                with suppress(InvalidRequest, UpstreamError):  # or it leads back to the first server
                    assert get(f"{http}/hop?{hops}&{url}", allow=allowed(http)) == PNG
    assert caught.caught == 0


@pytest.mark.parametrize(
    ("path", "kind", "why"),
    [
        ("/status?404", InvalidRequest, "answered 404"),
        ("/status?206", InvalidRequest, "answered 206"),
        ("/status?503", UpstreamError, "answered 503"),
        ("/type?text/html", InvalidRequest, "leads to `text/html`; it should be image/png"),
        ("/type?image/svg%2bxml", InvalidRequest, "should be image/png"),
        ("/gzip", UpstreamError, "compresses"),
        ("/large", InvalidRequest, "more than 1,000,000 bytes"),
        ("/slow", UpstreamTimeout, "longer than 0.5 s"),
        ("/hop?1&http://0177.0.0.1/", UpstreamError, "speaks no HTTP"),
    ],
)
def test_what_cannot_be_had_is_told_at_once(http: str, path: str, kind: type[StackError], why: str) -> None:
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(kind, match=why) as refused:
        get(http + path, allow=allowed(http), max_bytes=1_000_000, timeout=0.5 if path == "/slow" else 10)
    assert refused.value.param == "there" and type(refused.value) is kind
    assert time.monotonic() - began < 5
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_a_server_that_is_not_there() -> None:
    with trap() as gone:
        port = gone.port
    with pytest.raises(UpstreamError, match="cannot be reached"):
        get(f"http://127.0.0.1:{port}/", allow=["127.0.0.0/8"])


# ------------------------------------------------------------------ rules


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700::1111", "2a00:1450::1", "64:ff9b::808:808"],
)
def test_what_the_whole_internet_reaches_is_public(address: str) -> None:
    assert asyncio.run(Reach().addresses(address, 80)) == [address]


def test_what_is_public_is_global_in_pythons_eyes_too() -> None:
    """Python's own table is another witness; ours is the stricter one."""
    for number in range(0, 1 << 32, 7_777_777):
        address = IPv4Address(number)
        assert not is_public(address) or (address.is_global and not address.is_multicast), address


@pytest.mark.parametrize(
    ("rule", "host", "port", "address", "may"),
    [
        ("10.1.0.0/16", "a", 80, "10.1.2.3", True),
        ("10.1.0.0/16", "a", 80, "10.2.2.3", False),
        ("files.internal", "files.internal", 80, "10.9.9.9", True),
        ("files.internal", "evil.files.internal", 80, "10.9.9.9", False),
        ("files.internal:8080", "files.internal", 8080, "10.9.9.9", True),
        ("files.internal:8080", "files.internal", 80, "10.9.9.9", False),
        ("10.0.0.5:8080", "a", 8080, "10.0.0.5", True),
        ("10.0.0.5:8080", "a", 81, "10.0.0.5", False),
        ("[fd00::1]:80", "a", 80, "fd00::1", True),
        ("[fd00::1]:80", "a", 81, "fd00::1", False),
        ("fd00::/8", "a", 81, "fd12::1", True),
        ("0.0.0.0/0", "a", 81, "::1", False),
        ("127.0.0.1", "a", 80, "::ffff:127.0.0.1", False),
    ],
)
def test_rules(rule: str, host: str, port: int, address: str, may: bool) -> None:
    async def resolve(name: str, number: int) -> list[str]:
        return [address]

    reach = Reach([rule], resolve=resolve)
    if may:
        assert asyncio.run(reach.addresses(host, port)) == [address]
    else:
        with pytest.raises(InvalidRequest):
            asyncio.run(reach.addresses(host, port))


@pytest.mark.parametrize("rule", ["", "10.0.0.0/33", "a b", "host:", "host:0", "host:99999", "http://host/"])
def test_rules_that_are_none_are_refused_at_start(rule: str) -> None:
    with pytest.raises(ValueError, match="such as 10.1.0.0/16 or files:8080"):
        Rule.of(rule)
    with pytest.raises(ValueError, match="such as"):
        StackConfig.model_validate({"fetch": {"allow": [rule]}})


# ------------------------------------------------------------------ images


def shown(config: dict[str, Any], *links: str) -> ChatRequest:
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}} for url in links]
    body = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "?"}, *parts]}]}
    request = ChatRequest.model_validate(body)
    before = request.model_dump_json()
    found = asyncio.run(images.fetched(Stack(StackConfig.model_validate(config)), request))
    assert request.model_dump_json() == before
    return found


def test_images_come_as_data_urls_in_their_places(http: str) -> None:
    data = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    found = shown(
        {"fetch": {"allow": allowed(http)}}, f"{http}/x", data, f" {http}/x", f"{http}/type?image/gif"
    )
    dumped = json.loads(found.model_dump_json())["messages"][0]["content"]
    assert [part["image_url"]["url"] for part in dumped[1:]] == [data, data, data, data.replace("png", "gif")]
    assert dumped[1]["image_url"]["detail"] == "high" and not found.links_images()


def test_images_that_cannot_be_had_are_named(http: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        shown({"fetch": {"allow": allowed(http)}}, f"{http}/x", f"{http}/type?text/html")
    assert refused.value.param == "messages[0].content[2].image_url.url"


def test_images_are_limited_together(http: str) -> None:
    config = {"fetch": {"allow": allowed(http)}, "server": {"max_body_size": 1024}}
    count = 1024 // len(PNG) + 1
    with pytest.raises(InvalidRequest, match="(too large together|more than)"):
        shown(config, *(f"{http}/x?{number}" for number in range(count)))
    with pytest.raises(InvalidRequest, match="at most 32 images"):
        shown(config, *(f"{http}/x?{number}" for number in range(33)))


def test_a_model_is_shown_what_its_shields_were(tmp_path: Path) -> None:
    """Over HTTP, with a server that gives another image each time: it is asked once."""
    served: list[bytes] = []

    async def fickle(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        served.append(image_file("red" if len(served) % 2 else "blue"))
        await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
        await send({"type": "http.response.body", "body": served[-1]})

    model, mmproj = write_llama(tmp_path / "m.gguf"), write_mmproj(tmp_path / "mmproj.gguf")
    files = [{"name": each.name, "sources": [f"file:{each}"]} for each in (model, mmproj)]
    cards = [{"id": "seer", "files": files}, {"id": "reader", "files": files[:1]}]
    with listening(fickle) as url, trap() as inside:
        config = {
            "inference": {"local": {"provider": "llama-cpp", "models": cards, "context": 1024}},
            "safety": {"eye": {"provider": "tests.support.witness:Witness"}},
            "enforce": {"input": ["eye"]},
            "fetch": {"allow": allowed(url)},
        }
        with serve(StackConfig.model_validate(config)) as server:

            def ask(link: str, model: str = "local/seer") -> httpx.Response:
                part = {"type": "image_url", "image_url": {"url": link}}
                text = {"type": "text", "text": "What is this?"}
                body = {
                    "model": model,
                    "messages": [{"role": "user", "content": [text, part]}],
                    "max_tokens": 2,
                }
                return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)

            assert ask(f"{url}/x").status_code == 200
            [blue] = served
            eye = server.app.state.stack.safety["eye"]
            assert eye.seen[-1].images == [data_url(blue)]

            assert ask(f"{url}/x", "local/reader").status_code == 400 and len(served) == 1
            for link in urls(inside.port)[::9]:
                refused = ask(link)
                assert refused.status_code == 400, link
                assert refused.json()["error"]["param"] == "messages[0].content[1].image_url.url"
            assert inside.caught == 0
