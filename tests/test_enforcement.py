"""The door under a guard: refusals as official clients read them, attempts to loosen it, hanging up."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import ContentFilterFinishReasonError, OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from llama_stack_lite.api.inference import ChatChunk
from llama_stack_lite.config import StackConfig
from llama_stack_lite.safety.speech import Speech
from tests.support.guarded import CHAT, QUIET, TEXT, WORD, Answer, Guarded, config, guarded, said, scope
from tests.support.matrix import call, turn
from tests.support.serving import Running, serve
from tests.support.streams import events_of

STOP = {"choices": [{"index": 0, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}}
COUNTED = {"stream": True, "stream_options": {"include_usage": True}}


def ask(
    fields: dict[str, Any],
    frames: list[dict[str, Any]],
    *,
    door: str = CHAT,
    settings: StackConfig | None = None,
) -> Answer:
    async def main() -> Answer:
        async with guarded(settings) as server:
            server.model.frames = frames
            return await server.post(door, fields)

    return asyncio.run(main())


def text(answer: Answer) -> str:
    """The content of all frames of one choice."""
    choices = [choice for frame, _ in answer.frames() for choice in frame["choices"]]
    return "".join((choice.get("delta") or choice.get("message"))["content"] or "" for choice in choices)


# ------------------------------------------------------------ what passes is untouched


@pytest.mark.parametrize("window", [{"tokens": 1}, {"tokens": 4}, {"tokens": 1000}])
def test_an_answer_that_passes_is_the_very_same_as_without_a_guard(window: dict[str, int]) -> None:
    calls = [{"index": 0, "id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    frames: list[dict[str, Any]] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        *said("a ", "heron ", "over ", "the ", "river")[:-1],
        {"choices": [{"index": 0, "delta": {"tool_calls": calls, "reasoning_content": "hm"}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        USAGE,
    ]
    for fields in ({}, COUNTED):
        plain, watched = (
            [
                {key: value for key, value in frame.items() if key not in ("id", "created")}
                for frame, _ in ask({**QUIET, **fields}, frames, settings=each).frames()
            ]
            for each in (config(input=[], output=[]), config(window=window))
        )
        assert plain == watched


def test_the_words_of_the_api_are_words_in_an_answer() -> None:
    """Tokens such as `text` or `id` are judged as any other, so that no word is hidden in them."""
    speech = Speech()
    for piece in ("can", "did", " con", "text", " name", "object"):
        [frame] = said(piece)[:-1]
        speech.hear(ChatChunk.model_validate(frame).choices[0])
    assert speech.heard()["text"] == ("output", "candid context nameobject")


# ------------------------------------------------------------ refusals, as the official client reads them


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with serve(config(window={"tokens": 2})) as found:
        yield found


@pytest.fixture
def client(running: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def say(running: Running, *texts: str, **first: Any) -> None:
    frames = said(*texts)
    frames[0] |= first
    running.app.state.stack.inference["m"].frames = [*frames, USAGE]


USER: Any = [{"role": "user", "content": "what flew there?"}]
BAD: Any = [{"role": "user", "content": f"a {WORD}?"}]
MODEL = "m/speaker"


def raw(running: Running, door: str, **fields: Any) -> Any:
    reply = httpx.post(f"{running.url}{door}", json={"model": MODEL, **fields})
    assert reply.status_code == 200, reply.text
    if not fields.get("stream"):
        return reply.json()
    return events_of(reply.text)


@pytest.mark.parametrize("messages", [USER, BAD], ids=["answer", "question"])
def test_a_refused_chat_has_the_official_shape(running: Running, client: OpenAI, messages: Any) -> None:
    say(running, "it is ", "a ", WORD)
    whole = ChatCompletion.model_validate(raw(running, CHAT, messages=messages), strict=True)
    for reply in (whole, client.chat.completions.create(model=MODEL, messages=messages)):
        [choice] = reply.choices
        assert choice.finish_reason == "content_filter" and choice.message.content is None
        assert choice.message.role == "assistant" and "safety policy" in (choice.message.refusal or "")
    safety = raw(running, CHAT, messages=messages)["choices"][0]["safety"]
    touchpoint = "output" if messages is USER else "input"
    assert safety == {"shield": "bird", "touchpoint": touchpoint, "categories": ["canary"], "score": 1.0}


@pytest.mark.parametrize("messages", [USER, BAD], ids=["answer", "question"])
def test_a_refused_stream_has_the_official_shape(running: Running, client: OpenAI, messages: Any) -> None:
    say(running, "it is ", "the ", "blue ", "one, ", "a ", WORD, "!")
    for chunk in raw(running, CHAT, messages=messages, stream=True):
        ChatCompletionChunk.model_validate(chunk, strict=True)
    chunks = list(client.chat.completions.create(model=MODEL, messages=messages, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks]
    assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["content_filter"]
    assert "safety policy" in "".join(choice.delta.refusal or "" for choice in choices)
    assert "it is the blue one, a ".startswith("".join(choice.delta.content or "" for choice in choices))
    if messages is BAD:
        assert choices[0].delta.role == "assistant" and len(choices) == 1


def test_the_official_helper_for_streams_knows_a_refusal(running: Running, client: OpenAI) -> None:
    say(running, "it is ", "the ", "blue ", WORD)
    with (
        client.chat.completions.stream(model=MODEL, messages=USER) as stream,
        pytest.raises(ContentFilterFinishReasonError),
    ):
        stream.get_final_completion()


@pytest.mark.parametrize("prompt", ["what flew there?", f"a {WORD}?", ["hello", f"a {WORD}?"]], ids=repr)
def test_a_refused_completion_has_the_official_shape(running: Running, client: OpenAI, prompt: Any) -> None:
    running.app.state.stack.inference["m"].frames = [
        {"choices": [{"index": 0, "text": f"a {WORD}", "finish_reason": "stop"}]},
        USAGE,
    ]
    whole = raw(running, TEXT, prompt=prompt)
    found = Completion.model_validate(whole, strict=True)
    assert [choice.index for choice in found.choices] == list(
        range(len(prompt) if isinstance(prompt, list) else 1)
    )
    assert all(choice.finish_reason == "content_filter" and choice.text == "" for choice in found.choices)
    assert all("safety policy" in choice["refusal"] and choice["safety"] for choice in whole["choices"])
    for chunk in client.completions.create(model=MODEL, prompt=prompt, stream=True):
        assert chunk.choices[0].finish_reason == "content_filter" and chunk.choices[0].text == ""


def test_what_was_counted_is_told_of_a_refused_answer_too(running: Running) -> None:
    say(running, "a ", WORD)
    assert raw(running, CHAT, messages=USER)["usage"]["total_tokens"] == 5


def test_a_request_that_is_refused_has_cost_nothing(running: Running) -> None:
    asked = [{"role": "user", "content": f"a {WORD}?"}]
    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert raw(running, CHAT, messages=asked)["usage"] == nothing
    assert raw(running, CHAT, messages=asked, **COUNTED)[-1]["usage"] == nothing


def test_one_refused_choice_leaves_the_others_alone(running: Running) -> None:
    """And what comes of it later is never shown: its stream has ended."""
    frames = [
        {"choices": [{"index": index, "delta": {"content": piece}} for index in range(2)]}
        for piece in ("one ", "two ")
    ]
    frames.insert(1, {"choices": [{"index": 1, "delta": {"content": f"{WORD} "}}]})
    ends = [{"index": index, "finish_reason": "stop"} for index in range(2)]
    running.app.state.stack.inference["m"].frames = [*frames, {"choices": ends}, USAGE]
    chunks = raw(running, CHAT, messages=USER, n=2, **COUNTED)
    by_index: dict[int, list[Any]] = {0: [], 1: []}
    for chunk in chunks[:-1]:
        for choice in chunk["choices"]:
            by_index[choice["index"]].append(choice)
    assert "".join(choice["delta"].get("content", "") for choice in by_index[0]) == "one two "
    assert by_index[0][-1]["finish_reason"] == "stop"
    assert by_index[1][-1]["finish_reason"] == "content_filter"
    assert chunks[-1]["usage"]["total_tokens"] == 5


# ------------------------------------------------------------ guards that fail in mid-stream


@pytest.mark.parametrize("fault", ["error", "timeout", "crash"])
@pytest.mark.parametrize("door", [CHAT, TEXT])
def test_a_guard_that_fails_in_mid_stream_ends_it_with_an_error(door: str, fault: str) -> None:
    async def main() -> tuple[Answer, Guarded]:
        settings = config(model={"pause": 0.01}, window={"tokens": 1}, timeout=0.05)
        async with guarded(settings) as server:
            key: Callable[[str], dict[str, Any]]
            if door == CHAT:
                key = lambda piece: {"delta": {"content": piece}}  # noqa: E731
            else:
                key = lambda piece: {"text": piece}  # noqa: E731
            pieces = [f"word{number} " for number in range(50)]
            server.model.frames = [{"choices": [{"index": 0, **key(piece)}]} for piece in pieces]
            prompt = QUIET if door == CHAT else {"prompt": "what flew there?"}
            work = asyncio.create_task(server.post(door, {**prompt, "stream": True}))
            while len(server.canary.seen) < 5:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            server.canary.fault = fault
            answer = await work
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return answer, server

    answer, server = asyncio.run(main())
    *chunks, (last, _) = answer.frames()
    assert answer.status == 200 and chunks and last["error"]["code"] == "guard_unavailable"
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert len(chunks) <= len(server.canary.seen)
    assert server.model.closed == 1


# ------------------------------------------------------------ a request cannot loosen anything

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=8)
    | st.sampled_from(["bird", "off", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TEMPTING = st.sampled_from(
    [
        "safety",
        "enforce",
        "shields",
        "extra_body",
        "guardrails",
        "guard",
        "input",
        "output",
        "images",
        "window",
        "timeout",
        "input_shields",
        "output_shields",
        "no_guard",
        "no-guard",
        "moderation",
        "metadata",
        "store",
        "user",
        "stream_options",
        "n",
        "stop",
        "logprobs",
        "echo",
        "tools",
        "tool_choice",
        "skip_special_tokens",
        "chat_template_kwargs",
        "model_config",
        "__pydantic_extra__",
    ]
)
LOOSE = st.dictionaries(TEMPTING | st.text(max_size=10), JSON, max_size=4) | st.fixed_dictionaries(
    {"guardrails": JSON}
)


@pytest.fixture(scope="module")
def server() -> Iterator[Callable[..., Answer]]:
    """One server for all that is tried; it says the word to whoever asks for nothing bad."""
    with asyncio.Runner() as runner:
        context = guarded(config(window={"tokens": 1}))
        found = runner.run(context.__aenter__())

        def post(door: str, fields: dict[str, Any]) -> Answer:
            key: Any = {"delta": {"content": f"a {WORD}"}} if door == CHAT else {"text": f"a {WORD}"}
            found.model.frames = [{"choices": [{"index": 0, **key}]}, STOP]
            return runner.run(found.post(door, fields))

        yield post
        runner.run(context.__aexit__(None, None, None))


@settings(deadline=None, max_examples=300)
@given(extra=LOOSE, stream=st.booleans(), door=st.sampled_from([CHAT, TEXT]), is_bad=st.booleans())
def test_no_field_of_a_request_lets_the_word_through(
    server: Callable[..., Answer], extra: dict[str, Any], stream: bool, door: str, is_bad: bool
) -> None:
    question = f"a {WORD}?" if is_bad else "what flew there?"
    prompt = {"prompt": question} if door == TEXT else {"messages": [{"role": "user", "content": question}]}
    answer = server(door, {**extra, **prompt, "stream": stream})
    assert WORD not in answer.raw.casefold(), answer.raw
    assert answer.status in (200, 400)
    if answer.status == 200:
        choices = [choice for frame, _ in answer.frames() for choice in frame["choices"]]
        ends = {choice["finish_reason"] for choice in choices if choice["index"] == 0}
        assert "content_filter" in ends and "stop" not in ends


@settings(deadline=None, max_examples=150)
@given(extra=LOOSE, stream=st.booleans(), place=st.sampled_from(["message", "part", "call", "function"]))
def test_no_field_of_a_message_does_either(
    server: Callable[..., Answer], extra: dict[str, Any], stream: bool, place: str
) -> None:
    bad = f"a {WORD}?"
    fields = {
        "message": lambda: turn("user", **{**extra, "content": bad}),
        "part": lambda: turn("user", [{**extra, "type": "text", "text": bad}]),
        "call": lambda: turn("assistant", None, tool_calls=[{**extra, **call(arguments=bad)}]),
        "function": lambda: turn("assistant", None, tool_calls=[call(**{**extra, "arguments": bad})]),
    }[place]()
    answer = server(CHAT, {**fields, "stream": stream})
    assert WORD not in answer.raw.casefold() and answer.status in (200, 400)
    if answer.status == 200:
        [(frame, _)] = answer.frames()
        assert frame["choices"][0]["safety"]["touchpoint"] == "input"


@pytest.mark.parametrize(
    "guardrails", [[], None, ["bird"], "bird", {}, [""], [None], ["bird"] * 17, 0, False]
)
def test_what_guardrails_may_be(server: Callable[..., Answer], guardrails: Any) -> None:
    """A list of names, or nothing; whatever it is, the distribution's own shields judge."""
    answer = server(CHAT, {"messages": BAD, "guardrails": guardrails})
    [(frame, _)] = answer.frames()
    if guardrails in ([], ["bird"]) and isinstance(guardrails, list):
        assert frame["choices"][0]["finish_reason"] == "content_filter"
    else:
        assert answer.status == 400 and frame["error"]["param"].startswith("guardrails")


