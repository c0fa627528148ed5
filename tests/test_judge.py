"""The judge: who is asked at which touchpoint, what is remembered, counted and logged, and what fails."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import REGISTRY

from llama_stack_lite.api.safety import TOUCHPOINTS, Blocked, Touchpoint, Turn, Verdict
from llama_stack_lite.config import Enforce, StackConfig
from llama_stack_lite.errors import (
    ConfigError,
    GuardFailed,
    InvalidRequest,
    StackError,
    Unavailable,
    UpstreamError,
)
from llama_stack_lite.safety import judge as module
from llama_stack_lite.safety.judge import Heard, Judge
from tests.support.guarded import CHAT, QUIET, TEXT, WORD, Answer, config, guarded
from tests.support.matrix import called, image, turn

PICTURE = "data:image/png;base64,AA=="


class Shield:
    """Flags the word, after some seconds, or does what it is told to; `asked` are the turns it was given."""

    def __init__(
        self, *, sees_images: bool = False, takes: float = 0, does: Any = None, is_ready: bool = True
    ) -> None:
        self.sees_images = sees_images
        self.takes = takes
        self.does = does
        self.is_ready = is_ready
        self.asked: list[list[Turn]] = []
        self.cancelled = 0

    async def ready(self) -> bool:
        return self.is_ready

    def categories(self) -> dict[str, str]:
        return {"S9": "birds"}

    async def check(self, turns: list[Turn]) -> Verdict:
        self.asked.append(turns)
        try:
            await asyncio.sleep(self.takes)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.does, Exception):
            raise self.does
        if self.does is not None:
            found: Verdict = self.does
            return found
        bad = WORD in turns[-1].text
        return Verdict(flagged=bad, categories=["S9"] if bad else [], score=0.75 if bad else 0.25)


def heard(*texts: str, role: Any = "user", images: list[str] | None = None) -> list[Heard]:
    """A conversation; the images are the last turn's."""
    turns = [Turn(role=role, text=text) for text in texts]
    turns[-1] = turns[-1].model_copy(update={"images": images or []})
    return [Heard.of(each) for each in turns]


def judge(enforce: dict[str, Any] | None = None, **shields: Shield) -> Judge:
    return Judge(Enforce.model_validate(enforce or {}), shields)


def asked(found: Judge, names: list[str], *texts: str, touchpoint: Touchpoint = "input") -> Blocked | None:
    return asyncio.run(found.blocked(names, heard(*texts), touchpoint=touchpoint))


def count(shield: str, touchpoint: str, verdict: str) -> float:
    labels = {"shield": shield, "touchpoint": touchpoint, "verdict": verdict}
    return REGISTRY.get_sample_value("llama_lite_guard_verdicts_total", labels) or 0.0


# ------------------------------------------------------------ verdicts


def test_what_is_flagged_is_blocked_with_what_was_found() -> None:
    found = judge(bird=Shield())
    assert asked(found, ["bird"], "a heron") is None
    blocked = asked(found, ["bird"], f"a {WORD}", touchpoint="output")
    assert blocked == Blocked(shield="bird", touchpoint="output", categories=["S9"], score=0.75)
    assert "`bird`" in blocked.refusal() and "S9" in blocked.refusal() and WORD not in blocked.refusal()


def test_a_shield_is_given_the_turns_before_and_one_plain_form_of_the_text() -> None:
    shield = Shield()
    assert asked(judge(bird=shield), ["bird"], "who is there?", "ｋｉｎｇｆｉｓｈｅｒ")
    assert [each.text for each in shield.asked[0]] == ["who is there?", WORD]


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_nothing_said_needs_no_verdict(text: str) -> None:
    shield = Shield()
    assert asked(judge(bird=shield), ["bird"], text) is None and not shield.asked


def test_several_shields_are_asked_at_the_same_time_and_one_finding_is_enough() -> None:
    slow: dict[str, Any] = {name: Shield(takes=0.2) for name in ("one", "two", "three")}
    found = judge(**slow, bird=Shield())

    async def main() -> float:
        before = asyncio.get_running_loop().time()
        assert await found.blocked(slow, heard("a heron"), touchpoint="input") is None
        return asyncio.get_running_loop().time() - before

    assert asyncio.run(main()) < 0.5
    blocked = asked(found, ["one", "bird", "two"], f"a {WORD}")
    assert blocked and blocked.shield == "one", "the first that found something, in their order"


