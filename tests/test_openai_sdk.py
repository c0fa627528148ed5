"""The official `openai` package is the judge: its client works, and its types validate what we send."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from jsonschema import validate
from openai import OpenAI
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.support.serving import Running

pytestmark = pytest.mark.model

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 40}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
MODEL = "local/smollm2-135m"
USER: Any = [{"role": "user", "content": "What is the capital of Japan?"}]


@pytest.fixture
def client(starter: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{starter.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def post(starter: Running, path: str, body: dict[str, Any]) -> Any:
    reply = httpx.post(f"{starter.url}/v1{path}", json=body, timeout=120)
    assert reply.status_code == 200, reply.text
    return reply


def frames(text: str) -> list[dict[str, Any]]:
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    assert blocks[-1] == "[DONE]"
    return [json.loads(block) for block in blocks[:-1]]


CHATS: list[dict[str, Any]] = [
    {},
    {"n": 2, "temperature": 1, "seed": 4},
    {"logprobs": True, "top_logprobs": 3},
    {"tools": [WEATHER], "tool_choice": "required"},
    {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
    {"tools": [WEATHER], "tool_choice": "none"},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}},
]


@pytest.mark.parametrize("options", CHATS, ids=lambda options: ",".join(options) or "plain")
def test_every_chat_answer_has_the_official_shape(starter: Running, options: dict[str, Any]) -> None:
    body = {"model": MODEL, "messages": USER, "max_tokens": 60, **options}
    whole = ChatCompletion.model_validate(post(starter, "/chat/completions", body).json(), strict=True)
    assert (
        whole.usage and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    )
    assert [choice.index for choice in whole.choices] == list(range(options.get("n", 1)))
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks = frames(post(starter, "/chat/completions", body).text)
    events = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert events[-1].usage and not events[-1].choices
    assert len({event.id for event in events}) == 1
    finishes = [c.finish_reason for event in events for c in event.choices if c.finish_reason]
    assert len(finishes) == options.get("n", 1)


def test_a_chat(client: OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=30)
    assert "Tokyo" in (reply.choices[0].message.content or "")
    assert reply.choices[0].finish_reason == "stop"


def test_a_stream_says_the_same_as_the_whole(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=USER, temperature=0, max_tokens=30)
    stream = client.chat.completions.create(
        model=MODEL, messages=USER, temperature=0, max_tokens=30, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 3 and "".join(pieces) == whole.choices[0].message.content


def test_a_required_tool_is_called(client: OpenAI) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris today?"}]
    reply = client.chat.completions.create(
        model=MODEL, messages=question, tools=[WEATHER], tool_choice="required"
    )
    assert reply.choices[0].finish_reason == "tool_calls"
    call: Any = (reply.choices[0].message.tool_calls or [])[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_the_answer_after_a_tool_result_uses_it(client: OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    messages: Any = [
        {"role": "user", "content": "What is the weather in Paris today?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Paris: heavy rain, 11 degrees"},
    ]
    reply = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert "rain" in (reply.choices[0].message.content or "")


def test_a_json_schema_holds(client: OpenAI) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    question: Any = [{"role": "user", "content": "Ann is 31 years old. Give her as JSON with name and age."}]
    reply = client.chat.completions.create(
        model=MODEL, messages=question, response_format=schema, max_tokens=100
    )
    assert reply.choices[0].finish_reason == "stop"
    validate(json.loads(reply.choices[0].message.content or ""), PERSON)


def test_logprobs_are_the_models_own(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model=MODEL, messages=USER, temperature=0, max_tokens=8, logprobs=True, top_logprobs=4
    )
    assert reply.choices[0].logprobs and reply.choices[0].logprobs.content
    for token in reply.choices[0].logprobs.content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 4
        assert token.token == token.top_logprobs[0].token, "greedy takes the most likely"
        assert math.isclose(token.logprob, token.top_logprobs[0].logprob, abs_tol=1e-4)
        assert bytes(token.bytes or []).decode() == token.token
    assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001


def test_a_seed_repeats_an_answer(client: OpenAI) -> None:
    def once(seed: int) -> str | None:
        reply = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell a story."}],
            seed=seed,
            temperature=1.5,
            max_tokens=12,
        )
        return reply.choices[0].message.content

    assert once(7) == once(7)
    assert len({once(seed) for seed in (1, 2, 3)}) > 1


def test_stop_strings_end_the_answer_and_stay_out(client: OpenAI) -> None:
    for stream in (False, True):
        reply: Any = client.chat.completions.create(
            model=MODEL, messages=USER, temperature=0, max_tokens=30, stop=["Tok"], stream=stream
        )
        if stream:
            choices = [chunk.choices[0] for chunk in reply if chunk.choices]
            text, finish = "".join(c.delta.content or "" for c in choices), choices[-1].finish_reason
        else:
            text, finish = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert text.endswith("is ") and "Tok" not in text and finish == "stop"


def test_completions(starter: Running, client: OpenAI) -> None:
    body: dict[str, Any] = {
        "model": MODEL,
        "prompt": ["The capital of France is", "Two plus two is"],
        "max_tokens": 5,
        "temperature": 0,
    }
    plain = post(starter, "/completions", {**body, "logprobs": 2}).json()
    assert Completion.model_validate(plain, strict=True).usage
    # the first token of an echo has no log-probability: the API says null where its types say float
    reply = client.completions.create(**body, logprobs=2, echo=True)
    assert [choice.index for choice in reply.choices] == [0, 1]
    assert reply.choices[0].text.startswith("The capital of France is") and "Paris" in reply.choices[0].text
    logprobs = reply.choices[0].logprobs
    assert logprobs and logprobs.tokens and logprobs.token_logprobs and logprobs.text_offset
    assert "".join(logprobs.tokens) == reply.choices[0].text
    assert logprobs.token_logprobs[0] is None and all(
        p is not None and p <= 0 for p in logprobs.token_logprobs[1:]
    )
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert reply.choices[0].text[offset:].startswith(token)
    # likewise `finish_reason`, which is null until the last chunk of a choice
    for chunk in frames(post(starter, "/completions", {**body, "stream": True}).text):
        Completion.model_validate(
            {
                **chunk,
                "choices": [{**c, "finish_reason": c["finish_reason"] or "stop"} for c in chunk["choices"]],
            }
        )


def test_embeddings(starter: Running, client: OpenAI) -> None:
    texts = ["A cat sits on the mat.", "A kitten rests on a rug.", "Stock markets fell sharply."]
    body = {"model": "embed/all-minilm-l6-v2", "input": texts, "encoding_format": "float"}
    raw = CreateEmbeddingResponse.model_validate(post(starter, "/embeddings", body).json())
    assert [item.index for item in raw.data] == [0, 1, 2] and raw.usage.prompt_tokens > 10
    # the client asks for base64 by itself and decodes it
    a, b, c = (
        item.embedding for item in client.embeddings.create(model="all-minilm-l6-v2", input=texts).data
    )
    assert len(a) == 384 and math.isclose(sum(x * x for x in a), 1, abs_tol=1e-3)
    assert all(math.isclose(x, y, abs_tol=1e-5) for x, y in zip(a, raw.data[0].embedding, strict=True))

    def cosine(left: list[float], right: list[float]) -> float:
        return sum(x * y for x, y in zip(left, right, strict=True))

    assert cosine(a, b) > cosine(a, c) + 0.3


def test_models(starter: Running, client: OpenAI) -> None:
    # agents are there too, where other tests have made some
    listed = {model.id for model in client.models.list() if not model.id.startswith("agent:")}
    assert listed == {MODEL, "embed/all-minilm-l6-v2", "guard/llama-guard-3-1b"}  # its weights are missing
    one = httpx.get(f"{starter.url}/v1/models/smollm2-135m").json()
    Model.model_validate(one)
    assert one["id"] == MODEL and one["context_length"] >= 2048 and one["tool_calling"] == "assisted"
    assert client.models.retrieve(MODEL).owned_by == "local"


def test_an_unknown_model_is_404_with_close_ones(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="smolm2-135m", messages=USER)
    assert caught.value.code == "model_not_found" and "local/smollm2-135m" in str(caught.value)


def test_a_prompt_too_long_is_400_with_both_counts(client: OpenAI) -> None:
    long: Any = [{"role": "user", "content": "word " * 9000}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
        assert "4096" in str(caught.value) and "90" in str(caught.value)


BAD: list[tuple[str, dict[str, Any]]] = [
    ("temperature", {"temperature": 3}),
    ("messages[0].role", {"messages": [{"role": "wizard", "content": "?"}]}),
    ("messages[0]", {"messages": [{"role": "user"}]}),
    ("messages", {"messages": []}),
    ("n", {"n": 1_000_000}),
    ("n", {"n": 100}),
    ("max_tokens", {"max_tokens": 0}),
    ("tools[0].function.name", {"tools": [{"type": "function", "function": {"name": "a b"}}]}),
    ("logit_bias", {"logit_bias": {"99999999": 1}}),
    ("temprature", {"temprature": 1}),
    (
        "messages[0].content[0]",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
                }
            ]
        },
    ),
]


@pytest.mark.parametrize(("param", "wrong"), BAD, ids=[param for param, _ in BAD])
def test_bad_input_is_400_and_names_the_field(starter: Running, param: str, wrong: dict[str, Any]) -> None:
    reply = httpx.post(
        f"{starter.url}/v1/chat/completions", json={"model": MODEL, "messages": USER, **wrong}, timeout=30
    )
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["type"] == "invalid_request_error"
    assert error["param"] == param, error
