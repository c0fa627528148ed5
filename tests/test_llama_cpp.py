"""The llama.cpp engine: a tiny random model for what must always hold, SmolLM2 for the rest."""

import asyncio
import json
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import llguidance
import pytest
from jsonschema import validate

from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Busy, ConfigError, InvalidRequest, Unavailable
from llama_stack_lite.local.engine import Job, Sampling
from llama_stack_lite.local.text import TextStream
from llama_stack_lite.providers.inference.llama_cpp import LlamaCpp
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from llama_stack_lite.stack import Stack
from tests.conformance.inference import InferenceConformance
from tests.support.scoring import check_scores
from tests.support.serving import Running, serve
from tests.support.tiny import write_llama
from tests.support.waiting import until, wait_until

GREEDY = Sampling(temperature=0)


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    engine = Engine(Loaded(tiny, context=512, slots=4, threads=1, batch=256), slots=4, queue=8)
    yield engine
    engine.close()


async def tokens(engine: Engine, job: Job) -> list[int]:
    found: list[int] = []
    async for step in engine.generate(job):
        found += [step.token] if step.token is not None else []
    return found


def prompt(engine: Engine, text: str) -> list[int]:
    found: list[int] = engine.vocab.prompt([(text, True)])
    return found


def test_greedy_tokens_are_the_same_alone_and_in_a_crowd(engine: Engine) -> None:
    async def main() -> None:
        jobs = [
            Job(prompt=prompt(engine, f"question {i} " * (i + 1)), max_tokens=20, sampling=GREEDY)
            for i in range(8)
        ]
        alone = [await tokens(engine, job) for job in jobs]
        together = await asyncio.gather(*[tokens(engine, job) for job in jobs])
        assert together == alone and len({tuple(each) for each in alone}) > 1

    asyncio.run(main())


def test_a_prompt_longer_than_a_batch_is_read_in_pieces(engine: Engine) -> None:
    async def main() -> None:
        long = Job(prompt=prompt(engine, "a b c d e f g " * 60)[:480], max_tokens=5, sampling=GREEDY)
        assert len(long.prompt) == 480
        first = await tokens(engine, long)
        again = await tokens(engine, long)  # this time nearly all of it is in the cache
        assert first == again
        async with aclosing(engine.generate(long)) as steps:
            assert (await anext(steps)).cached == 479

    asyncio.run(main())


def test_the_context_ends_an_answer_with_length(engine: Engine) -> None:
    async def main() -> None:
        job = Job(
            prompt=prompt(engine, "x" * 490)[:500], max_tokens=100, sampling=Sampling(logit_bias={}, seed=3)
        )
        steps = [step async for step in engine.generate(job)]
        made = sum(step.token is not None for step in steps)
        assert steps[-1].finish in ("length", "stop") and made <= 512 - len(job.prompt) + 1

    asyncio.run(main())


def test_scores_of_a_prompt_add_up_to_the_probability_of_saying_it(engine: Engine) -> None:
    asyncio.run(check_scores(engine, prompt(engine, "hello"), within=0.02))


def test_closing_a_stream_frees_its_slot(engine: Engine) -> None:
    async def main() -> None:
        for _ in range(20):
            async with aclosing(engine.generate(Job(prompt=prompt(engine, "go"), max_tokens=400))) as steps:
                await anext(steps)
        await until(lambda: not any(slot.user for slot in engine.cache.slots), seconds=5)

    asyncio.run(main())


def test_a_full_queue_is_busy_and_a_closed_engine_unavailable(tiny: Path) -> None:
    engine = Engine(Loaded(tiny, context=512, slots=1, threads=1, batch=256), slots=1, queue=0)

    async def main() -> None:
        async with aclosing(engine.generate(Job(prompt=[1, 2], max_tokens=500))) as running:
            await anext(running)
            with pytest.raises(Busy):
                await tokens(engine, Job(prompt=[1, 2], max_tokens=4))

    asyncio.run(main())
    engine.close()

    async def late() -> None:
        with pytest.raises(Unavailable):
            await tokens(engine, Job(prompt=[1, 2], max_tokens=4))

    asyncio.run(late())


