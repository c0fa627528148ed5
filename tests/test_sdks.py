"""A conversation with two tools by each client package, word by word with a script, and with a real model.

The `anthropic` package's is in test_messages.py.
"""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import agents
import httpx
import openai
import pytest
from agents.memory import OpenAIConversationsSession
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, SecretStr
from pydantic_ai import Agent, RunContext
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.support import official
from tests.support.responding import config
from tests.support.serving import Running, serve

agents.set_tracing_disabled(True)

QUESTION = "How is the weather in Paris, and what time is it there?"
TOOLS = ("get_weather", "get_time")
RESULTS = {"get_weather": "18 C, sunny", "get_time": "9:41"}
SAYS = {"get_weather": "The weather in a city", "get_time": "The time in a city"}
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
PARIS = {"city": "Paris"}
ANSWER = "18 C and sunny at 9:41."
SCRIPT = [{"tool_calls": [{"name": name, "arguments": PARIS}]} for name in TOOLS]
MODEL = "local/smollm2-135m"
MOST = 200  # tokens of one answer


class Tools:
    """The two tools, and the calls that came to them."""

    def __init__(self) -> None:
        self.made: list[tuple[str, dict[str, Any]]] = []

    def call(self, name: str, arguments: str | dict[str, Any]) -> str:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        self.made.append((name, given))
        return RESULTS[name]

    def get_weather(self, city: str) -> str:
        """The weather in a city"""
        return self.call("get_weather", {"city": city})

    def get_time(self, city: str) -> str:
        """The time in a city"""
        return self.call("get_time", {"city": city})


# How a client talks: at an address, to a model, with its tools; in each step it must call the tool that is
# named, or may call any where none is. It returns what the model said in the end.
Converse = Callable[[str, str, Tools, list[str] | None], str]


def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def openai_responses(url: str, model: str, tools: Tools, force: list[str] | None) -> str:
    """By `previous_response_id`: each request holds only what is new."""
    offered: Any = [
        {"type": "function", "name": name, "description": SAYS[name], "parameters": CITY, "strict": True}
        for name in TOOLS
    ]
    said: Any = QUESTION
    before: str | None = None
    with client(url) as server:
        for name in [*(force or [None, None]), "none" if force else None]:  # type: ignore[list-item]
            choice: Any = {"type": "function", "name": name} if name in TOOLS else name or "auto"
            found = server.responses.create(
                model=model,
                input=said,
                tools=offered,
                tool_choice=choice,
                previous_response_id=before,
                max_output_tokens=MOST,
                temperature=0,
            )
            before = found.id
            said = [
                {
                    "type": "function_call_output",
                    "call_id": item.call_id,
                    "output": tools.call(item.name, item.arguments),
                }
                for item in found.output
                if item.type == "function_call"
            ]
            if not said:
                return found.output_text
    raise AssertionError("no answer")


def openai_streams(url: str, model: str, tools: Tools, force: list[str] | None) -> str:
    """The same, streamed, by a conversation that the server keeps."""
    offered: Any = [
        {"type": "function", "name": name, "description": SAYS[name], "parameters": CITY} for name in TOOLS
    ]
    said: Any = QUESTION
    with client(url) as server:
        conversation = server.conversations.create()
        for name in [*(force or [None, None]), "none" if force else None]:  # type: ignore[list-item]
            choice: Any = {"type": "function", "name": name} if name in TOOLS else name or "auto"
            with server.responses.stream(
                model=model,
                input=said,
                tools=offered,
                tool_choice=choice,
                conversation=conversation.id,
                max_output_tokens=MOST,
                temperature=0,
            ) as events:
                text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
                found = events.get_final_response()
            assert found.output_text == text
            said = [
                {
                    "type": "function_call_output",
                    "call_id": item.call_id,
                    "output": tools.call(item.name, item.arguments),
                }
                for item in found.output
                if item.type == "function_call"
            ]
            if not said:
                kinds = [item.type for item in server.conversations.items.list(conversation.id, order="asc")]
                calls = ["function_call", "function_call_output"] * len(tools.made)
                assert kinds == ["message", *calls, "message"]
                return text
    raise AssertionError("no answer")


