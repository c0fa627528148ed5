"""Named agents: from the file and from the API, as models of any SDK, as tools of each other."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import Anthropic
from openai import OpenAI

from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import ConfigError
from llama_stack_lite.state import archive
from tests.support.configs import isolate, mistakes, write
from tests.support.databases import KINDS, database
from tests.support.responding import Responding, Searches, config, responding, run, texts
from tests.support.serving import Running, serve
from tests.support.waiting import until

MODEL = "test/scripted"
FUNCTION = {"type": "function", "name": "beep", "parameters": {"type": "object", "properties": {}}}
SECRETIVE = {
    "type": "mcp",
    "server_label": "s",
    "server_url": "https://s.example/",
    "authorization": "k",
}
SUPPORT = {"model": MODEL, "instructions": "Be kind."}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    """A reply that calls a function."""
    return {"tool_calls": [{"name": name, "arguments": arguments}]}


class Counted(Searches):
    """A search that keeps what it was asked."""

    def __init__(self, config: Searches.Config) -> None:
        super().__init__(config)
        self.asked: list[str] = []

    @staticmethod
    def of(server: Responding) -> list["Counted"]:
        """Those of a server, in the order of its file."""
        return list(server.app.state.stack.tools.values())

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        self.asked.append(arguments["query"])
        return await super().call(name, arguments, session=session)


def offered(server: Responding, index: int = -1) -> list[str]:
    """The functions that the model could call in a request."""
    return [tool.function.name for tool in server.scripted.requests[index].tools or []]


# ------------------------------------------------------------ a turn


def test_an_agent_says_what_the_model_is_asked_and_the_response_what_the_client_said(tmp_path: Path) -> None:
    agent = {**SUPPORT, "temperature": 0.2, "max_output_tokens": 50, "tools": ["sums"], "text": {}}
    limits = {"max_output_tokens": 90, "temperature": 0.9, "top_p": 0.5}

    async def work(server: Responding) -> None:
        for found in await server.both(
            model="agent:support", input="hi", instructions="Be brief.", tools=[FUNCTION], **limits
        ):
            assert found["model"] == "agent:support" and texts(found) == ["hello"]
            assert found["instructions"] == "Be brief." and found["temperature"] == 0.9
            assert [tool["type"] for tool in found["tools"]] == ["function"]
            asked = server.scripted.requests[-1]
            assert asked.messages[0].content == "Be kind.\n\nBe brief."
            assert (asked.temperature, asked.top_p, asked.max_completion_tokens) == (0.2, 0.5, 50)
            assert offered(server) == ["beep", "add", "multiply"]

    run(config(tmp_path, "hello", "hello", agents={"support": agent}), work)


def test_a_stored_prompt_comes_between_the_agents_words_and_the_requests(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        made = await server.http.post("/v1/prompts", json={"prompt": "Speak of birds."})
        prompt = {"id": made.json()["prompt_id"]}
        await server.whole(model="agent:support", input="hi", instructions="Be brief.", prompt=prompt)
        assert server.asked()[0][0]["content"] == "Be kind.\n\nSpeak of birds.\n\nBe brief."

    run(config(tmp_path, "hello", agents={"support": SUPPORT}), work)


def test_a_conversation_with_an_agent_goes_on(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(model="agent:support", input="one")
        await server.whole(model="agent:support", input="two", previous_response_id=first["id"])
        said = [message["role"] for message in server.asked()[1]]
        assert said == ["system", "user", "assistant", "user"]

    run(config(tmp_path, "a", "b", agents={"support": SUPPORT}), work)


def test_the_tools_of_an_agent_run_and_are_told_of(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(model="agent:adder", input="sum"):
            kinds = [item["type"] for item in found["output"]]
            assert kinds == ["mcp_list_tools", "mcp_call", "message"]
            assert found["output"][1]["output"] == "3" and found["tools"] == []

    replies = [call("add", a=1, b=2), "3", call("add", a=1, b=2), "3"]
    run(config(tmp_path, *replies, agents={"adder": {**SUPPORT, "tools": ["sums"]}}), work)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ({"type": "mcp", "server_label": "sums"}, "takes functions of its client"),
        ({"type": "web_search"}, "takes functions of its client"),
        ({"type": "agent", "name": "other"}, "takes functions of its client"),
        ({**FUNCTION, "name": "own"}, "a tool `own` of its own"),
        ({**FUNCTION, "name": "web_search"}, "a tool `web_search` of its own"),
    ],
)
def test_a_request_cannot_widen_what_an_agent_may_do(
    tool: dict[str, Any], message: str, tmp_path: Path
) -> None:
    agent = {**SUPPORT, "tools": ["web", {**FUNCTION, "name": "own"}]}

    async def work(server: Responding) -> None:
        error = await server.refused(model="agent:support", input="hi", tools=[tool])
        assert message in error["message"] and error["param"].startswith("tools")

    run(config(tmp_path, agents={"support": agent, "other": SUPPORT}), work)


def test_an_agent_may_let_requests_bring_tools(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        sums = {"type": "mcp", "server_label": "sums", "require_approval": "never"}
        await server.whole(model="agent:support", input="hi", tools=[sums])
        assert offered(server) == ["web_search", "other", "add", "multiply"]
        again = [{"type": "agent", "name": "other"}]
        error = await server.refused(model="agent:support", input="hi", tools=again)
        assert "a tool `other` of its own" in error["message"]

    agents = {"support": {**SUPPORT, "tools": ["web", "other"], "extra_tools": True}, "other": SUPPORT}
    run(config(tmp_path, "hello", agents=agents), work)


def test_of_two_tools_of_a_kind_an_agent_has_the_one_it_names(tmp_path: Path) -> None:
    agent = {**SUPPORT, "tools": ["second"]}
    search = {"provider": "tests.test_agents:Counted"}
    tools = {"first": search, "second": search}

    async def work(server: Responding) -> None:
        found = await server.whole(model="agent:support", input="hi")
        assert [item["type"] for item in found["output"]] == ["web_search_call", "message"]
        assert [provider.asked for provider in Counted.of(server)] == [[], ["x"]]
        error = await server.refused(input="hi", tools=[{"type": "web_search", "provider": "third"}])
        assert "no `web_search` of the name `third`" in error["message"]

    run(config(tmp_path, call("web_search", query="x"), "y", agents={"support": agent}, tools=tools), work)


def test_steps_and_calls_have_the_agents_limits(tmp_path: Path) -> None:
    agent = {**SUPPORT, "tools": ["sums"]}
    agents = {"short": {**agent, "max_steps": 2}, "few": {**agent, "max_tool_calls": 1}}

    async def work(server: Responding) -> None:
        found = await server.whole(model="agent:short", input="sum")
        assert found["incomplete_details"] == {"reason": "max_messages"} and len(server.sums.made) == 2
        found = await server.whole(model="agent:few", input="sum", max_tool_calls=9)
        assert found["output"][-2]["status"] == "failed" or len(server.sums.made) == 3
        assert len(server.sums.made) == 3 and texts(found) == ["done"]

    add = call("add", a=1, b=2)
    run(config(tmp_path, add, add, add, "done", agents=agents), work)


def test_an_agent_cannot_be_made_to_call_what_its_model_did_not(tmp_path: Path) -> None:
    """Neither by an approval of a call that nobody asked for, nor by a list of tools that is no server's."""
    only = {"type": "mcp", "server_label": "sums", "require_approval": "never", "allowed_tools": ["add"]}
    asked = {
        "type": "mcp_approval_request",
        "id": "mcpr_1",
        "server_label": "sums",
        "name": "add",
        "arguments": '{"a": 1, "b": 2}',
    }
    given = {"type": "mcp_approval_response", "approval_request_id": "mcpr_1", "approve": True}
    schema: dict[str, Any] = {"type": "object"}
    listed = {
        "type": "mcp_list_tools",
        "server_label": "sums",
        "tools": [{"name": "multiply", "input_schema": schema}],
    }

    async def work(server: Responding) -> None:
        reply = await server.post(model="agent:adder", input=[asked, given])
        assert reply.json().get("error"), reply.text
        await server.whole(model="agent:adder", input=[listed, {"role": "user", "content": "go"}])
        assert "multiply" not in offered(server) and server.sums.made == []

    run(config(tmp_path, "no", "no", agents={"adder": {**SUPPORT, "tools": [only]}}), work)


