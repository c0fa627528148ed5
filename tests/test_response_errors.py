"""Requests that /v1/responses refuses, each with the field at fault, and turns that fail later."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.responding import PAIR, Responding, config, run, texts

FUNCTION = {"type": "function", "name": "add", "parameters": PAIR}
SUMS = {"type": "mcp", "server_label": "sums", "require_approval": "never"}
USER = {"role": "user", "content": "hi"}


def part(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [fields]}]


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    # what is asked besides `input: hi`, which field is at fault, and some of the words
    ({"input": None}, "input", "nothing to answer"),
    ({"input": []}, "input", "nothing to answer"),
    ({"input": 5}, "input", "valid"),
    ({"input": [5]}, "input[0]", "type"),
    ({"input": [{}]}, "input[0]", "`type`"),
    ({"input": [{"type": []}]}, "input[0]", "`type`"),
    ({"input": [USER, {"type": "nonsense"}]}, "input[1]", "`nonsense` is none of the types"),
    ({"input": [{"type": "computer_call"}]}, "input[0]", "`computer_call` is none of the types"),
    ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "user"),
    ({"input": [{"role": "user"}]}, "input[0].content", "required"),
    ({"input": part(type="input_audio")}, "input[0].content[0]", "`input_audio` is none of the types"),
    ({"input": part(type="input_text")}, "input[0].content[0].text", "required"),
    ({"input": part(type="input_image")}, "input[0].content[0]", "`image_url` is missing"),
    ({"input": part(type="input_image", file_id="f")}, "input", "`files: {local: {provider: local}}`"),
    ({"input": part(type="input_file", file_id="f")}, "input", "`files: {local: {provider: local}}`"),
    (
        {"input": part(type="input_file", file_url="http://x")},
        "input[0].content[0]",
        "`file_data` is missing",
    ),
    ({"input": [USER | {"id": "no id"}]}, "input[0]", "an id has"),
    ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "required"),
    ({"input": [{"type": "function_call", "call_id": "x"}]}, "input[0].name", "required"),
    ({"model": None}, "model", "say which"),
    ({"model": "nobody"}, "model", "no model"),
    ({"model": ""}, "model", "at least 1"),
    ({"instructions": 5}, "instructions", "string"),
    ({"previous_response_id": "resp_none"}, "previous_response_id", "resp_none"),
    ({"previous_response_id": "\0"}, "previous_response_id", "no response"),
    ({"conversation": "conv_none"}, "conversation", "conv_none"),
    ({"conversation": {"id": ""}}, "conversation.id", "at least 1"),
    ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "conversation", "cannot go together"),
    ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
    ({"max_tool_calls": 0}, "max_tool_calls", "greater"),
    ({"temperature": 3}, "temperature", "less"),
    ({"top_p": -1}, "top_p", "greater"),
    ({"top_logprobs": 21}, "top_logprobs", "less"),
    ({"truncation": "some"}, "truncation", "auto"),
    ({"include": ["everything"]}, "include[0]", "file_search_call.results"),
    ({"metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 65}", "64"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k", "512"),
    ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "16"),
    ({"metadata": {"k": 1}}, "metadata.k", "string"),
    ({"service_tier": "slow"}, "service_tier", "auto"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "minimal"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format", "`name` and `schema`"),
    ({"text": {"verbosity": "none"}}, "text.verbosity", "low"),
    ({"background": True, "store": False}, "background", "`store: true`"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", "`stream: true`"),
    ({"stream": "maybe"}, "stream", "boolean"),
    ({"guardrails": ["nobody"]}, "guardrails", "nobody"),
    ({"tools": [{}]}, "tools[0]", "`type`"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools", "add twice"),
    ({"tools": [SUMS, SUMS]}, "tools", "sums twice"),
    ({"tools": [{"type": "function", "name": "no name"}]}, "tools[0].name", "pattern"),
    ({"tools": [{"type": "mcp", "server_label": "nobody"}]}, "tools[0].server_label", "sums"),
    ({"tools": [{"type": "mcp", "server_label": "web"}]}, "tools[0].server_label", "sums"),
    ({"tools": [{"type": "code_interpreter"}]}, "tools[0]", "its operator adds one"),
    ({"tools": [{"type": "file_search", "vector_store_ids": ["vs"]}]}, "tools[0]", "its operator adds one"),
    ({"tool_choice": "required"}, "tool_choice", "goes with `tools`"),
    ({"tool_choice": "sometimes", "tools": [FUNCTION]}, "tool_choice", "'none', 'auto' or 'required'"),
    ({"tool_choice": {"type": "function", "name": "f"}, "tools": [FUNCTION]}, "tool_choice", "function f"),
    ({"tool_choice": {"type": "function"}, "tools": [FUNCTION]}, "tool_choice.name", "required"),
    ({"tool_choice": {"type": "web_search"}, "tools": [FUNCTION]}, "tool_choice", "no web_search"),
    ({"tool_choice": {"type": "mcp", "server_label": "x"}, "tools": [FUNCTION]}, "tool_choice", "no mcp x"),
    (
        {"tool_choice": {"type": "custom", "name": "f"}, "tools": [FUNCTION]},
        "tool_choice",
        "`custom` is none",
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}, "tools": [FUNCTION]},
        "tool_choice.tools",
        "at least 1",
    ),
    (
        {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{}]}, "tools": [FUNCTION]},
        "tool_choice",
        "needs a `type`",
    ),
]
OTHERS = (
    "image_generation",
    "computer_use_preview",
    "computer",
    "custom",
    "local_shell",
    "shell",
    "apply_patch",
)
BAD += [
    (
        {"tools": [{"type": each, "name": "x"}]},
        "tools[0]",
        f"`{each}` is none of the types that are known here",
    )
    for each in OTHERS
]


@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_field_is_named(tmp_path: Path, stream: bool) -> None:
    async def work(server: Responding) -> None:
        for fields, param, words in BAD:
            if stream and fields.keys() & {"stream", "stream_options"}:
                continue
            given: dict[str, Any] = {"input": "hi", "stream": stream} | fields
            error = await server.refused(**given)
            assert error["param"] == param and words in error["message"], (fields, error)
            assert error["type"] == "invalid_request_error" and "_kind" not in error["message"]
        assert await stored(server) == 0

    run(config(tmp_path), work)


async def stored(server: Responding) -> int:
    """How many responses are kept."""

    def count(connection: Any) -> int:
        return int(connection.exec_driver_sql("select count(*) from responses").scalar())

    return int(await server.app.state.stack.store.read(count))


def test_what_is_not_found(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        error = await server.refused(input="hi", model="nobody")
        assert error["status"] == 404 and error["code"] == "model_not_found"
        error = await server.refused(input="hi", previous_response_id="resp_1")
        assert error["status"] == 404 and error["code"] == "previous_response_not_found"
        error = await server.refused(input="hi", conversation="conv_1")
        assert error["status"] == 404 and error["param"] == "conversation"
        for method, path in (
            ("get", ""),
            ("get", "?stream=true"),
            ("delete", ""),
            ("post", "/cancel"),
            ("get", "/input_items"),
        ):
            reply = await getattr(server.http, method)(f"/v1/responses/resp_none{path}")
            assert reply.status_code == 404 and "resp_none" in reply.json()["error"]["message"]

    run(config(tmp_path), work)


def test_fields_that_nobody_knows_are_left_alone(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        found = await server.whole(input="hi", personality="friendly", prompt_cache_retention="24h")
        assert "personality" not in found

    run(config(tmp_path, "ok"), work)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [400, 401, 429, 502, 503])
def test_a_model_that_fails_at_once(tmp_path: Path, status: int, stream: bool) -> None:
    """The status is its own, and nothing is kept."""
    failing = {"error": {"status": status, "message": "no luck"}}

    async def work(server: Responding) -> None:
        reply = await server.post(input="hi", stream=stream)
        assert reply.status_code == status and "no luck" in reply.json()["error"]["message"]
        assert await stored(server) == 0

    run(config(tmp_path, failing), work)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "code"), [(429, "rate_limit_exceeded"), (500, "server_error"), (400, "invalid_prompt")]
)
def test_a_model_that_fails_later(tmp_path: Path, status: int, code: str, stream: bool) -> None:
    """What it had said is kept with the failure, and read by nobody again as an answer."""
    reply = {"content": "one two", "error": {"status": status, "message": "no luck"}}

    async def work(server: Responding) -> None:
        if stream:
            found = (await server.stream(input="hi"))[-1]["response"]
        else:
            found = await server.whole(input="hi")
        assert found["status"] == "failed" and texts(found) == ["one two"]
        assert found["error"]["code"] == code and found["error"]["message"] == "no luck"
        assert found["output"][0]["status"] == "incomplete"

    run(config(tmp_path, reply), work)


def test_a_model_that_breaks_is_a_failure_too(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(input="hi"):
            assert found["status"] == "failed" and texts(found) == ["one "]
            assert found["error"]["code"] == "server_error" and "log" in found["error"]["message"]

    run(config(tmp_path, "one two", "one two", provider="tests.support.responding:Broken"), work)


def test_calls_that_are_wrong_go_back_to_the_model_once(tmp_path: Path) -> None:
    wrong = {"tool_calls": [{"name": "add", "arguments": {"a": "x"}}, {"name": "rm", "arguments": {}}]}
    good = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}

    async def work(server: Responding) -> None:
        found = await server.whole(input="?", tools=[SUMS])
        assert texts(found) == ["it is 3"] and server.sums.made == [("add", {"a": 1, "b": 2})]
        failed, made = [item for item in found["output"] if item["type"] == "mcp_call"]
        assert failed["status"] == "failed" and "required property" in json.dumps(failed["error"])
        assert "There is no tool `rm`" in json.dumps(server.asked()[1])
        # the second time is the last
        found = (await server.stream(input="?", tools=[SUMS]))[-1]["response"]
        assert found["status"] == "failed" and "wrongly once more" in found["error"]["message"]
        assert len(server.sums.made) == 1

    run(config(tmp_path, wrong, good, "it is 3", wrong, wrong), work)


def test_a_turn_that_never_comes_to_an_answer_ends(tmp_path: Path) -> None:
    call = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2}}]}

    async def work(server: Responding) -> None:
        for found in await server.both(input="?", tools=[SUMS]):
            assert found["incomplete_details"] == {"reason": "max_messages"} and len(found["output"]) == 4

    run(config(tmp_path, *[call] * 6, turns={"max_steps": 3}), work)


def test_a_turn_that_takes_too_long_ends(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(input="?"):
            assert found["status"] == "failed" and "longer than 0.3 seconds" in found["error"]["message"]
        server.scripted.queue("x")
        server.scripted.replies[-1].delay = 1
        reply = await server.post(input="?")
        assert reply.status_code == 504 and "0.3 seconds" in reply.json()["error"]["message"]

    slow = {"chunks": [f"{n} " for n in range(100)], "delay": 0.02}
    run(config(tmp_path, slow, slow, turns={"timeout": 0.3}), work)


def test_bodies_that_are_none(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for content in (b"", b"{", b"[]", b'"x"'):
            reply = await server.http.post(
                "/v1/responses", content=content, headers={"content-type": "application/json"}
            )
            assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"

    run(config(tmp_path), work)
