"""Formats of tool calls: recorded outputs, streams cut anywhere, arguments of wrong types, odd texts."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.errors import ConfigError
from llama_stack_lite.prompting.formats import FORMATS, Format, Parsed, detect, format_for

RECORDED = yaml.safe_load((Path(__file__).parent / "data" / "tool_calls.yaml").read_text())
CASES = [(form, case) for form, cases in RECORDED.items() for case in cases]


def function(name: str, **types: str) -> FunctionDefinition:
    parameters = {"type": "object", "properties": {key: {"type": kind} for key, kind in types.items()}}
    return FunctionDefinition(name=name, parameters=parameters)


OFFERED = [
    function("trending_songs", n="integer", genre="string"),
    function("add", a="number", b="number"),
    function("special_function", arg1="integer"),
    *(function(name) for name in {name for _, case in CASES for name, _ in case.get("calls", [])}),
    function("do_thing"),
]
OFFERED = list({each.name: each for each in reversed(OFFERED)}.values())


def calls_of(parsed: Parsed) -> list[list[Any]]:
    return [[call.name, json.loads(call.arguments)] for call in parsed.calls]


@pytest.mark.parametrize(("form", "case"), CASES, ids=[f"{form}-{n}" for n, (form, _) in enumerate(CASES)])
def test_recorded_outputs_are_understood(form: str, case: dict[str, Any]) -> None:
    parsed = FORMATS[form].parse(case["text"], OFFERED)
    assert calls_of(parsed) == case.get("calls", [])
    assert parsed.content == case.get("content")
    assert [invalid.name for invalid in parsed.invalid] == case.get("invalid", [])


def test_every_format_has_ten_recordings_with_their_source() -> None:
    assert RECORDED.keys() == FORMATS.keys()
    assert all(len(cases) >= 10 and all(case["from"] for case in cases) for cases in RECORDED.values())


def streamed(form: Format, text: str, step: int) -> tuple[str, Parsed]:
    """What a reader sees of a text that comes in pieces: what was shown at once, and the rest as parsed."""
    shown, held = "", ""
    for at in range(0, len(text), step):
        held += text[at : at + step]
        if not form.holds(held):
            shown, held = shown + held, ""
    return shown, form.parse(held, OFFERED)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize(("form", "case"), CASES, ids=[f"{form}-{n}" for n, (form, _) in enumerate(CASES)])
def test_a_stream_cut_anywhere_comes_to_the_same(form: str, case: dict[str, Any], step: int) -> None:
    shown, rest = streamed(FORMATS[form], case["text"], step)
    assert calls_of(rest) == case.get("calls", [])
    assert "".join((shown + (rest.content or "")).split()) == "".join((case.get("content") or "").split())


@pytest.mark.parametrize("form", FORMATS)
def test_text_is_shown_at_once(form: str) -> None:
    text = 'The answer (see [1], [a](b) and {x}) is <b>42</b>: it\'s {"a": 1}.\n\n[x] done'
    shown, rest = streamed(FORMATS[form], text, 1)
    assert (shown, rest) == (text, Parsed())
    assert FORMATS[form].parse(text, OFFERED) == Parsed(content=text)
    assert FORMATS[form].parse("", OFFERED) == Parsed()


CALL = {
    "llama3-json": '{{"name": "{name}", "parameters": {arguments}}}',
    "llama-pythonic": "[{name}(**{arguments})]",
    "hermes": '<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>',
    "mistral": "[TOOL_CALLS]{name}[ARGS]{arguments}",
}


def say(form: str, name: str, arguments: str) -> str:
    return CALL[form].format(name=name, arguments=arguments)


@pytest.mark.parametrize("form", FORMATS)
def test_a_call_of_what_was_not_offered_is_text(form: str) -> None:
    text = say(form, "launch", "{}")
    assert FORMATS[form].parse(text, OFFERED) == Parsed(content=text)


TYPED = FunctionDefinition(
    name="f",
    parameters={
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 1},
            "x": {"type": "number"},
            "yes": {"type": "boolean"},
            "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "text": {"type": "string"},
            "items": {"type": "array", "items": {"type": "integer"}},
            "inner": {"$ref": "#/$defs/inner"},
            "level": {"enum": [1, 2]},
            "step": {"type": "number", "multipleOf": 0.1},
        },
        "$defs": {"inner": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}},
        "additionalProperties": False,
    },
)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("wrote", "meant"),
    [
        ({"n": "10"}, {"n": 10}),
        ({"x": "1.5", "yes": "true"}, {"x": 1.5, "yes": True}),
        ({"yes": "False", "maybe": "null"}, {"yes": False, "maybe": None}),
        ({"maybe": "7", "n": 1}, {"maybe": 7, "n": 1}),
        ({"text": "10", "n": "3"}, {"text": "10", "n": 3}),
        ({"items": ["1", 2]}, {"items": [1, 2]}),
        ({"items": "[1, 2]"}, {"items": [1, 2]}),
        ({"inner": {"n": "4"}}, {"inner": {"n": 4}}),
        ({"inner": '{"n": 4}'}, {"inner": {"n": 4}}),
        ({"level": "2"}, {"level": 2}),
        ({"step": 0.3}, {"step": 0.3}),
        ({"text": "caf\u00e9 \"\\\n'"}, {"text": "caf\u00e9 \"\\\n'"}),
    ],
)
def test_arguments_are_read_by_their_schema(form: str, wrote: Any, meant: Any) -> None:
    parsed = FORMATS[form].parse(say(form, "f", json.dumps(wrote)), [TYPED])
    assert calls_of(parsed) == [["f", meant]] and parsed.content is None


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("wrote", "reason"),
    [
        ({"n": "ten"}, "['n']: 'ten' is not of type 'integer'"),
        ({"n": 0}, "minimum"),
        ({"items": ["1", "b"]}, "['items'][1]"),
        ({"inner": {}}, "'n' is a required property"),
        ({"other": 1}, "'other' was unexpected"),
        ({"level": "3"}, "is not one of"),
        ({"step": 0.35}, "multiple"),
        ({"x": float("inf")}, "Out of range float values"),
    ],
)
def test_arguments_that_no_reading_makes_valid_are_told_with_the_reason(
    form: str, wrote: Any, reason: str
) -> None:
    text = say(form, "f", json.dumps(wrote))
    parsed = FORMATS[form].parse(text, [TYPED])
    assert not parsed.calls and parsed.content is None
    assert [(invalid.name, invalid.text) for invalid in parsed.invalid] == [("f", text)]
    assert reason in parsed.invalid[0].reason


def test_a_schema_that_points_elsewhere_is_not_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        far = FunctionDefinition(name="f", parameters={"properties": {"a": {"$ref": there}}})
        server.settimeout(0.2)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(server.accept)
            parsed = format_for("hermes").parse(say("hermes", "f", '{"a": 1}'), [far])
            assert isinstance(asked.exception(), TimeoutError)
    assert there in parsed.invalid[0].reason


def test_half_a_character_stays_escaped() -> None:
    parsed = format_for("hermes").parse(say("hermes", "do_thing", '{"a": "\\ud83d"}'), OFFERED)
    assert parsed.calls[0].arguments.encode() == b'{"a": "\\ud83d"}'


def test_python_is_read_and_never_run() -> None:
    form, offered = format_for("llama-pythonic"), [function("f")]
    good = {
        "[f(a=-1, b=1.5, c=(1, 2), d='x' 'y')]": {"a": -1, "b": 1.5, "c": [1, 2], "d": "xy"},
        '[f(a="x" "y")]': {"a": "xy"},
        "[f(a=true, b=False, c=null, d=None)]": {"a": True, "b": False, "c": None, "d": None},
        "[f(a={'b': [1, {'c': \"it's\"}]}, )]": {"a": {"b": [1, {"c": "it's"}]}},
        "[ f ( a = 1 ) ]": {"a": 1},
        r"[f(a='\d', b='\x41\u0042')]": {"a": r"\d", "b": "AB"},
        "[f(a='([{', b=\"}])\")]": {"a": "([{", "b": "}])"},
        "[f(a='two\nlines')]": None,
    }
    for text, meant in good.items():
        assert calls_of(form.parse(text, offered)) == ([] if meant is None else [["f", meant]]), text
    bad = [
        "f(a=__import__('os'))",
        "f(a=1+1)",
        "f(a=g())",
        "f(1)",
        "f(a=[x for x in y])",
        "f(a=b'x')",
        "f(a=f'x')",
    ]
    bad += [
        "f(a=lambda: 1)",
        "f(a=1j)",
        "f(a=...)",
        "f(a=(" * 500,
        f"f(a={'-' * 5000}1)",
        "f(a={**{}})",
        "f(a=1",
    ]
    for text in (f"[{each}]" for each in bad):
        assert form.parse(text, offered) == Parsed(content=text), text


MARKS = [
    "<|python_tag|>",
    "<tool_call>",
    "</tool_call>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "<function=add>",
    "</function>",
]
BITS = [
    '{"name": "add"',
    ', "parameters": ',
    '{"a": 1}',
    "add(",
    "a=1",
    "add.call(",
    "**{}",
    "add",
    "1e999",
    "NaN",
]
SIGNS = ["}", "[", "]", ")", ", ", "; ", "\n", '"', "'", "\\", "\x00", "\ud800", "{" * 3000, "[" * 3000, "<"]
FRAGMENTS = st.sampled_from(MARKS) | st.sampled_from(BITS) | st.sampled_from(SIGNS)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=300, deadline=None)
@given(text=st.text() | st.lists(FRAGMENTS | st.text(max_size=3), max_size=12).map("".join))
def test_no_text_is_too_odd(form: str, text: str) -> None:
    found = FORMATS[form].parse(text, OFFERED)
    names = {each.name for each in OFFERED}
    assert all(call.name in names and isinstance(json.loads(call.arguments), dict) for call in found.calls)
    if not found.calls and not found.invalid:
        assert found.content == (text or None)
    else:
        assert FORMATS[form].holds(text)


VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@pytest.mark.parametrize("form", FORMATS)
@settings(max_examples=100, deadline=None)
@given(arguments=st.dictionaries(st.text(), VALUES))
def test_any_arguments_come_back(form: str, arguments: dict[str, Any]) -> None:
    parsed = FORMATS[form].parse(say(form, "do_thing", json.dumps(arguments)), OFFERED)
    assert calls_of(parsed) == [["do_thing", arguments]]


@pytest.mark.parametrize("form", FORMATS)
def test_a_long_text_of_beginnings_is_read_in_reasonable_time(form: str) -> None:
    for begin in ("[f(", '{"name":', "<tool_call>{", "[TOOL_CALLS][", "<|python_tag|>[f(a="):
        text = begin * 20_000
        assert FORMATS[form].parse(text, OFFERED).content == text


LLAMA = "{% if tools %}{% endif %}<|start_header_id|>ipython<|end_header_id|>"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (None, "assisted"),
        ("{{ messages }}", "assisted"),
        ("<tool_call>", "assisted"),
        ("{% if tools %}<tool_call>{% endif %}", "hermes"),
        ("{% if tools %}<tool_call><function=x><parameter=y>{% endif %}", "assisted"),
        ("{% if tools %}[TOOL_CALLS]{% endif %}", "mistral"),
        (LLAMA, "llama3-json"),
        (LLAMA + "[func_name1(params_name1=params_value1)]", "llama-pythonic"),
        ("{% if tools %}<|tool|>{% endif %}", "assisted"),
    ],
)
def test_the_template_tells_the_format(source: str | None, name: str) -> None:
    assert detect(source) == name


def test_assisted_is_no_format() -> None:
    assert format_for("hermes").name == "hermes"
    with pytest.raises(ConfigError, match="`assisted` is no format"):
        format_for("assisted")
