"""One line of configuration puts another server behind the same names, and applications see no difference."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from llama_stack_lite.config import load
from tests.support.serving import Running, serve
from tests.support.streams import events_of, folded

pytestmark = pytest.mark.model

USER = [{"role": "user", "content": "What is the weather in Paris?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Weather in a city", "parameters": PARAMETERS},
}
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("/chat/completions", {"messages": USER}),
    ("/chat/completions", {"messages": USER, "stream": True, "stream_options": {"include_usage": True}}),
    ("/chat/completions", {"messages": USER, "tools": [TOOL], "tool_choice": "required"}),
    ("/chat/completions", {"messages": USER, "tools": [TOOL], "tool_choice": "required", "stream": True}),
    ("/chat/completions", {"messages": USER, "logprobs": True, "top_logprobs": 2, "n": 2}),
    (
        "/chat/completions",
        {
            "messages": USER,
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
        },
    ),
    ("/completions", {"prompt": "The capital of France is", "logprobs": 1}),
    ("/embeddings", {"input": ["one", "two"]}),
    ("/chat/completions", {"messages": [{"role": "user", "content": "word " * 9000}]}),
    ("/chat/completions", {"messages": USER, "model": "local/nothing"}),
]


@pytest.fixture(scope="module")
def swapped(starter: Running) -> Iterator[Running]:
    """The starter distribution with both providers replaced by the server that `starter` runs."""
    overrides = []
    for name in ("local", "embed"):
        overrides += [f"inference.{name}.provider=openai", f"inference.{name}.base_url={starter.url}/v1"]
    with serve(load(["starter"], overrides=overrides)) as running:
        yield running


def shape(value: Any) -> Any:
    """The keys and types of a JSON value, without what differs from call to call."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items() if key != "prompt_tokens_details"}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def ask(running: Running, path: str, body: dict[str, Any]) -> httpx.Response:
    model = "embed/all-minilm-l6-v2" if path == "/embeddings" else "local/smollm2-135m"
    common = (
        {"model": model} if path == "/embeddings" else {"model": model, "temperature": 0, "max_tokens": 24}
    )
    return httpx.post(f"{running.url}/v1{path}", json={**common, **body}, timeout=120)


@pytest.mark.parametrize(("path", "body"), CALLS)
def test_the_same_calls_get_answers_of_the_same_shape(
    starter: Running, swapped: Running, path: str, body: dict[str, Any]
) -> None:
    local, remote = ask(starter, path, body), ask(swapped, path, body)
    assert remote.status_code == local.status_code, remote.text
    if body.get("stream"):
        assert remote.text.endswith("data: [DONE]\n\n")
        # how many tokens an event has hangs on the moment
        assert folded(events_of(remote.text)) == folded(events_of(local.text))
    else:
        assert shape(remote.json()) == shape(local.json())
        if local.status_code == 200 and path == "/chat/completions":
            said = [choice["message"]["content"] for choice in local.json()["choices"]]
            assert [choice["message"]["content"] for choice in remote.json()["choices"]] == said


def test_the_same_models_are_listed(starter: Running, swapped: Running) -> None:
    def listed(running: Running) -> list[tuple[str, str]]:
        models = httpx.get(f"{running.url}/v1/models").json()["data"]
        # agents are kept in each server's own state, where other tests may have made some
        return [(model["id"], model["kind"]) for model in models if model["kind"] != "agent"]

    assert listed(swapped) == listed(starter)
