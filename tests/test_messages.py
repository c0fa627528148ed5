"""/v1/messages: the official `anthropic` package is the judge, of a scripted model and of a real one."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anthropic
import httpx
import pytest
from anthropic import Anthropic
from anthropic.types import Message, MessageParam, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

from llama_stack_lite.anthropic.replies import events, reply
from llama_stack_lite.anthropic.requests import chat_request, prompt_request
from llama_stack_lite.api.inference import ChatChunk, ChatRequest
from llama_stack_lite.api.messages import CountTokensRequest, MessagesRequest, Reply
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import UpstreamError
from llama_stack_lite.providers.inference.scripted import Scripted
from tests.support.guarded import WORD
from tests.support.serving import Running, serve

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
ASKED: list[MessageParam] = [{"role": "user", "content": "What is the weather in Paris, and the time?"}]
PLACE = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: Any = {"name": "get_weather", "description": "Current weather in a city", "input_schema": PLACE}
CLOCK: Any = {"name": "get_time", "description": "Current time in a city", "input_schema": PLACE}
IMAGE = {"type": "base64", "media_type": "image/png", "data": "AA=="}


def config(*replies: Any, **sections: Any) -> StackConfig:
    scripted = {"provider": "scripted", "replies": list(replies)}
    return StackConfig.model_validate({"inference": {"test": scripted}, **sections})


def client(running: Running, key: str = "none") -> Anthropic:
    return running.clients.enter_context(Anthropic(base_url=running.url, api_key=key, max_retries=0))


def scripted(running: Running) -> Scripted:
    found = running.app.state.stack.inference["test"]
    assert isinstance(found, Scripted)
    return found


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "test/scripted", "max_tokens": 50, "messages": ASKED, **fields}


def post(running: Running, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    return httpx.post(running.url + path, json=body(**fields), timeout=120)


def stream(running: Running, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the official types, and its `event:` line."""
    text = post(running, stream=True, **fields).text
    found = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event, strict=True)
        found.append(event)
    return found


# ------------------------------------------------------------ requests, as the model is asked


def asked(**fields: Any) -> dict[str, Any]:
    request = chat_request(MessagesRequest.model_validate(body(**fields)))
    return request.model_dump(mode="json", by_alias=True, exclude_unset=True)


def messages(*content: Any, role: str = "user", **fields: Any) -> list[dict[str, Any]]:
    said = [{"role": role, "content": list(content)}, *([] if role == "user" else ASKED)]
    found: list[dict[str, Any]] = asked(messages=said, **fields)["messages"]
    return found if role == "user" else found[:-1]


def text(said: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": said, **fields}


def shown(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def result(content: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "t1", "content": content, **fields}


def use(name: str, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"t_{name}", "name": name, "input": given}


def test_the_least_that_can_be_asked() -> None:
    assert asked() == {
        "model": "test/scripted",
        "messages": [{"role": "user", "content": ASKED[0]["content"]}],
        "max_completion_tokens": 50,
        "stream": False,
    }


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"temperature": 1, "top_p": 0.5, "top_k": 3}, {"temperature": 1.0, "top_p": 0.5, "top_k": 3}),
        ({"metadata": {"user_id": "u1"}}, {"user": "u1"}),
        ({"metadata": {"user_id": "u" * 65}}, {}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": PLACE}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": PLACE},
                }
            },
        ),
        ({"tool_choice": {"type": "auto"}}, {}),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}, "service_tier": "auto"}, {}),
        ({"cache_control": {"type": "ephemeral"}, "container": "c", "what_comes_next": [1]}, {}),
    ],
)
def test_a_setting_is_asked_for_in_openais_words(given: dict[str, Any], found: dict[str, Any]) -> None:
    assert asked(**given) == asked() | found


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        (
            {"type": "tool", "name": "get_time"},
            {"tool_choice": {"type": "function", "function": {"name": "get_time"}}},
        ),
        (
            {"type": "any", "disable_parallel_tool_use": True},
            {"tool_choice": "required", "parallel_tool_calls": False},
        ),
    ],
)
def test_tools_and_which_of_them_to_use(choice: dict[str, Any], found: dict[str, Any]) -> None:
    given = asked(tools=[WEATHER, {**CLOCK, "type": "custom", "strict": True}], tool_choice=choice)
    assert given.items() >= found.items() and ("parallel_tool_calls" in given) == (len(found) == 2)
    [weather, clock] = [tool["function"] for tool in given["tools"]]
    assert weather == {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": PLACE,
    }
    assert clock["strict"] is True