def openai_chat(url: str, model: str, tools: Tools, force: list[str] | None) -> str:
    offered: Any = [
        {"type": "function", "function": {"name": name, "description": SAYS[name], "parameters": CITY}}
        for name in TOOLS
    ]
    said: list[Any] = [{"role": "user", "content": QUESTION}]
    with client(url) as server:
        for name in [*(force or [None, None]), "none" if force else None]:  # type: ignore[list-item]
            choice: Any = (
                {"type": "function", "function": {"name": name}} if name in TOOLS else name or "auto"
            )
            message = (
                server.chat.completions.create(
                    model=model,
                    messages=said,
                    tools=offered,
                    tool_choice=choice,
                    max_completion_tokens=MOST,
                    temperature=0,
                )
                .choices[0]
                .message
            )
            said.append(message)
            for call in message.tool_calls or []:
                assert call.type == "function"
                output = tools.call(call.function.name, call.function.arguments)
                said.append({"role": "tool", "tool_call_id": call.id, "content": output})
            if not message.tool_calls:
                return message.content or ""
    raise AssertionError("no answer")


def openai_agents(
    url: str, model: str, tools: Tools, force: list[str] | None, *, responses: bool, streamed: bool
) -> str:
    """One run where the model may choose; else one that ends with each tool, and one with the answer."""

    async def main() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as server:
            provider = agents.OpenAIProvider(openai_client=server, use_responses=responses)
            settings = agents.RunConfig(model_provider=provider, tracing_disabled=True)
            session = OpenAIConversationsSession(openai_client=server) if responses else None
            said: Any = QUESTION
            for name in [*force, "none"] if force else [None]:
                agent = agents.Agent(
                    name="guide",
                    model=model,
                    tools=[agents.function_tool(tools.get_weather), agents.function_tool(tools.get_time)],
                    model_settings=agents.ModelSettings(tool_choice=name, max_tokens=MOST, temperature=0),
                    tool_use_behavior="stop_on_first_tool" if name in TOOLS else "run_llm_again",
                )
                if streamed:
                    result: Any = agents.Runner.run_streamed(
                        agent, said, run_config=settings, session=session
                    )
                    events = [event async for event in result.stream_events()]
                    assert "raw_response_event" in {event.type for event in events}
                else:
                    result = await agents.Runner.run(agent, said, run_config=settings, session=session)
                said = [] if session else result.to_input_list()
            return str(result.final_output)

    return asyncio.run(main())


def langchain(url: str, model: str, tools: Tools, force: list[str] | None, *, responses: bool) -> str:
    said: list[Any] = [HumanMessage(QUESTION)]
    with openai.DefaultHttpxClient() as http:
        chat = ChatOpenAI(
            base_url=f"{url}/v1",
            api_key=SecretStr("none"),
            http_client=http,
            model=model,
            use_responses_api=responses,
            max_retries=0,
            max_tokens=MOST,
            temperature=0,
            streaming=not force,
        )
        for name in [*(force or [None, None]), "none" if force else None]:  # type: ignore[list-item]
            bound = chat.bind_tools([tools.get_weather, tools.get_time], tool_choice=name)
            message: AIMessage = bound.invoke(said)
            said.append(message)
            for call in message.tool_calls:
                output = tools.call(call["name"], call["args"])
                said.append(ToolMessage(output, tool_call_id=call["id"] or ""))
            if not message.tool_calls:
                return str(message.text)
    raise AssertionError("no answer")


def pydantic_ai(url: str, model: str, tools: Tools, force: list[str] | None, *, responses: bool) -> str:
    named = OpenAIResponsesModel if responses else OpenAIChatModel

    def settings(context: RunContext[object]) -> ModelSettings:
        if not force:
            return ModelSettings(max_tokens=MOST, temperature=0)
        step = context.run_step - 1
        choice: Any = [force[step]] if step < len(force) else "none"
        return ModelSettings(tool_choice=choice, max_tokens=MOST, temperature=0)

    async def main() -> str:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as server:
            asked = named(model, provider=OpenAIProvider(openai_client=server))
            agent = Agent(asked, tools=[tools.get_weather, tools.get_time])
            return str((await agent.run(QUESTION, model_settings=settings)).output)

    return asyncio.run(main())


