"""The `openai` provider against real sockets: what it asks, refusals, embeddings, models, configuration."""

import asyncio
import base64
import json
import logging
import socket
import struct
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from llama_stack_lite.answer import chat_completion
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Busy, UpstreamError
from llama_stack_lite.providers.inference.openai import OpenAI
from tests.support.serving import serve
from tests.support.speaking import (
    ANSWER,
    DONE,
    SAID,
    WHOLE,
    ask,
    body,
    frames,
    provider,
    refusal,
    saying,
)
from tests.support.upstream import STREAM, Exchange, reply, upstream


def test_the_upstream_is_asked_what_the_client_asked() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    request = ask(temperature=0.5, response_format=schema, top_a={"deep": [1, None]}, stop=None)
    before = request.model_copy(deep=True)

    async def main() -> Exchange:
        answer = saying(STREAM, frames(*ANSWER), DONE)
        async with provider(answer, api_key="secret", headers={"X-Team": "blue"}) as (made, server):
            await chat_completion(made.chat("org/model", request))
            return server.requests[0]

    asked = asyncio.run(main())
    assert asked.path == "/v1/chat/completions"
    assert asked.headers["authorization"] == "Bearer secret" and asked.headers["x-team"] == "blue"
    assert asked.body == {
        "model": "org/model",
        "messages": [{"role": "user", "content": "?"}],
        "temperature": 0.5,
        "response_format": schema,
        "top_a": {"deep": [1, None]},
        "stop": None,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert request == before and request.model_fields_set == before.model_fields_set


def test_without_a_key_none_is_sent() -> None:
    async def main() -> Exchange:
        async with provider(saying(STREAM, frames(*ANSWER)), api_key="") as (made, server):
            await chat_completion(made.chat("m", ask()))
            return server.requests[0]

    assert "authorization" not in asyncio.run(main()).headers


def test_credentials_of_this_machine_are_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n", encoding="utf-8")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    test_without_a_key_none_is_sent()


def test_a_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with upstream(saying(STREAM, WHOLE)) as proxy:
            address = proxy.url.removeprefix("http://").removesuffix("/v1")
            for name in ("http_proxy", "HTTP_PROXY"):
                monkeypatch.setenv(name, f"http://user:secret@{address}")
            for name in ("no_proxy", "NO_PROXY"):
                monkeypatch.setenv(name, "127.0.0.1")
            far = OpenAI(OpenAI.Config(base_url="http://far.test/v1"))
            found = await chat_completion(far.chat("m", ask()))
            await far.aclose()
            assert found.choices[0].message.content == SAID
            [asked] = proxy.requests
            assert asked.path == "http://far.test/v1/chat/completions"
            assert asked.headers["proxy-authorization"] == "Basic dXNlcjpzZWNyZXQ="
            async with provider(saying(STREAM, WHOLE)) as (near, _):
                await chat_completion(near.chat("m", ask()))
            assert len(proxy.requests) == 1, "no_proxy is heeded"

    asyncio.run(main())


STATUSES: list[tuple[int, bytes, int, str | None, str | None, str]] = [
    (400, body("too hot", param="temperature", code="bad"), 400, "bad", "temperature", "too hot"),
    (400, body("too long", code="context_length_exceeded"), 400, "context_length_exceeded", None, "too long"),
    (422, body("odd", code=422), 400, None, None, "odd"),
    (404, body("no such model", code="model_not_found"), 404, "model_not_found", None, "no such model"),
    (404, b'{"object": "error", "message": "no model x"}', 404, None, None, "no model x"),
    (404, b'{"detail": "Not Found"}', 502, "upstream_error", None, "`base_url` mostly ends in /v1"),
    (413, body("too large"), 413, None, None, "too large"),
    (401, body("Incorrect key sk-12"), 502, "upstream_error", None, "refused this server's own key"),
    (403, b"", 502, "upstream_error", None, "refused this server's own key"),
    (500, b"<h1>oops</h1>", 502, "upstream_error", None, "failed with status 500: <h1>oops</h1>"),
    (503, body("loading model"), 502, "upstream_error", None, "loading model"),
    (504, b"", 504, "upstream_timeout", None, "failed with status 504"),
    (418, b"", 502, "upstream_error", None, "failed with status 418"),
    (500, b"x" * 1_000_000, 502, "upstream_error", None, "xxx"),
]


@pytest.mark.parametrize(
    ("status", "said", "ours", "code", "param", "text"), STATUSES, ids=lambda v: str(v)[:20]
)
def test_a_refusal_keeps_its_meaning(
    status: int, said: bytes, ours: int, code: str | None, param: str | None, text: str
) -> None:
    error = refusal(saying(reply(status, said)))
    assert (error.status, error.code, error.param) == (ours, code, param)
    assert text in str(error) and "sk-12" not in str(error) and len(str(error)) < 400


def test_a_refusal_in_two_packets_is_read_whole() -> None:
    async def slowly(exchange: Exchange) -> None:
        whole = reply(400, body("first half, second half"))
        await exchange.send(whole[:-20])
        await asyncio.sleep(0.05)
        await exchange.send(whole[-20:])

    assert str(refusal(slowly)) == "first half, second half"


def test_too_many_requests_come_back_at_once_with_their_retry_after() -> None:
    async def main() -> None:
        answer = saying(reply(429, body("quota", code="insufficient_quota"), "retry-after: 37"))
        async with provider(answer) as (made, server):
            started = time.monotonic()
            with pytest.raises(Busy, match="quota") as busy:
                await anext(made.chat("m", ask()))
            assert time.monotonic() - started < 0.1
            assert busy.value.headers() == {"retry-after": "37"} and busy.value.code == "insufficient_quota"
            assert len(server.requests) == 1, "nothing is tried twice"

    asyncio.run(main())


def test_a_redirect_is_not_followed_and_the_key_stays_here() -> None:
    async def main() -> None:
        async with upstream(saying(STREAM, WHOLE)) as other:
            for status in (301, 302, 307, 308):
                answer = saying(reply(status, b"", f"location: {other.url}/chat/completions"))
                async with provider(answer, api_key="secret") as (made, _):
                    with pytest.raises(UpstreamError, match=f"redirects to {other.url}"):
                        await anext(made.chat("m", ask()))
            assert other.requests == []

    asyncio.run(main())


def test_a_server_that_is_not_there_is_named_with_the_way_out() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"

        async def main() -> None:
            made = OpenAI(OpenAI.Config(base_url=url))
            with pytest.raises(UpstreamError, match="does it run, and is `base_url` right") as refused:
                await anext(made.chat("m", ask()))
            await made.aclose()
            assert url in str(refused.value)

        asyncio.run(main())


def vectors(*found: tuple[int, Any], **fields: Any) -> bytes:
    data = [{"index": index, "embedding": embedding} for index, embedding in found]
    return json.dumps({"data": data, **fields}).encode()


def embed(said: bytes, inputs: Any, **options: Any) -> tuple[Any, Any]:
    async def main() -> tuple[Any, Any]:
        async with provider(saying(reply(200, said))) as (made, server):
            return await made.embed("m", inputs, **options), server.requests[0].body

    return asyncio.run(main())


def test_embeddings_come_in_the_order_of_their_texts() -> None:
    packed = base64.b64encode(struct.pack("<2f", 0.5, -2)).decode()
    said = vectors((1, packed), (0, [1, 2]), usage={"prompt_tokens": 9, "total_tokens": 9})
    found, asked = embed(said, ["a", "b"], dimensions=2)
    assert found.vectors == [[1, 2], [0.5, -2]] and found.prompt_tokens == 9
    assert asked == {"model": "m", "input": ["a", "b"], "dimensions": 2}


def test_token_ids_are_embedded_upstream() -> None:
    assert embed(vectors((0, [1.0])), [[5, 6]])[1] == {"model": "m", "input": [[5, 6]]}


NO_EMBEDDINGS = {
    "a page": b"<html>",
    "empty": b"{}",
    "one missing": vectors((0, [1])),
    "one twice": vectors((0, [1]), (0, [1])),
    "no base64": vectors((0, [1]), (1, "*")),
    "half a float": vectors((0, [1]), (1, "AAA=")),
    "no number": vectors((0, [1]), (1, [float("nan")])),
    "no dimensions": vectors((0, []), (1, [])),
}


def rerank(*scores: tuple[int, Any], **fields: Any) -> tuple[Any, Any]:
    results = [{"index": index, "relevance_score": score} for index, score in scores]
    said = json.dumps({"results": results, **fields}).encode()

    async def main() -> tuple[Any, Any]:
        async with provider(saying(reply(200, said))) as (made, server):
            return await made.rerank("m", "q", ["a", "b"]), server.requests[0].body

    return asyncio.run(main())


def test_scores_come_in_the_order_of_their_documents() -> None:
    found, asked = rerank((1, 0.9), (0, 0.2), usage={"total_tokens": 7})
    assert found.scores == [0.2, 0.9] and found.prompt_tokens == 7
    assert asked == {"model": "m", "query": "q", "documents": ["a", "b"], "top_n": 2}


def test_logits_become_scores_from_0_to_1() -> None:
    found, _ = rerank((0, 0.0), (1, -800.0))
    assert found.scores == [0.5, 0.0]


@pytest.mark.parametrize("scores", [[(0, 0.5)], [(0, 0.5), (0, 0.5)], [(0, 0.5), (1, None)]])
def test_what_is_no_ranking_is_an_upstream_error(scores: list[tuple[int, Any]]) -> None:
    with pytest.raises(UpstreamError):
        rerank(*scores)


@pytest.mark.parametrize("said", NO_EMBEDDINGS.values(), ids=NO_EMBEDDINGS)
def test_what_is_no_embedding_is_an_upstream_error(said: bytes) -> None:
    with pytest.raises(UpstreamError):
        embed(said, ["a", "b"])


def listed(said: bytes, **settings: Any) -> tuple[OpenAI, list[ModelCard]]:
    async def main() -> tuple[OpenAI, list[ModelCard]]:
        async with provider(saying(said), **settings) as (made, _):
            return made, await made.models()

    return asyncio.run(main())


def test_models_are_the_upstreams_own_and_their_kind_is_guessed() -> None:
    kinds = {
        "gpt-5": "chat",
        "meta-llama/Llama-3.3-70B-Instruct": "chat",
        "text-embedding-3-small": "embedding",
        "all-MiniLM-L6-v2": "embedding",
        "BAAI/bge-m3": "embedding",
        "BAAI/bge-reranker-v2-m3": "rerank",
        "intfloat/multilingual-e5-large": "embedding",
        "phi-4-e56": "chat",
        "/models/a b.gguf": "chat",
    }
    entries = [{"id": name, "object": "model", "max_model_len": 4096} for name in kinds]
    made, cards = listed(reply(200, json.dumps({"data": entries}).encode()))
    assert {card.id: card.kind for card in cards} == kinds and not made.unlisted
    assert {card.tool_calling for card in cards} == {"remote"} and cards[0].context_length == 4096


def test_configured_models_are_not_asked_for() -> None:
    own = [ModelCard(id="voyage-3", kind="embedding", embedding_dimension=8), "gpt-5"]
    _, cards = listed(reply(500, b""), models=own)
    assert [(card.id, card.kind) for card in cards] == [("voyage-3", "embedding"), ("gpt-5", "chat")]


@pytest.mark.parametrize("said", [reply(404, b""), reply(200, b"<html>"), reply(200, b'{"data": 7}'), b""])
def test_without_a_list_every_name_is_passed_on(said: bytes, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made, cards = listed(said)
    assert cards == [] and made.unlisted and "lists no models" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "http://host:99999/v1"},
        {"base_url": "http://user:pass@host/v1"},
        {"base_url": "https://host/v1?key=1"},
        {"base_url": "http://host/v1", "api_key": "line\nbreak"},
        {"base_url": "http://host/v1", "headers": {"x": "line\rbreak"}},
        {"base_url": "http://host/v1", "timeout": 0},
        {"base_url": "http://host/v1", "api_keys": "k"},
    ],
    ids=lambda settings: str(list(settings.items())[-1]),
)
def test_a_configuration_that_cannot_work_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as refused:
        OpenAI.Config(**settings)
    assert refused.value.error_count() == 1


