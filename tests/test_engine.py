"""The llama.cpp engine from inside: prefixes, fairness, adapters, cancelling; all on a tiny random model."""

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any
from weakref import WeakSet

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from llama_stack_lite.client import client
from llama_stack_lite.errors import Busy
from llama_stack_lite.local import line
from llama_stack_lite.local.engine import Job, Sampling, Step
from llama_stack_lite.providers.inference.llama_cpp.batch import BATCH, LEAST, Pace
from llama_stack_lite.providers.inference.llama_cpp.cache import Cache, common
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from llama_stack_lite.providers.inference.llama_cpp.threads import Threads
from tests.support.waiting import until

GREEDY = Sampling(temperature=0)


def engine_of(path: Path, *, slots: int = 4, queue: int = 64, context: int = 1024) -> Engine:
    return Engine(
        Loaded(path, context=context, slots=slots, threads=1, batch=BATCH),
        slots=slots,
        queue=queue,
    )


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    engine = engine_of(tiny)
    yield engine
    engine.close()


def ids(count: int, seed: int) -> list[int]:
    """Token ids of ordinary text, none of which ends an answer."""
    source = random.Random(seed)
    return [source.randrange(20, 300) for _ in range(count)]


async def run(engine: Engine, prompt: list[int], *, made: int = 8, adapter: str | None = None) -> list[Step]:
    job = Job(prompt=prompt, max_tokens=made, sampling=GREEDY, adapter=adapter)
    async with aclosing(engine.generate(job)) as steps:
        return [step async for step in steps]


def said(steps: list[Step]) -> list[int]:
    return [step.token for step in steps if step.token is not None]


def alone(path: Path, prompt: list[int], *, made: int = 8) -> list[int]:
    """What a fresh engine says to a prompt."""
    engine = engine_of(path, slots=1)
    try:
        with ThreadPoolExecutor(1) as thread:  # whoever asks may be in an event loop
            return said(thread.submit(asyncio.run, run(engine, prompt, made=made)).result())
    finally:
        engine.close()


def test_tokens_in_common() -> None:
    def of(*tokens: int) -> np.ndarray:
        return np.array(tokens, dtype=np.int32)

    assert common(of(1, 2, 3), of(1, 2, 4)) == 2
    assert common(of(1, 2), of(1, 2, 3)) == 2
    assert common(of(5), of(6)) == 0
    assert common(of(), of(1)) == 0


def test_a_conversation_goes_on_where_it_stood(engine: Engine, tiny: Path) -> None:
    async def main() -> tuple[list[int], list[Step]]:
        first = ids(300, 1)
        answer = said(await run(engine, first))
        second = first + answer + ids(20, 2)
        return second, await run(engine, second)

    second, steps = asyncio.run(main())
    assert steps[-1].cached >= 300 + 7, "the last token said was never read, all others were"
    assert said(steps) == alone(tiny, second)


def test_a_shared_prefix_is_copied_and_both_live_on(engine: Engine, tiny: Path) -> None:
    """What one conversation began with costs the next one nothing, and neither loses its own."""
    system = ids(200, 1)
    one, other = system + ids(100, 2), system + ids(100, 3)

    async def main() -> None:
        await run(engine, one)
        steps = await run(engine, other)
        assert 200 <= steps[-1].cached < 204
        assert said(steps) == alone(tiny, other)
        again = await run(engine, [*one, *ids(10, 4)])
        assert again[-1].cached >= 300

    asyncio.run(main())


def test_a_prefix_is_copied_from_one_who_still_writes(engine: Engine, tiny: Path) -> None:
    system = ids(200, 1)

    async def main() -> None:
        job = Job(prompt=system + ids(50, 2), max_tokens=500, sampling=GREEDY)
        async with aclosing(engine.generate(job)) as running:
            await anext(running)
            steps = await run(engine, system + ids(50, 3))
            assert 200 <= steps[-1].cached < 204
            assert said(steps) == alone(tiny, system + ids(50, 3))

    asyncio.run(main())


def test_those_who_come_together_read_their_prefix_once(tiny: Path) -> None:
    """All but one wait for the copy; the first has nobody to copy from."""
    engine = engine_of(tiny, slots=4)
    system = ids(600, 1)
    prompts = [system + ids(10 + number, number) for number in range(4)]

    async def main() -> list[list[Step]]:
        return await asyncio.gather(*(run(engine, prompt) for prompt in prompts))

    try:
        answers = asyncio.run(main())
    finally:
        engine.close()
    cached = sorted(steps[-1].cached for steps in answers)
    assert cached[0] == 0 and all(600 <= each < 605 for each in cached[1:])
    for prompt, steps in zip(prompts, answers, strict=True):
        assert said(steps) == alone(tiny, prompt)


