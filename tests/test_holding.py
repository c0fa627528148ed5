"""Hold-back: order, windows, overlap, errors, and what is left behind when somebody leaves."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_stack_lite.config import Window
from llama_stack_lite.errors import GuardFailed, UpstreamError
from llama_stack_lite.safety.holding import AHEAD, begun, held

LONG = 600_000  # milliseconds: no window ends by time


@dataclass(frozen=True)
class Chunk:
    number: int
    weight: int = 1


@dataclass
class Model:
    """Says its chunks, resting some turns of the loop before each, and then fails if it is told to."""

    chunks: list[Chunk]
    rests: list[int] = field(default_factory=list)
    error: Exception | None = None
    said: list[Chunk] = field(default_factory=list)
    started = closed = False

    async def say(self) -> AsyncGenerator[Chunk, None]:
        self.started = True
        try:
            for number, chunk in enumerate(self.chunks):
                await rest(self.rests[number] if number < len(self.rests) else 0)
                self.said.append(chunk)
                yield chunk
            if self.error:
                raise self.error
        finally:
            self.closed = True


@dataclass
class Judge:
    """Lets everything pass, resting before each verdict; `bad` is refused, and `broken` cannot be judged."""

    rests: list[int] = field(default_factory=list)
    bad: Chunk | None = None
    broken: Chunk | None = None
    batches: list[list[Chunk]] = field(default_factory=list)
    passed: list[Chunk] = field(default_factory=list)
    busy = False

    async def judged(self, batch: list[Chunk]) -> tuple[list[Chunk], bool]:
        assert not self.busy, "two verdicts at a time"
        self.busy = True
        self.batches.append(batch)
        number = len(self.batches) - 1
        await rest(self.rests[number] if number < len(self.rests) else 0)
        self.busy = False
        if self.broken in batch:
            raise GuardFailed("bird", "it broke")
        if self.bad in batch:
            return [], False
        self.passed += batch
        return batch, True


async def rest(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


def hold(model: Model, judge: Judge, window: Window | None) -> AsyncGenerator[Chunk, None]:
    return held(model.say(), judged=judge.judged, tokens=lambda chunk: chunk.weight, window=window)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run to the end, with nothing left behind."""

    async def whole() -> None:
        await asyncio.wait_for(main(), 10)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left

    asyncio.run(whole())


async def read(chunks: AsyncGenerator[Chunk, None], judge: Judge) -> list[Chunk]:
    """All that leaves; nothing does without a verdict."""
    left: list[Chunk] = []
    async with aclosing(chunks):
        async for chunk in chunks:
            assert chunk in judge.passed
            left.append(chunk)
    return left


def numbered(weights: list[int]) -> list[Chunk]:
    return [Chunk(number, weight) for number, weight in enumerate(weights)]


RESTS = st.lists(st.integers(0, 6), max_size=12)
WEIGHTS = st.lists(st.integers(0, 5), max_size=20)
WINDOWS = st.none() | st.builds(Window, tokens=st.integers(1, 12), milliseconds=st.sampled_from([1, LONG]))


@settings(deadline=None, max_examples=300)
@given(WEIGHTS, WINDOWS, RESTS, RESTS)
def test_all_of_an_answer_leaves_in_order_each_after_its_verdict(
    weights: list[int], window: Window | None, rests: list[int], verdicts: list[int]
) -> None:
    model, judge = Model(numbered(weights), rests), Judge(verdicts)

    async def main() -> None:
        assert await read(hold(model, judge, window), judge) == model.chunks

    run(main)
    assert [chunk for batch in judge.batches for chunk in batch] == model.chunks
    assert all(judge.batches) and model.closed


@settings(deadline=None, max_examples=200)
@given(WEIGHTS, st.integers(1, 12), RESTS, RESTS)
def test_a_window_has_so_many_tokens(
    weights: list[int], tokens: int, rests: list[int], verdicts: list[int]
) -> None:
    model, judge = Model(numbered(weights), rests), Judge(verdicts)
    window = Window(tokens=tokens, milliseconds=LONG)
    run(lambda: _drain(hold(model, judge, window), judge))
    for batch in judge.batches[:-1]:
        assert sum(chunk.weight for chunk in batch) >= tokens
    if not any(verdicts):  # nothing came meanwhile, so a window is no larger than it has to be
        for batch in judge.batches[:-1]:
            assert sum(chunk.weight for chunk in batch[:-2]) < tokens