def test_examples_of_a_tools_input_stand_in_its_schema() -> None:
    [tool] = asked(tools=[{**WEATHER, "input_examples": [{"city": "Oslo"}]}])["tools"]
    assert tool["function"]["parameters"] == {**PLACE, "examples": [{"city": "Oslo"}]}


@pytest.mark.parametrize("system", ["Be brief.\n\nBe kind.", [text("Be brief."), text("Be kind.")]])
def test_the_system_prompt_comes_first(system: Any) -> None:
    assert asked(system=system)["messages"][0] == {"role": "system", "content": "Be brief.\n\nBe kind."}


def test_a_system_message_stays_where_it_is() -> None:
    said = [*ASKED, {"role": "system", "content": [text("Be brief.")]}]
    assert asked(messages=said)["messages"][1] == {"role": "system", "content": "Be brief."}


DOCUMENT = {
    "type": "document",
    "title": "Birds",
    "context": "old",
    "source": {"type": "text", "data": "Owls."},
}
PASSAGES = {"type": "document", "source": {"type": "content", "content": [text("Owls."), text("Crows.")]}}
FOUND = {"type": "search_result", "title": "Birds", "source": "https://b.test", "content": [text("Owls.")]}


@pytest.mark.parametrize(
    ("blocks", "content"),
    [
        ([text("Hi", cache_control={"type": "ephemeral"})], "Hi"),
        ([text("Hi"), text("you")], [text("Hi"), text("you")]),
        ([], ""),
        ([{"type": "image", "source": IMAGE}], [shown("data:image/png;base64,AA==")]),
        (
            [text("See"), {"type": "image", "source": {"type": "url", "url": "https://a.test/a.png"}}],
            [text("See"), shown("https://a.test/a.png")],
        ),
        ([DOCUMENT], [text("Birds\nold"), text("Owls.")]),
        ([PASSAGES], [text("Owls."), text("Crows.")]),
        ([{"type": "document", "source": {"type": "content", "content": []}}], ""),
        ([FOUND], [text("Birds\nhttps://b.test"), text("Owls.")]),
    ],
)
def test_what_a_user_shows(blocks: list[Any], content: Any) -> None:
    assert messages(*blocks) == [{"role": "user", "content": content}]


def test_results_of_tools_are_messages_of_their_own() -> None:
    picture = {"type": "image", "source": IMAGE}
    assert messages(
        result("18 C"),
        result([text("two"), picture, text("parts")]),
        result("no such city", is_error=True),
        result([DOCUMENT, FOUND]),
        {"type": "tool_result", "tool_use_id": "t1"},
        text("And now?"),
    ) == [
        {"role": "tool", "tool_call_id": "t1", "content": "18 C"},
        {"role": "tool", "tool_call_id": "t1", "content": "two\n\nparts"},
        {"role": "tool", "tool_call_id": "t1", "content": "Error: no such city"},
        {
            "role": "tool",
            "tool_call_id": "t1",
            "content": "Birds\nold\n\nOwls.\n\nBirds\nhttps://b.test\n\nOwls.",
        },
        {"role": "tool", "tool_call_id": "t1", "content": ""},
        {"role": "user", "content": [shown("data:image/png;base64,AA=="), text("And now?")]},
    ]


def test_what_an_assistant_said() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "x"},
        text("I "),
        text("look."),
        use("get_weather", city="Zürich"),
    ]
    call = {"name": "get_weather", "arguments": '{"city": "Zürich"}'}
    assert messages(*blocks, role="assistant") == [
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "t_get_weather", "type": "function", "function": call}],
        }
    ]
    assert messages(use("f"), role="assistant")[0]["content"] is None
    assert messages(role="assistant") == [{"role": "assistant", "content": ""}]