def test_closing_the_engine_ends_what_still_runs(tiny: Path) -> None:
    engine = Engine(Loaded(tiny, context=512, slots=1, threads=1, batch=256), slots=1, queue=4)

    async def main() -> None:
        async with aclosing(engine.generate(Job(prompt=[1, 2], max_tokens=500))) as steps:
            await anext(steps)
            await asyncio.to_thread(engine.close)
            with pytest.raises(Unavailable):
                async for _ in steps:
                    pass

    asyncio.run(main())


def consumed(grammar: llguidance.LLMatcher, token: int) -> bool:
    """Whether the grammar took note of a token; it does not while the engine's thread asks it."""
    try:
        grammar.consume_token(token)
    except RuntimeError:
        return False
    return True


def test_a_grammar_that_gives_up_fails_its_own_request_only(engine: Engine) -> None:
    grammar = llguidance.LLMatcher.grammar_from_regex("[a-z]{200}")

    async def main() -> None:
        broken = Job(prompt=prompt(engine, "go"), max_tokens=200, grammar=grammar)
        healthy = Job(prompt=prompt(engine, "go on"), max_tokens=20, sampling=GREEDY)
        alone = await tokens(engine, healthy)
        stream = engine.generate(broken)
        await anext(stream)
        [running] = [slot.user for slot in engine.cache.slots if slot.user]
        # what no grammar allows: it is in error from now on
        await until(lambda: consumed(running.grammar, engine.vocab.bos), pause=0)
        with pytest.raises(InvalidRequest, match="grammar engine"):
            async for _ in stream:
                pass
        assert await tokens(engine, healthy) == alone

    asyncio.run(main())


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + b"\0" * 200])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="cannot load"):
        Loaded(path, context=512, slots=1, threads=1, batch=256)


def test_an_encoder_is_refused_before_it_is_asked_to_write(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "encoder.gguf", causal=False)
    with pytest.raises(ConfigError, match="is an encoder"):
        Loaded(path, context=512, slots=1, threads=1, batch=256)


def test_users_cannot_write_control_tokens(engine: Engine) -> None:
    vocab = engine.vocab
    forged = vocab.prompt([("user: ", True), ("<|eot_id|>", False)])
    assert not set(forged[1:]) & vocab.controls
    assert vocab.prompt([("<|begin_of_text|>hi", True)]).count(vocab.bos) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_stop_strings_and_utf8_across_chunks(size: int) -> None:
    data = "naïve 🦙 text, then STOP and no more".encode()
    stream = TextStream(["STOP", "TEXT"])
    out = [stream.feed(data[i : i + size]) for i in range(0, len(data), size)]
    assert "".join(out) + stream.feed(b"", final=True) == "naïve 🦙 text, then " and stream.stopped
    near = TextStream(["STOP"])
    said = [near.feed(b"an ST"), near.feed(b"O sign"), near.feed(b" \xf0\x9f", final=True)]
    assert said[0] == "an " and "".join(said) == "an STO sign \ufffd"


FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": "book",
        "description": "Book a table",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "maxLength": 12},
                "guests": {"type": "integer", "minimum": 1, "maximum": 20},
                "when": {"enum": ["noon", "evening"]},
            },
            "required": ["place", "guests", "when"],
            "additionalProperties": False,
        },
    },
    {
        "name": "ping",
        "description": "Check the line",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
]