def with_options(converse: Callable[..., str], **options: bool) -> Converse:
    return lambda url, model, tools, force: converse(url, model, tools, force, **options)


PACKAGES: dict[str, Converse] = {
    "openai-responses": openai_responses,
    "openai-streams": openai_streams,
    "openai-chat": openai_chat,
    "agents-responses": with_options(openai_agents, responses=True, streamed=False),
    "agents-responses-streamed": with_options(openai_agents, responses=True, streamed=True),
    "agents-chat": with_options(openai_agents, responses=False, streamed=False),
    "agents-chat-streamed": with_options(openai_agents, responses=False, streamed=True),
    "langchain-responses": with_options(langchain, responses=True),
    "langchain-chat": with_options(langchain, responses=False),
    "pydantic-ai-responses": with_options(pydantic_ai, responses=True),
    "pydantic-ai-chat": with_options(pydantic_ai, responses=False),
}


def heard(message: Any) -> Any:
    """A message as the model was given it, in few words; a call's id is that of its result."""
    if message.tool_calls:
        assert not message.text()
        return [
            (call.id, call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls
        ]
    return (message.role, message.tool_call_id, message.text())


@pytest.mark.parametrize("name", PACKAGES)
def test_two_tools_word_by_word(tmp_path: Path, name: str) -> None:
    tools = Tools()
    with serve(config(tmp_path, *SCRIPT, ANSWER)) as running:
        said = PACKAGES[name](running.url, "test/scripted", tools, None)
        requests = running.app.state.stack.inference["test"].requests
    assert said == ANSWER and tools.made == [("get_weather", PARIS), ("get_time", PARIS)]
    steps = [[heard(message) for message in request.messages] for request in requests]
    (one, *_), (two, *_) = steps[2][1], steps[2][3]
    assert steps[2] == [
        ("user", None, QUESTION),
        [(one[0], "get_weather", PARIS)],
        ("tool", one[0], "18 C, sunny"),
        [(two[0], "get_time", PARIS)],
        ("tool", two[0], "9:41"),
    ]
    assert steps[:2] == [steps[2][:1], steps[2][:3]] and len(steps) == 3
    for request in requests:
        offered = {tool.function.name: tool.function for tool in request.tools}
        assert set(offered) == set(TOOLS) and request.tool_choice in (None, "auto")
        for each in offered.values():
            assert each.description == SAYS[each.name] and each.parameters["required"] == ["city"]
            assert each.parameters["properties"]["city"]["type"] == "string"


@pytest.mark.model
@pytest.mark.parametrize("name", PACKAGES)
def test_two_tools_with_a_real_model(starter: Running, name: str) -> None:
    """So small a model is told which tool to call; that it calls it rightly, and answers, is the test."""
    tools = Tools()
    said = PACKAGES[name](starter.url, MODEL, tools, list(TOOLS))
    assert [called for called, _ in tools.made] == list(TOOLS)
    assert all(set(given) == {"city"} and isinstance(given["city"], str) for _, given in tools.made)
    assert said.strip()


# ------------------------------------------------------------ the rest of what `openai` calls


class Person(BaseModel):
    name: str
    age: int


def test_answers_are_parsed(tmp_path: Path) -> None:
    asked: Any = {"model": "test/scripted", "input": "Who is it?"}
    with (
        serve(config(tmp_path, *['{"name": "Ada", "age": 36}'] * 2, SCRIPT[0])) as running,
        client(running.url) as server,
    ):
        found = server.responses.parse(**asked, text_format=Person)
        assert found.output_parsed == Person(name="Ada", age=36)
        with server.responses.stream(**asked, text_format=Person) as events:
            assert events.get_final_response().output_parsed == Person(name="Ada", age=36)
        function = openai.pydantic_function_tool(Person, name="get_weather")["function"]
        tools: Any = [{"type": "function", **function}]
        called = server.responses.parse(**asked, tools=tools)
        assert called.output[0].type == "function_call"
        requests = running.app.state.stack.inference["test"].requests
    wanted = requests[0].response_format.json_schema
    assert wanted.strict and set(wanted.schema_["properties"]) == {"name", "age"}


def test_a_background_response_is_followed_resumed_and_cancelled(tmp_path: Path) -> None:
    slow = {"chunks": [f"{number} " for number in range(500)], "delay": 0.01}
    asked: Any = {"model": "test/scripted", "input": "hi", "background": True}
    with serve(config(tmp_path, "one two", slow)) as running, client(running.url) as server:
        first = list(server.responses.create(**asked, stream=True))
        name = first[0].response.id
        again = server.responses.retrieve(name, stream=True, starting_after=3)
        assert [event.to_dict() for event in again] == [event.to_dict() for event in first[4:]]
        found = server.responses.retrieve(name)
        assert found.output_text == "one two" and found.status == "completed"
        made = server.responses.create(**asked)
        assert made.status == "queued"
        assert server.responses.cancel(made.id).status == "cancelled"
        assert server.responses.retrieve(made.id).status == "cancelled"


def test_what_is_kept_is_listed_counted_compacted_and_forgotten(tmp_path: Path) -> None:
    with serve(config(tmp_path, "a", "in short", "b")) as running, client(running.url) as server:
        said: Any = [{"role": "user", "content": str(number)} for number in range(45)]
        found = server.responses.create(model="test/scripted", input=said)
        items: Any = list(server.responses.input_items.list(found.id, order="asc", limit=20))
        assert [item.content[0].text for item in items] == [str(number) for number in range(45)]
        counted = server.responses.input_tokens.count(model="test/scripted", input=said, tools=[])
        assert counted.input_tokens == found.usage.input_tokens == 45  # type: ignore[union-attr]
        short = server.responses.compact(model="test/scripted", previous_response_id=found.id)
        said = [*short.output, {"role": "user", "content": "and?"}]
        after = server.responses.create(model="test/scripted", input=said)
        assert after.output_text == "b"
        server.responses.delete(found.id)
        with pytest.raises(openai.NotFoundError) as missing:
            server.responses.retrieve(found.id)
        assert missing.value.code == "not_found"


def test_errors_are_the_packages_own(tmp_path: Path) -> None:
    failing = [{"error": {"status": 429, "message": "later"}}, {"content": "a", "error": {"status": 500}}]
    with serve(config(tmp_path, *failing)) as running, client(running.url) as server:
        asked: Any = {"model": "test/scripted", "input": "hi"}
        with pytest.raises(openai.BadRequestError) as bad:
            server.responses.create(**asked, tools=[{"type": "image_generation"}])
        assert bad.value.param == "tools[0]" and "`image_generation`" in bad.value.message
        with pytest.raises(openai.NotFoundError) as missing:
            server.responses.create(**asked | {"model": "nobody"})
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.RateLimitError, match="later"):
            server.responses.create(**asked)
        found = server.responses.create(**asked)
        assert found.error and found.error.code == "server_error" and found.output_text == "a"


@pytest.mark.model
def test_a_real_models_answers_are_of_the_official_types(starter: Running) -> None:
    form = {"type": "json_schema", "name": "person", "schema": Person.model_json_schema(), "strict": True}
    include = ["message.output_text.logprobs"]
    for fields in ({}, {"text": {"format": form}}, {"top_logprobs": 3, "include": include}):
        body: dict[str, Any] = {"model": MODEL, "input": "Ann is 41 years old. Who is she?", **fields}
        body["max_output_tokens"] = 60
        whole = httpx.post(f"{starter.url}/v1/responses", json=body, timeout=120)
        found = official.response(whole.json())
        events = official.streamed(
            httpx.post(f"{starter.url}/v1/responses", json=body | {"stream": True}, timeout=120)
        )
        last = events[-1]["response"]
        assert last["usage"]["input_tokens"] == found["usage"]["input_tokens"] > 0
        kept = httpx.get(f"{starter.url}/v1/responses/{last['id']}", params={"include": include})
        assert kept.json() == last