def test_a_prompt_to_count_is_the_prompt_of_the_message() -> None:
    fields: Any = {"system": "Be brief.", "tools": [WEATHER], "tool_choice": {"type": "any"}}
    whole = chat_request(MessagesRequest.model_validate(body(**fields)))
    prompt = prompt_request(CountTokensRequest.model_validate(body(**fields)))
    assert (prompt.messages, prompt.tools, prompt.tool_choice) == (
        whole.messages,
        whole.tools,
        whole.tool_choice,
    )


# ------------------------------------------------------------ answers, as they are told


async def told(
    *deltas: dict[str, Any], finish: str = "stop", asked: MessagesRequest | None = None, **last: Any
) -> tuple[list[dict[str, Any]], Reply]:
    """The events of a chat that says this, and their whole."""
    frames = [{"index": 0, "delta": delta} for delta in deltas]
    frames.append({"index": 0, "delta": {}, "finish_reason": finish, **last})

    async def chunks() -> Any:
        for frame in frames:
            yield ChatChunk.model_validate({"id": "chatcmpl-1", "model": "m", "choices": [frame]})

    request = asked or MessagesRequest.model_validate(body())
    found = [event async for event in events(chunks(), request)]

    async def again() -> AsyncIterator[Any]:
        for event in found:
            yield event.model_copy(deep=True)

    return [event.model_dump() for event in found], await reply(again())


def call(index: int, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    function = {key: fields.pop(key) for key in ("name",) if key in fields}
    function |= {} if arguments is None else {"arguments": arguments}
    return {"tool_calls": [{"index": index, "function": function, **fields}]}


def blocks(*deltas: dict[str, Any], **how: Any) -> list[tuple[Any, ...]]:
    """The blocks of a reply in short; each was begun, and ended, in its turn."""
    found, whole = asyncio.run(told(*deltas, **how))
    order = [(event["type"], event["index"]) for event in found if "index" in event]
    steps = [step for step in order if step[0] != "content_block_delta"]
    assert steps == [
        (f"content_block_{what}", index) for index in range(len(whole.content)) for what in ("start", "stop")
    ]
    return [tuple(list(block.model_dump().values())[:4]) for block in whole.content]


def test_blocks_follow_each_other_as_they_were_said() -> None:
    assert blocks(
        {"role": "assistant", "reasoning_content": "Hm"},
        {"reasoning_content": "."},
        {"content": "I "},
        {"content": "look."},
        call(0, "", id="a", name="f"),
        call(0, '{"x"'),
        call(0, ": 1}"),
        call(1, "{}", id="b", name="g"),
        finish="tool_calls",
    ) == [
        ("thinking", "Hm.", ""),
        ("text", "I look.", None),
        ("tool_use", "a", "f", {"x": 1}),
        ("tool_use", "b", "g", {}),
    ]


def test_calls_without_arguments_keep_their_place() -> None:
    assert blocks(
        call(0, "", id="a", name="f"),
        call(1, "{}", id="b", name="g"),
        call(2, id="c", name="h"),
        {"content": "so"},
        call(3, id="d", name="i"),
        finish="stop",  # as some servers say of a call that was asked for by name
    ) == [
        ("tool_use", "a", "f", {}),
        ("tool_use", "b", "g", {}),
        ("tool_use", "c", "h", {}),
        ("text", "so", None),
        ("tool_use", "d", "i", {}),
    ]


def test_a_name_in_pieces_is_whole_before_its_block_begins() -> None:
    assert blocks(call(0, name="get_", id="a"), call(0, name="time"), call(0, "{}"), call(0, name="x")) == [
        ("tool_use", "a", "get_time", {})
    ]
    [(_, made_up, name, _)] = blocks(call(0, "{}", name="f"))
    assert made_up.startswith("toolu_") and name == "f"


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ('{"a": 1, "b": "cut of', {"a": 1}),
        ('{"a": [1, 2', {"a": [1, 2]}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ("at the river", {"INVALID_JSON": "at the river"}),
    ],
)
def test_arguments_that_are_no_whole_object(arguments: str, given: dict[str, Any]) -> None:
    [(*_, found)] = blocks(call(0, arguments, id="a", name="f"), finish="length")
    assert found == given


