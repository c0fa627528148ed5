"""What /v1/responses is given: input in every shape, what came before it, and prompts that are kept."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import official
from tests.support.responding import PAIR, Responding, config, run, texts

PIXEL = "data:image/png;base64," + base64.b64encode(b"pixel").decode()
FILE = "data:text/plain;base64," + base64.b64encode(b"words").decode()
FUNCTION = {"type": "function", "name": "add", "parameters": PAIR}
SUMS = {"type": "mcp", "server_label": "sums"}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": call_id, "type": "function", "function": function}]}


SAID: list[tuple[Any, list[dict[str, Any]]]] = [
    ("hi", [{"role": "user", "content": [text("hi")]}]),
    ([{"role": "user", "content": "hi"}], [{"role": "user", "content": [text("hi")]}]),
    (
        [
            {"role": "system", "content": "be kind"},
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "be brief"}]},
            {"role": "user", "content": "hi", "type": "message"},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": "and?"},
        ],
        [
            {"role": "system", "content": [text("be kind")]},
            {"role": "developer", "content": [text("be brief")]},
            {"role": "user", "content": [text("hi")]},
            {"role": "assistant", "content": "hello"},
            {"role": "user", "content": [text("and?")]},
        ],
    ),
    (
        [
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "see"},
                    {"type": "input_image", "image_url": PIXEL, "detail": "low"},
                    {"type": "input_image", "image_url": PIXEL, "detail": None},
                    {"type": "input_file", "file_data": FILE, "filename": "a.txt"},
                ],
            }
        ],
        [
            {
                "role": "user",
                "content": [
                    text("see"),
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}},
                    {"type": "file", "file": {"file_data": FILE, "filename": "a.txt"}},
                ],
            }
        ],
    ),
    (  # an answer of the model as the SDKs send it back, with everything that it had
        [
            {"role": "user", "content": "hi"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": None},
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [
                    {"type": "output_text", "text": "a", "annotations": [], "logprobs": None},
                    {"type": "refusal", "refusal": "not b"},
                ],
            },
            {"type": "message", "role": "assistant", "status": None, "id": None, "content": ""},
            {"role": "user", "content": "and?"},
        ],
        [
            {"role": "user", "content": [text("hi")]},
            {"role": "assistant", "content": "a", "refusal": "not b"},
            {"role": "user", "content": [text("and?")]},
        ],
    ),
    (
        [
            {"role": "user", "content": "1 + 2?"},
            {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}", "status": None},
            {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "", "id": None},
            {"type": "function_call_output", "call_id": "c1", "output": "3"},
            {
                "type": "function_call_output",
                "call_id": "c2",
                "output": [
                    {"type": "input_text", "text": "noon"},
                    {"type": "input_image", "image_url": PIXEL},
                ],
            },
        ],
        [
            {"role": "user", "content": [text("1 + 2?")]},
            {
                "role": "assistant",
                "tool_calls": call("c1", "add", "{}")["tool_calls"] + call("c2", "now", "")["tool_calls"],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {
                "role": "tool",
                "tool_call_id": "c2",
                "content": [
                    text("noon"),
                    {"type": "image_url", "image_url": {"url": PIXEL, "detail": "auto"}},
                ],
            },
        ],
    ),
    (
        [
            {"role": "user", "content": "1 + 2?"},
            {"type": "mcp_list_tools", "id": "mcpl_1", "server_label": "x", "tools": []},
            {
                "type": "mcp_call",
                "id": "mcp_1",
                "server_label": "x",
                "name": "add",
                "arguments": "{}",
                "output": "3",
                "error": None,
            },
            {
                "type": "web_search_call",
                "id": "ws_1",
                "status": "completed",
                "action": {"type": "search", "query": "birds"},
            },
            {"role": "user", "content": "and?"},
        ],
        [
            {"role": "user", "content": [text("1 + 2?")]},
            call("mcp_1", "add", "{}"),
            {"role": "tool", "tool_call_id": "mcp_1", "content": "3"},
            call("ws_1", "web_search", '{"query": "birds"}'),
            {"role": "tool", "tool_call_id": "ws_1", "content": ""},
            {"role": "user", "content": [text("and?")]},
        ],
    ),
]


@pytest.mark.parametrize(("given", "asked"), SAID, ids=range(len(SAID)))
def test_input_in_every_shape(tmp_path: Path, given: Any, asked: list[Any]) -> None:
    """It reaches the model as a chat, and can be read again as items of OpenAI's types."""

    async def work(server: Responding) -> None:
        found = await server.whole(input=given)
        assert server.asked() == [asked]
        page = await server.http.get(f"/v1/responses/{found['id']}/input_items", params={"order": "asc"})
        items = official.page(page.json())["data"]
        assert len(items) == (1 if isinstance(given, str) else len(given))

    run(config(tmp_path, "ok"), work)