def test_a_finding_counts_where_another_shield_fails() -> None:
    shields: dict[str, Any] = {"broken": Shield(does=UpstreamError("no")), "bird": Shield()}
    found = judge(**shields)
    blocked = asked(found, ["broken", "bird"], f"a {WORD}")
    assert blocked and blocked.shield == "bird"
    with pytest.raises(GuardFailed):
        asked(found, ["broken", "bird"], "a heron")
    with pytest.raises(GuardFailed):
        asked(found, ["bird", "broken"], "a heron")


# ------------------------------------------------------------ what is no verdict

GARBAGE = ["safe", True, {"flagged": False}, [], object()]


@pytest.mark.parametrize("said", GARBAGE, ids=lambda said: type(said).__name__)
def test_an_answer_that_is_no_verdict_is_none(said: Any) -> None:
    before = count("odd", "input", "error")
    with pytest.raises(GuardFailed):
        asked(judge(odd=Shield(does=said)), ["odd"], "a heron")
    assert count("odd", "input", "error") == before + 1


def test_none_is_no_verdict_either() -> None:
    class Silent(Shield):
        async def check(self, turns: list[Turn]) -> Any:
            return None

    with pytest.raises(GuardFailed):
        asked(judge(odd=Silent()), ["odd"], "a heron")


@pytest.mark.parametrize(
    "error",
    [UpstreamError(f"a {WORD}"), GuardFailed("bird", "x"), KeyError(WORD), ValueError(), TimeoutError(WORD)],
    ids=lambda error: type(error).__name__,
)
def test_an_error_is_no_verdict_and_does_not_tell_what_was_judged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(GuardFailed) as raised:
        asked(judge(bird=Shield(does=error)), ["bird"], "a heron")
    assert raised.value.status == 503 and raised.value.code == "guard_unavailable"
    assert "`bird`" in str(raised.value)
    assert WORD not in f"{raised.value} {caplog.text}" and "bird" in caplog.text


def test_a_verdict_that_takes_too_long_is_none() -> None:
    shield = Shield(takes=30)
    with pytest.raises(GuardFailed, match="too long"):
        asked(judge({"timeout": 0.02}, bird=shield), ["bird"], "a heron")
    assert shield.cancelled == 1


def test_who_leaves_while_a_shield_judges_stops_it() -> None:
    shield = Shield(takes=30)

    async def main() -> None:
        work = asyncio.create_task(judge(bird=shield).blocked(["bird"], heard("x"), touchpoint="input"))
        await asyncio.sleep(0.01)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert shield.cancelled == 1


# ------------------------------------------------------------ memory


def test_the_same_turn_in_the_same_conversation_is_asked_about_once() -> None:
    shield = Shield()
    found = judge(bird=shield, other=Shield())
    for _ in range(3):
        assert asked(found, ["bird"], "hello", "a heron") is None
    assert len(shield.asked) == 1
    for other in (["hi", "a heron"], ["a heron"], ["hello", "hello", "a heron"], ["hello", "a herons"]):
        asked(found, ["bird"], *other)
    assert len(shield.asked) == 5
    asyncio.run(found.blocked(["bird"], heard("hello", "a heron", role="assistant"), touchpoint="input"))
    asyncio.run(found.blocked(["bird"], heard("hello", "a heron", images=["x"]), touchpoint="input"))
    assert len(shield.asked) == 7
    asked(found, ["other"], "hello", "a heron")
    assert len(shield.asked) == 7, "what one shield let pass another may not"


def test_the_same_text_at_another_border_is_another_conversation() -> None:
    shield = Shield()
    found = judge(bird=shield)
    asked(found, ["bird"], "ab", "c")
    asked(found, ["bird"], "a", "bc")
    assert len(shield.asked) == 2


def test_what_is_flagged_or_fails_is_asked_about_again() -> None:
    shield = Shield()
    found = judge(bird=shield)
    for _ in range(2):
        assert asked(found, ["bird"], f"a {WORD}")
    shield.does = UpstreamError("no")
    for _ in range(2):
        with pytest.raises(GuardFailed):
            asked(found, ["bird"], "a heron")
    assert len(shield.asked) == 4