def test_a_model_that_goes_back_to_a_call_is_not_misquoted() -> None:
    there_and_back = [call(0, '{"a":', id="a", name="f"), call(1, "{}", id="b", name="g"), call(0, "1}")]
    with pytest.raises(UpstreamError, match="went back to a call"):
        asyncio.run(told(*there_and_back))


def test_a_chat_without_an_answer_is_an_error() -> None:
    async def nothing() -> Any:
        yield ChatChunk(choices=[])

    async def main() -> None:
        await reply(events(nothing(), MessagesRequest.model_validate(body())))

    with pytest.raises(UpstreamError, match="without an answer"):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("finish", "last", "reason", "sequence"),
    [
        ("stop", {}, "end_turn", None),
        ("stop", {"stop_reason": "END"}, "stop_sequence", "END"),
        ("stop", {"stop_reason": "<|im_end|>"}, "end_turn", None),
        ("length", {}, "max_tokens", None),
        ("content_filter", {}, "refusal", None),
    ],
)
def test_why_a_reply_ended(finish: str, last: dict[str, Any], reason: str, sequence: str | None) -> None:
    request = MessagesRequest.model_validate(body(stop_sequences=["STOP", "END"]))
    _, whole = asyncio.run(told({"content": "so"}, finish=finish, asked=request, **last))
    assert (whole.stop_reason, whole.stop_sequence) == (reason, sequence)


def test_a_models_own_refusal_is_one() -> None:
    _, whole = asyncio.run(told({"refusal": "I will "}, {"refusal": "not."}))
    assert whole.stop_reason == "refusal" and whole.stop_details
    assert whole.stop_details.explanation == "I will not." and whole.safety is None


@pytest.mark.parametrize(
    ("thinking", "seen"),
    [
        ({"type": "enabled", "budget_tokens": 2048}, True),
        ({"type": "adaptive", "display": "omitted"}, False),
        ({"type": "disabled"}, False),
        (None, True),
    ],
)
def test_thoughts_are_shown_unless_they_are_not_wanted(thinking: Any, seen: bool) -> None:
    request = MessagesRequest.model_validate(body(thinking=thinking))
    found = blocks({"reasoning_content": "Hm."}, {"content": "So."}, asked=request)
    assert [block[0] for block in found] == [*(["thinking"] if seen else []), "text"]


# ------------------------------------------------------------ the official client, and a scripted model

WEATHER_CALL = {
    "content": "I look. ",
    "tool_calls": [{"name": "get_weather", "arguments": {"city": "Paris"}}],
}
CLOCK_CALL = {"tool_calls": [{"name": "get_time", "arguments": {"city": "Paris"}}]}
RESULTS = {"get_weather": "18 C, sunny", "get_time": "9:41"}


def say(client: Anthropic, streamed: bool, **fields: Any) -> Message:
    if not streamed:
        whole: Message = client.messages.create(**fields)
        return whole
    with client.messages.stream(**fields) as events:
        return events.get_final_message()


