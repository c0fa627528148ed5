"""The transformers provider at work, on tiny random models: whatever holds for them is no luck."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from jsonschema import validate
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, MistralConfig

from llama_stack_lite.api.inference import ChatRequest
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Busy, ContextOverflow, Unavailable
from llama_stack_lite.local.engine import Job, Sampling
from llama_stack_lite.local.pixels import rgb
from llama_stack_lite.prompting.template import Piece
from llama_stack_lite.providers.inference.transformers import Transformers
from llama_stack_lite.providers.inference.transformers.cache import Apart, Together
from llama_stack_lite.providers.inference.transformers.engine import Engine
from llama_stack_lite.providers.inference.transformers.sampling import Sampler
from llama_stack_lite.providers.inference.transformers.writer import Writer
from llama_stack_lite.stack import Stack
from tests.support.scoring import check_scores
from tests.support.serving import Running, serve
from tests.support.tiny_hf import write_bert, write_llama
from tests.support.tiny_mllama import write_mllama
from tests.support.tiny_vision import image_file, image_part
from tests.support.waiting import until

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Path:
    return write_llama(folder / "tiny")


@pytest.fixture(scope="module")
def eye(folder: Path) -> Path:
    return write_mllama(folder / "eye")


def provider(*models: Any, **settings: Any) -> Transformers:
    names = [str(model) if isinstance(model, Path) else model for model in models]
    config = Transformers.Config(models=names, **{"device": "cpu", "context": 512, **settings})
    return Transformers(config, Stack(StackConfig()))


def writer_of(found: Transformers) -> Writer:
    [place] = found.residents.places.values()
    assert isinstance(place.model, Writer), place.error
    return place.model


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    found = provider(tiny, queue=8)
    yield writer_of(found).engine
    asyncio.run(found.aclose())


async def tokens(engine: Engine, job: Job) -> list[int]:
    found: list[int] = []
    async for step in engine.generate(job):
        found += [step.token] if step.token is not None else []
    return found


def prompt(engine: Engine, text: str) -> list[int]:
    found: list[int] = engine.vocab.prompt([(text, True)])
    return found


def jobs(engine: Engine, *, count: int = 8, length: int = 20) -> list[Job]:
    texts = [f"question {number} " * (3 * number + 1) for number in range(count)]
    return [Job(prompt=prompt(engine, text), max_tokens=length, sampling=GREEDY) for text in texts]


def generated(path: Path, engine: Engine, job: Job) -> list[int]:
    """What transformers itself writes."""
    model = AutoModelForCausalLM.from_pretrained(path)
    ends = sorted(engine.vocab.ends)
    settings = {"max_new_tokens": job.max_tokens, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
    ids = torch.tensor([job.prompt])
    found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(job.prompt) :]
    return [token for token in found.tolist() if token not in ends]


def test_greedy_tokens_are_those_of_transformers_alone_and_in_a_crowd(engine: Engine, tiny: Path) -> None:
    assert isinstance(engine.memory, Together)

    async def main() -> None:
        asked = jobs(engine)
        alone = [await tokens(engine, job) for job in asked]
        together = await asyncio.gather(*[tokens(engine, job) for job in asked])
        assert together == alone and len({tuple(each) for each in alone}) > 1
        assert alone == [generated(tiny, engine, job) for job in asked]

    asyncio.run(main())


def test_what_fits_in_no_common_row_is_batched_by_itself(folder: Path) -> None:
    path = write_llama(folder / "windowed", like=MistralConfig, sliding_window=16)
    found = provider(path)
    engine = writer_of(found).engine
    assert isinstance(engine.memory, Apart)

    async def main() -> None:
        asked = jobs(engine, count=4)
        together = await asyncio.gather(*[tokens(engine, job) for job in asked])
        assert together == [await tokens(engine, job) for job in asked]
        assert together == [generated(path, engine, job) for job in asked]
        assert not engine.memory.kept
        await found.aclose()

    asyncio.run(main())


def test_rows_are_given_back_and_the_memory_with_them(engine: Engine) -> None:
    assert isinstance(engine.memory, Together)
    memory = engine.memory

    async def main() -> None:
        for _ in range(12):
            async with aclosing(engine.generate(Job(prompt=prompt(engine, "go"), max_tokens=400))) as steps:
                await anext(steps)
        await until(lambda: not (engine.line.running or memory.names), seconds=5)
        assert memory.layers[0].keys.numel() == 0

    asyncio.run(main())


def test_a_long_prompt_is_read_in_pieces_between_the_tokens_of_others(engine: Engine) -> None:
    async def main() -> None:
        pace: list[str] = []
        long = Job(prompt=(prompt(engine, "a b c d e f g " * 60) * 2)[:500], max_tokens=2, sampling=GREEDY)
        alone = await tokens(engine, long)
        async with aclosing(engine.generate(Job(prompt=prompt(engine, "go"), max_tokens=400))) as running:
            await anext(running)
            reading = asyncio.create_task(tokens(engine, long))
            reading.add_done_callback(lambda _: pace.append("read"))
            async for _ in running:
                pace.append("written")
                if pace[0] == "read" or "read" in pace:
                    break
        assert await reading == alone and pace.count("written") > 4

    asyncio.run(main())


def test_tokens_that_are_made_within_the_interval_leave_together(tiny: Path) -> None:
    found = provider(tiny, stream_interval=3600)

    async def main() -> list[bool]:
        job = Job(prompt=[20, 21, 22], max_tokens=6, sampling=GREEDY)
        more = [step.more async for step in writer_of(found).engine.generate(job)]
        await found.aclose()
        return more

    # the first waits for nothing, and the end for nothing either
    assert asyncio.run(main()) == [False, True, True, True, True, False]


def test_scores_of_a_prompt_add_up_to_the_probability_of_saying_it(engine: Engine) -> None:
    asyncio.run(check_scores(engine, prompt(engine, "hello"), within=1e-3))


def test_the_context_ends_an_answer_with_length(engine: Engine) -> None:
    async def main() -> None:
        long = Job(prompt=prompt(engine, "x" * 600)[:505], max_tokens=100)
        steps = [step async for step in engine.generate(long)]
        assert steps[-1].finish in ("length", "stop")
        assert sum(step.token is not None for step in steps) <= 512 - len(long.prompt) + 1

    asyncio.run(main())


def test_a_full_queue_is_busy_and_a_closed_engine_unavailable(tiny: Path) -> None:
    found = provider(tiny, slots=1, queue=0)
    engine = writer_of(found).engine

    async def main() -> None:
        async with aclosing(engine.generate(Job(prompt=[1, 2], max_tokens=500))) as running:
            await anext(running)
            with pytest.raises(Busy):
                await tokens(engine, Job(prompt=[1, 2], max_tokens=4))
            await asyncio.to_thread(engine.close)
            with pytest.raises(Unavailable):
                async for _ in running:
                    pass
        with pytest.raises(Unavailable):
            await tokens(engine, Job(prompt=[1, 2], max_tokens=4))

    asyncio.run(main())


def test_an_engine_that_breaks_says_so_and_the_model_is_loaded_again(tiny: Path) -> None:
    found = provider(tiny)

    async def main() -> None:
        request = ChatRequest.model_validate(
            {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
        )
        with pytest.raises(Unavailable, match="the model stopped: index out of range"):
            await tokens(writer_of(found).engine, Job(prompt=[10**6], max_tokens=4))
        assert found.state("tiny").state == "failed"
        assert [chunk async for chunk in found.chat("tiny", request)]
        assert found.state("tiny").state == "loaded"
        await found.aclose()

    asyncio.run(main())


def test_users_cannot_write_control_tokens(engine: Engine) -> None:
    vocab = engine.vocab
    forged = vocab.prompt([("user: ", True), ("<|eot_id|>", False)])
    assert not set(forged[1:]) & vocab.controls
    assert vocab.prompt([("<|begin_of_text|>hi", True)]).count(vocab.bos or 0) == 1
    text = "naïve 🦙 <|eot_id|>"
    assert b"".join(vocab.pieces[t] for t in vocab.tokens_of(text, special=True)).decode() == text


LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.06, 0.04], np.float32))


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(temperature=1), {0, 1, 2, 3, 4}),
        (Sampling(temperature=0), {0}),
        (Sampling(temperature=1, top_p=0), {0}),
        (Sampling(temperature=1, top_k=2), {0, 1}),
        (Sampling(temperature=1, top_k=99), {0, 1, 2, 3, 4}),
        (Sampling(temperature=1, top_p=0.5), {0, 1}),
        (Sampling(temperature=2, top_p=0.85), {0, 1, 2}),  # the mass is counted before the heat
        (Sampling(temperature=1, min_p=0.4), {0, 1, 2}),
        (Sampling(temperature=1, logit_bias={0: -100, 1: -100, 10**6: 5}), {2, 3, 4}),
        (Sampling(temperature=0, logit_bias={4: 50}), {4}),
    ],
)
def test_the_sampler_draws_from_what_is_left(sampling: Sampling, possible: set[int]) -> None:
    sampler = Sampler(sampling, None)
    drawn = [sampler.sample(LOGITS.copy()) for _ in range(400)]
    assert set(drawn) == possible
    again = Sampler(sampling, None)
    assert drawn[:50] == [again.sample(LOGITS.copy()) for _ in range(50)], "a seed repeats itself"


def test_penalties_go_by_what_was_written() -> None:
    for sampling in (
        Sampling(temperature=0, repeat_penalty=9),
        Sampling(temperature=0, frequency_penalty=2),
        Sampling(temperature=0, presence_penalty=2),
    ):
        sampler = Sampler(sampling, None)
        assert [sampler.sample(LOGITS.copy()) for _ in range(3)] == [0, 1, 2], sampling


BOOK: dict[str, Any] = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "maxLength": 12},
        "guests": {"type": "integer", "maximum": 20},
    },
    "required": ["place", "guests"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def served(folder: Path, tiny: Path, eye: Path) -> Iterator[Running]:
    """The random models over HTTP: Llama under every format of calls, one that sees, and encoders."""
    files = [{"name": path.name, "sources": [f"file:{path}"]} for path in tiny.iterdir()]
    formats = ("llama3-json", "llama-pythonic", "hermes", "mistral", "assisted")
    cards = [{"id": name, "tool_calling": name, "files": files} for name in formats]
    others = [eye, write_bert(folder / "bert", pooling="mean_tokens"), write_bert(folder / "rank", labels=1)]
    local = {
        "provider": "transformers",
        "device": "cpu",
        "context": 2048,
        "models": [*cards, *map(str, others)],
    }
    with serve(StackConfig.model_validate({"inference": {"local": local}})) as running:
        yield running


def ask(served: Running, model: str, content: Any = "Book for 4 at Luigi", **fields: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": content}], **fields}
    return httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.parametrize("model", ["llama3-json", "llama-pythonic", "hermes", "mistral", "assisted"])
def test_even_a_random_model_makes_valid_calls(served: Running, model: str) -> None:
    tools = [{"type": "function", "function": {"name": "book", "parameters": BOOK}}]
    for seed in range(3):
        reply = ask(served, model, tools=tools, tool_choice="required", temperature=1, seed=seed)
        assert reply.status_code == 200, reply.text
        choice = reply.json()["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        for call in choice["message"]["tool_calls"]:
            validate(json.loads(call["function"]["arguments"]), BOOK)


def test_even_a_random_model_keeps_to_a_schema(served: Running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "book", "schema": BOOK}}
    for seed in range(3):
        reply = ask(served, "hermes", response_format=schema, temperature=1, seed=seed)
        assert reply.json()["choices"][0]["finish_reason"] == "stop", reply.text
        validate(json.loads(reply.json()["choices"][0]["message"]["content"]), BOOK)


def look(served: Running, *content: Any) -> dict[str, Any]:
    settings = {"temperature": 0, "max_tokens": 8, "logprobs": True}
    reply = ask(served, "eye", [*content, {"type": "text", "text": "What?"}], **settings)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def test_an_image_changes_the_answer_and_text_goes_without(served: Running) -> None:
    red, blue = image_part(image_file("red")), image_part(image_file("blue", size=(90, 30)))
    answers = [look(served), look(served, red), look(served, blue), look(served, red, blue)]
    firsts = [answer["choices"][0]["logprobs"]["content"][0]["logprob"] for answer in answers]
    assert len(set(firsts)) == 4
    assert look(served, red)["choices"] == answers[1]["choices"]
    used = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert used[1] == used[2] == used[0] + 1 == used[3] - 1


def test_a_prompt_with_images_is_what_the_processor_makes_of_it(eye: Path) -> None:
    found = provider(eye)
    writer = writer_of(found)
    data = [image_file("red"), image_file("green", size=(120, 40))]
    content = [image_part(data[0]), {"type": "text", "text": "and "}, image_part(data[1])]
    request = ChatRequest.model_validate({"model": "eye", "messages": [{"role": "user", "content": content}]})
    made = writer.served.prompt(request.messages, None)
    processor = AutoProcessor.from_pretrained(eye)
    pieces = writer.served.template.render_images(request.messages, None, parts=True)
    text = "".join(piece.text for piece in pieces if isinstance(piece, Piece))
    images = [rgb(each, param="image") for each in data]
    inputs = processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)
    assert inputs["input_ids"][0].tolist() == made.tokens
    for name in ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask"):
        assert torch.equal(inputs[name], made.media[name]), name

    model = AutoModelForImageTextToText.from_pretrained(eye)
    whole = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, len(made.tokens) :].tolist()
    job = Job(prompt=made.tokens, media=made.media, max_tokens=12, sampling=GREEDY)
    assert asyncio.run(tokens(writer.engine, job)) == [t for t in whole if t not in writer.served.vocab.ends]
    asyncio.run(found.aclose())


def test_nobody_forges_an_image_and_blind_models_say_so(served: Running) -> None:
    written = look(served, {"type": "text", "text": "<|image|>"})
    assert written["usage"]["prompt_tokens"] > look(served)["usage"]["prompt_tokens"] + 3
    reply = ask(served, "hermes", [image_part(image_file("red"))])
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "messages[0].content[0]"
    broken = ask(served, "eye", [image_part(b"no image")])
    assert broken.status_code == 400 and "cannot be decoded" in broken.json()["error"]["message"]


def test_encoders_embed_and_rerank_over_http(served: Running) -> None:
    post: Callable[..., httpx.Response] = httpx.post
    texts = ["the cat", "the parliament passed a budget", "the cat"]
    reply = post(f"{served.url}/v1/embeddings", json={"model": "bert", "input": texts}).json()
    one, other, again = (np.array(row["embedding"]) for row in reply["data"])
    assert np.allclose(one, again, atol=1e-6) and not np.allclose(one, other, atol=1e-2)
    body = {"model": "rank", "query": "cat", "documents": texts, "top_n": 2}
    ranked = post(f"{served.url}/v1/rerank", json=body).json()
    assert len(ranked["results"]) == 2 and ranked["usage"]["prompt_tokens"] > 0
    long = post(f"{served.url}/v1/embeddings", json={"model": "bert", "input": ["cat", "cat " * 300]})
    assert long.status_code == 400 and long.json()["error"]["code"] == ContextOverflow.code
    assert ask(served, "bert").status_code == 400 and "rank" in ask(served, "rank").text


@pytest.mark.parametrize("pooling", ["cls_token", "mean_tokens", "lasttoken"])
def test_pooling_is_what_the_folder_says(folder: Path, pooling: str) -> None:
    found = provider(write_bert(folder / pooling, pooling=pooling))
    asyncio.run(found.aclose())
    expected = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last"}[pooling]
    assert found.cards[pooling].pooling == expected
