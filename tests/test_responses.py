"""What /v1/responses answers: every object and event is one of OpenAI's types, and what is told is kept."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.guarded import WORD, Speaker
from tests.support.responding import PAIR, Responding, config, run, texts

FUNCTION = {"type": "function", "name": "add", "description": "add", "parameters": PAIR, "strict": True}
SUMS = {"type": "mcp", "server_label": "sums", "require_approval": "never"}
ADD = {"name": "add", "arguments": {"a": 1, "b": 2}}
MULTIPLY = {"name": "multiply", "arguments": {"a": 3, "b": 4}}


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def types(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


SAID = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done"]
SAID += ["content_part.done", "output_item.done"]


def test_an_answer_whole_and_streamed(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        whole = await server.whole(input="hi")
        assert texts(whole) == ["hello there"] and whole["status"] == "completed"
        assert whole["usage"] == {
            "input_tokens": 1,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 3,
        }
        events = await server.stream(input="hi")
        said = [*SAID[:3], "output_text.delta", *SAID[3:]]
        assert kinds(events) == ["created", "in_progress", *said, "completed"]
        streamed = events[-1]["response"]
        same = {"id", "created_at", "completed_at", "output"}
        assert {k: v for k, v in streamed.items() if k not in same} == {
            k: v for k, v in whole.items() if k not in same
        }

    run(config(tmp_path, "hello there", "hello there"), work)


def test_a_request_is_told_again_in_its_response(tmp_path: Path) -> None:
    given = {
        "instructions": "be kind",
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "metadata": {"who": "me"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "reasoning": {"effort": "low", "summary": None},
        "safety_identifier": "s",
        "service_tier": "flex",
        "store": True,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "tool_choice": "auto",
        "tools": [FUNCTION],
        "top_logprobs": 2,
        "top_p": 0.9,
        "truncation": "auto",
        "user": "u",
    }

    async def work(server: Responding) -> None:
        found = await server.whole(input="hi", include=["message.output_text.logprobs"], **given)
        assert {name: found[name] for name in given} == given
        asked = server.scripted.requests[0]
        assert asked.temperature == 0.5 and asked.top_p == 0.9 and asked.max_completion_tokens == 50
        assert asked.logprobs and asked.top_logprobs == 2 and not asked.parallel_tool_calls
        assert (asked.model_extra or {})["reasoning_effort"] == "low"
        assert [message["content"] for message in server.asked()[0]] == [
            "be kind",
            [{"type": "text", "text": "hi"}],
        ]

    run(config(tmp_path, "ok"), work)


NULLABLE = [
    "background",
    "conversation",
    "include",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
    "guardrails",
]


def test_null_is_the_same_as_nothing(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        plain = await server.whole(input="hi")
        nulls = await server.whole(input="hi", **dict.fromkeys(NULLABLE))
        for name in ("id", "created_at", "completed_at", "output"):
            del plain[name], nulls[name]
        assert plain == nulls
        await server.whole(input="hi", text={"format": None, "verbosity": None})
        await server.whole(input="hi", stream=False, stream_options=None, background=False)

    run(config(tmp_path, "a", "a", "a", "a"), work)


def test_a_thought_comes_before_the_answer_and_is_not_read_again(tmp_path: Path) -> None:
    reply = {"reasoning_content": "let me see", "content": "42"}

    async def work(server: Responding) -> None:
        whole, streamed = await server.both(input="?")
        for found in (whole, streamed):
            assert types(found) == ["reasoning", "message"] and texts(found) == ["42"]
            assert found["output"][0]["content"] == [{"type": "reasoning_text", "text": "let me see"}]
        await server.whole(input="and?", previous_response_id=whole["id"])
        assert [m["role"] for m in server.asked()[2]] == ["user", "assistant", "user"]
        assert "let me see" not in json.dumps(server.asked()[2])

    run(config(tmp_path, reply, reply, "more"), work)


def test_a_function_call_and_its_output(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        events = await server.stream(input="1 + 2?", tools=[FUNCTION])
        assert [k for k in kinds(events) if "arguments" in k or "item" in k] == [
            "output_item.added",
            *["function_call_arguments.delta"] * 4,
            "function_call_arguments.done",
            "output_item.done",
        ]
        (call,) = events[-1]["response"]["output"]
        assert json.loads(call["arguments"]) == ADD["arguments"] and call["status"] == "completed"
        output = {"type": "function_call_output", "call_id": call["call_id"], "output": "3"}
        after = await server.whole(
            input=[output], previous_response_id=events[-1]["response"]["id"], tools=[FUNCTION]
        )
        assert texts(after) == ["it is 3"]
        assert [message["role"] for message in server.asked()[1]] == ["user", "assistant", "tool"]
        assert server.asked()[1][1]["tool_calls"][0]["id"] == call["call_id"]
        assert server.asked()[1][2] == {"role": "tool", "tool_call_id": call["call_id"], "content": "3"}

    run(config(tmp_path, {"tool_calls": [ADD]}, "it is 3"), work)


def test_a_call_without_arguments_has_an_empty_object(tmp_path: Path) -> None:
    tool = {"type": "function", "name": "now"}

    async def work(server: Responding) -> None:
        for found in await server.both(input="when?", tools=[tool]):
            assert [item["arguments"] for item in found["output"]] == ["{}"]

    run(config(tmp_path, *[{"tool_calls": [{"name": "now", "arguments": ""}]}] * 2), work)


def test_several_things_said_and_called_at_once(tmp_path: Path) -> None:
    reply = {"reasoning_content": "hm", "content": "I ask twice", "tool_calls": [ADD, ADD]}

    async def work(server: Responding) -> None:
        for found in await server.both(input="?", tools=[FUNCTION]):
            assert types(found) == ["reasoning", "message", "function_call", "function_call"]
            assert len({item["call_id"] for item in found["output"][2:]}) == 2

    run(config(tmp_path, reply, reply), work)


def test_the_servers_own_tools_run_side_by_side(tmp_path: Path) -> None:
    replies: list[Any] = [{"content": "wait", "tool_calls": [ADD, MULTIPLY]}, "3 and 12"]

    async def work(server: Responding) -> None:
        whole, streamed = await server.both(input="?", tools=[SUMS])
        for found in (whole, streamed):
            assert types(found) == ["mcp_list_tools", "message", "mcp_call", "mcp_call", "message"]
            assert [item.get("output") for item in found["output"][2:4]] == ["3", "12"]
            assert texts(found) == ["wait", "3 and 12"]
        assert server.sums.made == [("add", {"a": 1, "b": 2}), ("multiply", {"a": 3, "b": 4})] * 2
        step = server.asked()[1]
        calls, results = step[1::2], step[2::2]  # one after the other, which every chat template can show
        assert [message["role"] for message in step] == ["user", *["assistant", "tool"] * 2]
        assert calls[0]["content"] == "wait" and [message["content"] for message in results] == ["3", "12"]
        offered = [tool.function.name for tool in server.scripted.requests[1].tools or []]
        assert offered == ["add", "multiply"]

    run(config(tmp_path, *replies * 2), work)


def test_a_search_shows_what_the_request_wants_to_see(tmp_path: Path) -> None:
    call = {"tool_calls": [{"name": "web_search", "arguments": {"query": "birds"}}]}
    everything = ["web_search_call.results", "web_search_call.action.sources"]

    async def work(server: Responding) -> None:
        for found in await server.both(input="?", tools=[{"type": "web_search"}]):
            assert found["output"][0]["action"] == {"type": "search", "query": "birds"}
            assert "results" not in found["output"][0]
        for found in await server.both(input="?", tools=[{"type": "web_search"}], include=everything):
            assert found["output"][0]["action"]["sources"] == [
                {"type": "url", "url": "https://birds.example/"}
            ]
            assert found["output"][0]["results"][0]["title"] == "Birds"
        kept = await server.http.get(f"/v1/responses/{found['id']}", params={"include[]": everything})
        assert kept.json() == found  # as OpenAI's package writes lists
        assert "They fly." in json.dumps(server.asked()[1])

    run(config(tmp_path, *[call, "they fly"] * 4), work)


def test_functions_of_both_sides_in_one_answer(tmp_path: Path) -> None:
    """Ours are run; then the client has its turn, and the model reads all of it in order."""
    local = {"type": "function", "name": "now"}

    async def work(server: Responding) -> None:
        first = await server.whole(input="?", tools=[SUMS, local])
        assert types(first) == ["mcp_list_tools", "function_call", "mcp_call"]
        output = {"type": "function_call_output", "call_id": first["output"][1]["call_id"], "output": "noon"}
        after = await server.whole(input=[output], previous_response_id=first["id"], tools=[SUMS, local])
        assert types(after) == ["message"]  # the list is not asked for again
        said = server.asked()[1]
        calls = [call["id"] for message in said for call in message.get("tool_calls", [])]
        assert sorted(calls) == sorted(m["tool_call_id"] for m in said if m["role"] == "tool")

    run(config(tmp_path, {"tool_calls": [{"name": "now"}, ADD]}, "done"), work)


@pytest.mark.parametrize("tools", [[FUNCTION], [SUMS]])
def test_what_is_cut_short_is_incomplete_and_runs_no_tool(tmp_path: Path, tools: list[Any]) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(input="?", max_output_tokens=2):
            assert found["status"] == "incomplete" and texts(found) == ["one two "]
            assert found["incomplete_details"] == {"reason": "max_output_tokens"}
            assert found["output"][-1]["status"] == "incomplete" and found["completed_at"] is None
        for found in await server.both(input="?", tools=tools, max_output_tokens=3):
            assert found["incomplete_details"] == {"reason": "max_output_tokens"}
            assert "mcp_call" not in types(found)
        assert not server.sums.made

    run(config(tmp_path, *["one two three"] * 2, *[{"tool_calls": [ADD]}] * 2), work)


def test_the_limit_of_tokens_is_that_of_the_whole_turn(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(input="?", tools=[SUMS], max_output_tokens=5):
            assert types(found) == ["mcp_list_tools", "mcp_call"] and found["status"] == "incomplete"
            assert found["incomplete_details"] == {"reason": "max_output_tokens"}
        assert len(server.scripted.requests) == 2  # there was nothing left to answer with

    run(config(tmp_path, *[{"tool_calls": [ADD]}] * 2), work)


def test_calls_above_the_limit_are_not_made_and_the_model_must_answer(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        found = await server.whole(input="?", tools=[SUMS], max_tool_calls=1)
        assert texts(found) == ["only 3"] and server.sums.made == [("add", {"a": 1, "b": 2})]
        assert types(found) == ["mcp_list_tools", "mcp_call", "message"]
        assert [request.tool_choice for request in server.scripted.requests] == ["auto", "none"]
        # the client's own functions are no part of that
        await server.whole(input="?", tools=[SUMS, {"type": "function", "name": "now"}], max_tool_calls=1)
        last = server.scripted.requests[-1]
        assert [function.name for function in last.offered()] == ["now"]

    replies = [{"tool_calls": [ADD, MULTIPLY]}, "only 3", {"tool_calls": [ADD]}, "3"]
    run(config(tmp_path, *replies), work)


ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "mcp", "server_label": "sums"}]}
NOW = {"type": "function", "name": "now"}
CHOICES: list[tuple[Any, set[str], bool, set[str]]] = [
    # what is asked for; what the model may call and whether it must; what it may call after that
    ("auto", {"now", "add", "multiply", "web_search"}, False, {"now", "add", "multiply", "web_search"}),
    ("required", {"now", "add", "multiply", "web_search"}, True, {"now", "add", "multiply", "web_search"}),
    ("none", set(), False, set()),
    ({"type": "mcp", "server_label": "sums", "name": "add"}, {"add"}, True, set()),
    ({"type": "mcp", "server_label": "sums"}, {"add", "multiply"}, True, set()),
    ({"type": "web_search_preview"}, {"web_search"}, True, set()),
    (ALLOWED, {"add", "multiply"}, True, {"add", "multiply"}),
    (ALLOWED | {"mode": "auto"}, {"add", "multiply"}, False, {"add", "multiply"}),
    (
        ALLOWED | {"tools": [NOW, {"type": "mcp", "server_label": "sums", "name": "add"}]},
        {"now", "add"},
        True,
        {"now", "add"},
    ),
    (ALLOWED | {"tools": [{"type": "web_search"}]}, {"web_search"}, True, {"web_search"}),
]


@pytest.mark.parametrize(
    ("choice", "may", "must", "then"),
    CHOICES,
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:40],
)
def test_a_choice_of_tools(tmp_path: Path, choice: Any, may: set[str], must: bool, then: set[str]) -> None:
    """It holds in the first step; then the model may answer, and stays within the allowed tools."""
    tools = [NOW, SUMS, {"type": "web_search"}]
    calls = {"add": ADD, "web_search": {"name": "web_search", "arguments": {"query": "x"}}}
    call = calls["add" if "add" in may else "web_search"]

    async def work(server: Responding) -> None:
        found = await server.whole(input="?", tools=tools, tool_choice=choice)
        shape = {"type": choice} if isinstance(choice, str) else choice
        told = found["tool_choice"]
        assert ({"type": told} if isinstance(told, str) else {k: told[k] for k in shape}) == shape
        first, *later = server.scripted.requests
        assert {function.name for function in first.offered()} == may and first.must_call() == must
        everything = {"now", "add", "multiply", "web_search"}
        assert {tool.function.name for tool in first.tools or []} == everything
        for request in later:
            assert {function.name for function in request.offered()} == (then or everything)
            assert not request.must_call()
        assert len(later) == (1 if may else 0)

    run(config(tmp_path, *([{"tool_calls": [call]}] if may else []), "done"), work)


def test_a_function_that_must_be_called(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        choice = {"type": "function", "name": "now"}
        await server.whole(input="?", tools=[NOW, SUMS], tool_choice=choice)
        request = server.scripted.requests[0]
        assert request.must_call() and [function.name for function in request.offered()] == ["now"]

    run(config(tmp_path, {"tool_calls": [{"name": "now"}]}), work)


@pytest.mark.parametrize("strict", [True, None])
def test_the_form_of_the_answer_reaches_the_model(tmp_path: Path, strict: bool | None) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}

    async def work(server: Responding) -> None:
        form = {"type": "json_schema", "name": "number", "schema": schema, "strict": strict}
        found = await server.whole(input="?", text={"format": form})
        shown = {key: value for key, value in form.items() if value is not None}
        assert found["text"]["format"] == shown
        await server.whole(input="?", text={"format": {"type": "json_object"}})
        one, two = [request.response_format for request in server.scripted.requests]
        assert (
            one and one.json_schema and one.json_schema.schema_ == schema and one.json_schema.name == "number"
        )
        assert two and two.type == "json_object"

    run(config(tmp_path, '{"n": 1}', "{}"), work)


# ---------------------------------------------------------------- what is not said in the usual way


def speaking(folder: Path, **sections: Any) -> Any:
    settings = config(folder, **sections)
    settings.inference["test"].provider = "tests.support.guarded:Speaker"
    settings.inference["test"].model_extra.clear()  # type: ignore[union-attr]
    return settings


def speaker(server: Responding, *deltas: dict[str, Any], finish: str | None = "stop") -> Speaker:
    model: Any = server.scripted
    assert isinstance(model, Speaker)
    model.frames = [{"choices": [{"index": 0, **delta}]} for delta in deltas]
    if finish:
        model.frames.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return model


ASK: dict[str, Any] = {"model": "test/speaker", "input": "?"}


def test_a_refusal_of_the_models_own(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        speaker(server, {"delta": {"refusal": "I will "}}, {"delta": {"refusal": "not."}})
        whole, events = await server.whole(**ASK), await server.stream(**ASK)
        for found in (whole, events[-1]["response"]):
            assert found["status"] == "completed" and "safety" not in found
            assert found["output"][0]["content"] == [{"type": "refusal", "refusal": "I will not."}]
        assert kinds(events)[3:8] == [
            "content_part.added",
            "refusal.delta",
            "refusal.delta",
            "refusal.done",
            "content_part.done",
        ]

    run(speaking(tmp_path), work)


def test_log_probabilities(tmp_path: Path) -> None:
    top = [{"token": "hé", "logprob": -0.1}, {"token": "ho", "logprob": -2.5, "bytes": [104, 111]}]
    token = {"token": "hé", "logprob": -0.1, "top_logprobs": top}  # a remote server may leave bytes out

    async def work(server: Responding) -> None:
        speaker(server, {"delta": {"content": "hé"}, "logprobs": {"content": [token]}})
        include = ["message.output_text.logprobs"]
        whole = await server.whole(**ASK, include=include, top_logprobs=2)
        (said,) = whole["output"][0]["content"][0]["logprobs"]
        assert said["bytes"] == list("hé".encode()) and [t["token"] for t in said["top_logprobs"]] == [
            "hé",
            "ho",
        ]
        events = await server.stream(**ASK, include=include, top_logprobs=2)
        delta = next(event for event in events if event["type"] == "response.output_text.delta")
        assert delta["logprobs"][0]["top_logprobs"][1]["logprob"] == -2.5

    run(speaking(tmp_path), work)


def test_a_call_of_nothing_that_was_offered_is_a_failure(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        call = {"index": 0, "id": "call_1", "function": {"name": "rm", "arguments": "{}"}}
        speaker(server, {"delta": {"tool_calls": [call]}}, finish="tool_calls")
        for found in (await server.whole(**ASK), (await server.stream(**ASK))[-1]["response"]):
            assert found["status"] == "failed" and "`rm`" in found["error"]["message"]

    run(speaking(tmp_path), work)


GUARD: dict[str, Any] = {
    "safety": {"bird": {"provider": "canary", "words": [WORD]}},
    "enforce": {"input": ["bird"], "output": ["bird"]},
}


@pytest.mark.parametrize("where", ["input", "output"])
def test_what_a_shield_refuses_is_told_and_kept(tmp_path: Path, where: str) -> None:
    said, asked = ("one", f"a {WORD}?") if where == "input" else (f"a {WORD}!", "what flew?")

    async def work(server: Responding) -> None:
        whole, streamed = await server.both(input=asked)
        for found in (whole, streamed):
            assert found["status"] == "incomplete" and WORD not in json.dumps(found)
            assert found["incomplete_details"] == {"reason": "content_filter"}
            assert found["safety"]["shield"] == "bird" and found["safety"]["touchpoint"] == where
            (part,) = found["output"][-1]["content"]
            assert part["type"] == "refusal" and part["refusal"].startswith("Withheld")

    run(config(tmp_path, said, said, **GUARD), work)


def test_a_call_that_a_shield_refuses_is_not_made(tmp_path: Path) -> None:
    call = {"tool_calls": [{"name": "add", "arguments": {"a": 1, "b": 2, "why": WORD}}]}

    async def work(server: Responding) -> None:
        for found in await server.both(input="?", tools=[SUMS]):
            assert found["incomplete_details"] == {"reason": "content_filter"} and WORD not in json.dumps(
                found
            )
        assert not server.sums.made and len(server.scripted.requests) == 2

    run(config(tmp_path, call, call, **GUARD), work)
