"""How requests are read: straight from their bytes, with every mistake answered as the client's."""

import asyncio

import httpx
import pytest

from llama_stack_lite.config import StackConfig
from llama_stack_lite.server import create_app

CHAT = b'{"model": "test/scripted", "messages": [{"role": "user", "content": "?"}]}'


def post(content: bytes, **headers: str) -> httpx.Response:
    async def main() -> httpx.Response:
        entry = {"provider": "scripted", "replies": ["hello"]}
        app = create_app(StackConfig.model_validate({"inference": {"test": entry}}))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
        ):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await http.post("/v1/chat/completions", content=content, headers=named)

    return asyncio.run(main())


@pytest.mark.parametrize(
    "kind",
    ["application/json", "Application/JSON; charset=utf-8", "application/problem+json", " application/json"],
)
def test_json_is_read(kind: str) -> None:
    reply = post(CHAT, content_type=kind)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.json()["choices"][0]["message"]["content"] == "hello"


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonp", "text/plain; a=application/json"])
def test_a_body_of_another_type_is_refused(kind: str) -> None:
    reply = post(CHAT, **({"content_type": kind} if kind else {}))
    assert reply.status_code == 400 and "content-type: application/json" in reply.json()["error"]["message"]


NO_REQUESTS = {
    "nothing": (b"", "the body is no JSON"),
    "half": (CHAT[:-1], "the body is no JSON"),
    "another encoding": (CHAT.decode().encode("utf-16"), "the body is no JSON"),
    "deep": (b"[" * 100_000, "the body is no JSON"),
    "a list": (b"[]", "should be an object"),
    "a field": (CHAT.replace(b'"user"', b'"nobody"'), "messages[0].role"),
    "a number of many digits": (CHAT[:-1] + b', "x": ' + b"9" * 5000 + b"}", "the body is no JSON"),
}


@pytest.mark.parametrize(("content", "said"), NO_REQUESTS.values(), ids=NO_REQUESTS)
def test_what_is_no_request_is_400(content: bytes, said: str) -> None:
    reply = post(content, content_type="application/json")
    assert reply.status_code == 400 and said in reply.json()["error"]["message"], reply.text