def converse(client: Anthropic, model: str, *, streamed: bool, choices: list[Any]) -> list[Any]:
    """A conversation in which each of the first turns is made to use a tool; returns all its messages."""
    said: list[Any] = list(ASKED)
    for choice in [*choices, {"type": "none"}]:
        found = say(
            client,
            streamed,
            model=model,
            max_tokens=60,
            messages=said,
            tools=[WEATHER, CLOCK],
            tool_choice=choice,
        )
        said.append({"role": "assistant", "content": found.content})
        calls = [block for block in found.content if block.type == "tool_use"]
        assert (found.stop_reason == "tool_use") == bool(calls)
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": RESULTS[call.name]} for call in calls
        ]
        if results:
            said.append({"role": "user", "content": results})
    return said


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_with_two_tools_word_by_word(streamed: bool) -> None:
    with serve(config(WEATHER_CALL, CLOCK_CALL, "18 C and sunny at 9:41.")) as running:
        said = converse(
            client(running), "test/scripted", streamed=streamed, choices=[{"type": "auto"}, {"type": "any"}]
        )
        last = scripted(running).requests[-1]
    assert [block.text for block in said[-1]["content"]] == ["18 C and sunny at 9:41."]
    [first, second] = [block for turn in said[1:4:2] for block in turn["content"] if block.type == "tool_use"]
    assert (first.name, first.input, second.name) == ("get_weather", {"city": "Paris"}, "get_time")
    assert [message.model_dump(exclude_none=True) for message in last.messages] == [
        {"role": "user", "content": ASKED[0]["content"]},
        {
            "role": "assistant",
            "content": "I look. ",
            "tool_calls": [
                {
                    "id": first.id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "content": "18 C, sunny", "tool_call_id": first.id},
        {
            "role": "assistant",
            "tool_calls": [
                {
                    "id": second.id,
                    "type": "function",
                    "function": {"name": "get_time", "arguments": '{"city": "Paris"}'},
                }
            ],
        },
        {"role": "tool", "content": "9:41", "tool_call_id": second.id},
    ]


def test_the_events_of_a_stream() -> None:
    thoughtful = {**WEATHER_CALL, "reasoning_content": "Hm."}
    with serve(config(thoughtful)) as running:
        found = stream(running)
    assert [event["type"].removeprefix("content_") for event in found] == [
        "message_start",
        *("block_start", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_delta", "block_stop"),
        *("block_start", "block_delta", "block_delta", "block_stop"),
        *("message_delta", "message_stop"),
    ]
    start, last = found[0]["message"], found[-2]
    assert start["content"] == [] and start["stop_reason"] is None and start["id"].startswith("msg_")
    assert start["usage"]["input_tokens"] == 9 and start["usage"]["output_tokens"] == 0
    assert last["delta"]["stop_reason"] == "tool_use"
    assert last["usage"]["input_tokens"] == 9 and last["usage"]["output_tokens"] == 6
    assert [event["delta"]["type"] for event in found if event["type"] == "content_block_delta"] == [
        "thinking_delta",
        *["text_delta"] * 2,
        *["input_json_delta"] * 2,
    ]


@pytest.mark.parametrize(
    "answer", ["Fine weather.", WEATHER_CALL, {"reasoning_content": "a b", "content": "c"}]
)
def test_a_stream_adds_up_to_the_whole(answer: Any) -> None:
    with serve(config(answer, answer)) as running:
        one = client(running).messages.create(**body())
        raw = post(running)
        assert raw.headers["request-id"].startswith("req_")
        Message.model_validate(raw.json(), strict=True)
    with serve(config(answer, answer)) as running, client(running).messages.stream(**body()) as told:
        two = told.get_final_message()
    assert one.to_dict() | {"id": ""} == two.to_dict() | {"id": ""}


@pytest.mark.parametrize("streamed", [False, True])
def test_which_stop_sequence_it_was(streamed: bool) -> None:
    with serve(config("one two STOP three END", "one")) as running:
        asked = body(stop_sequences=["END", "STOP"])
        stopped = say(client(running), streamed, **asked)
        ended = say(client(running), streamed, **asked)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "STOP")
    assert [block.text for block in stopped.content if block.type == "text"] == ["one two "]
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)


def test_a_chat_also_says_which_stop_string_it_was() -> None:
    with serve(config("one STOP", "one")) as running:
        ask = {"model": "test/scripted", "messages": ASKED, "stop": ["END", "STOP"]}
        replies = [httpx.post(f"{running.url}/v1/chat/completions", json=ask).json() for _ in range(2)]
    assert [reply["choices"][0].get("stop_reason") for reply in replies] == ["STOP", None]


def test_an_answer_cut_short() -> None:
    with serve(config("one two three")) as running:
        reply = client(running).messages.create(**body(max_tokens=2))
    assert reply.stop_reason == "max_tokens" and reply.usage.output_tokens == 2


CANARY: Any = {"safety": {"bird": {"provider": "canary", "words": [WORD]}}}
GUARDED: Any = CANARY | {"enforce": {"input": ["bird"], "output": ["bird"]}}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("said", "touchpoint"), [(WORD, "output"), ("fine", "input")])
def test_a_refusal_says_what_it_is(streamed: bool, said: str, touchpoint: str) -> None:
    asked = body(system=WORD) if touchpoint == "input" else body()
    with serve(config(said, said, **GUARDED)) as running:
        found = say(client(running), streamed, **asked)
        raw = post(running, **asked).json()
    explanation = f"Withheld by the safety policy (shield `bird`, {touchpoint}: canary)."
    assert found.stop_reason == "refusal"
    assert found.stop_details and found.stop_details.explanation == explanation
    assert [block.text for block in found.content if block.type == "text"] == [explanation]
    assert raw["safety"] == {
        "shield": "bird",
        "touchpoint": touchpoint,
        "categories": ["canary"],
        "score": 1.0,
    }
    assert (found.usage.input_tokens, found.usage.output_tokens) == (
        (0, 0) if touchpoint == "input" else (9, 1)
    )


