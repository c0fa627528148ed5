"""The providers that need no upstream of their own, and the conformance suite over every one."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import pytest

from llama_stack_lite.answer import chat_completion, text_completion
from llama_stack_lite.api.inference import ChatChunk, ChatRequest, CompletionRequest, Inference
from llama_stack_lite.api.models import ModelCard, ModelFile
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Busy, ConfigError, ContextOverflow, InvalidRequest, StackError
from llama_stack_lite.models import card, pull
from llama_stack_lite.providers.inference.onnx import Onnx
from llama_stack_lite.providers.inference.openai import OpenAI
from llama_stack_lite.providers.inference.scripted import Scripted
from tests.conformance.inference import InferenceConformance
from tests.support.serving import models_home, serve

COUNTING = " ".join(f"number-{number}" for number in range(40))
TALKATIVE: dict[str, Any] = {"replies": [COUNTING], "loop": True, "embedding_models": ["vectors"]}
MINILM = "all-minilm-l6-v2"


class TestScripted(InferenceConformance):
    def provider(self) -> Scripted:
        return scripted(**TALKATIVE)


class TestOpenAIInFrontOfAServer(InferenceConformance):
    @pytest.fixture(autouse=True)
    def server(self) -> Iterator[None]:
        entry = {"provider": "scripted", **TALKATIVE}
        with serve(StackConfig.model_validate({"inference": {"far": entry}})) as running:
            self.url = f"{running.url}/v1"
            yield

    def provider(self) -> OpenAI:
        return OpenAI(OpenAI.Config(base_url=self.url))


@pytest.fixture
def minilm_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """MiniLM on disk, pulled once for all runs."""
    monkeypatch.setenv("LLAMA_LITE_HOME", str(models_home()))
    pull(card(MINILM))


@pytest.mark.model
@pytest.mark.usefixtures("minilm_files")
class TestOnnx(InferenceConformance):
    def provider(self) -> Onnx:
        return Onnx(Onnx.Config(models=[MINILM]))


class Broken:
    """The scripted provider with one fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault
        self.whole = scripted(replies=[COUNTING], loop=True)

    async def models(self) -> list[ModelCard]:
        found: list[ModelCard] = await self.whole.models()
        return found * 2 if self.fault == "one id twice" else found

    async def chat(self, model: str, request: ChatRequest) -> AsyncGenerator[ChatChunk, None]:
        if self.fault == "deaf to stop":
            request = request.model_copy(update={"stop": None})
        if self.fault == "edits the request":
            request.n = 1
        model = "scripted" if self.fault == "any model" else model
        async with aclosing(self.whole.chat(model, request)) as chunks:
            async for chunk in chunks:
                for broken in broken_chunks(chunk, self.fault):
                    yield broken
        if self.fault == "another error":
            raise ValueError("not ours")


FAULTS = {
    "no role": "test_the_role_comes_first_and_once",
    "role twice": "test_the_role_comes_first_and_once",
    "no finish": "test_a_chat_is_chunks_then_usage",
    "finish twice": "test_a_chat_is_chunks_then_usage",
    "no usage": "test_a_chat_is_chunks_then_usage",
    "usage early": "test_a_chat_is_chunks_then_usage",
    "one choice": "test_n_choices",
    "deaf to stop": "test_a_stop_string_ends_the_answer_before_it",
    "edits the request": "test_a_request_is_read_and_not_edited",
    "another error": "test_only_stack_errors_escape",
    "any model": "test_an_unknown_model_is_refused",
    "one id twice": "test_cards_say_what_the_provider_can",
}


@pytest.mark.parametrize(("fault", "check"), FAULTS.items())
def test_the_conformance_suite_finds_every_fault(fault: str, check: str) -> None:
    class Suite(InferenceConformance):
        def provider(self) -> Inference:
            return cast(Inference, Broken(fault))

    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        getattr(Suite(), check)()


def broken_chunks(chunk: ChatChunk, fault: str) -> list[ChatChunk]:
    finish = any(choice.finish_reason for choice in chunk.choices)
    if fault == "one choice":
        return [] if any(choice.index for choice in chunk.choices) else [chunk]
    for choice in chunk.choices:
        if fault == "no role":
            choice.delta.pop("role", None)
        if fault == "role twice":
            choice.delta["role"] = "assistant"
    return {
        "no finish": [] if finish else [chunk],
        "finish twice": [chunk, chunk] if finish else [chunk],
        "no usage": [] if chunk.usage else [chunk],
        "usage early": [chunk, ChatChunk(choices=[])] if chunk.usage else [chunk],
    }.get(fault, [chunk])


