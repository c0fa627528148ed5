"""Connections that break, servers that are busy, and bytes that come in any pieces."""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_stack_lite.config import StackConfig
from llama_stack_lite_client import (
    AsyncClient,
    Client,
    ClientError,
    ConnectionFailed,
    RateLimited,
    Unavailable,
)
from llama_stack_lite_client.errors import answered
from llama_stack_lite_client.sse import Decoder
from tests.support.serving import serve

from .served import Configured
from .served import configured as configured

CHAT = {"id": "x", "model": "m", "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}]}


# ---------------------------------------------------------------- a server that is busy


class Busy:
    """A server that answers as it is told to, one after the other, and counts."""

    def __init__(self, *answers: tuple[int, dict[str, str], Any]) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.url = ""


@contextmanager
def answering(*answers: tuple[int, dict[str, str], Any]) -> Iterator[Busy]:
    busy = Busy(*answers)

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            busy.asked += 1
            status, headers, body = busy.answers.pop(0)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, header in {"content-length": str(len(data)), **headers}.items():
                self.send_header(name, header)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        busy.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield busy
        finally:
            server.shutdown()
            thread.join()


def failing(status: int, **headers: str) -> tuple[int, dict[str, str], Any]:
    error = {"message": f"failed with {status}", "type": "server_error", "param": None, "code": None}
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, {"error": error}


@pytest.mark.parametrize("status", [429, 503])
def test_what_the_server_has_not_begun_is_sent_again(status: int) -> None:
    with answering(failing(status, retry_after="0"), (200, {}, CHAT)) as busy, Client(busy.url) as client:
        assert client.chat("hi").text == "hello"
        assert busy.asked == 2


def test_awaited_too() -> None:
    async def check() -> None:
        with answering(failing(503, retry_after="0"), (200, {}, CHAT)) as busy:
            async with AsyncClient(busy.url) as client:
                assert (await client.chat("hi")).text == "hello"

    asyncio.run(check())


def test_only_so_often() -> None:
    with answering(*[failing(429, retry_after="0")] * 9) as busy, Client(busy.url, retries=3) as client:
        with pytest.raises(RateLimited, match="failed with 429") as refused:
            client.chat("hi")
        assert busy.asked == 4 and refused.value.retry_after == 0


@pytest.mark.parametrize("status", [400, 404, 500, 502, 504])
def test_what_may_have_been_done_is_not_sent_again(status: int) -> None:
    with answering(failing(status), (200, {}, CHAT)) as busy, Client(busy.url) as client:
        with pytest.raises(ClientError, match=f"failed with {status}"):
            client.chat("hi")
        assert busy.asked == 1


def test_what_changes_nothing_is_asked_again() -> None:
    with answering(failing(502, retry_after="0"), (200, {}, {"status": "OK"})) as busy:
        with Client(busy.url) as client:
            assert client.health().status == "OK"
        assert busy.asked == 2


def test_a_long_wait_is_for_the_caller_to_decide() -> None:
    with answering(failing(429, retry_after="3600")) as busy, Client(busy.url) as client:
        with pytest.raises(RateLimited) as refused:
            client.chat("hi")
        assert refused.value.retry_after == 3600


def test_without_a_hint_the_waits_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with (
        answering(*[failing(503)] * 6) as busy,
        Client(busy.url, retries=5) as client,
        pytest.raises(Unavailable),
    ):
        client.chat("hi")
    for wait, most in zip(waits, (0.5, 1, 2, 4, 8), strict=True):
        assert 0.75 * most <= wait <= most


def test_answers_that_are_none_are_errors() -> None:
    answers: list[tuple[int, dict[str, str], Any]]
    answers = [(200, {}, b"<html>"), (200, {}, {"id": "x"}), (502, {}, b"<html>"), (200, {}, b"data: {\n\n")]
    with answering(*answers) as busy, Client(busy.url, retries=0) as client:
        with pytest.raises(ClientError, match="answered what is no Health"):
            client.health()
        with pytest.raises(ClientError, match="answered what is no ChatCompletion"):
            client.chat("hi")
        with pytest.raises(ClientError, match="answered 502 and did not say why"):
            client.health()
        with pytest.raises(ClientError, match="answered what is no JSON"):
            list(client.chat.stream("hi"))


def test_a_date_says_when_to_come_again_as_well() -> None:
    late = answered(429, {"retry-after": "Fri, 31 Dec 2999 23:59:59 GMT"}, b"{}")
    assert late.retry_after and late.retry_after > 1e9
    assert answered(429, {"retry-after": "soon"}, b"{}").retry_after is None
    assert answered(429, {"retry-after": "-3"}, b'{"error": "no"}').retry_after == 0


# ---------------------------------------------------------------- connections that break


class Cutting:
    """A proxy before a server; each of its connections breaks after so many bytes of the answer."""

    def __init__(self) -> None:
        self.connections = 0
        self.url = ""


def pump(source: socket.socket, target: socket.socket, most: int) -> None:
    """Pass bytes on, so many at most; then both ends are cut."""
    with suppress(OSError):
        while most > 0 and (data := source.recv(min(4096, most))):
            target.sendall(data)
            most -= len(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def cutting(config: StackConfig, after: Callable[[], int]) -> Iterator[Cutting]:
    proxy = Cutting()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            proxy.connections += 1
            with socket.create_connection(("127.0.0.1", port)) as inner:
                asking = threading.Thread(target=pump, args=(self.request, inner, 10**9))
                asking.start()
                pump(inner, self.request, after())
                asking.join()

    with serve(config) as running, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        port = int(running.url.rpartition(":")[2])
        proxy.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            thread.join()


def test_a_background_response_goes_on_over_new_connections(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_stack_lite_client.following.backoff", lambda attempt: 0.01)
    config = configured({"content": "a word or two and some more of them " * 3, "delay": 0.01})
    with cutting(config, lambda: 3000) as proxy, Client(proxy.url) as client:
        events = list(client.responses.stream("hi", background=True))
        assert proxy.connections > 2
        assert [event.sequence_number for event in events] == list(range(len(events)))
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")  # type: ignore[attr-defined]
        assert said == "a word or two and some more of them " * 3
        assert events[-1].type == "response.completed"


def test_awaited_it_does_too(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama_stack_lite_client.following.backoff", lambda attempt: 0.01)

    async def check() -> None:
        config = configured({"content": "a word or two and some more of them", "delay": 0.02})
        with cutting(config, lambda: 5000) as proxy:
            async with AsyncClient(proxy.url) as client:
                numbers = [
                    event.sequence_number async for event in client.responses.stream("hi", background=True)
                ]
                assert proxy.connections > 1 and numbers == list(range(len(numbers)))

    asyncio.run(check())


def test_it_gives_up_where_no_connection_brings_anything(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llama_stack_lite_client.following.backoff", lambda attempt: 0.01)
    limits = iter([4000])
    config = configured({"content": "a word or two and some more of them", "delay": 0.02})
    with cutting(config, lambda: next(limits, 40)) as proxy, Client(proxy.url, retries=1) as client:
        stream = client.responses.stream("hi", background=True)
        assert next(stream).type == "response.created"
        with pytest.raises(ConnectionFailed):
            list(stream)


@pytest.mark.parametrize("call", ["chat", "response"])
def test_any_other_stream_that_breaks_is_an_error(call: str, configured: Configured) -> None:
    config = configured({"content": "a word or two and some more of them", "delay": 0.02})
    with cutting(config, lambda: 1500) as proxy, Client(proxy.url) as client:
        stream: Any = client.chat.stream("hi", model="m") if call == "chat" else client.responses.stream("hi")
        with pytest.raises(ConnectionFailed, match="no answer from"):
            list(stream)
        assert proxy.connections == 1


def test_a_post_that_breaks_is_not_sent_again(configured: Configured) -> None:
    with cutting(configured("once", "twice"), lambda: 20) as proxy, Client(proxy.url) as client:
        with pytest.raises(ConnectionFailed) as broken:
            client.chat("hi", model="m")
        assert broken.value.sent and proxy.connections == 1


# ---------------------------------------------------------------- bytes in any pieces

# all that a text may hold, the separators among them that are ends of lines to Python, and not to SSE
TEXTS = st.text(st.sampled_from("a\u2028\u2029\x85\x0b\x1c\u00e9\U0001f600 :"), max_size=6)


@given(st.lists(TEXTS, max_size=5), st.sampled_from(["\n", "\r\n", "\r"]), st.lists(st.integers(1, 9)))
def test_events_are_the_same_however_they_are_cut(texts: list[str], end: str, cuts: list[int]) -> None:
    frames = [f"event: x{end}data: {json.dumps(text, ensure_ascii=False)}{end}{end}" for text in texts]
    data = f": hello{end}".encode() + "".join(frames).encode() + b": the end\n"
    decoder, found = Decoder(), []
    for cut in [*cuts, len(data)]:
        found += decoder.feed(data[:cut])
        data = data[cut:]
    assert [json.loads(each) for each in found] == texts


def test_data_of_several_lines_is_one_event() -> None:
    assert Decoder().feed(b"data: {\ndata:  }\n\n\n") == ["{\n }"]