async def _drain(chunks: AsyncGenerator[Chunk, None], judge: Judge) -> None:
    await read(chunks, judge)


def test_without_a_window_there_is_one_verdict_on_the_whole() -> None:
    model, judge = Model(numbered([1] * 100)), Judge()
    run(lambda: _drain(hold(model, judge, None), judge))
    assert judge.batches == [model.chunks]


def test_an_empty_answer_needs_no_verdict() -> None:
    for window in (None, Window()):
        model, judge = Model([]), Judge()
        run(lambda model=model, judge=judge, window=window: _drain(hold(model, judge, window), judge))  # type: ignore[misc]
        assert not judge.batches and model.closed


def test_a_slow_model_is_judged_by_time() -> None:
    """Fewer tokens than a window leave once its time is over, while the model still thinks."""
    judge = Judge()
    said = asyncio.Event()

    async def model() -> AsyncGenerator[Chunk, None]:
        yield Chunk(0)
        await said.wait()
        yield Chunk(1)

    async def main() -> None:
        window = Window(tokens=100, milliseconds=50)
        chunks = held(model(), judged=judge.judged, tokens=lambda chunk: chunk.weight, window=window)
        began = time.monotonic()
        assert await anext(chunks) == Chunk(0)
        assert 0.045 <= time.monotonic() - began < 5
        said.set()
        assert await read(chunks, judge) == [Chunk(1)]

    run(main)


def test_what_says_nothing_waits_for_something_to_judge() -> None:
    model, judge = Model([Chunk(0, 0), Chunk(1, 3), Chunk(2, 0)], rests=[0, 20, 20]), Judge()
    run(lambda: _drain(hold(model, judge, Window(tokens=2, milliseconds=1)), judge))
    assert judge.batches == [[Chunk(0, 0), Chunk(1, 3)], [Chunk(2, 0)]]


def test_the_model_writes_on_while_a_verdict_is_out() -> None:
    """And what came meanwhile is the next batch."""
    model, judge = Model(numbered([1] * 6)), Judge(rests=[50])
    run(lambda: _drain(hold(model, judge, Window(tokens=1, milliseconds=LONG)), judge))
    assert judge.batches == [model.chunks[:1], model.chunks[1:]]


def test_a_model_does_not_run_far_ahead_of_a_slow_shield() -> None:
    model = Model(numbered([1] * 1000))
    go = asyncio.Event()
    judge = Judge()

    async def slow(batch: list[Chunk]) -> tuple[list[Chunk], bool]:
        await go.wait()
        return await judge.judged(batch)

    async def main() -> None:
        window = Window(tokens=4, milliseconds=LONG)
        chunks = held(model.say(), judged=slow, tokens=lambda chunk: chunk.weight, window=window)
        first = asyncio.ensure_future(anext(chunks))
        await rest(3000)
        assert 4 * AHEAD <= len(model.said) <= 4 * (AHEAD + 1) + 1
        go.set()
        assert await first == Chunk(0)
        assert await read(chunks, judge) == model.chunks[1:]

    run(main)


@pytest.mark.parametrize("window", [None, Window(tokens=2), Window(tokens=100, milliseconds=1)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_error_of_the_models_comes_after_what_it_said(count: int, window: Window | None) -> None:
    model, judge = Model(numbered([1] * count), error=UpstreamError("it broke")), Judge()

    async def main() -> None:
        left = []
        with pytest.raises(UpstreamError, match="it broke"):
            async for chunk in hold(model, judge, window):
                left.append(chunk)
        assert left == model.chunks == judge.passed

    run(main)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 9), st.sampled_from(["bad", "broken"]), WINDOWS, RESTS, RESTS)
def test_nothing_leaves_from_a_bad_verdict_on(
    place: int, kind: str, window: Window | None, rests: list[int], verdicts: list[int]
) -> None:
    """Neither after a refusal of all, nor after an error of a shield, which is the request's own."""
    model, judge = Model(numbered([1] * 10), rests), Judge(verdicts)
    setattr(judge, kind, model.chunks[place])

    async def main() -> None:
        left = []
        try:
            async for chunk in hold(model, judge, window):
                left.append(chunk)
        except GuardFailed:
            assert kind == "broken"
        else:
            assert kind == "bad"
        assert left == judge.passed and model.chunks[place] not in left
        assert model.chunks[place] in judge.batches[-1], "a verdict was asked for after the last one"
        assert model.closed

    run(main)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 60), WINDOWS, RESTS, RESTS, st.booleans())