def scripted(**settings: Any) -> Scripted:
    return Scripted(Scripted.Config.model_validate(settings))


def ask(**fields: Any) -> ChatRequest:
    messages = [{"role": "user", "content": "how are you"}]
    return ChatRequest.model_validate({"model": "any", "messages": messages, **fields})


def said(made: Scripted, **fields: Any) -> Any:
    return asyncio.run(chat_completion(made.chat("scripted", ask(**fields)))).model_dump()


def test_scripted_replies_come_in_order_and_requests_are_kept() -> None:
    made = scripted(replies=["one", {"content": "two", "repeat": 2}])
    answers = [said(made, user=name)["choices"][0]["message"]["content"] for name in "abc"]
    assert answers == ["one", "two", "two"]
    assert [request.user for request in made.requests] == ["a", "b", "c"]
    with pytest.raises(InvalidRequest, match="no reply left: it has answered 3 requests"):
        said(made)
    made.queue("four")
    assert said(made)["choices"][0]["message"]["content"] == "four"


def test_scripted_counts_words_and_honours_limits() -> None:
    made = scripted(replies=["one two three four"], loop=True)
    whole = said(made, n=2)
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}
    cut = said(made, max_tokens=2)["choices"][0]
    assert cut["message"]["content"] == "one two " and cut["finish_reason"] == "length"
    stopped = said(made, stop=["four", "hree"])["choices"][0]
    assert stopped["message"]["content"] == "one two t" and stopped["finish_reason"] == "stop"


def test_scripted_tool_calls_keep_their_arguments() -> None:
    calls = [
        {"name": "f", "arguments": {"city": "São Paulo"}},
        {"name": "g", "arguments": "{careless", "id": "x"},
    ]
    choice = said(scripted(replies=[{"tool_calls": calls, "reasoning_content": "think hard"}]))["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "think hard"
    assert [call["function"]["arguments"] for call in choice["message"]["tool_calls"]] == [
        '{"city": "S\\u00e3o Paulo"}',
        "{careless",
    ]
    assert choice["message"]["tool_calls"][1]["id"] == "x"


def test_scripted_chunks_delays_and_finish_are_the_scripts() -> None:
    made = scripted(replies=[{"chunks": ["a", "", "bc d"], "delay": 0.02, "finish_reason": "content_filter"}])

    async def main() -> list[ChatChunk]:
        return [chunk async for chunk in made.chat("scripted", ask())]

    started = time.monotonic()
    chunks = asyncio.run(main())
    assert time.monotonic() - started >= 0.06
    assert [chunk.choices[0].delta.get("content") for chunk in chunks[:-1]] == ["a", "bc d", None]
    assert chunks[-2].choices[0].finish_reason == "content_filter"


def test_scripted_errors_come_at_once_or_after_the_text() -> None:
    made = scripted(
        replies=[
            {"error": {"status": 429, "message": "full"}},
            {"content": "so far", "error": {"status": 418}},
        ]
    )

    async def main() -> None:
        with pytest.raises(Busy, match="full"):
            await anext(made.chat("scripted", ask()))
        chunks = made.chat("scripted", ask())
        assert (await anext(chunks)).choices[0].delta == {"role": "assistant", "content": "so "}
        await anext(chunks)
        with pytest.raises(StackError) as refused:
            await anext(chunks)
        assert refused.value.status == 418
        assert made.cancelled == 0

    asyncio.run(main())


def test_scripted_counts_streams_that_were_closed_early() -> None:
    made = scripted(replies=[{"content": "one two three", "repeat": 3}])

    async def main() -> None:
        for _ in range(2):
            chunks = made.chat("scripted", ask())
            await anext(chunks)
            await chunks.aclose()
        async for _ in made.chat("scripted", ask()):
            pass

    asyncio.run(main())
    assert made.cancelled == 2


def test_scripted_completions() -> None:
    made = scripted(replies=["one two three"], loop=True)
    request = CompletionRequest(model="any", prompt=["a b", "c"], n=2, max_tokens=2)
    found = asyncio.run(text_completion(made.complete("scripted", request)))
    assert [choice.text for choice in found.choices] == ["one two "] * 4
    assert {choice.finish_reason for choice in found.choices} == {"length"}
    assert found.usage and (found.usage.prompt_tokens, found.usage.completion_tokens) == (3, 8)
    assert made.completions == [request]


def test_scripted_embeddings_of_like_texts_are_close() -> None:
    made = scripted(embedding_models=["e"])
    texts = ["the cat sat on the mat", "a cat sat on a mat", "stocks fell sharply today"]
    vectors = asyncio.run(made.embed("e", texts)).vectors
    assert all(math.isclose(math.hypot(*vector), 1) for vector in vectors)
    assert dot(vectors[0], vectors[1]) > 0.4 > dot(vectors[0], vectors[2])
    short = asyncio.run(made.embed("e", texts[:1], dimensions=3)).vectors[0]
    assert [value * math.hypot(*vectors[0][:3]) for value in short] == pytest.approx(vectors[0][:3])


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.fixture
def minilm(minilm_files: None) -> Iterator[Onnx]:
    made = Onnx(Onnx.Config(models=[MINILM]))
    yield made
    asyncio.run(made.aclose())


@pytest.mark.model
def test_onnx_vectors_mean_something(minilm: Onnx) -> None:
    texts = ["A man is eating food.", "Somebody has a meal.", "The stock market crashed today."]
    found = asyncio.run(minilm.embed(MINILM, texts))
    meal, other = (dot(found.vectors[0], vector) for vector in found.vectors[1:])
    assert meal > 0.5 and other < 0.2
    assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-5) for vector in found.vectors)
    # [CLS] and [SEP] are read too: 6 + 5 + 6 words and full stops, one word of two pieces in none
    assert found.prompt_tokens == 8 + 7 + 8