def test_a_request_may_ask_for_more_guards() -> None:
    with serve(config("fine", **CANARY)) as running:
        reply = client(running).messages.create(**body(system=WORD), extra_body={"guardrails": ["bird"]})
    assert reply.stop_reason == "refusal"


def test_an_answer_in_a_shape() -> None:
    class Place(BaseModel):
        city: str

    with serve(config('{"city": "Paris"}')) as running:
        reply = client(running).messages.parse(**body(), output_format=Place)
        [request] = scripted(running).requests
    assert reply.parsed_output == Place(city="Paris")
    assert request.response_format and request.response_format.json_schema
    assert (request.response_format.json_schema.schema_ or {})["required"] == ["city"]


# ------------------------------------------------------------ errors


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]: `tool` is none of the types"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content: Input should be a valid"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "messages[0].content[0].text: Field",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "messages[0].content[0].source: `base64` is none of the types",
        ),
        ({"messages": [*ASKED, {"role": "assistant", "content": "It"}]}, "`messages` ends with an assistant"),
        (
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            "tools[0].type: `bash_20250124` is a tool of",
        ),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name: String should match"),
        ({"tools": [WEATHER, WEATHER]}, "`tools` holds get_weather twice"),
        ({"tool_choice": {"type": "any"}}, "`tool_choice` of type `any` goes with `tools`"),
        ({"tools": [CLOCK], "tool_choice": {"type": "tool", "name": "x"}}, "`tool_choice` names x"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice: `name` goes with type `tool`"),
        ({"mcp_servers": [{"url": "https://a.test"}]}, "mcp_servers: MCP servers are connected to by"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, "thinking.budget_tokens: Input should be"),
    ],
)
def test_a_request_that_is_none_says_where(
    answering: Running, path: str, fields: dict[str, Any], message: str
) -> None:
    reply = post(answering, path, **fields)
    error = reply.json()
    assert reply.status_code == 400 and set(error) == {"type", "error", "request_id"}
    assert error["type"] == "error" and error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(message)
    assert error["request_id"] == reply.headers["request-id"]


@pytest.mark.parametrize(
    "fields",
    [{"max_tokens": 0}, {"max_tokens": None}, {"temperature": 1.1}, {"stop_sequences": [""]}, {"top_k": -1}],
)
def test_a_setting_out_of_range_is_400(answering: Running, fields: dict[str, Any]) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        client(answering).messages.create(**body(), extra_body=fields)
    assert refused.value.type == "invalid_request_error"
    assert (refused.value.api_message or "").startswith(next(iter(fields)))


@pytest.fixture(scope="module")
def answering() -> Iterator[Running]:
    with serve(config({"content": "fine", "repeat": 1000})) as running:
        yield running