def test_an_answer_can_be_sent_back_as_it_came(tmp_path: Path) -> None:
    """Clients that keep the conversation themselves send all output as input."""
    add = {"name": "add", "arguments": {"a": 1, "b": 2}}
    replies = [{"reasoning_content": "hm", "content": "I ask", "tool_calls": [add]}, "it is 3", "bye"]

    async def work(server: Responding) -> None:
        tools = [SUMS | {"require_approval": "never"}]
        first = await server.whole(input="1 + 2?", tools=tools, store=False)
        said = [{"role": "user", "content": "1 + 2?"}, *first["output"], {"role": "user", "content": "bye"}]
        await server.whole(input=said, tools=tools, store=False)
        one, two = server.asked()[1:]
        assert two[: len(one)] == one and two[-1]["content"] == [text("bye")]

    run(config(tmp_path, *replies), work)


def test_what_came_before(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(input="one", instructions="shout")
        second = await server.whole(input="two", previous_response_id=first["id"])
        await server.whole(input="three", previous_response_id=second["id"], instructions="whisper")
        await server.whole(previous_response_id=second["id"])  # and nothing new
        roles = [[(m["role"], m["content"]) for m in asked] for asked in server.asked()]
        chain = [("user", [text("one")]), ("assistant", "a"), ("user", [text("two")]), ("assistant", "b")]
        assert roles[0] == [("system", "shout"), chain[0]]
        assert roles[1] == chain[:3]  # the instructions are not carried over
        assert roles[2] == [("system", "whisper"), *chain, ("user", [text("three")])]
        assert roles[3] == chain
        page = await server.http.get(f"/v1/responses/{second['id']}/input_items")
        assert [item["content"][0]["text"] for item in page.json()["data"]] == ["two"]

    run(config(tmp_path, "a", "b", "c", "d"), work)


def test_a_conversation_grows_by_each_turn_once(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        made = await server.http.post(
            "/v1/conversations", json={"items": [{"role": "user", "content": "I am Ada"}]}
        )
        name = made.json()["id"]
        first = await server.whole(input="who am I?", conversation=name)
        assert first["conversation"] == {"id": name} and first["previous_response_id"] is None
        second = await server.stream(input=[{"role": "user", "content": "sure?"}], conversation={"id": name})
        items = await listed(server, name)
        assert [item["content"][0]["text"] for item in items] == [
            "I am Ada",
            "who am I?",
            "Ada",
            "sure?",
            "yes",
        ]
        assert [item["id"] for item in items][2] == first["output"][0]["id"]
        assert [item["id"] for item in items][4] == second[-1]["response"]["output"][0]["id"]
        assert [m["role"] for m in server.asked()[1]] == ["user", "user", "assistant", "user"]
        # what failed, and what is not to be kept, is no part of it
        assert (await server.post(input="?", conversation=name)).status_code == 400  # no reply is left
        server.scripted.queue("x")
        await server.whole(input="secret", conversation=name, store=False)
        assert await listed(server, name) == items

    run(config(tmp_path, "Ada", "yes"), work)


async def listed(server: Responding, conversation: str) -> list[dict[str, Any]]:
    page = await server.http.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"})
    return list(official.page(page.json())["data"])


def test_turns_of_one_conversation_at_the_same_time(tmp_path: Path) -> None:
    """Each is there once, whole, and in one piece."""

    async def work(server: Responding) -> None:
        name = (await server.http.post("/v1/conversations", json={})).json()["id"]
        same = {"type": "message", "id": "msg_same", "role": "user", "content": "hi"}
        await asyncio.gather(*(server.whole(input=[same], conversation=name) for _ in range(8)))
        items = await listed(server, name)
        assert [item["role"] for item in items] == ["user", "assistant"] * 8
        assert len({item["id"] for item in items}) == 16

    run(config(tmp_path, *[{"content": "a b c", "delay": 0.01}] * 8), work)


def test_references_to_items(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(input="one")
        answer = first["output"][0]["id"]
        await server.whole(input=[{"type": "item_reference", "id": answer}, {"role": "user", "content": "?"}])
        assert server.asked()[1][0] == {"role": "assistant", "content": "a"}
        # one that is there already is not read twice; its type needs not be said
        again = [{"id": answer}, {"role": "user", "content": "?"}]
        await server.whole(input=again, previous_response_id=first["id"])
        assert [m["role"] for m in server.asked()[2]] == ["user", "assistant", "user"]
        error = await server.refused(input=[{"id": "msg_none"}])
        assert error["status"] == 404 and error["param"] == "input" and "msg_none" in error["message"]

    run(config(tmp_path, "a", "b", "c"), work)


def test_a_kept_prompt(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        body = {"prompt": "Answer {{who}} in {{language}}.", "variables": ["who", "language"]}
        made = (await server.http.post("/v1/prompts", json=body)).json()
        name = made["prompt_id"]
        prompt = {
            "id": name,
            "variables": {"who": "Ada", "language": {"type": "input_text", "text": "French"}},
        }
        found = await server.whole(input="hi", prompt=prompt, instructions="Be kind.")
        assert server.asked()[0][0] == {"role": "system", "content": "Answer Ada in French.\n\nBe kind."}
        assert found["prompt"]["id"] == name and found["instructions"] == "Be kind."
        await server.whole(prompt=prompt)  # which is enough to be asked
        error = await server.refused(input="hi", prompt={"id": name, "variables": {"who": "Ada"}})
        assert error["param"] == "prompt.variables.language"
        error = await server.refused(input="hi", prompt={"id": "pmpt_none"})
        assert error["status"] == 404 and error["param"] == "prompt.id"

    run(config(tmp_path, "salut", "salut"), work)


def test_what_is_too_long_is_refused_or_the_oldest_is_left_out(tmp_path: Path) -> None:
    chat = [
        {"role": "user", "content": "one two three"},
        {"role": "assistant", "content": "four"},
        {"role": "user", "content": "five six"},
        {"role": "assistant", "content": "seven"},
        {"role": "user", "content": "eight nine"},
    ]

    async def work(server: Responding) -> None:
        for stream in (False, True):
            error = await server.refused(input=chat, instructions="be kind", stream=stream)
            assert error["code"] == "context_length_exceeded" and error["param"] == "input"
            assert "8 tokens" in error["message"] and "11 tokens" in error["message"]
        for found in await server.both(input=chat, instructions="be kind", truncation="auto"):
            assert found["dropped_items"] == 2 and found["truncation"] == "auto"
        asked = server.asked()[-1]
        assert asked[0]["content"] == "be kind" and asked[1]["content"] == [text("five six")]
        error = await server.refused(input="a b c d e f g h i", truncation="auto")
        assert error["code"] == "context_length_exceeded"

    run(config(tmp_path, "ok", "ok", provider="tests.support.responding:Narrow"), work)


def test_input_tokens_are_those_that_a_model_would_read(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(input="one two", instructions="be")
        asked = {
            "input": "three four five",
            "instructions": "be kind",
            "previous_response_id": first["id"],
            "tools": [FUNCTION],
            "tool_choice": "required",
            "text": {"format": {"type": "json_object"}},
            "reasoning": {"effort": "low"},
            "parallel_tool_calls": False,
            "truncation": "auto",
            "store": True,
        }
        reply = await server.post("/input_tokens", **asked)
        assert reply.json() == {"object": "response.input_tokens", "input_tokens": 2 + 2 + 1 + 3}
        assert len(server.scripted.requests) == 1
        await server.whole(**asked)
        read = await server.scripted.count("scripted", server.scripted.requests[-1])
        assert read == reply.json()["input_tokens"]

    run(config(tmp_path, "ok", "ok"), work)


def test_a_compacted_conversation_goes_on_with_its_summary(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(input="I am Ada and I like birds")
        reply = await server.post("/compact", previous_response_id=first["id"], input="bye")
        short = official.official(official.CompactedResponse, reply.json()).model_dump()
        asked = server.asked()[1]
        assert [m["role"] for m in asked] == ["user", "assistant", "user", "user"]
        assert reply.json()["usage"]["output_tokens"] == 3
        (item,) = short["output"]
        assert "birds" not in json.dumps(item)
        after = [{"role": "user", "content": "dropped"}, reply.json()["output"][0]]
        found = await server.whole(input=[*after, {"role": "user", "content": "who am I?"}])
        assert texts(found) == ["Ada"]
        said = json.dumps(server.asked()[2])
        assert "Ada likes birds" in said and "dropped" not in said and "who am I?" in said
        bad = {"type": "compaction", "encrypted_content": "no such thing"}
        assert (await server.refused(input=[bad]))["param"] == "input"

    run(config(tmp_path, "nice", "Ada likes birds", "Ada"), work)