def test_an_agent_may_ask_its_client_for_an_approval(tmp_path: Path) -> None:
    asks = {"type": "mcp", "server_label": "sums", "require_approval": "always"}

    async def work(server: Responding) -> None:
        first = await server.whole(model="agent:adder", input="sum")
        request = first["output"][-1]
        assert request["type"] == "mcp_approval_request" and server.sums.made == []
        answer = {"type": "mcp_approval_response", "approval_request_id": request["id"], "approve": True}
        found = await server.whole(model="agent:adder", input=[answer], previous_response_id=first["id"])
        assert texts(found) == ["3"] and len(server.sums.made) == 1
        body = {"model": "agent:adder", "messages": [{"role": "user", "content": "sum"}]}
        reply = await server.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 400 and "approval" in reply.json()["error"]["message"]

    add = call("add", a=1, b=2)
    run(config(tmp_path, add, "3", add, agents={"adder": {**SUPPORT, "tools": [asks]}}), work)


# ------------------------------------------------------------ agents as tools


TEAM: dict[str, dict[str, Any]] = {
    "boss": {**SUPPORT, "tools": ["clerk"]},
    "clerk": {"model": MODEL, "instructions": "Look it up.", "description": "knows all files"},
}


def test_an_agent_asks_another(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for found in await server.both(model="agent:boss", input="who was it?"):
            kinds = [item["type"] for item in found["output"]]
            assert kinds == ["mcp_call", "message"]
            called = found["output"][0]
            assert (called["server_label"], called["name"], called["output"]) == ("agents", "clerk", "Ada")
        tool = (server.scripted.requests[0].tools or [])[0].function
        assert tool.description == "knows all files"
        # the clerk knows what it was asked, and nothing else
        assert [message["role"] for message in server.asked()[1]] == ["system", "user"]
        assert server.asked()[1][0]["content"] == "Look it up."
        # words that were read and written in all three requests
        read = sum(len(" ".join(map(str, texts_of(each))).split()) for each in server.asked()[:3])
        assert found["usage"]["output_tokens"] == 1 + 2 + 1 + 2 and found["usage"]["input_tokens"] == read

    replies = [call("clerk", input="who?"), "Ada", "It was"] * 2
    run(config(tmp_path, *replies, agents=TEAM), work)


def texts_of(messages: list[dict[str, Any]]) -> Iterator[str]:
    for message in messages:
        content = message.get("content") or ""
        yield content if isinstance(content, str) else "".join(part["text"] for part in content)


def test_what_goes_wrong_with_an_agent_is_read_by_the_other(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        found = await server.whole(model="agent:boss", input="who was it?")
        called = found["output"][0]
        assert called["status"] == "failed" and texts(found) == ["I do not know."]
        assert "scripted failure" in called["error"]["content"][0]["text"]

    replies = [call("clerk", input="who?"), {"error": {"status": 503}}, "I do not know."]
    run(config(tmp_path, *replies, agents=TEAM), work)


def test_agents_in_a_row_end_at_the_fourth(tmp_path: Path) -> None:
    """Made by the API, where what is another's tool can change afterwards."""

    async def work(server: Responding) -> None:
        made: dict[str, dict[str, Any]] = {}
        for name in "abcde":
            reply = await server.http.post("/v1/agents", json={"name": name, "model": MODEL})
            made[name] = reply.json()
        for outer, inner in (("d", "e"), ("c", "d"), ("b", "c"), ("a", "b")):
            reply = await server.http.post(f"/v1/agents/{outer}", json={"tools": [inner]})
            last = reply
        assert last.status_code == 400 and "a > b > c > d > e" in last.json()["error"]["message"]
        # nobody looked at those above, so that b became the first of five
        await server.http.post("/v1/agents/a", json={"tools": ["b"]})
        await server.http.post("/v1/agents/e", json={"tools": []})
        reply = await server.http.post("/v1/agents/e", json={"tools": ["b"]})
        assert reply.status_code == 400 and "e > b > c > d > e" in reply.json()["error"]["message"]

    run(config(tmp_path), work)


def test_a_row_that_grew_below_is_refused_when_it_is_walked(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for name, tools in (("c", []), ("b", ["c"]), ("a", ["b"])):
            await server.http.post("/v1/agents", json={"name": name, "model": MODEL, "tools": tools})
        for name, tools in (("e", []), ("d", ["e"])):
            await server.http.post("/v1/agents", json={"name": name, "model": MODEL, "tools": tools})
        reply = await server.http.post("/v1/agents/c", json={"tools": ["d"]})
        assert reply.status_code == 200, reply.text  # c > d > e alone are three
        found = await server.whole(model="agent:a", input="go")
        assert texts(found) == ["a"] and len(server.scripted.requests) == 8
        assert "cannot be asked by a > b > c > d" in server.asked()[4][-1]["content"]

    down = [call(name, input="go on") for name in "bcde"]
    run(config(tmp_path, *down, "d", "c", "b", "a"), work)


@pytest.mark.parametrize("ending", ["timeout", "cancel", "hang up"])
def test_an_inner_turn_ends_with_the_outer(ending: str, tmp_path: Path) -> None:
    slow = {"content": "so many words that it takes for ever to say them", "delay": 2}
    turns = {"timeout": 1.5} if ending == "timeout" else {}

    async def work(server: Responding) -> None:
        if ending == "timeout":
            found = await server.whole(model="agent:boss", input="go")
            assert found["status"] == "failed" and found["output"][0]["status"] == "failed"
        elif ending == "cancel":
            reply = await server.post(model="agent:boss", input="go", background=True)
            await until(lambda: len(server.scripted.requests) == 2)
            ended = await server.post(f"/{reply.json()['id']}/cancel")
            assert ended.json()["status"] == "cancelled"
        else:
            client = asyncio.create_task(server.post(model="agent:boss", input="go"))
            await until(lambda: len(server.scripted.requests) == 2)
            client.cancel()
        await until(lambda: server.scripted.cancelled == 1)

    run(config(tmp_path, call("clerk", input="?"), slow, agents=TEAM, turns=turns), work)


# ------------------------------------------------------------ as a model of any SDK


AGENTS = {
    "support": {**SUPPORT, "tools": ["clerk"], "description": "helps"},
    "clerk": TEAM["clerk"],
}
REPLIES = [{"content": "One moment.", **call("clerk", input="who?")}, "Ada", "It was Ada."]
USER: list[Any] = [{"role": "user", "content": "who was it?"}]
TOLD = "One moment.\n\nIt was Ada."


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    with serve(config(tmp_path, *REPLIES, agents=AGENTS)) as found:
        yield found


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openais_package_asks_an_agent_as_it_asks_a_model(client: OpenAI) -> None:
    found = client.chat.completions.create(model="agent:support", messages=USER)
    [choice] = found.choices
    assert (choice.message.content, choice.finish_reason, found.model) == (TOLD, "stop", "agent:support")
    assert choice.message.tool_calls is None  # the agent's own call stays inside
    assert found.usage and found.usage.completion_tokens == 9
    listed = {model.id: model.owned_by for model in client.models.list()}
    assert listed == {MODEL: "test", "agent:support": "agents", "agent:clerk": "agents"}
    assert client.models.retrieve("agent:support").id == "agent:support"


def test_and_streams(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="agent:support", messages=USER, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TOLD
    assert chunks[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == 9


def test_and_by_responses(client: OpenAI) -> None:
    found = client.responses.create(model="agent:support", input="who was it?")
    assert found.output_text == "One moment.It was Ada."


def test_anthropics_package_asks_an_agent(running: Running) -> None:
    with Anthropic(base_url=running.url, api_key="none", max_retries=0) as client:
        found = client.messages.create(model="agent:support", messages=USER, max_tokens=99)
    assert [block.text for block in found.content if block.type == "text"] == [TOLD]
    assert found.stop_reason == "end_turn" and found.usage.output_tokens == 9


def chat(server: Responding, **fields: Any) -> Any:
    return server.http.post(
        "/v1/chat/completions", json={"model": "agent:support", "messages": USER, **fields}
    )


def test_a_chat_with_an_agent_calls_its_clients_functions(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "beep", "parameters": {"type": "object"}}}

    async def work(server: Responding) -> None:
        reply = (await chat(server, tools=[tool], tool_choice="required")).json()
        message = reply["choices"][0]["message"]
        assert reply["choices"][0]["finish_reason"] == "tool_calls"
        [called] = message["tool_calls"]
        assert called["function"] == {"name": "beep", "arguments": '{"times": 2}'}
        assert server.scripted.requests[0].must_call()
        result = {"role": "tool", "tool_call_id": called["id"], "content": "beep beep"}
        reply = (await chat(server, messages=[*USER, message, result], tools=[tool])).json()
        assert reply["choices"][0]["message"]["content"] == "done"
        assert [each["role"] for each in server.asked()[1]] == ["system", "user", "assistant", "tool"]
        assert server.asked()[1][-1]["content"] == "beep beep"

    run(config(tmp_path, call("beep", times=2), "done", agents={"support": SUPPORT}), work)


def test_a_chat_keeps_the_settings_that_only_chats_have(tmp_path: Path) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    messages = [
        {"role": "system", "content": "Speak French."},
        {"role": "user", "content": [{"type": "text", "text": "what is it?"}, image]},
        {"role": "assistant", "content": "A dot."},
        {"role": "user", "content": "and now?"},
    ]
    schema = {"name": "answer", "schema": {"type": "object"}}
    form = {"type": "json_schema", "json_schema": schema}

    async def work(server: Responding) -> None:
        reply = await chat(
            server, messages=messages, seed=7, stop=["x"], max_tokens=5, response_format=form, logprobs=True
        )
        assert reply.status_code == 200, reply.text
        asked = server.scripted.requests[0]
        assert (asked.seed, asked.stops(), asked.limit(), asked.logprobs) == (7, ["x"], 5, True)
        assert asked.response_format and asked.response_format.schema_of_answer() == {"type": "object"}
        roles = [message.role for message in asked.messages]
        assert roles == ["system", "system", "user", "assistant", "user"]
        assert asked.messages[0].content == "Be kind."
        assert server.asked()[0][2]["content"][1]["image_url"]["url"] == "data:image/png;base64,AA=="

    run(config(tmp_path, "{}", agents={"support": SUPPORT}), work)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages"),
        ({"model": "agent:suport"}, "model"),
        ({"model": "agent:support@9"}, "model"),
        ({"model": "agent:no name"}, "model"),
        ({"guardrails": ["none"]}, "guardrails"),
    ],
)
def test_a_chat_that_an_agent_cannot_have_is_refused(
    fields: dict[str, Any], param: str, tmp_path: Path
) -> None:
    async def work(server: Responding) -> None:
        for stream in (False, True):
            reply = await chat(server, stream=stream, **fields)
            assert reply.status_code in (400, 404) and reply.json()["error"]["param"] == param, reply.text
        assert server.scripted.requests == []

    run(config(tmp_path, agents={"support": SUPPORT}), work)


def test_a_failing_model_has_the_status_that_it_has_without_an_agent(tmp_path: Path) -> None:
    busy = {"error": {"status": 429, "message": "too many"}}

    async def work(server: Responding) -> None:
        for stream in (False, True):
            reply = await chat(server, stream=stream)
            assert reply.status_code == 429 and "retry-after" in reply.headers
        reply = await chat(server)  # it fails in its second step
        assert reply.status_code == 429

    later = [call("clerk", input="?"), "Ada", busy]
    run(config(tmp_path, busy, busy, *later, agents=AGENTS), work)


def test_a_chat_with_an_agent_is_kept_nowhere(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        assert (await chat(server)).status_code == 200

    run(config(tmp_path, *REPLIES, agents=AGENTS), work)
    assert not any(b"One moment" in path.read_bytes() for path in tmp_path.glob("state.db*"))


def test_without_storage_there_are_no_agents() -> None:
    settings = StackConfig.model_validate({"inference": {"test": {"provider": "scripted"}}})
    with serve(settings) as running:
        body = {"model": "agent:support", "messages": USER, "max_tokens": 5}
        for path in ("/v1/chat/completions", "/v1/messages"):
            reply = httpx.post(running.url + path, json=body)
            assert reply.status_code == 404 and "agents need `storage`" in reply.json()["error"]["message"]
        assert httpx.get(f"{running.url}/v1/models").json()["data"]
        assert httpx.get(f"{running.url}/v1/models/agent:support").status_code == 404
        assert httpx.get(f"{running.url}/v1/agents").status_code == 404


def test_what_is_no_chat_cannot_ask_an_agent(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for path in ("completions", "embeddings"):
            body = {"model": "agent:support", "prompt": "x", "input": "x"}
            reply = await server.http.post(f"/v1/{path}", json=body)
            assert reply.status_code == 404 and "only chats can ask an agent" in reply.text

    run(config(tmp_path, agents={"support": SUPPORT}), work)


# ------------------------------------------------------------ made by the API


@pytest.mark.parametrize("kind", KINDS)
def test_agents_are_made_changed_and_forgotten(kind: str, tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        http = server.http
        body = {"name": "helper", "instructions": "Help.", "tools": ["sums"], "model": MODEL}
        made = (await http.post("/v1/agents", json=body)).json()
        assert (made["name"], made["version"], made["source"]) == ("helper", 1, "api")
        assert (await http.get(f"/v1/agents/{made['id']}")).json() == made
        assert (await http.get("/v1/agents/helper")).json() == made
        changed = (
            await http.post("/v1/agents/helper", json={"instructions": "Help much.", "version": 1})
        ).json()
        assert (changed["version"], changed["tools"], changed["id"]) == (2, ["sums"], made["id"])
        assert (await http.get("/v1/agents/helper", params={"version": 1})).json() == made
        versions = (await http.get(f"/v1/agents/{made['id']}/versions")).json()
        assert [each["version"] for each in versions["data"]] == [2, 1]
        for model, words in (("agent:helper", "Help much."), ("agent:helper@1", "Help.")):
            await server.whole(model=model, input="hi")
            assert server.asked()[-1][0]["content"] == words
        gone = await http.delete(f"/v1/agents/{made['id']}")
        assert gone.json() == {"id": made["id"], "object": "agent.deleted", "deleted": True}
        for reply in (await http.get("/v1/agents/helper"), await http.delete("/v1/agents/helper")):
            assert reply.status_code == 404
        error = await server.refused(model="agent:helper", input="hi")
        assert (error["status"], error["code"], error["param"]) == (404, "model_not_found", "model")

    with database(kind, tmp_path) as storage:
        run(config(tmp_path, "a", "b", storage=storage), work)


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_at_once_one_is_first(kind: str, tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        body = {"name": "helper", "model": MODEL}
        made = await asyncio.gather(*(server.http.post("/v1/agents", json=body) for _ in range(5)))
        assert sorted(reply.status_code for reply in made) == [200, 409, 409, 409, 409]
        change = {"instructions": "x"}
        changed = await asyncio.gather(
            *(server.http.post("/v1/agents/helper", json=change) for _ in range(5))
        )
        assert {reply.status_code for reply in changed} <= {200, 409}
        done = [reply.json()["version"] for reply in changed if reply.status_code == 200]
        assert sorted(done) == list(range(2, len(done) + 2))
        assert (await server.http.get("/v1/agents/helper")).json()["version"] == len(done) + 1

    with database(kind, tmp_path) as storage:
        run(config(tmp_path, storage=storage), work)


def test_agents_are_listed_page_by_page(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for number in range(3):
            await server.http.post("/v1/agents", json={"name": f"n{number}", "model": MODEL})
        await server.http.post("/v1/agents/n0", json={"instructions": "x"})
        found: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = (await server.http.get("/v1/agents", params={"limit": 2, **after})).json()
            found += [agent["name"] for agent in page["data"]]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        assert found == ["support", "clerk", "n0", "n1", "n2"]
        back = (await server.http.get("/v1/agents", params={"order": "desc"})).json()["data"]
        assert [agent["name"] for agent in back] == found[::-1]
        assert (await server.http.get("/v1/agents", params={"after": "nobody"})).status_code == 400

    run(config(tmp_path, agents=AGENTS), work)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"name": "support"}, 409, "the distribution has a agent `support`"),
        ({"name": "sums"}, 409, "the distribution has a tool `sums`"),
        ({"name": "made"}, 409, "there is an agent `made` already"),
        ({"name": "a b"}, 400, "pattern"),
        ({"name": "x", "model": "test/scriped"}, 404, "did you mean test/scripted"),
        ({"name": "x", "tools": ["sum"]}, 404, "no tool or agent `sum` (did you mean sums"),
        ({"name": "x", "tools": [{"type": "mcp", "server_label": "sum"}]}, 404, "did you mean sums"),
        ({"name": "x", "tools": ["x"]}, 400, "an agent cannot be its own tool"),
        ({"name": "x", "tools": ["beeper"]}, 400, "its client has to run beep"),
        ({"name": "x", "guardrails": ["bird"]}, 400, "no shield `bird`"),
        ({"name": "x", "colour": "red"}, 400, "colour"),
        ({"name": "x", "tools": [{"type": "mcp", "server_label": "sums", "alowed": []}]}, 400, "unknown key"),
        ({"name": "x", "tools": [SECRETIVE]}, 400, "keys of servers are not kept"),
    ],
)
def test_an_agent_that_could_not_answer_is_not_made(
    body: dict[str, Any], status: int, message: str, tmp_path: Path
) -> None:
    agents = {"support": SUPPORT, "beeper": {**SUPPORT, "tools": [FUNCTION]}}

    async def work(server: Responding) -> None:
        await server.http.post("/v1/agents", json={"name": "made", "model": MODEL})
        reply = await server.http.post("/v1/agents", json={"model": MODEL, **body})
        assert reply.status_code == status and message in reply.json()["error"]["message"], reply.text
        assert len((await server.http.get("/v1/agents")).json()["data"]) == 3

    run(config(tmp_path, agents=agents), work)


def test_the_distributions_agents_are_only_read(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        found = (await server.http.get("/v1/agents/support")).json()
        assert (found["id"], found["source"], found["version"]) == ("support", "distribution", 1)
        assert found["tools"] == ["clerk"]
        assert len((await server.http.get("/v1/agents/support/versions")).json()["data"]) == 1
        assert (await server.http.get("/v1/agents/support", params={"version": 2})).status_code == 404
        for reply in (
            await server.http.post("/v1/agents/support", json={"instructions": "x"}),
            await server.http.delete("/v1/agents/support"),
        ):
            assert reply.status_code == 409 and "only its file" in reply.json()["error"]["message"]

    run(config(tmp_path, agents=AGENTS), work)


def test_a_version_that_somebody_else_has_replaced_is_not_changed(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        await server.http.post("/v1/agents", json={"name": "n", "model": MODEL})
        await server.http.post("/v1/agents/n", json={"instructions": "x"})
        reply = await server.http.post("/v1/agents/n", json={"instructions": "y", "version": 1})
        assert reply.status_code == 409 and reply.json()["error"]["param"] == "version"

    run(config(tmp_path), work)


def test_sessions_are_conversations_and_turns_are_responses(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        http = server.http
        session = (await http.post("/v1/agents/support/sessions", json={})).json()
        assert session["object"] == "conversation" and session["metadata"] == {"agent": "support"}
        asked = {"input": "one", "conversation": session["id"]}
        first = (await http.post("/v1/agents/support/turns", json=asked)).json()
        assert first["model"] == "agent:support" and texts(first) == ["a"]
        reply = await http.post("/v1/agents/support/turns", json={**asked, "input": "two", "stream": True})
        assert "event: response.completed" in reply.text
        items = (await http.get(f"/v1/conversations/{session['id']}/items")).json()["data"]
        assert [item["role"] for item in items] == ["assistant", "user", "assistant", "user"]
        assert len(server.asked()[1]) == 4
        for path, body in (("nobody", asked), ("support", {**asked, "model": MODEL})):
            reply = await http.post(f"/v1/agents/{path}/turns", json=body)
            assert reply.status_code in (400, 404)

    run(config(tmp_path, "a", "b", agents={"support": SUPPORT}), work)


def test_a_turn_in_the_background_keeps_the_version_that_it_began_with(tmp_path: Path) -> None:
    async def main() -> None:
        settings = config(tmp_path, turns={"workers": 0})
        async with responding(settings) as server:
            body = {"name": "n", "instructions": "One.", "model": MODEL}
            made = (await server.http.post("/v1/agents", json=body)).json()
            queued = (await server.post(model="agent:n", input="hi", background=True)).json()
            assert (queued["model"], queued["status"]) == ("agent:n", "queued")
            await server.http.post("/v1/agents/n", json={"instructions": "Two."})
            kept = await archive.get(server.app.state.stack.store, queued["id"])
            assert kept.request.model == f"agent:{made['id']}@1"
        async with responding(config(tmp_path, "done")) as server:
            await until(lambda: server.scripted.requests)
            assert server.asked()[0][0]["content"] == "One."

    asyncio.run(main())


# ------------------------------------------------------------ guarded


WORD = "kingfisher"
BIRD = {"bird": {"provider": "canary", "words": [WORD]}}
GUARD: dict[str, Any] = {"safety": BIRD, "enforce": {"input": ["bird"], "output": ["bird"]}}
DOORS: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "what flew?"},
    "/v1/chat/completions": {"messages": USER},
    "/v1/messages": {"messages": USER, "max_tokens": 99},
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "place", ["instructions", "input", "answer", "second answer", "inner answer", "call"]
)
def test_what_is_flagged_leaves_no_agent(place: str, door: str, stream: bool, tmp_path: Path) -> None:
    ask = call("clerk", input="who?")
    replies: dict[str, list[Any]] = {
        "answer": [f"a {WORD} flew"],
        "second answer": [ask, "nothing", f"a {WORD} flew"],
        "inner answer": [ask, f"a {WORD} flew", "plain"],
        "call": [call("clerk", input=f"was it a {WORD}?"), "plain"],
    }
    agents = {
        **TEAM,
        "boss": {**TEAM["boss"], "instructions": f"A {WORD}." if place == "instructions" else ""},
    }

    async def work(server: Responding) -> None:
        fields = {"model": "agent:boss", "stream": stream, **DOORS[door]}
        if place == "input":
            said = f"a {WORD}"
            fields |= (
                {"input": said} if "input" in fields else {"messages": [{"role": "user", "content": said}]}
            )
        reply = await server.http.post(door, json=fields)
        assert reply.status_code == 200 and WORD not in reply.text.casefold()
        assert not any(WORD in asked.model_dump_json() for asked in server.scripted.requests[1:])
        if place == "inner answer":
            assert "plain" in reply.text and "Withheld" in server.asked()[-1][-1]["content"]
        else:
            assert "Withheld by the safety policy" in reply.text
        if place in ("instructions", "input"):
            assert server.scripted.requests == []

    run(config(tmp_path, *replies.get(place, []), agents=agents, **GUARD), work)
    assert not any(WORD.encode() in path.read_bytes() for path in tmp_path.glob("state.db*"))


def test_an_agents_guards_stay_and_a_requests_join_them(tmp_path: Path) -> None:
    other = {"fish": {"provider": "canary", "words": ["trout"]}}
    guarded = {"support": {**SUPPORT, "guardrails": ["bird"], "tools": ["clerk"]}, "clerk": TEAM["clerk"]}

    async def work(server: Responding) -> None:
        for word, shield in ((WORD, "bird"), ("trout", "fish")):
            found = await server.whole(model="agent:support", input=f"a {word}", guardrails=["fish"])
            assert found["safety"]["shield"] == shield
        # an inner turn is guarded by what guards the outer one
        await server.whole(model="agent:support", input="go", guardrails=["fish"])
        assert "trout" not in server.scripted.requests[-1].model_dump_json()

    replies = [call("clerk", input="?"), "a trout", "plain"]
    run(config(tmp_path, *replies, agents=guarded, safety={**BIRD, **other}), work)


# ------------------------------------------------------------ in the file


HEAD = "inference: {m: {provider: scripted}}\nstorage: sqlite\n"
MISTAKES = {
    "model": (
        f"{HEAD}agents: {{a: {{model: m/scriptd}}}}\n",
        "3:21 agents.a.model: provider `m` serves no model `scriptd` (did you mean scripted?)",
    ),
    "tool": (
        f"{HEAD}agents:\n  a: {{tools: [helpr]}}\n  helper: {{}}\n",
        "4:15 agents.a.tools[0]: there is no tool or agent `helpr` (did you mean helper?)",
    ),
    "shield": (
        f"{HEAD}agents: {{a: {{guardrails: [bird]}}}}\n",
        "3:27 agents.a.guardrails[0]: there is no shield `bird`; there is none",
    ),
    "key": (
        f"{HEAD}agents: {{a: {{instruction: x}}}}\n",
        "3:14 agents.a.instruction: unknown key (did you mean instructions or description?)",
    ),
    "range": (
        f"{HEAD}agents: {{a: {{temperature: 3}}}}\n",
        "3:27 agents.a.temperature: must be less than or equal to 2",
    ),
    "name": (f"{HEAD}agents: {{a/b: {{}}}}\n", "3:10 agents.a/b: a name is made of letters, digits, _ and -"),
    "itself": (
        f"{HEAD}agents: {{a: {{tools: [a]}}}}\n",
        "3:22 agents.a.tools: an agent cannot be its own tool: a > a",
    ),
    "circle": (
        f"{HEAD}agents:\n  a: {{tools: [b]}}\n  b: {{tools: [{{type: agent, name: a}}]}}\n",
        "4:15 agents.a.tools: an agent cannot be its own tool: a > b > a",
    ),
    "row": (
        f"{HEAD}agents:\n" + "".join(f"  a{n}: {{tools: [a{n + 1}]}}\n" for n in range(4)) + "  a4: {}\n",
        "4:16 agents.a0.tools: more than 4 agents in a row: a0 > a1 > a2 > a3 > a4",
    ),
    "tool's key": (
        f"{HEAD}agents: {{a: {{tools: [{{type: mcp, server_label: s, alowed_tools: []}}]}}}}\n",
        "3:22 agents.a.tools[0]: unknown key `alowed_tools` (did you mean allowed_tools?)",
    ),
    "a tool's name": (
        f"{HEAD}tools: {{a: {{provider: 'tests.support.responding:Sums'}}}}\nagents: {{a: {{}}}}\n",
        "4:10 agents.a: `tools` has a `a` too; give one of them another name",
    ),
    "no storage": (
        "inference: {m: {provider: scripted}}\nagents: {a: {model: m/scripted}}\n",
        "2:10 agents: agents need `storage`, such as `storage: sqlite`",
    ),
    "served": (
        f"{HEAD}mcp: {{tools: [time]}}\n",
        "3:15 mcp.tools[0]: there is no tool `time`; there is none",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_have_their_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    isolate(tmp_path, monkeypatch)
    text, message = MISTAKES[name]
    assert mistakes(write(text))[0] == f"f.yaml:{message}"


@pytest.mark.parametrize(
    ("agent", "message"),
    [
        ({"model": "test/vectors"}, "is no chat model"),
        ({}, "say which, as this server has no default"),
        ({"model": MODEL, "tools": ["beeper"]}, "its client has to run beep"),
        ({"model": MODEL, "tools": [{"type": "web_search", "provider": "wob"}]}, "did you mean web"),
    ],
)
def test_what_only_the_stack_knows_stops_the_start(
    agent: dict[str, Any], message: str, tmp_path: Path
) -> None:
    settings = config(tmp_path, agents={"a": agent, "beeper": {**SUPPORT, "tools": [FUNCTION]}})
    settings.inference["test"].settings["embedding_models"] = ["vectors"]

    async def work(server: Responding) -> None:
        raise AssertionError("it started")

    with pytest.raises(ConfigError, match="agents.a: ") as caught:
        run(settings, work)
    assert message in str(caught.value)