def failing(status: int) -> StackConfig:
    return config({"error": {"status": status, "message": "too bad"}})


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_each_status_has_its_type(status: int, kind: str, streamed: bool) -> None:
    with serve(failing(status)) as running, pytest.raises(anthropic.APIStatusError) as failed:
        say(client(running), streamed, **body())
    error = failed.value
    assert (error.status_code, error.type, error.api_message) == (status, kind, "too bad")
    assert error.request_id and error.request_id.startswith("req_")


def test_an_error_in_the_midst_of_a_stream_is_an_event() -> None:
    broken = {"content": "one two", "error": {"status": 503, "message": "it broke"}}
    with serve(config(broken, broken)) as running:
        with pytest.raises(anthropic.APIStatusError, match="it broke") as failed:
            say(client(running), True, **body())
        assert failed.value.type == "overloaded_error"
        text = post(running, stream=True).text
    last = text.removesuffix("\n\n").split("\n\n")[-1].split("\n")
    assert last[0] == "event: error" and json.loads(last[1].removeprefix("data: "))["type"] == "error"


def test_a_client_that_leaves_stops_the_model() -> None:
    slow = {"content": "one two three four five", "delay": 0.2}
    with serve(config(slow)) as running:
        with client(running).messages.create(**body(), stream=True) as events:
            assert next(iter(events)).type == "message_start"
        deadline = time.monotonic() + 30
        while not scripted(running).cancelled and time.monotonic() < deadline:
            time.sleep(0.02)
        assert scripted(running).cancelled == 1


def test_a_model_that_is_not_there(answering: Running) -> None:
    with pytest.raises(anthropic.NotFoundError, match="There is no model `claude-opus-4-8`") as missing:
        client(answering).messages.create(**body(model="claude-opus-4-8"))
    assert missing.value.type == "not_found_error"


def test_a_key_comes_by_either_header() -> None:
    with serve(config("fine", "fine", server={"api_keys": ["a-secret"]})) as running:
        assert client(running, "a-secret").messages.create(**body()).stop_reason == "end_turn"
        token = running.clients.enter_context(
            Anthropic(base_url=running.url, api_key=None, auth_token="a-secret", max_retries=0)
        )
        assert token.messages.create(**body()).stop_reason == "end_turn"
        for wrong in (client(running, "another"), client(running, "a-secret-and-more")):
            with pytest.raises(anthropic.AuthenticationError) as refused:
                wrong.messages.create(**body())
            assert refused.value.type == "authentication_error"
        assert httpx.post(f"{running.url}/v1/messages", headers={"x-api-key": ""}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 404, "not_found_error"),
    ],
)
def test_what_the_framework_refuses(
    answering: Running, method: str, path: str, status: int, kind: str
) -> None:
    reply = httpx.request(method, answering.url + path)
    assert reply.status_code == status and reply.json()["error"]["type"] == kind


def test_a_body_that_is_too_large() -> None:
    small = config("fine", server={"max_body_size": 2000})
    with serve(small) as running, pytest.raises(anthropic.RequestTooLargeError) as refused:
        client(running).messages.create(**body(system="x" * 2000))
    assert str(refused.value.type) == "request_too_large"


def test_other_apis_keep_their_own_errors(answering: Running) -> None:
    for path in ("/v1/chat/completions", "/v1/messages-of-others"):
        assert "param" in httpx.post(answering.url + path, json={}).json()["error"]


# ------------------------------------------------------------ tokens


def test_tokens_are_counted_without_an_answer(answering: Running) -> None:
    before = len(scripted(answering).requests)
    asked: Any = {"model": "test/scripted", "messages": ASKED, "system": "Be brief."}
    assert client(answering).messages.count_tokens(**asked).input_tokens == 11
    assert len(scripted(answering).requests) == before


def uncounted(*, guarded: bool) -> StackConfig:
    """A model that cannot count by itself."""
    speaker = {"provider": "tests.support.guarded:Speaker"}
    return StackConfig.model_validate({"inference": {"m": speaker}, **(GUARDED if guarded else {})})