def test_the_memory_is_bounded_and_forgets_what_was_not_asked_for_longest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 3)
    shield = Shield()
    found = judge(bird=shield)
    for text in ("1", "2", "3", "1", "4", "1"):
        asked(found, ["bird"], text)
    assert [turns[-1].text for turns in shield.asked] == ["1", "2", "3", "4"]
    asked(found, ["bird"], "2")
    assert len(shield.asked) == 5 and len(found._passed) == 3


# ------------------------------------------------------------ counted and logged


@pytest.mark.parametrize("touchpoint", TOUCHPOINTS)
def test_every_verdict_is_counted_by_shield_and_touchpoint(touchpoint: Touchpoint) -> None:
    shield = Shield()
    found = judge(counted=shield)
    before = [count("counted", touchpoint, verdict) for verdict in ("safe", "unsafe", "error")]
    asked(found, ["counted"], "a heron", touchpoint=touchpoint)
    asked(found, ["counted"], "a heron", touchpoint=touchpoint)  # remembered: no verdict
    asked(found, ["counted"], WORD, touchpoint=touchpoint)
    shield.does = ValueError()
    with pytest.raises(GuardFailed):
        asked(found, ["counted"], "a stork", touchpoint=touchpoint)
    after = [count("counted", touchpoint, verdict) for verdict in ("safe", "unsafe", "error")]
    assert after == [number + 1 for number in before]