# ------------------------------------------------------------ whoever hangs up stops model and guard


async def leave(server: Guarded, fields: dict[str, Any], when: Callable[[], bool]) -> None:
    """Ask over ASGI, and hang up at a moment."""
    body = json.dumps({"model": MODEL, **fields}).encode()
    inbox = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> Any:
        if inbox:
            return inbox.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None: ...

    work = asyncio.create_task(server.app(scope(CHAT), receive, send))
    while not when():  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    gone.set()
    await asyncio.wait_for(work, 2)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("kind", ["Speaker", "Resident"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("moment", ["the question is judged", "the model writes", "the answer is judged"])
def test_who_hangs_up_leaves_nothing_running(moment: str, stream: bool, kind: str) -> None:
    async def main() -> None:
        entry = {"provider": f"tests.support.guarded:{kind}", "pause": 0.01}
        async with guarded(config(model=entry, window={"tokens": 2})) as server:
            model, canary = server.model, server.canary
            model.frames = said(*(f"word{number} " for number in range(4)))
            if moment == "the question is judged":
                canary.fault = "timeout"
            elif moment == "the model writes":
                model.pause = 30

            def is_there() -> bool:
                if moment == "the question is judged":
                    return len(canary.seen) == 1
                if moment == "the model writes":
                    return bool(canary.seen and model.asked)
                if canary.seen:
                    canary.fault = "timeout"
                return len(canary.seen) == 2

            await leave(server, {**QUIET, "stream": stream}, is_there)
            begins = moment != "the question is judged" or kind == "Resident"
            assert len(model.asked) == model.closed == begins

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_closes_its_socket_frees_model_and_guard(stream: bool) -> None:
    with serve(config(model={"pause": 0.01}, window={"tokens": 2})) as running:
        model = running.app.state.stack.inference["m"]
        model.frames = said(*(f"word{number} " for number in range(10_000)))
        body = {"model": MODEL, **QUIET, "stream": stream}
        with httpx.Client() as http:
            if stream:
                with http.stream("POST", f"{running.url}{CHAT}", json=body) as reply:
                    assert next(reply.iter_lines()).startswith("data: ")
            else:
                with pytest.raises(httpx.ReadTimeout):
                    http.post(f"{running.url}{CHAT}", json=body, timeout=0.3)
        left = time.monotonic()
        while not model.closed and time.monotonic() < left + 5:
            time.sleep(0.005)
        assert model.closed == 1 and time.monotonic() - left < 2
        seen = len(running.app.state.stack.safety["bird"].seen)
        time.sleep(0.1)
        assert len(running.app.state.stack.safety["bird"].seen) == seen


# ------------------------------------------------------------ what a guard costs


def test_a_history_that_passed_is_not_judged_again() -> None:
    async def main() -> list[str]:
        async with guarded() as server:
            server.model.frames = said("a heron")
            messages: list[dict[str, Any]] = [{"role": "user", "content": "what flew there?"}]
            await server.post(CHAT, {"messages": messages})
            messages += [{"role": "assistant", "content": "a heron"}, {"role": "user", "content": "where?"}]
            before = len(server.canary.seen)
            await server.post(CHAT, {"messages": messages})
            return [each.text for each in server.canary.seen[before:]]

    # nor is an answer that comes back as history: it was judged as it was said
    assert asyncio.run(main()) == ["where?", "a heron"]


def test_log_probabilities_of_what_was_said_are_not_judged_twice() -> None:
    token = {"token": "a heron", "logprob": -1.0, "bytes": None, "top_logprobs": []}
    frames = said("a heron", logprobs={"content": [token]})

    async def main() -> list[str]:
        async with guarded() as server:
            server.model.frames = frames
            await server.post(CHAT, QUIET)
            return [each.text for each in server.canary.seen]

    assert asyncio.run(main()) == ["what flew there?", "a heron"]
