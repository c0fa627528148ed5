"""What every provider of inference must do: subclass `InferenceConformance`, return yours from `provider`."""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest

from llama_stack_lite.api.inference import ChatChunk, ChatRequest, Completion, CompletionRequest, Inference
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ContextOverflow, StackError

C = TypeVar("C", ChatChunk, Completion)

QUERY = "where does the cat sleep"
DOCUMENTS = [
    "the parliament passed a budget",
    "the cat sleeps on the sofa",
    "a text that is longer than the others, and tells of something else " * 2,
    "the cat",
]
TEXTS = [
    "a cat",
    "The parliament passed a budget, and the cat sleeps on: 3.14159 - quite soundly.",
    "Caf\u00e9 na\u00efve \u00dcber stra\u00dfe; Cafe\u0301 with an accent of its own",
    "\u732b\u306f\u30bd\u30d5\u30a1\u3067\u5bdd\u308b\u3002\uace0\uc591\uc774\uac00 \uc794\ub2e4",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 a family, \U0001f1eb\U0001f1f7 a flag, \U0001f44d\U0001f3fd",
    "\u0627\u0644\u0642\u0637\u0629 \u0938\u094b \u0e41\u0e21\u0e27\u0e19\u0e2d\u0e19 \u0130stanbul",
    "  blanks \t\n\n around,\r\nand\u00a0between\u2003them \n",
    "<s> [CLS] <|im_end|> are words of a text",
    "x" * 100,
    ".",
]
PROMPT_SECONDS = 1.0  # within which a provider has to let go of what nobody waits for


@dataclass(frozen=True, slots=True)
class Subject:
    """The provider under test, and one of its models."""

    provider: Inference
    card: ModelCard
    prompt: str

    def request(self, content: str | list[dict[str, Any]] | None = None, **fields: Any) -> ChatRequest:
        messages = [{"role": "user", "content": self.prompt if content is None else content}]
        fields = {"max_tokens": 16, "temperature": 0, **fields}
        return ChatRequest.model_validate({"model": "any", "messages": messages, **fields})

    async def chat(self, request: ChatRequest) -> list[ChatChunk]:
        return await _all(self.provider.chat(self.card.id, request))

    async def complete(self, **fields: Any) -> list[Completion]:
        fields = {"model": "any", "max_tokens": 16, "temperature": 0, **fields}
        request = CompletionRequest.model_validate(fields)
        return await _all(self.provider.complete(self.card.id, request))


Check = Callable[[Any, Subject], Awaitable[None]]


def of(kind: str) -> Callable[[Check], Callable[["InferenceConformance"], None]]:
    """Make a test of an async check; it is skipped where no model is of that kind."""

    def decorate(check: Check) -> Callable[["InferenceConformance"], None]:
        # no functools.wraps: pytest would take the check's parameters for fixtures
        def test(self: "InferenceConformance") -> None:
            asyncio.run(self.run(kind, check))

        test.__name__, test.__qualname__, test.__doc__ = check.__name__, check.__qualname__, check.__doc__
        return test

    return decorate


