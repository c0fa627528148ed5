"""Images through the server: a tiny random model that sees, asked like any other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_stack_lite.config import StackConfig
from tests.support.serving import Running, serve
from tests.support.tiny import write_llama
from tests.support.tiny_vision import SIDES, image_file, image_part, write_mmproj

SPECIALS = ["<fake_token_around_image>", "<global-img>", "<|vision_start|>", "<|vision_end|>", "\n\n"]
SPECIALS += [f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)]


def card(name: str, *files: Path, **facts: Any) -> dict[str, Any]:
    return {"id": name, "files": [{"name": f.name, "sources": [f"file:{f}"]} for f in files], **facts}


@pytest.fixture(scope="module", params=list(SIDES))
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("seeing")
    architecture = "qwen2vl" if request.param == "qwen2vl_merger" else "llama"
    model = write_llama(folder / "model.gguf", architecture=architecture, specials=SPECIALS)
    mmproj = write_mmproj(folder / "mmproj.gguf", projector=request.param)
    models = [card("seer", mmproj, model), card("reader", model), card("blind", model, vision=True)]
    local = {"provider": "llama-cpp", "models": models, "context": 1024}
    with serve(StackConfig.model_validate({"inference": {"local": local}})) as found:
        yield found


def part(colour: str) -> dict[str, Any]:
    return image_part(image_file(colour))


def ask(server: Running, *content: Any, model: str = "seer", **fields: Any) -> httpx.Response:
    parts = [{"type": "text", "text": each} if isinstance(each, str) else each for each in content]
    messages = [*fields.pop("before", []), {"role": "user", "content": parts}]
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": 4,
        "temperature": 0,
        "logprobs": True,
        **fields,
    }
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def heard(reply: httpx.Response) -> list[float]:
    """The log-probabilities of what was said, which tell two prompts apart even where the words do not."""
    assert reply.status_code == 200, reply.text
    return [token["logprob"] for token in reply.json()["choices"][0]["logprobs"]["content"]]


def test_what_is_shown_makes_a_difference(server: Running) -> None:
    red, blue, red_again = (heard(ask(server, "What is this?", part(c))) for c in ("red", "blue", "red"))
    assert red == pytest.approx(red_again, abs=2e-3)
    assert red != pytest.approx(blue, abs=1e-2)


def test_the_next_turn_finds_the_image_where_it_was(server: Running) -> None:
    before = [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, part("red")]}]
    first = ask(server, "What is this?", part("red")).json()
    said = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    reply = ask(server, "Are you sure?", before=[*before, said]).json()
    held = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert held >= first["usage"]["prompt_tokens"] - 8


def test_answers_are_the_same_alone_and_together(server: Running) -> None:
    asked = [("one", part("red")), (part("blue"), "two"), ("three",), (part("red"), part("blue"), "four")] * 2
    alone = [heard(ask(server, *content)) for content in asked]

    async def together() -> list[httpx.Response]:
        return await asyncio.gather(*(asyncio.to_thread(ask, server, *content) for content in asked))

    for one, other in zip(alone, asyncio.run(together()), strict=True):
        assert heard(other) == pytest.approx(one, abs=0.05)


def test_models_say_whether_they_see(server: Running) -> None:
    vision = {m["id"]: m["vision"] for m in httpx.get(f"{server.url}/v1/models").json()["data"]}
    assert vision == {"local/seer": True, "local/reader": False, "local/blind": True}


def test_a_model_that_reads_text_refuses_an_image(server: Running) -> None:
    function = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    for fields in ({}, {"tools": [function]}):
        reply = ask(server, "What is this?", part("red"), model="reader", **fields)
        assert reply.status_code == 400
        assert reply.json()["error"]["param"] == "messages[0].content[1]"


def test_a_missing_mmproj_fails_alone(server: Running) -> None:
    reply = ask(server, "What is this?", model="blind")
    assert reply.status_code == 503
    assert "no mmproj file: add the model's mmproj-*.gguf" in reply.json()["error"]["message"]
    heard(ask(server, "still there?", model="reader"))


def test_a_broken_image_is_the_requests_fault(server: Running) -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    reply = ask(server, broken, "What is this?")
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("messages[0].content[0]")
