"""Free slots between those in use: a row for each keeps the line unbroken, and nobody notices."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
import pytest

from llama_stack_lite.local.engine import Job, Sampling, Step
from llama_stack_lite.providers.inference.llama_cpp.batch import BATCH
from llama_stack_lite.providers.inference.llama_cpp.cache import PAGE, WORTH_BRIDGING, Cache, Slot
from llama_stack_lite.providers.inference.llama_cpp.engine import Engine
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