class InferenceConformance:
    """Every test builds a provider of its own, asks it, and closes it.

    `prompt` should make the model write at least twenty tokens. Where answers at temperature 0 are not the
    same each time, set `deterministic = False`.
    """

    chat_model: str | None = None
    embedding_model: str | None = None
    rerank_model: str | None = None
    prompt = "Count from one to forty in English words."
    deterministic = True
    timeout = 120.0  # seconds for each test

    def provider(self) -> Inference:
        """Return a new provider."""
        raise NotImplementedError("return a new provider from `provider()`")

    async def run(self, kind: str, check: Check) -> None:
        provider = self.provider()
        try:
            async with asyncio.timeout(self.timeout):
                card = self._card(await provider.models(), kind)
                await check(self, Subject(provider, card, self.prompt))
        finally:
            if close := getattr(provider, "aclose", None):
                await close()

    def _card(self, cards: list[ModelCard], kind: str) -> ModelCard:
        named = {"chat": self.chat_model, "embedding": self.embedding_model, "rerank": self.rerank_model}
        wanted = named.get(kind)
        for card in cards:
            if kind in (card.kind, "any") and wanted in (None, card.id):
                return card
        if wanted:
            pytest.fail(f"no {kind} model `{wanted}` among {[card.id for card in cards]}")
        pytest.skip(f"serves no {kind} model")

    @of("any")
    async def test_cards_say_what_the_provider_can(self, subject: Subject) -> None:
        cards = await subject.provider.models()
        assert len({card.id for card in cards}) == len(cards), "two models have one id"
        for card in cards:
            ModelCard.model_validate(card.model_dump())
            needed = {"embedding": "embed"}.get(card.kind, card.kind)
            assert hasattr(subject.provider, needed), (
                f"{card.id} is of kind {card.kind}; `{needed}` is missing"
            )

    @of("chat")
    async def test_a_chat_is_chunks_then_usage(self, subject: Subject) -> None:
        chunks = await subject.chat(subject.request())
        assert all(isinstance(chunk, ChatChunk) for chunk in chunks), "only ChatChunks are yielded"
        _check_stream(chunks, choices=1)
        assert _text(chunks), "the answer is empty"

    @of("chat")
    async def test_a_prompt_is_counted_as_the_usage_counts_it(self, subject: Subject) -> None:
        chunks = await subject.chat(subject.request())
        usage = chunks[-1].usage
        assert usage, "the last chunk has the usage"
        told = {chunk.prompt_tokens for chunk in chunks} - {None}
        assert told <= {usage.prompt_tokens}, f"{told} tokens were told of, then {usage.prompt_tokens}"
        if hasattr(subject.provider, "count"):
            counted = await subject.provider.count(subject.card.id, subject.request())
            assert counted == usage.prompt_tokens, f"`count` says {counted}, the usage {usage.prompt_tokens}"

    @of("chat")
    async def test_the_role_comes_first_and_once(self, subject: Subject) -> None:
        chunks = await subject.chat(subject.request(n=2))
        for index in range(2):
            deltas = [c.delta for chunk in chunks for c in chunk.choices if c.index == index]
            assert deltas[0].get("role") == "assistant", "the first delta of a choice has the role"
            assert all(not delta.get("role") for delta in deltas[1:]), "the role is said once"

    @of("chat")
    async def test_n_choices(self, subject: Subject) -> None:
        _check_stream(await subject.chat(subject.request(n=3)), choices=3)

    @of("chat")
    async def test_a_token_limit_ends_with_length(self, subject: Subject) -> None:
        for limit in ({"max_tokens": 2}, {"max_tokens": None, "max_completion_tokens": 2}):
            chunks = await subject.chat(subject.request(**limit))
            assert _finishes(chunks) == {0: ["length"]}, f"{limit} has to end with `length`"
            usage = chunks[-1].usage
            assert usage and usage.completion_tokens <= 2, f"{limit}, but {usage} was written"

    @of("chat")
    async def test_a_stop_string_ends_the_answer_before_it(self, subject: Subject) -> None:
        text = _text(await subject.chat(subject.request()))
        assert len(text) > 6, f"{text!r} is too short to stop in: set `prompt`"
        stop = text[len(text) // 2 :][:3]
        chunks = await subject.chat(subject.request(stop=[stop, "not in any answer"]))
        said = _text(chunks)
        assert stop not in said, f"the stop string {stop!r} is in {said!r}"
        named = {choice.stop_reason for chunk in chunks for choice in chunk.choices} - {None}
        assert named <= {stop}, f"stopped at {stop!r}, and says {named}"
        if self.deterministic:
            assert said == text[: text.find(stop)], f"{said!r} is not {text!r} up to {stop!r}"
            assert _finishes(chunks) == {0: ["stop"]}, "a stop string ends with `stop`"

    @of("chat")
    async def test_a_request_is_read_and_not_edited(self, subject: Subject) -> None:
        request = subject.request(stop=["@@"], n=2)
        before = request.model_copy(deep=True)
        await subject.chat(request)
        assert request == before and request.model_fields_set == before.model_fields_set

    @of("chat")
    async def test_closing_a_stream_stops_it(self, subject: Subject) -> None:
        chunks = subject.provider.chat(subject.card.id, subject.request(max_tokens=None))
        await anext(chunks)
        started = time.monotonic()
        await chunks.aclose()
        assert time.monotonic() - started < PROMPT_SECONDS, "closing the generator took too long"
        _check_stream(await subject.chat(subject.request()), choices=1)

    @of("chat")
    async def test_cancelling_a_reader_stops_it(self, subject: Subject) -> None:
        reading = asyncio.create_task(subject.chat(subject.request(max_tokens=None)))
        await asyncio.sleep(0.05)
        reading.cancel()
        started = time.monotonic()
        await asyncio.wait([reading])
        assert time.monotonic() - started < PROMPT_SECONDS, "a cancelled reader was not let go"
        _check_stream(await subject.chat(subject.request()), choices=1)

    @of("chat")
    async def test_concurrent_requests_do_not_mix(self, subject: Subject) -> None:
        requests = [subject.request("word " * count + self.prompt, max_tokens=6) for count in range(1, 7)]
        alone = [await subject.chat(request) for request in requests]
        together = await asyncio.gather(*map(subject.chat, requests))
        for one, other in zip(alone, together, strict=True):
            _check_stream(other, choices=1)
            assert _prompt_tokens(one) == _prompt_tokens(other), "another request's prompt was counted"
            if self.deterministic:
                assert _text(one) == _text(other), "a concurrent request was answered differently"

    @of("chat")
    async def test_only_stack_errors_escape(self, subject: Subject) -> None:
        pixel = "data:image/png;base64,AAAA"
        odd_tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}
        for request in (
            subject.request(""),
            subject.request([{"type": "image_url", "image_url": {"url": pixel}}]),
            subject.request([{"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}]),
            subject.request("\0\ud7ff\U0010ffff <|im_end|> <|eot_id|>"),
            subject.request(tools=[odd_tool], tool_choice="auto"),
            subject.request(logit_bias={"no token": 1}),
            subject.request(no_such_field={"deep": [1]}),
        ):
            await _answered_or_refused(subject.chat(request))

    @of("chat")
    async def test_an_unknown_model_is_refused(self, subject: Subject) -> None:
        with pytest.raises(StackError) as refused:
            await _all(subject.provider.chat("no/such-model", subject.request()))
        assert 400 <= refused.value.status < 500, "it is the request that is wrong"

    @of("chat")
    async def test_a_prompt_beyond_the_context_is_refused(self, subject: Subject) -> None:
        limit = subject.card.context_length
        if limit is None or limit > 32768:
            pytest.skip("the card gives no context length to exceed")
        with pytest.raises(StackError) as refused:
            await subject.chat(subject.request("word " * (limit + 1)))
        assert refused.value.code == ContextOverflow.code, "a prompt is never cut off silently"

    @of("chat")
    async def test_plain_completions(self, subject: Subject) -> None:
        if not hasattr(subject.provider, "complete"):
            pytest.skip("has no `complete`")
        chunks = await subject.complete(prompt=[self.prompt, "Once upon a time"], n=2)
        assert all(isinstance(chunk, Completion) for chunk in chunks), "only Completions are yielded"
        _check_stream(chunks, choices=4)

    @of("embedding")
    async def test_embeddings_are_finite_and_in_order(self, subject: Subject) -> None:
        texts = ["A cat sleeps on the sofa.", "The parliament passed a budget.", "A cat sleeps on the sofa."]
        found = await subject.provider.embed(subject.card.id, texts)
        dimension = subject.card.embedding_dimension or len(found.vectors[0])
        assert [len(vector) for vector in found.vectors] == [dimension] * 3, "a vector has the wrong length"
        assert all(math.isfinite(value) for vector in found.vectors for value in vector)
        assert found.prompt_tokens > 0, "the tokens read are counted"
        cat, budget, again = found.vectors
        assert _cosine(cat, again) > 0.99 > _cosine(cat, budget), "vectors are not in the order of the texts"

    @of("embedding")
    async def test_a_text_alone_and_in_a_batch_is_the_same(self, subject: Subject) -> None:
        texts = ["short", "a text that is rather longer than the other " * 4, "middling length here"]
        together = await subject.provider.embed(subject.card.id, texts)
        for text, vector in zip(texts, together.vectors, strict=True):
            alone = await subject.provider.embed(subject.card.id, [text])
            assert _cosine(alone.vectors[0], vector) > 0.98, f"{text[:20]!r} changes with its neighbours"

    @of("embedding")
    async def test_embeddings_that_cannot_be_made_are_refused(self, subject: Subject) -> None:
        embed, model = subject.provider.embed, subject.card.id
        await _answered_or_refused(embed(model, [[1, 2, 3]]))
        with pytest.raises(StackError):
            await embed("no/such-model", ["text"])
        if subject.card.embedding_dimension:
            with pytest.raises(StackError):
                await embed(model, ["text"], dimensions=subject.card.embedding_dimension + 1)

    @of("embedding")
    async def test_tokens_begin_where_they_are_said_to(self, subject: Subject) -> None:
        if not hasattr(subject.provider, "token_starts"):
            pytest.skip("says not where tokens begin")
        model = subject.card.id
        found = await subject.provider.token_starts(model, TEXTS)
        assert len(found) == len(TEXTS), "every text has its tokens"
        for text, starts in zip(TEXTS, found, strict=True):
            counted = (await subject.provider.embed(model, [text])).prompt_tokens
            assert len(starts) == counted, f"{text!r}: {len(starts)} tokens begin, and {counted} are read"
            assert starts == sorted(starts), f"{text!r}: the places do not ascend"
            assert all(0 <= start <= len(text) for start in starts), f"{text!r}: {starts} are outside"
        [nothing], [long] = [await subject.provider.token_starts(model, [t]) for t in ("", "word " * 9000)]
        assert len(nothing) <= len(found[0]), "a text of nothing has only special tokens"
        words = {start for start in long if start % 5 == 0}
        assert len(words) >= 9000, "the tokens of a long text do not begin where its words do"
        with pytest.raises(StackError):
            await subject.provider.token_starts("no/such-model", ["text"])

    @of("rerank")
    async def test_scores_are_from_0_to_1_and_in_the_order_of_the_documents(self, subject: Subject) -> None:
        found = await subject.provider.rerank(subject.card.id, QUERY, DOCUMENTS)
        assert len(found.scores) == len(DOCUMENTS), "every document has a score"
        assert all(0 <= score <= 1 for score in found.scores), f"{found.scores} are no scores"
        assert len(set(found.scores)) > 1, "all documents have the same score"
        assert found.prompt_tokens > 0, "the tokens read are counted"
        backwards = await subject.provider.rerank(subject.card.id, QUERY, DOCUMENTS[::-1])
        assert _near(found.scores, backwards.scores[::-1]), "scores do not follow their documents"

    @of("rerank")
    async def test_a_document_alone_and_among_others_has_one_score(self, subject: Subject) -> None:
        together = await subject.provider.rerank(subject.card.id, QUERY, DOCUMENTS)
        for document, score in zip(DOCUMENTS, together.scores, strict=True):
            alone = await subject.provider.rerank(subject.card.id, QUERY, [document])
            assert _near(alone.scores, [score]), f"{document[:20]!r} changes with its neighbours"

    @of("rerank")
    async def test_documents_that_cannot_be_ranked_are_refused(self, subject: Subject) -> None:
        rerank, model, limit = subject.provider.rerank, subject.card.id, subject.card.context_length
        with pytest.raises(StackError) as refused:
            await rerank("no/such-model", QUERY, DOCUMENTS)
        assert 400 <= refused.value.status < 500, "it is the request that is wrong"
        if limit is not None and limit <= 32768:
            with pytest.raises(StackError) as refused:
                await rerank(model, QUERY, [*DOCUMENTS, "word " * (limit + 1)])
            assert refused.value.code == ContextOverflow.code, "a document is never cut off silently"


async def _all(chunks: AsyncGenerator[C, None]) -> list[C]:
    async with aclosing(chunks):
        return [chunk async for chunk in chunks]


async def _answered_or_refused(work: Awaitable[Any]) -> None:
    try:
        await work
    except StackError as error:
        assert str(error), "an error says what is wrong"


def _check_stream(chunks: Sequence[ChatChunk | Completion], *, choices: int) -> None:
    """One finish for each choice and nothing behind it; then the usage, alone."""
    finishes = _finishes(chunks)
    assert sorted(finishes) == list(range(choices)), f"choices {sorted(finishes)} instead of {choices}"
    for index, found in finishes.items():
        assert len(found) == 1, f"choice {index} finished {len(found)} times"
        last = [choice for chunk in chunks for choice in chunk.choices if choice.index == index][-1]
        assert last.finish_reason, f"choice {index} goes on after its end"
    usage = chunks[-1].usage
    assert usage and not chunks[-1].choices, "the last chunk has the usage and no choices"
    assert not any(chunk.usage for chunk in chunks[:-1]), "usage is in the last chunk only"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens > 0, f"{usage} does not add up"


def _finishes(chunks: Sequence[ChatChunk | Completion]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            reasons = found.setdefault(choice.index, [])
            reasons += [choice.finish_reason] if choice.finish_reason else []
    return found


def _text(chunks: list[ChatChunk]) -> str:
    return "".join(choice.delta.get("content") or "" for chunk in chunks for choice in chunk.choices)


def _prompt_tokens(chunks: list[ChatChunk]) -> int:
    usage = chunks[-1].usage
    return usage.prompt_tokens if usage else 0


def _near(some: list[float], others: list[float]) -> bool:
    return all(abs(one - other) < 0.01 for one, other in zip(some, others, strict=True))


def _cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / (math.hypot(*one) * math.hypot(*other))
