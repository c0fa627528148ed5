"""Rows that save llama.cpp runs of its graph, in free slots and after prompts: nobody notices them.

And which prompts a step reads, so that it needs few such runs, and nobody waits for ever.
"""

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from llama_stack_lite.local import line
from llama_stack_lite.local.engine import Job, Sampling, Step
from llama_stack_lite.providers.inference.llama_cpp.batch import BATCH, PAGE, WORTH_PADDING, Pace, padding
from llama_stack_lite.providers.inference.llama_cpp.cache import WORTH_BRIDGING, Cache, Slot
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine, Sequence
from llama_stack_lite.providers.inference.llama_cpp.loading import Loaded
from tests.support.waiting import until

SLOTS = 8


@pytest.fixture
def engine(tiny: Path) -> Iterator[Engine]:
    loaded = Loaded(tiny, context=1024, slots=SLOTS, threads=1, batch=BATCH)
    engine = Engine(loaded, slots=SLOTS, queue=8)
    yield engine
    engine.close()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The slots of each step's rows."""
    found: list[list[int]] = []
    decode = lib.llama_decode

    def decoding(context: Any, batch: Any) -> int:
        found.append([batch.seq_id[row][0] for row in range(batch.n_tokens)])
        return int(decode(context, batch))

    monkeypatch.setattr(lib, "llama_decode", decoding)
    return found


def job(number: int, *, made: int = 800) -> Job:
    prompt = [20 + (number * 37 + place * 11) % 280 for place in range(40)]
    return Job(prompt=prompt, max_tokens=made, sampling=Sampling(temperature=0))


async def answer(engine: Engine, asked: Job) -> list[Step]:
    async with aclosing(engine.generate(asked)) as steps:
        return [step async for step in steps]


def tokens(steps: list[Step]) -> list[int | None]:
    return [step.token for step in steps]


async def with_gaps(engine: Engine, *, leaving: set[int]) -> dict[int, list[Step]]:
    """Fill all slots, let those of some be left, and what the others then say to their end, by their jobs."""
    async with AsyncExitStack() as stack:
        streams = {}
        for number in range(SLOTS):
            streams[number] = await stack.enter_async_context(aclosing(engine.generate(job(number))))
            await anext(streams[number])
        places = {slot.user.job.prompt[0]: slot.number for slot in engine.cache.slots if slot.user}
        places = {number: places[job(number).prompt[0]] for number in streams}
        for number in streams:
            if places[number] in leaving:
                await streams[number].aclose()
        await until(lambda: {slot.number for slot in engine.cache.slots if not slot.user} == leaving)
        staying = [number for number in streams if places[number] not in leaving]
        return {number: [step async for step in streams[number]] for number in staying}


def lines(slots: list[int]) -> int:
    """How many unbroken lines there are."""
    return sum(slot - 1 not in slots for slot in set(slots))


def test_gaps_are_bridged_and_answers_stay_the_same(engine: Engine, rows: list[list[int]]) -> None:
    found = asyncio.run(with_gaps(engine, leaving={1, 3, 4}))
    assert len([slots for slots in rows if len(slots) == SLOTS]) > 50
    assert max(map(lines, rows)) == 1
    for number, steps in found.items():
        alone = asyncio.run(answer(engine, job(number, made=81)))[1:]
        assert tokens(steps)[:80] == tokens(alone)