@pytest.mark.parametrize("log_text", [False, True])
def test_the_log_quotes_what_was_judged_only_where_the_operator_says_so(
    log_text: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shield = Shield()
    found = judge({"log_text": log_text}, bird=shield)
    asked(found, ["bird"], "a heron")
    asked(found, ["bird"], f"a {WORD}")
    shield.does = KeyError("a stork")
    with pytest.raises(GuardFailed):
        asked(found, ["bird"], "a stork")
    mine = [record for record in caplog.records if record.name == module.__name__]
    assert [record.levelname for record in mine] == ["DEBUG", "WARNING", "ERROR"]
    assert "S9" in mine[1].getMessage() and "0.750" in mine[1].getMessage()
    for record, text in zip(mine, ("heron", WORD, "stork"), strict=True):
        assert (text in record.getMessage()) == log_text


def test_asking_one_shield_by_name_is_counted_but_not_remembered() -> None:
    shield = Shield()
    found = judge(named=shield)
    before = count("named", "input", "safe")
    for _ in range(2):
        verdict = asyncio.run(found.ask("named", [Turn(role="user", text="ｈｅｒｏｎ")], touchpoint="input"))
        assert not verdict.flagged
    assert count("named", "input", "safe") == before + 2
    assert shield.asked[0][0].text == "heron"


# ------------------------------------------------------------ touchpoints


def test_a_touchpoint_that_is_not_set_is_judged_as_what_it_resembles() -> None:
    enforce = Enforce(input=["a"], output=["b"])
    by_point = {point: enforce.shields(point) for point in TOUCHPOINTS}
    assert by_point == {
        "input": ["a"],
        "output": ["b"],
        "tool_call": ["b"],
        "tool_result": ["a"],
        "retrieval": ["a"],
        "upload": ["a"],
    }
    own = Enforce(input=["a"], output=["b"], tool_call=["c"], tool_result=[], retrieval=["d"], upload=["e"])
    assert [own.shields(point) for point in TOUCHPOINTS] == [["a"], ["b"], ["c"], [], ["d"], ["e"]]
    assert not Enforce() and Enforce(output=["b"]) and Enforce(upload=["a"])


def test_what_is_found_is_judged_only_where_something_can_be() -> None:
    config = {"safety": {"a": {"provider": "canary"}}, "enforce": {"retrieval": ["a"], "upload": ["a"]}}
    without = StackConfig.model_validate(config)
    found = StackConfig.model_validate({**config, "vector_io": {"f": {"provider": "faiss"}}})
    assert not without.enforced() and found.enforced() and without.enforce
    for each, enforced in ((without, set()), (found, {"a"})):
        judge = Judge(each.enforce, {}, points=each.touchpoints())
        assert judge.enforced == enforced and judge.off == (not enforced)
        assert not asyncio.run(judge.watch([]))  # nothing of a chat is judged


@pytest.mark.parametrize("touchpoint", ["input", "output", "tool_call", "tool_result"])
def test_each_touchpoint_has_shields_of_its_own(touchpoint: Touchpoint) -> None:
    """With a shield at one touchpoint alone, only what comes by there is judged."""
    bad = {
        "input": (QUIET | {"stop": WORD}, "hello", None),
        "tool_result": (turn("tool", WORD), "hello", None),
        "output": (QUIET, WORD, None),
        "tool_call": (QUIET, "hello", WORD),
    }
    quiet: dict[str, Any] = {"input": [], "output": [], "tool_call": [], "tool_result": []}

    async def main() -> dict[str, str]:
        ends = {}
        async with guarded(config(**{**quiet, touchpoint: ["bird"]})) as server:
            for point, (fields, text, arguments) in bad.items():
                call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": arguments or "{}"}}
                delta = {"content": text, "tool_calls": [call]}
                server.model.frames = [{"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]}]
                [(frame, _)] = (await server.post(CHAT, fields)).frames()
                ends[point] = frame["choices"][0]["finish_reason"]
        return ends

    ends = asyncio.run(main())
    assert ends == {point: "content_filter" if point == touchpoint else "stop" for point in bad}


def test_a_request_adds_shields_to_every_touchpoint_and_takes_none_away() -> None:
    found = judge({"input": ["a"]}, a=Shield(), b=Shield())
    plain = asyncio.run(found.watch([]))
    more = asyncio.run(found.watch(["b", "a", "b"]))
    assert [plain.shields(point) for point in ("input", "output")] == [["a"], []]
    assert [more.shields(point) for point in ("input", "output")] == [["a", "b"], ["b", "a"]]


@pytest.mark.parametrize("door", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_shield_is_400_and_names_the_field(door: str, stream: bool) -> None:
    async def main() -> Answer:
        async with guarded(config(input=[], output=[])) as server:
            prompt = QUIET if door == CHAT else {"prompt": "hello"}
            answer = await server.post(door, {**prompt, "stream": stream, "guardrails": ["bird", "brid"]})
            assert not server.model.asked
            return answer

    answer = asyncio.run(main())
    [(frame, _)] = answer.frames()
    assert answer.status == 400 and frame["error"]["param"] == "guardrails"
    assert "`brid` (did you mean bird?)" in frame["error"]["message"]


# ------------------------------------------------------------ shields that wait


def test_a_shield_that_waits_for_its_model_judges_from_the_moment_it_is_there() -> None:
    late = Shield(is_ready=False)
    found = judge({"input": ["late", "bird"]}, late=late, bird=Shield())

    async def main() -> None:
        await found.start()
        assert found.waiting == {"late"} and found.off
        assert (await found.watch([])).shields("input") == ["bird"]
        with pytest.raises(Unavailable) as raised:
            await found.watch(["late"])
        assert raised.value.code == "guard_unavailable" and raised.value.status == 503
        late.is_ready = True
        assert (await found.watch([])).shields("input") == ["late", "bird"]
        assert not found.off and not found.waiting
        late.is_ready = False  # nobody asks again
        assert (await found.watch(["late"])).shields("output") == ["late"]

    asyncio.run(main())


def test_a_watch_of_nobody_is_none() -> None:
    async def main() -> None:
        late = judge({"input": ["late"]}, late=Shield(is_ready=False))
        await late.start()
        assert not await late.watch([])
        nobody = judge(bird=Shield())
        await nobody.start()
        assert not await nobody.watch([]) and await nobody.watch(["bird"])
        assert nobody.off

    asyncio.run(main())


def test_a_shield_that_must_be_there_stops_the_start() -> None:
    class Required(Shield):
        async def ready(self) -> bool:
            raise ConfigError("its model is not here")

    with pytest.raises(ConfigError):
        asyncio.run(judge({"input": ["bird"]}, bird=Required()).start())


# ------------------------------------------------------------ what no shield can see

AUDIO = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
FILE = {"type": "file", "file": {"file_id": "f"}}


@pytest.mark.parametrize("part", [image({}), AUDIO, FILE], ids=["image", "audio", "file"])
@pytest.mark.parametrize("policy", ["block", "allow"])
def test_what_no_shield_can_see_is_up_to_the_operator(policy: str, part: dict[str, Any]) -> None:
    async def main() -> Answer:
        async with guarded(config(images=policy)) as server:
            server.model.frames = [
                {"choices": [{"index": 0, "delta": {"content": "a heron"}, "finish_reason": "stop"}]}
            ]
            answer = await server.post(CHAT, turn("user", [part]))
            assert len(server.model.asked) == (policy == "allow")
            return answer

    answer = asyncio.run(main())
    [(frame, _)] = answer.frames()
    if policy == "allow":
        assert answer.status == 200
    else:
        assert answer.status == 400 and frame["error"]["code"] == "content_not_judged"
        assert frame["error"]["param"] == "messages"


def test_an_image_is_for_those_that_see_it() -> None:
    blind, seeing = Shield(), Shield(sees_images=True)
    found = judge({"input": ["blind", "seeing"]}, blind=blind, seeing=seeing)

    async def main() -> None:
        watch = await found.watch([])
        assert await watch.blocked("input", heard("look", images=[PICTURE])) is None
        assert await watch.blocked("input", heard("", images=[PICTURE])) is None
        with pytest.raises(InvalidRequest, match="file"):
            await watch.blocked("input", heard("look"), unseen="file")

    asyncio.run(main())
    assert [turns[-1].images for turns in blind.asked] == [[]]
    assert [turns[-1].images for turns in seeing.asked] == [[PICTURE], [PICTURE]]


def test_images_are_let_through_where_nothing_judges_the_request() -> None:
    found = judge({"output": ["bird"]}, bird=Shield())

    async def main() -> None:
        watch = await found.watch([])
        assert await watch.blocked("input", heard("look", images=[PICTURE])) is None

    asyncio.run(main())


def test_the_text_beside_an_allowed_image_is_judged() -> None:
    found = judge({"input": ["bird"], "images": "allow"}, bird=Shield())

    async def main() -> Blocked | None:
        watch = await found.watch([])
        return await watch.blocked("input", heard(f"a {WORD}", images=[PICTURE]))

    assert asyncio.run(main())


# ------------------------------------------------------------ which turns


def turns_of(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    async def main() -> list[Turn]:
        async with guarded() as server:
            await server.post(CHAT, fields)
            return list(server.canary.seen)

    return ((each.role, each.text) for each in asyncio.run(main()))


def test_each_message_is_judged_as_a_turn_of_its_role() -> None:
    fields = {
        "messages": [
            {"role": "developer", "content": "be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "what "}, {"type": "text", "text": "flew?"}],
            },
            *called()["messages"][1:],
            {"role": "tool", "tool_call_id": "c1", "content": "a heron"},
        ]
    }
    assert list(turns_of(fields)) == [
        ("system", "be brief"),
        ("user", "what flew?"),
        ("assistant", "c1\nlook\n{}"),
        ("tool", "a heron\nc1"),
    ]


def test_parts_are_read_with_and_without_a_border_where_that_makes_other_words() -> None:
    parts = [{"type": "text", "text": "a her"}, {"type": "text", "text": "on"}]
    assert list(turns_of(turn("user", parts)))[-1] == ("user", "a heron\na her\non")


def test_what_only_steers_the_server_is_not_judged() -> None:
    fields = {
        **QUIET,
        "temperature": 1,
        "user": "u",
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "logit_bias": {"1": 2},
        "stop": None,
        "tool_choice": "none",
    }
    assert list(turns_of(fields)) == [("user", "what flew there?")]


def test_an_error_that_is_the_stacks_own_keeps_its_name() -> None:
    """So that an operator sees in the log what is wrong with a guard's server."""

    async def main() -> None:
        with pytest.raises(GuardFailed, match="upstream_timeout"):
            error = StackError("no", code="upstream_timeout")
            await judge(bird=Shield(does=error)).blocked(["bird"], heard("x"), touchpoint="input")

    asyncio.run(main())