def test_whoever_leaves_at_any_moment_leaves_nothing_behind(
    moment: int, window: Window | None, rests: list[int], verdicts: list[int], fails: bool
) -> None:
    model = Model(numbered([1] * 8), rests, UpstreamError("it broke") if fails else None)
    judge = Judge(verdicts)

    async def main() -> None:
        reader = asyncio.ensure_future(read(hold(model, judge, window), judge))
        await rest(moment)
        reader.cancel()
        [outcome] = await asyncio.gather(reader, return_exceptions=True)
        assert outcome == model.chunks or isinstance(outcome, asyncio.CancelledError | UpstreamError)
        assert model.closed == model.started

    run(main)


@pytest.mark.parametrize("window", [Window(tokens=1), Window(tokens=3)])
@pytest.mark.parametrize("count", range(6))
def test_a_reader_who_closes_stops_the_model_and_the_verdict(count: int, window: Window) -> None:
    model, judge = Model(numbered([1] * 100), rests=[1] * 100), Judge(rests=[3] * 100)

    async def main() -> None:
        chunks = hold(model, judge, window)
        async with aclosing(chunks):
            for number in range(count):
                assert await anext(chunks) == Chunk(number)
        assert model.closed == model.started == (count > 0)
        assert len(model.said) < 100

    run(main)


def test_a_shield_that_fails_as_it_is_cancelled_hides_nothing() -> None:
    """Whoever left is gone: errors that come of stopping have nobody to be told to."""
    model = Model(numbered([1] * 8))

    async def stubborn(batch: list[Chunk]) -> tuple[list[Chunk], bool]:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            raise RuntimeError("not now") from error
        raise AssertionError

    async def main() -> None:
        window = Window(tokens=1)
        chunks = held(model.say(), judged=stubborn, tokens=lambda chunk: chunk.weight, window=window)
        reader = asyncio.ensure_future(anext(chunks))
        await rest(10)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert model.closed

    run(main)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 30), WINDOWS, RESTS, RESTS, st.booleans())
def test_a_model_that_began_early_says_the_same(
    wait: int, window: Window | None, rests: list[int], verdicts: list[int], fails: bool
) -> None:
    """However long its request is judged: all of it, and then its error."""
    model = Model(numbered([1] * 6), rests, UpstreamError("it broke") if fails else None)
    judge = Judge(verdicts)
    left: list[Chunk] = []

    async def main() -> None:
        async with begun(model.say()) as chunks:
            await rest(wait)
            assert len(model.said) <= 1
            watched = held(chunks, judged=judge.judged, tokens=lambda chunk: chunk.weight, window=window)
            async with aclosing(watched):
                async for chunk in watched:
                    left.append(chunk)

    if fails:
        with pytest.raises(UpstreamError):
            run(main)
    else:
        run(main)
    assert left == model.chunks == judge.passed and model.closed


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 40), st.integers(0, 30), RESTS, RESTS, st.booleans())
def test_a_model_that_began_early_is_stopped_at_any_moment(
    moment: int, wait: int, rests: list[int], verdicts: list[int], fails: bool
) -> None:
    """By a refusal of its request, which nobody reads on from, or by whoever leaves."""
    model = Model(numbered([1] * 8), rests, UpstreamError("it broke") if fails else None)
    judge = Judge(verdicts)

    async def whole() -> None:
        async with begun(model.say()) as chunks:
            await rest(wait)
            watched = held(
                chunks, judged=judge.judged, tokens=lambda chunk: chunk.weight, window=Window(tokens=2)
            )
            await read(watched, judge)

    async def main() -> None:
        async with begun(model.say()):
            await rest(wait)
        assert model.closed == model.started
        model.closed = model.started = False
        reader = asyncio.ensure_future(whole())
        await rest(moment)
        reader.cancel()
        [outcome] = await asyncio.gather(reader, return_exceptions=True)
        assert outcome is None or isinstance(outcome, asyncio.CancelledError | UpstreamError)
        assert model.closed == model.started

    run(main)