def test_choices_of_one_request_share_its_prompt(engine: Engine) -> None:
    prompt = ids(500, 1)

    async def main() -> list[list[Step]]:
        return await asyncio.gather(*(run(engine, prompt) for _ in range(4)))

    answers = asyncio.run(main())
    assert sorted(steps[-1].cached for steps in answers) == [0, 499, 499, 499]
    assert len({tuple(said(steps)) for steps in answers}) == 1


def test_the_least_recently_used_prefix_goes_first(engine: Engine) -> None:
    prompts = [ids(100, seed) for seed in range(4)]

    async def main() -> None:
        for prompt in prompts:
            await run(engine, prompt)
        await run(engine, prompts[0] + ids(5, 9))  # now the second is the oldest
        await run(engine, ids(100, 8))
        assert (await run(engine, prompts[0] + ids(6, 9)))[-1].cached >= 100
        assert (await run(engine, prompts[2] + ids(5, 9)))[-1].cached >= 100
        assert (await run(engine, prompts[1] + ids(5, 9)))[-1].cached < 4

    asyncio.run(main())


def test_greedy_tokens_are_the_same_alone_and_among_sixteen(tiny: Path) -> None:
    engine = engine_of(tiny, slots=16, context=512)
    prompts = [ids(5 + 17 * number, number) for number in range(16)]

    async def main() -> list[list[Step]]:
        return await asyncio.gather(*(run(engine, prompt, made=24) for prompt in prompts))

    try:
        answers = asyncio.run(main())
    finally:
        engine.close()
    for prompt, steps in zip(prompts, answers, strict=True):
        assert said(steps) == alone(tiny, prompt, made=24)


def test_a_newcomer_sits_beside_the_others_where_that_costs_nothing_newer() -> None:
    cache = Cache(None, slots=8, room=1)
    for slot, used in zip(cache.slots, (5, 6, 1, 2, 7, 3, 4, 8), strict=True):
        slot.used = used

    def sit() -> object:
        slot = cache._cheapest()
        slot.user = object()
        return slot.number

    # each time of the older half: beside one who sits, or between two, or where most fit; else the oldest
    assert [sit() for _ in range(8)] == [2, 3, 5, 1, 0, 4, 6, 7]


def test_a_burst_sits_in_one_line_wherever_the_oldest_slots_are() -> None:
    cache = Cache(None, slots=16, room=1)
    for first in range(40):
        taken = []
        for _ in range(1 if first == 0 else 4):
            slot = cache._cheapest()
            slot.user = object()
            taken.append(slot)
        numbers = sorted(slot.number for slot in taken)
        assert numbers == [*range(numbers[0], numbers[-1] + 1)]
        for slot in taken:
            slot.user = None
            cache.touch(slot)


@pytest.mark.parametrize("bias", [{}, {44: 50.0}, {44: -100.0}])
def test_the_likeliest_token_is_the_one_that_llama_cpp_finds(engine: Engine, bias: dict[int, float]) -> None:
    async def main() -> tuple[list[Step], list[Step]]:
        made = []
        for penalty in (1.0, 1.0 + 1e-9):  # of which the second leaves the choice to llama.cpp
            sampling = Sampling(temperature=0, logit_bias=bias, repeat_penalty=penalty)
            job = Job(prompt=ids(30, 5), max_tokens=40, sampling=sampling)
            async with aclosing(engine.generate(job)) as steps:
                made.append([step async for step in steps])
        return made[0], made[1]

    ours, theirs = asyncio.run(main())
    assert said(ours) == said(theirs)
    assert (set(said(ours)) == {44}) == (bias.get(44, 0) > 0)


@pytest.mark.parametrize(
    ("flash", "there"), [(None, lib.llama_supports_gpu_offload()), (True, True), (False, False)]
)
def test_flash_attention_is_for_gpus_and_whoever_asks(tiny: Path, flash: bool | None, there: bool) -> None:
    loaded = Loaded(tiny, context=512, slots=3, threads=1, batch=BATCH, flash=flash)
    loaded.close()
    assert ("no flash attention" not in loaded.detail) == there, loaded.detail


def test_a_client_with_many_requests_does_not_keep_others_waiting(tiny: Path) -> None:
    engine = engine_of(tiny, slots=1)
    finished: list[str] = []

    async def ask(who: str, seed: int) -> None:
        client.set(who)
        await run(engine, ids(20, seed), made=30)
        finished.append(who)

    async def main() -> None:
        greedy = [asyncio.create_task(ask("greedy", seed)) for seed in range(12)]
        await asyncio.sleep(0)
        await asyncio.gather(asyncio.create_task(ask("modest", 99)), *greedy)

    try:
        asyncio.run(main())
    finally:
        engine.close()
    assert finished.index("modest") < 4