def test_the_key_shows_nowhere() -> None:
    config = OpenAI.Config.model_validate(
        {"base_url": "http://h/v1/", "api_key": "k3y", "headers": {"a": "k3y"}}
    )
    assert "k3y" not in repr(config) + config.model_dump_json() and config.base_url == "http://h/v1"


def test_one_of_us_in_front_of_another_serves_the_same() -> None:
    scripted: dict[str, Any] = {
        "provider": "scripted",
        "replies": [
            "one two three",
            {"content": "one two", "error": {"status": 503, "message": "lost"}},
            {"error": {"status": 429, "message": "full"}},
        ],
        "embedding_models": ["vectors"],
        "embedding_dimension": 8,
    }
    inner = StackConfig.model_validate({"inference": {"local": scripted}})
    with serve(inner) as behind:
        entry = {"provider": "openai", "base_url": f"{behind.url}/v1"}
        outer = StackConfig.model_validate({"inference": {"far": entry}})
        with serve(outer) as front, httpx.Client(base_url=f"{front.url}/v1") as http:
            models = {model["id"]: model for model in http.get("/models").json()["data"]}
            assert models["far/local/vectors"]["kind"] == "embedding"
            assert models["far/local/vectors"]["embedding_dimension"] == 8
            body: dict[str, Any] = {
                "model": "far/local/scripted",
                "messages": [{"role": "user", "content": "?"}],
            }
            whole = http.post("/chat/completions", json=body).json()
            assert whole["choices"][0]["message"]["content"] == "one two three"
            assert whole["model"] == "far/local/scripted" and whole["usage"]["completion_tokens"] == 3
            broken = http.post("/chat/completions", json=body | {"stream": True})
            assert broken.status_code == 200 and "lost" in broken.text and "[DONE]" in broken.text
            full = http.post("/chat/completions", json=body)
            assert full.status_code == 429 and full.headers["retry-after"] == "1"
            found = http.post("/embeddings", json={"model": "far/local/vectors", "input": ["a", "b"]}).json()
            assert len(found["data"]) == 2 and len(found["data"][0]["embedding"]) == 8
