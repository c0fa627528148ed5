"""Tokens that leave together: which never wait, that nothing is lost or told otherwise, in fewer events."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import Unavailable
from llama_stack_lite.local import line
from llama_stack_lite.local.engine import Job, Sampling, Step
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine, Sequence
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from tests.support.serving import Running, serve
from tests.support.streams import events_of, folded
from tests.support.waiting import until

HOUR = 3600.0
GREEDY = Sampling(temperature=0)


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    """One that by the clock would send nothing but first tokens and ends."""
    loaded = Loaded(tiny, context=1024, slots=4, threads=1, batch=256)
    engine = Engine(loaded, slots=4, queue=8, interval=HOUR)
    yield engine
    engine.close()


@pytest.fixture
def departures(monkeypatch: pytest.MonkeyPatch) -> list[dict[line.Ticket, line.Delivery]]:
    """What left, and with what."""
    found: list[dict[line.Ticket, line.Delivery]] = []
    deliver = line.deliver

    def delivering(made: dict[line.Ticket, line.Delivery]) -> None:
        found.append(made)
        deliver(made)

    monkeypatch.setattr(line, "deliver", delivering)
    return found


def running(engine: Engine) -> list[Sequence]:
    return [slot.user for slot in engine.cache.slots if slot.user]


async def steps_of(engine: Engine, job: Job) -> list[Step]:
    async with aclosing(engine.generate(job)) as steps:
        return [step async for step in steps]


def test_the_first_token_and_the_end_wait_for_nothing(
    engine: Engine, departures: list[dict[line.Ticket, line.Delivery]]
) -> None:
    steps = asyncio.run(steps_of(engine, Job(prompt=[30, 31], max_tokens=8, sampling=GREEDY)))
    assert [len(steps) for made in departures for steps in made.values()] == [1, 7]
    assert [step.more for step in steps] == [False, *[True] * 6, False]
    assert steps[-1].finish == "length"


def test_tokens_leave_once_the_interval_is_over(tiny: Path) -> None:
    interval = 0.01
    loaded = Loaded(tiny, context=1024, slots=1, threads=1, batch=256)
    engine = Engine(loaded, slots=1, queue=8, interval=interval)

    async def main() -> list[float]:
        now = asyncio.get_running_loop().time
        async with aclosing(engine.generate(Job(prompt=[30, 31], max_tokens=900))) as steps:
            return [now() async for step in steps if not step.more]

    times = asyncio.run(main())
    engine.close()
    # the first, the end, and one that was seen late on a busy machine
    assert 4 < len(times) < (times[-1] - times[0]) / interval + 3


@pytest.mark.parametrize(
    ("interval", "running", "seconds"), [(0.03, 1, 0.03), (0.03, 16, 0.08), (0.03, 99, 0.1), (0.0, 16, 0.0)]
)
def test_the_more_run_the_longer_the_interval(interval: float, running: int, seconds: float) -> None:
    many: line.Line[Any] = line.Line(slots=running, queue=0, free=lambda _: None, interval=interval)
    many.running = [object()] * running
    assert many._interval() == pytest.approx(seconds)


def test_nothing_is_kept_back_while_a_prompt_is_read(engine: Engine) -> None:
    async def main() -> int:
        seen = 0
        async with aclosing(engine.generate(Job(prompt=[30, 31], max_tokens=900, sampling=GREEDY))) as steps:
            await anext(steps)
            [writer] = running(engine)
            await until(lambda: writer.made > 5, pause=0.001)
            reading = asyncio.create_task(steps_of(engine, Job(prompt=[40] * 300, max_tokens=1)))
            while (await anext(steps)).more:
                seen += 1
            await reading
        return seen

    assert 3 < asyncio.run(main()) < 800


def test_what_was_kept_back_comes_before_an_error(engine: Engine) -> None:
    async def main() -> None:
        found: list[Step] = []
        async with aclosing(engine.generate(Job(prompt=[30, 31], max_tokens=900, sampling=GREEDY))) as steps:
            found.append(await anext(steps))
            [writer] = running(engine)
            await until(lambda: writer.made > 5, pause=0.001)
            await asyncio.to_thread(engine.close)
            with pytest.raises(Unavailable):
                async for step in steps:
                    found.append(step)
        assert len(found) == writer.made > 5 and not found[-1].more

    asyncio.run(main())


@pytest.fixture(scope="module")
def pair(tiny: Path) -> Iterator[tuple[Running, Running]]:
    """The same random model, with each token on its own and with all together."""

    def config(interval: float) -> StackConfig:
        card = {
            "id": "tiny",
            "tool_calling": "assisted",
            "files": [{"name": "tiny.gguf", "sources": [f"file:{tiny}"]}],
        }
        local = {"provider": "llama-cpp", "models": [card], "threads": 1, "stream_interval": interval}
        return StackConfig.model_validate({"inference": {"local": local}})

    with serve(config(0)) as one_by_one, serve(config(HOUR)) as together:
        yield one_by_one, together


TOOL = {
    "type": "function",
    "function": {
        "name": "book",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "minLength": 20, "maxLength": 30}},
            "required": ["place"],
        },
    },
}
CHATS: dict[str, dict[str, Any]] = {
    "text": {},
    "scored": {"logprobs": True, "top_logprobs": 2},
    "two choices": {"n": 2},
    "stopped": {"stop": ["laz", "Paris"]},
    "a call": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 200},
}
COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {},
    "scored": {"logprobs": 2},
    "echoed": {"echo": True, "logprobs": 1},
    "stopped": {"stop": ["laz", "Paris"]},
}


def ask(running: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    streamed = body | {"model": "tiny", "seed": 5, "stream": True, "stream_options": {"include_usage": True}}
    reply = httpx.post(f"{running.url}/v1/{path}", json=streamed, timeout=60)
    assert reply.status_code == 200, reply.text
    events = events_of(reply.text)
    assert events[-1]["usage"]
    return events


@pytest.mark.parametrize("asked", CHATS)
def test_a_chat_says_the_same_in_fewer_events(pair: tuple[Running, Running], asked: str) -> None:
    body = {"messages": [{"role": "user", "content": "Book me a table"}], "max_tokens": 40, **CHATS[asked]}
    compare(pair, "chat/completions", body, choices=body.get("n", 1))


@pytest.mark.parametrize("asked", COMPLETIONS)
def test_a_completion_says_the_same_in_fewer_events(pair: tuple[Running, Running], asked: str) -> None:
    body = {"prompt": "A table by the window", "max_tokens": 40, **COMPLETIONS[asked]}
    compare(pair, "completions", body, choices=1)


def compare(pair: tuple[Running, Running], path: str, body: dict[str, Any], *, choices: int) -> None:
    one_by_one, together = (ask(running, path, body) for running in pair)
    assert folded(together) == folded(one_by_one)
    # of each choice its first token and the rest; an echo is a third
    assert len(together) <= 3 * choices + 1
    assert len(one_by_one) > 2 * len(together)