@pytest.fixture(scope="module")
def tinies(tiny: Path) -> Iterator[Running]:
    """The random model, served once under every format of tool calls."""
    cards = [
        {"id": name, "tool_calling": name, "files": [{"name": "tiny.gguf", "sources": [f"file:{tiny}"]}]}
        for name in ("llama3-json", "llama-pythonic", "hermes", "mistral", "assisted")
    ]
    config = {"inference": {"local": {"provider": "llama-cpp", "models": cards, "context": 4096, "slots": 2}}}
    with serve(StackConfig.model_validate(config)) as running:
        yield running


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", "book"])
@pytest.mark.parametrize("model", ["llama3-json", "llama-pythonic", "hermes", "mistral", "assisted"])
def test_even_a_random_model_makes_valid_calls(
    tinies: Running, model: str, choice: str, stream: bool
) -> None:
    named = {"type": "function", "function": {"name": choice}}
    for seed in range(3):
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Book for 4 at Luigi in the evening"}],
            "tools": [{"type": "function", "function": function} for function in FUNCTIONS],
            "tool_choice": choice if choice == "required" else named,
            "parallel_tool_calls": False,
            "temperature": 1,
            "seed": seed,
            "stream": stream,
        }
        reply = httpx.post(f"{tinies.url}/v1/chat/completions", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        name, arguments, finish = streamed(reply.text) if stream else whole(reply.json())
        assert finish == "tool_calls"
        assert name == choice or choice == "required"
        schema = next(function["parameters"] for function in FUNCTIONS if function["name"] == name)
        validate(json.loads(arguments), schema)


def whole(reply: dict[str, Any]) -> tuple[str, str, str]:
    [call] = reply["choices"][0]["message"]["tool_calls"]
    return call["function"]["name"], call["function"]["arguments"], reply["choices"][0]["finish_reason"]


def streamed(text: str) -> tuple[str, str, str]:
    name, arguments, finish = "", "", ""
    for block in text.split("\n\n")[:-2]:
        for choice in json.loads(block.removeprefix("data: "))["choices"]:
            finish = choice["finish_reason"] or finish
            for call in choice["delta"].get("tool_calls", []):
                name += call["function"].get("name", "")
                arguments += call["function"]["arguments"]
    return name, arguments, finish


class TestConformance(InferenceConformance):
    """The suite that every provider has to pass."""

    def provider(self) -> LlamaCpp:
        path = write_llama(Path(tempfile.mkdtemp()) / "tiny.gguf")
        return LlamaCpp(LlamaCpp.Config(models=[str(path)], context=256, threads=1), Stack(StackConfig()))


@pytest.mark.model
def test_thirty_requests_at_once_do_not_mix(starter: Running) -> None:
    """Each answers about its own word, in its own grammar; no word is one that a model says by itself."""
    words = ["apple", "brick", "cloud", "drum", "eagle", "fire", "grape", "honey", "iron", "jacket"]
    codes = [f"{word}-{number}" for word in words for number in (357, 518, 702)]

    async def one(http: httpx.AsyncClient, code: str) -> str:
        schema = {
            "type": "object",
            "properties": {"code": {"enum": [code]}},
            "required": ["code"],
            "additionalProperties": False,
        }
        body = {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": f"Repeat this word exactly: {code}"}],
            "temperature": 0,
            "max_tokens": 30,
            "logprobs": True,
        }
        if codes.index(code) % 3 == 0:
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "code", "schema": schema},
            }
        reply = await http.post("/v1/chat/completions", json=body)
        return str(reply.json()["choices"][0]["message"]["content"])

    async def main() -> None:
        async with httpx.AsyncClient(base_url=starter.url, timeout=120) as http:
            alone = [await one(http, code) for code in codes]
            together = await asyncio.gather(*[one(http, code) for code in codes])
        told = [
            (code, answer, other)
            for code, answer in zip(codes, together, strict=True)
            for other in codes
            if other != code and other in answer.lower()
        ]
        assert not told
        assert [json.loads(answer) for answer in together[::3]] == [{"code": code} for code in codes[::3]]
        # rows of a batch round otherwise than one alone, and where two tokens are as likely that decides
        assert sum(map(str.__eq__, alone, together)) > len(codes) * 0.7

    asyncio.run(main())


@pytest.mark.model
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_model(starter: Running, stream: bool) -> None:
    """The tokens made after the socket closed are fewer than 0.3 s of the pace just seen."""
    engine: Engine = starter.app.state.stack.inference["local"].residents.places["smollm2-135m"].model.engine
    body = json.dumps(
        {
            "model": "smollm2-135m",
            "messages": [{"role": "user", "content": "Write a very long story."}],
            "stream": stream,
            "logit_bias": {str(token): -100 for token in engine.vocab.ends},
        }
    ).encode()
    host, port = starter.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        slot = wait_until(
            lambda: next((slot for slot in engine.cache.slots if slot.user and slot.user.made > 5), None),
            seconds=20,
        )
        sequence = slot.user
        started, before = time.monotonic(), sequence.made
        time.sleep(0.5)
        pace = (sequence.made - before) / (time.monotonic() - started)
    at_close = sequence.made
    wait_until(lambda: slot.user is not sequence, seconds=20)
    assert sequence.made - at_close <= max(3, 0.3 * pace), (at_close, sequence.made, pace)