def test_a_model_that_cannot_count_says_what_it_read() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    with serve(uncounted(guarded=False)) as running:
        model = running.app.state.stack.inference["m"]
        model.frames = [
            {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "length"}]},
            {"choices": [], "usage": usage},
        ]
        counted = client(running).messages.count_tokens(model="m/speaker", messages=ASKED)
        [request] = model.asked
        model.frames = model.frames[:1]
        with pytest.raises(anthropic.InternalServerError, match="does not say how many tokens"):
            client(running).messages.count_tokens(model="m/speaker", messages=ASKED)
    assert counted.input_tokens == 7
    assert isinstance(request, ChatRequest) and request.limit() == 1 and not request.stream


def test_what_a_shield_withholds_is_not_sent_to_be_counted() -> None:
    with serve(uncounted(guarded=True)) as running:
        with pytest.raises(anthropic.BadRequestError, match="Withheld by the safety policy"):
            client(running).messages.count_tokens(model="m/speaker", messages=ASKED, system=WORD)
        assert running.app.state.stack.inference["m"].asked == []


# ------------------------------------------------------------ a real model


MODEL = "local/smollm2-135m"


@pytest.mark.model
@pytest.mark.parametrize("streamed", [False, True])
def test_a_real_model_uses_two_tools_and_answers(starter: Running, streamed: bool) -> None:
    choices = [{"type": "tool", "name": "get_weather"}, {"type": "tool", "name": "get_time"}]
    said = converse(client(starter), MODEL, streamed=streamed, choices=choices)
    calls = [block for turn in said[1:4:2] for block in turn["content"]]
    assert [(call.name, call.input) for call in calls] == [
        ("get_weather", {"city": "Paris"}),
        ("get_time", {"city": "Paris"}),
    ]
    answer = "".join(block.text for block in said[-1]["content"])
    assert any(word in answer for word in ("18", "sunny", "9:41")), answer


@pytest.mark.model
def test_a_real_model_counts_before_it_reads(starter: Running) -> None:
    asked: Any = {"model": MODEL, "messages": ASKED, "system": "Answer in one word."}
    counted = client(starter).messages.count_tokens(**asked).input_tokens
    whole = client(starter).messages.create(**asked, max_tokens=5)
    found = stream(starter, **asked, max_tokens=5)
    for usage in (whole.usage.to_dict(), found[0]["message"]["usage"], found[-2]["usage"]):
        assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert whole.usage.output_tokens == 5 and whole.stop_reason == "max_tokens"
    start, end = found[0]["message"]["usage"], found[-2]["usage"]
    assert start["input_tokens"] == end["input_tokens"] < counted, "the prompt was not reused"


@pytest.mark.model
@pytest.mark.parametrize("streamed", [False, True])
def test_a_real_model_stops_where_it_is_told_to(starter: Running, streamed: bool) -> None:
    capital: Any = [{"role": "user", "content": "What is the capital of Japan?"}]
    reply = say(
        client(starter),
        streamed,
        model=MODEL,
        messages=capital,
        max_tokens=40,
        stop_sequences=["never this", "Tokyo"],
        extra_body={"temperature": 0},
    )
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "Tokyo")
    assert "Tokyo" not in "".join(block.text for block in reply.content if block.type == "text")


@pytest.mark.model
def test_a_real_model_answers_in_a_shape(starter: Running) -> None:
    shape = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    reply = client(starter).messages.create(
        model=MODEL,
        max_tokens=40,
        messages=[{"role": "user", "content": "Ann is 41 years old. How old is Ann?"}],
        output_config={"format": {"type": "json_schema", "schema": shape | {"additionalProperties": False}}},
    )
    assert isinstance(
        json.loads("".join(block.text for block in reply.content if block.type == "text"))["age"], int
    )


@pytest.mark.model
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_model_that_does_not_see_says_so(starter: Running, path: str) -> None:
    look = [{"role": "user", "content": [text("What is it?"), {"type": "image", "source": IMAGE}]}]
    reply = post(starter, path, model=MODEL, messages=look)
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"
    assert "image" in reply.json()["error"]["message"]