def test_a_full_queue_turns_away_whoever_fills_it(tiny: Path) -> None:
    engine = engine_of(tiny, slots=1, queue=4)

    async def ask(who: str, seed: int) -> str:
        client.set(who)
        try:
            await run(engine, ids(20, seed), made=30)
        except Busy:
            return f"{who} turned away"
        return f"{who} answered"

    async def main() -> list[str]:
        greedy = [asyncio.create_task(ask("greedy", seed)) for seed in range(12)]
        await asyncio.sleep(0.01)
        modest = [asyncio.create_task(ask("modest", 50 + seed)) for seed in range(2)]
        return await asyncio.gather(*greedy, *modest)

    try:
        outcomes = asyncio.run(main())
    finally:
        engine.close()
    assert outcomes.count("modest answered") == 2
    assert outcomes.count("greedy turned away") >= 6


def test_two_hundred_random_cancels_leave_nothing_behind(engine: Engine) -> None:
    source = random.Random(1)
    threads = threading.active_count()

    async def one(seed: int) -> None:
        made = source.choice([1, 5, 100])
        await run(engine, ids(source.randrange(1, 300), seed), made=made)

    async def main() -> None:
        for seed in range(200):
            task = asyncio.create_task(one(seed))
            await asyncio.sleep(source.random() * 0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await until(lambda: not engine.line.waiting and not any(slot.user for slot in engine.cache.slots))

    asyncio.run(main())
    assert threading.active_count() == threads
    assert len(said(asyncio.run(run(engine, ids(10, 1), made=4)))) == 4


def test_a_token_does_not_wait_for_the_next(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    decode, deliver = lib.llama_decode, line.deliver

    def decoding(*arguments: Any) -> int:
        order.append("decode")
        return int(decode(*arguments))

    def delivering(events: dict[line.Ticket, line.Delivery]) -> None:
        order.extend("deliver" for _ in events)
        deliver(events)

    monkeypatch.setattr(lib, "llama_decode", decoding)
    monkeypatch.setattr(line, "deliver", delivering)
    assert len(said(asyncio.run(run(engine, ids(10, 1), made=4)))) == 4
    assert order == ["decode", "deliver"] * 4


def test_one_who_waits_for_a_prefix_goes_on_when_its_reader_is_cancelled(engine: Engine) -> None:
    prompt = ids(900, 1)

    async def main() -> list[Step]:
        first = asyncio.create_task(run(engine, prompt))
        second = asyncio.create_task(run(engine, prompt))
        await until(lambda: any(slot.length for slot in engine.cache.slots), pause=0.001)
        first.cancel()
        return await asyncio.wait_for(second, 10)

    assert len(said(asyncio.run(main()))) == 8


def test_a_long_prompt_gets_as_much_of_a_step_as_writing_does() -> None:
    pace = Pace()

    def rows(readers: int, *, writers: int = 4, hurry: bool = False) -> object:
        return pace.rows(readers=readers, writers=writers, hurry=hurry)

    assert rows(1, writers=0) == Pace.BULK
    pace.learn(0.064, writers=0, read=32)  # 2 ms a row
    assert rows(1, writers=0) == 128, "no piece takes much longer than 250 ms"
    assert rows(1) == 0, "one step without prompts shows what it takes"
    pace.learn(0.040, writers=4, read=0)
    pace.learn(0.060, writers=5, read=0)
    assert rows(1, writers=5) == 22, "three quarters of 60 ms"
    assert rows(2) == 60 and rows(60) == 125, "the more wait, the more they get"
    together = [rows(1, hurry=True), rows(2, hurry=True), rows(2, writers=0)]
    assert together == [256, 256, 256], "several are read in as few steps as can be"
    for _ in range(20):
        pace.learn(0.060 + 0.004 + 0.002 * 8, writers=5, read=8)  # each piece costs 4 ms beside its rows
    assert rows(1, writers=5) == 20
    for _ in range(Pace.FRESH):
        pace.learn(0.100, writers=5, read=20)
    assert rows(1, writers=5) == 0, "what a step takes without prompts is looked at anew"


def test_a_long_prompt_beside_few_writers_is_read_in_rare_long_pieces() -> None:
    """A few rows take a step of their own through the model, which is as long as that of the writers."""
    pace = Pace()
    pace.learn(0.064, writers=0, read=32)
    read = []
    for _ in range(4 * (Pace.RARE + 1)):
        read.append(pace.rows(readers=1, writers=4))
        pace.learn(0.040 + 0.002 * read[-1], writers=4, read=read[-1])
    assert set(read) == {0, 125} and read.count(125) == 4, "fewer than one token in twenty is late"


def test_a_slow_model_reads_a_few_rows_in_every_step() -> None:
    """A long piece of it would stall everybody for seconds."""
    pace = Pace()
    pace.learn(3.2, writers=0, read=32)
    pace.learn(0.300, writers=4, read=0)
    assert pace.rows(readers=1, writers=4) == LEAST
    pace.learn(10.0, writers=4, read=5)
    assert pace.rows(readers=1, writers=4) == LEAST


def test_a_busy_core_is_noticed_and_its_return_too() -> None:
    """On two free cores two threads take half the time; while one core is busy, eight times as long."""
    threads, used, busy = Threads(1, 2), [], False
    for step in range(3000):
        busy = 1000 <= step < 2000
        chosen = threads.pick(16)
        threads.learn(0.1 if chosen == 1 else 0.8 if busy else 0.05, rows=16, threads=chosen)
        used.append(chosen)
    assert used[100:1000].count(2) > 890
    assert used[1000:2000].count(2) < 20
    assert used[2600:].count(2) > 390


def test_a_long_step_tries_fewer_threads_only_where_cores_are_busy() -> None:
    threads, long = Threads(1, 2), list[int]()

    def step(rows: int, *, busy: bool, slow: float = 1.0) -> int:
        chosen: int = threads.pick(rows)
        seconds = 2.0 if chosen == 1 else 3.0 if busy else 1.0
        threads.learn(seconds * slow * rows / 256, rows=rows, threads=chosen)
        return chosen

    for number in range(200):  # the host takes a core now and then, for one step
        step(16, busy=False)
        long.append(step(256, busy=False, slow=2.5 if number % 20 == 10 else 1.0))
    assert long.count(1) == 1, long
    for _ in range(20):
        step(256, busy=True)
    assert threads.pick(256) == 1
    for _ in range(40):
        step(256, busy=False)
    assert threads.pick(256) == 2
    for _ in range(40):  # what is busy from the start is seen in short steps
        step(64, busy=True)
        step(16, busy=True)
    assert threads.pick(64) == 1


def test_a_number_that_gains_little_is_not_taken() -> None:
    threads = Threads(3, 4)
    for _ in range(1000):
        chosen = threads.pick(1)
        threads.learn(0.0095 if chosen == 3 else 0.0100, rows=1, threads=chosen)
    assert threads.pick(1) == 4


def test_a_number_that_is_set_is_kept() -> None:
    assert {Threads(2, 2).pick(rows) for rows in range(1, 256)} == {2}


def tasks() -> set[str]:
    """The threads of this process, native ones too."""
    return set(os.listdir("/proc/self/task"))


def test_an_engine_that_rests_has_no_threads_that_compute(tiny: Path) -> None:
    """While those of a process are more than its cores, every model takes longer for a step."""
    engine = Engine(
        Loaded(tiny, context=512, slots=1, threads=1, batch=256), slots=1, queue=1, threads=Threads(3, 3)
    )

    async def main() -> None:
        idle = tasks()
        async with aclosing(engine.generate(Job(prompt=ids(30, 5), max_tokens=400))) as steps:
            await anext(steps)
            computing = tasks() - idle
        assert len(computing) >= 2
        await until(lambda: not computing & tasks())

    try:
        asyncio.run(main())
    finally:
        engine.close()


def test_two_engines_at_work_do_not_both_want_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Threads, "_engines", WeakSet())
    one, other = Threads(1, 2), Threads(1, 2)
    for engine in (one, other):
        for _ in range(6):
            engine.learn(0.05 if (count := engine.pick(16)) == 2 else 0.1, rows=16, threads=count)
    with one.step(16) as alone, other.step(16) as beside:
        assert (alone, beside) == (2, 1)
    with one.step(16) as again:
        assert again == 1, "the other has only just ended a step"
    other.busy = 0.0
    with one.step(16) as alone:
        assert alone == 2


def test_a_slow_start_is_forgotten() -> None:
    """The first steps read the weights from the disk; later pieces are as long as steps allow by then."""
    pace = Pace()
    for seconds_a_row in [0.1] * 5 + [0.002] * 40:
        read = pace.rows(readers=1, writers=0)
        pace.learn(read * seconds_a_row, writers=0, read=read)
    assert pace.rows(readers=1, writers=0) > 100