@pytest.mark.model
def test_onnx_vectors_do_not_depend_on_the_batch(minilm: Onnx) -> None:
    texts = ["word " * (number * 37 % 23 + 1) for number in range(20)]
    together = asyncio.run(minilm.embed(MINILM, texts)).vectors
    for text, vector in zip(texts, together, strict=True):
        alone = asyncio.run(minilm.embed(MINILM, [text])).vectors[0]
        assert max(abs(a - b) for a, b in zip(alone, vector, strict=True)) < 1e-5


@pytest.mark.model
def test_onnx_refuses_what_it_would_have_to_cut_or_guess(minilm: Onnx) -> None:
    async def main() -> None:
        assert len((await minilm.embed(MINILM, ["word " * 510])).vectors) == 1
        with pytest.raises(ContextOverflow, match="text 1 has 513 tokens .* at most 512") as long:
            await minilm.embed(MINILM, ["short", "word " * 511])
        assert long.value.param == "input[1]" and long.value.code == "context_length_exceeded"
        with pytest.raises(InvalidRequest, match="check_embedding_ctx_length=False"):
            await minilm.embed(MINILM, [[1, 2]])
        with pytest.raises(InvalidRequest, match="384 dimensions"):
            await minilm.embed(MINILM, ["x"], dimensions=128)
        assert len((await minilm.embed(MINILM, ["x"], dimensions=384)).vectors[0]) == 384

    asyncio.run(main())


@pytest.mark.model
def test_onnx_leaves_the_loop_free_and_lets_short_requests_pass(minilm: Onnx) -> None:
    async def main() -> None:
        long = asyncio.create_task(minilm.embed(MINILM, ["a long text " * 60] * 64))
        started = time.monotonic()
        await asyncio.sleep(0.05)
        assert time.monotonic() - started < 0.25, "the work of seconds went on in the loop"
        await minilm.embed(MINILM, ["short"])
        assert not long.done(), "a short request need not wait for a long one"
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long

    asyncio.run(main())


def test_onnx_says_what_is_wrong_with_a_models_files(tmp_path: Path) -> None:
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    files = [ModelFile(name=path.name, sources=[f"file:{path}"]) for path in sorted(tmp_path.iterdir())]
    for kept, text in (
        (files[:1], "needs one .onnx file and its tokenizer.json"),
        (files, "cannot be loaded"),
    ):
        with pytest.raises(ConfigError, match=text):
            Onnx(Onnx.Config(models=[ModelCard(id="broken", kind="embedding", files=kept)]))