def test_what_a_bridge_held_is_held_still(engine: Engine) -> None:
    before = asyncio.run(answer(engine, job(1, made=4)))
    asyncio.run(with_gaps(engine, leaving={1, 3}))
    held = {slot.number: slot.length for slot in engine.cache.slots}
    ends = {number: lib.llama_memory_seq_pos_max(engine.cache.memory, number) for number in held}
    assert ends == {number: length - 1 for number, length in held.items()}
    after = asyncio.run(answer(engine, job(1, made=4)))
    assert tokens(after) == tokens(before) and after[0].cached == 39


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Slots without a model behind them, whose ends cannot be cut off."""
    monkeypatch.setattr(lib, "llama_memory_seq_rm", lambda memory, slot, start, end: start < 0)
    return Cache(None, slots=SLOTS, room=513)


def filled(slot: Slot, length: int) -> None:
    slot.extend(np.zeros(length - slot.length, dtype=np.int32))


def between(cache: Cache, *numbers: int) -> list[int]:
    return [slot.number for slot in cache.between([cache.slots[number] for number in numbers])]


def test_wide_gaps_are_no_bridges_and_narrow_ones_are(cache: Cache) -> None:
    assert between(cache, 0, 2, 3, 5) == [1, 4]
    assert between(cache, 0, 1 + WORTH_BRIDGING, 7) == [*range(1, 1 + WORTH_BRIDGING), 6]
    assert between(cache, 0, 2 + WORTH_BRIDGING) == between(cache, 1, 2) == between(cache) == []


def test_a_slot_in_use_is_no_bridge(cache: Cache) -> None:
    cache.slots[1].user = "another's turn"
    assert between(cache, 0, 2) == between(cache, 0, 3) == []


def test_a_slot_is_no_bridge_where_attention_would_take_longer(cache: Cache) -> None:
    filled(cache.slots[1], PAGE - 1)
    assert between(cache, 0, 2) == [1]
    filled(cache.slots[1], PAGE)
    assert between(cache, 0, 2) == []
    filled(cache.slots[2], PAGE)
    assert between(cache, 0, 2) == [1]


def test_a_full_slot_is_no_bridge(cache: Cache) -> None:
    filled(cache.slots[0], 512)
    filled(cache.slots[1], 511)
    assert between(cache, 0, 2) == [1]
    filled(cache.slots[1], 512)
    assert between(cache, 0, 2) == []


def test_a_slot_that_would_be_emptied_is_no_bridge(cache: Cache) -> None:
    filled(cache.slots[1], 40)
    assert between(cache, 0, 2) == [1]
    filled(cache.slots[5], 40)
    assert cache.cut(cache.slots[5], 30) == 0  # this model's caches are cut nowhere but at the beginning
    assert between(cache, 0, 2) == []
    assert between(cache, 4, 6) == [5]


# ---------------------------------------------------------------- prompts of about the same length


LENGTHS = (40, 41, 43, 43, 70)


def of_length(number: int, length: int) -> Job:
    prompt = [20 + (number * 37 + place * 11) % 280 for place in range(length)]
    return Job(prompt=prompt, max_tokens=30, sampling=Sampling(temperature=0))


async def together(engine: Engine, jobs: list[Job]) -> list[list[Step]]:
    """Answers to jobs that have all come when the engine takes its next step."""
    with engine.line._wake:
        answers = [asyncio.create_task(answer(engine, each)) for each in jobs]
        await until(lambda: len(engine.line.waiting) == len(jobs))
    return await asyncio.gather(*answers)


async def at_once(engine: Engine, rows: list[list[int]]) -> list[list[Step]]:
    """Answers to prompts of about one length; `rows` are then those of the steps that they took."""
    await answer(engine, of_length(9, 100))  # shows what a row takes
    rows.clear()
    return await together(engine, [of_length(number, length) for number, length in enumerate(LENGTHS)])


def test_prompts_of_about_one_length_are_read_as_if_of_one(engine: Engine, rows: list[list[int]]) -> None:
    found = asyncio.run(at_once(engine, rows))
    pieces = [sorted(Counter(slots).values()) for slots in rows]
    assert pieces[0] == [43, 43, 43, 43, 70]
    held = {slot.number: slot.length for slot in engine.cache.slots}
    ends = {number: lib.llama_memory_seq_pos_max(engine.cache.memory, number) for number in held}
    assert ends == {number: length - 1 for number, length in held.items()}
    for number, steps in enumerate(found):
        assert tokens(steps) == tokens(asyncio.run(answer(engine, of_length(number, LENGTHS[number]))))


def test_a_cache_that_cannot_be_cut_has_no_more_than_was_asked_for(
    engine: Engine, rows: list[list[int]]
) -> None:
    engine.loaded.rewinds = False
    asyncio.run(at_once(engine, rows))
    pieces = [sorted(Counter(slots).values()) for slots in rows]
    assert pieces[0] == [40, 41, 43, 43, 70]


@pytest.mark.parametrize(
    ("lengths", "room", "added"),
    [
        ([60, 62, 63, 64], 99, [4, 2, 1, 0]),
        ([64, 60, 63, 62], 99, [0, 4, 1, 2]),
        ([60, 62, 63, 64], 4, [3, 1, 0, 0]),
        ([60, 60, 60, 63], 99, [0, 0, 0, 0]),
        ([60, 60, 60, 63], 2, [0, 0, 0, 0]),
        ([1, 1 + WORTH_PADDING, 2 + 2 * WORTH_PADDING], 99, [WORTH_PADDING, 0, 0]),
        ([1, 1 + WORTH_PADDING, 3 + WORTH_PADDING], 99, [WORTH_PADDING, 0, 0]),
        ([30, 30], 99, [0, 0]),
        ([], 99, []),
    ],
)
def test_few_rows_are_added(lengths: list[int], room: int, added: list[int]) -> None:
    found = padding(dict(enumerate(lengths)), room)
    assert [found.get(slot, 0) for slot in range(len(lengths))] == added
    assert sum(found.values()) <= room


def test_no_row_is_added_where_the_slot_would_be_full(engine: Engine) -> None:
    """llama.cpp refuses a step with more rows than a slot has room for."""
    full = engine.loaded.context_length - 1
    lengths, new = (full, 108), (3, 8)

    async def main() -> list[list[Step]]:
        for number, length in enumerate(lengths):
            await answer(engine, of_length(number, length - new[number]))
        return await together(engine, [of_length(number, length) for number, length in enumerate(lengths)])

    for steps, length, ahead in zip(asyncio.run(main()), lengths, new, strict=True):
        assert steps[-1].finish == "length" and steps[0].cached == length - ahead


def test_no_prompt_is_begun_beside_others_that_does_not_end_there() -> None:
    """llama.cpp runs its graph for each length of pieces."""
    portion = partial(Pace().portion, start=0)
    assert portion(60, 200, room=200, beside=True) == 60
    assert portion(60, 50, room=200, beside=True) == 60, "its end is not put off for a few tokens"
    assert portion(60, 20, room=20, beside=True) == 0
    assert portion(60, 20, room=20, beside=False) == 20
    assert portion(2000, 20, room=20, beside=True) == 0
    assert portion(2000, 100, room=100, beside=True) == 0
    assert portion(2000, 100, room=100, beside=False) == 100
    assert portion(2000, 4, room=200, beside=False) == 4


@pytest.mark.parametrize(
    ("start", "rows", "end"),
    [(0, 256, 256), (3, 256, 256), (100, 256, 256), (200, 256, 456), (128, 128, 256), (131, 128, 256)],
)
def test_no_page_of_the_cache_is_begun_for_a_few_tokens(start: int, rows: int, end: int) -> None:
    """llama.cpp would look through all of it for each row of the piece."""
    portion = partial(Pace().portion, start=start, room=BATCH, beside=False)
    assert start + portion(2000, rows) == end
    assert start + portion(rows, rows) == start + rows, "but for a prompt's end"


# ---------------------------------------------------------------- who reads when


def test_prompts_that_are_read_together_sit_side_by_side(engine: Engine, rows: list[list[int]]) -> None:
    """Whichever of them is a little shorter."""

    async def main() -> None:
        await answer(engine, of_length(9, 100))
        await answer(engine, of_length(8, 100))
        rows.clear()
        await together(engine, [of_length(number, 90 + number * 5 % 8) for number in range(SLOTS)])

    asyncio.run(main())
    reading = [slots for slots in rows if len(slots) > SLOTS]
    assert len(reading) > 2
    assert max(map(lines, reading)) == 1


def test_those_who_write_take_no_row_from_prompts(engine: Engine, rows: list[list[int]]) -> None:
    many = SLOTS // 2

    async def main() -> None:
        await answer(engine, of_length(9, 100))
        async with AsyncExitStack() as stack:
            for number in range(many):
                writer = await stack.enter_async_context(aclosing(engine.generate(job(number))))
                await anext(writer)
            await together(engine, [of_length(20 + number, BATCH // many) for number in range(many)])

    asyncio.run(main())
    assert max(map(len, rows)) == BATCH + many


def test_a_long_prompt_is_read_however_many_short_ones_come(engine: Engine) -> None:
    source = random.Random(1)
    served = 0

    def new(length: int) -> Job:
        return Job(prompt=[source.randrange(20, 300) for _ in range(length)], max_tokens=1)

    async def main() -> int:
        reading = asyncio.create_task(answer(engine, new(900)))

        async def asking() -> None:
            nonlocal served
            while not reading.done() and served < 300:
                await answer(engine, new(120))
                served += 1

        await asyncio.gather(*[asking() for _ in range(SLOTS - 1)])
        before = served
        await reading
        return before

    # before each of its pieces, which may be small, as many rows as it has left, on average half of it
    assert asyncio.run(main()) < 900 / Pace.BULK * 450 / 120 + SLOTS


def test_prompts_of_one_length_are_read_one_after_the_other(engine: Engine, rows: list[list[int]]) -> None:
    """So that the first can write while the last still waits, instead of all beginning late."""

    async def main() -> None:
        await answer(engine, of_length(9, 100))
        rows.clear()
        await together(engine, [of_length(number, 400 + number * 5 % 8) for number in range(SLOTS)])

    asyncio.run(main())
    read = [slot for slots in rows for slot in sorted(set(slots)) if slots.count(slot) > 1]
    assert len(read) > SLOTS
    assert [slot for slot, _ in itertools.groupby(read)] == list(range(SLOTS))


def test_those_who_came_together_are_all_read_at_full_speed(engine: Engine, rows: list[list[int]]) -> None:
    """One after the other, though the first ones write meanwhile."""

    async def main() -> None:
        await answer(engine, of_length(9, 100))
        rows.clear()
        await together(engine, [of_length(number, 900) for number in range(4)])

    asyncio.run(main())
    reading = [slots for slots in rows if len(slots) > SLOTS]
    assert len(reading) == 4 * math.ceil(900 / BATCH)
    assert all(len(set(slots)) > 1 for slots in reading[900 // BATCH + 1 :]), "nobody wrote yet"


@pytest.mark.parametrize(
    ("came", "length", "hurries"),
    [(2, 600, True), (2, 700, False), (4, 600, False), (4, 120, True)],
    ids=["waited", "longer", "late", "short"],
)
def test_nobody_who_writes_is_stalled_by_a_prompt_that_comes_later(
    came: int, length: int, hurries: bool
) -> None:
    def sequence(length: int, came: int) -> Sequence:
        found = Sequence(Job(prompt=[1] * length, max_tokens=1), None)
        found.came, found.length = came, found.left
        return found

    async def main() -> tuple[bool, bool]:
        writer, reader = sequence(600, 1), sequence(length, came)
        writer.began = 3
        return reader.hurries([]), reader.hurries([writer])

    assert asyncio.run(main()) == (True, hurries)


def test_those_who_came_together_wait_for_each_other_the_next_time(
    engine: Engine, rows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "SOON", 60.0)
    monkeypatch.setattr(line, "TOGETHER", 60.0)

    rested: list[bool] = []
    monkeypatch.setattr(engine.line, "rest", lambda: rested.append(True))

    async def main() -> None:
        await answer(engine, of_length(0, 40))  # alone, it waits for nobody
        jobs = [of_length(number, 40) for number in range(1, SLOTS + 1)]
        await together(engine, jobs)
        with engine.line._wake:
            rested.clear()
            engine.line._wake.notify()
        await until(lambda: rested)
        rows.clear()
        coming: list[asyncio.Task[list[Step]]] = []
        for each in jobs:
            assert not rows
            coming.append(asyncio.create_task(answer(engine, each)))
            await until(lambda: rows or len(engine.line.waiting) == len(coming))
        await asyncio.gather(*coming)

    asyncio.run(asyncio.wait_for(main(), 50))
    assert len(set(rows[0])) == SLOTS
