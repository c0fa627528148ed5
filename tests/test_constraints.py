"""Grammars: random walks through them always come to valid JSON, and to calls that parse."""

import json
import random
from typing import Any

import llguidance
import pytest
from jsonschema import Draft202012Validator

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.prompting import constraints
from llama_stack_lite.prompting.formats import FORMATS, format_for

Schema = dict[str, Any]

MARKS = ("<|python_tag|>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
END = 256
SPECIALS = {mark: END + 1 + at for at, mark in enumerate(MARKS)}
WITHOUT_ARGS = {mark: token for mark, token in SPECIALS.items() if mark not in ("[ARGS]", "[CALL_ID]")}
VOCABULARIES = {
    "marks are tokens": SPECIALS,
    "older tokens": WITHOUT_ARGS,
    "marks are text": dict[str, int](),
}


class Bytes:
    """A vocabulary of the 256 bytes, an end, and the marks as control tokens."""

    eos_token_id, bos_token_id = END, None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>", *(mark.encode() for mark in MARKS))
    special_token_ids = tuple(range(END, END + 1 + len(MARKS)))

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


CLOSING = frozenset(b'"}])')
VOCABULARY = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), slices=[])


def matcher(grammar: str) -> llguidance.LLMatcher:
    found = llguidance.LLMatcher(VOCABULARY, grammar, log_level=0)
    assert not found.is_error(), f"{found.get_error()}\n{grammar}"
    return found


def walk(grammar: str, dice: random.Random, length: int = 4000) -> str | None:
    """A random text of the grammar; a quote or bracket that closes something is taken half of the times."""
    state, text = matcher(grammar), b""
    for _ in range(length):
        mask = state.compute_bitmask()
        allowed = [t for t in range(len(Bytes.tokens)) if mask[t // 8] >> t % 8 & 1]
        assert allowed, f"stuck after {text!r}: {state.get_error()}\n{grammar}"
        closing = [t for t in allowed if t == END or t in CLOSING] or allowed
        token = dice.choice(closing if dice.random() < 0.5 else allowed)
        if token == END:
            return text.decode()
        assert state.consume_token(token)
        text += Bytes.tokens[token]
    return None


def accepts(grammar: str, text: str, specials: dict[str, int] | None = None) -> bool:
    """Whether the grammar derives the text, in which the marks of `specials` are tokens."""
    tokens: list[int] = []
    while text:
        mark = next((mark for mark in specials or {} if text.startswith(mark)), None)
        tokens += [(specials or {})[mark]] if mark else list(text[0].encode())
        text = text[len(mark or text[0]) :]
    state = matcher(grammar)
    return state.try_consume_tokens(tokens) == len(tokens) and state.is_accepting()


def walks(grammar: str, count: int, seed: int) -> list[str]:
    dice = random.Random(seed)
    found = [text for _ in range(count) if (text := walk(grammar, dice)) is not None]
    assert len(found) >= count * 0.8, "most walks have to end"
    return found


def record(required: list[str] | None = None, /, **properties: Any) -> Schema:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names}


STRING, INTEGER, NUMBER = {"type": "string"}, {"type": "integer"}, {"type": "number"}

SCHEMAS: dict[str, Schema] = {
    "string": record(city=STRING),
    "types": record(a=STRING, b=INTEGER, c=NUMBER, d={"type": "boolean"}, e={"type": "null"}),
    "optional": record([], a=STRING, b=INTEGER, c={"type": "boolean"}),
    "some optional": record(["b"], a=INTEGER, b=INTEGER, c=INTEGER),
    "nothing": {"type": "object", "properties": {}},
    "enum": record(unit={"enum": ["celsius", "fahrenheit", 1, None, True]}),
    "const": record(kind={"const": 'it\'s "quoted"\n'}),
    "limits": record(
        a={"type": "integer", "minimum": -3, "exclusiveMaximum": 12}, b={**NUMBER, "minimum": 0.5}
    ),
    "multiple": record(a={**NUMBER, "multipleOf": 0.1, "minimum": 0}, b={**INTEGER, "multipleOf": 7}),
    "lengths": record(a={"type": "string", "minLength": 2, "maxLength": 5}),
    "pattern": record(
        a={"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}, b={**STRING, "pattern": "[}\\]]"}
    ),
    "formats": record(
        a={**STRING, "format": "date"}, b={**STRING, "format": "uuid"}, c={**STRING, "format": "password"}
    ),
    "array": record(a={"type": "array", "items": INTEGER, "minItems": 1, "maxItems": 3}),
    "tuple": record(a={"type": "array", "prefixItems": [STRING, INTEGER], "items": False, "minItems": 2}),
    "nested": record(a=record(b=record(["d"], c=INTEGER, d=STRING))),
    "any of": record(a={"anyOf": [INTEGER, {"type": "null"}, record(x=STRING)]}),
    "one of": record(a={"oneOf": [INTEGER, STRING]}),
    "all of": {"allOf": [record(a=INTEGER), record(b=STRING)]},
    "references": {
        **record(["value"], value=INTEGER, next={"$ref": "#/$defs/node"}),
        "$defs": {"node": record(["value"], value=INTEGER, next={"$ref": "#/$defs/node"})},
    },
    "map": {"type": "object", "additionalProperties": INTEGER, "minProperties": 1},
    "patterned map": {"type": "object", "patternProperties": {"^x-": INTEGER}, "additionalProperties": False},
    "open": {**record(a=INTEGER), "additionalProperties": STRING},
    "odd names": record(**{"a b": INTEGER, "c=d": STRING, "from": INTEGER, "\u00e9": STRING}),
    "type list": record(a={"type": ["string", "null"], "maxLength": 3}),
    "beside a reference": {
        **record(a={"$ref": "#/$defs/small", "minimum": 5}),
        "$defs": {"small": {"type": "integer", "maximum": 9}},
    },
    "any object": {"type": "object"},
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_is_valid_by_its_schema(name: str) -> None:
    schema = SCHEMAS[name]
    validator = Draft202012Validator(schema)
    for text in walks(constraints.answer(schema), 15, seed=len(name)):
        value = json.loads(text)
        if name != "multiple":  # jsonschema divides binary fractions
            assert validator.is_valid(value), text
        else:
            assert round(value["a"] * 10, 6) == int(round(value["a"] * 10, 6)) and value["b"] % 7 == 0
        assert "\n" not in text and not text.startswith(" ") and "  :" not in text


@pytest.mark.parametrize(
    ("schema", "reason"),
    {
        "unique": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        "not": ({"not": STRING}, "not"),
        "if": ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, "if"),
        "contains": ({"type": "array", "contains": {"const": 1}}, "contains"),
        "property names": ({"type": "object", "propertyNames": {"pattern": "a"}}, "propertyNames"),
        "dependent": ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        "count": ({"type": "object", "minProperties": 2}, "minProperties"),
        "overlap": ({"oneOf": [INTEGER, NUMBER]}, "oneOf"),
        "remote": ({"$ref": "http://127.0.0.1:9/schema"}, "http://127.0.0.1:9"),
        "look-around": ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        "format": ({"type": "string", "format": "regex"}, "regex"),
        "no type": ({"type": "dict"}, "no valid JSON Schema: .type"),
        "no properties": ({"type": "object", "properties": [1]}, "no valid JSON Schema: .properties"),
        "impossible": ({"type": "integer", "minimum": 3, "maximum": 1}, "Unsatisfiable"),
        "lenient": ({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}, "uniqueItems"),
        "huge": ({"enum": ["x" * 300_000]}, "longer than"),
        "deep": (json.loads('{"not":' * 400 + "{}" + "}" * 400), ""),
    }.values(),
)
def test_what_cannot_be_enforced_is_refused(schema: Schema, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        constraints.answer(schema)
    assert reason in str(refused.value)
    assert refused.value.param == "response_format.json_schema.schema"
    tools = [FunctionDefinition(name="a"), FunctionDefinition(name="b", parameters=record(x=schema))]
    for form in FORMATS.values():
        with pytest.raises(InvalidRequest) as refused:
            form.grammar(tools, must_call=True, parallel=True, specials={})
        assert refused.value.param == "tools[1].function.parameters"


def test_numbers_without_limits_stay_readable() -> None:
    grammar = constraints.answer(record(a=INTEGER, b=NUMBER))
    assert accepts(grammar, '{"a": 9007199254740991, "b": -0.25}')
    assert not accepts(grammar, '{"a": 9007199254740992, "b": 1}')
    assert not accepts(grammar, '{"a": 1, "b": 1e999}')


def functions(schema: Schema) -> list[FunctionDefinition]:
    return [
        FunctionDefinition(name="get-weather_2", parameters=schema),
        FunctionDefinition(name="get", parameters=record([], n=INTEGER)),
        FunctionDefinition(name="none"),
    ]


CALLABLE = {name: schema for name, schema in SCHEMAS.items() if name != "any object"}


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("form", FORMATS)
def test_a_required_call_is_a_valid_call(form: str, vocabulary: str) -> None:
    for seed, (name, schema) in enumerate(CALLABLE.items()):
        offered = functions(schema)
        grammar = FORMATS[form].grammar(
            offered, must_call=True, parallel=False, specials=VOCABULARIES[vocabulary]
        )
        for text in walks(grammar, 5, seed):
            parsed = FORMATS[form].parse(text, offered)
            assert parsed.content is None and not parsed.invalid and len(parsed.calls) == 1, (
                name,
                text,
                parsed,
            )


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("form", FORMATS)
def test_calls_may_be_several_where_they_may_be_parallel(form: str, vocabulary: str) -> None:
    offered = functions(SCHEMAS["some optional"])
    counts = set()
    for parallel in (True, False):
        grammar = FORMATS[form].grammar(
            offered, must_call=True, parallel=parallel, specials=VOCABULARIES[vocabulary]
        )
        for text in walks(grammar, 25, seed=1):
            parsed = FORMATS[form].parse(text, offered)
            assert parsed.content is None and not parsed.invalid, text
            counts.add((parallel, min(len(parsed.calls), 2)))
    assert counts == {(True, 1), (True, 2), (False, 1)}


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("form", FORMATS)
def test_text_is_free_until_it_begins_a_call(form: str, vocabulary: str) -> None:
    specials = VOCABULARIES[vocabulary]
    offered = functions(SCHEMAS["string"])
    grammar = FORMATS[form].grammar(offered, must_call=False, parallel=True, specials=specials)
    texts = [
        "",
        "Hello, [world](x)!",
        '{"name": "Bob"}',
        "[1, 2]",
        "a < b <tool",
        "[TOOL",
        "Caf\u00e9\n\n- x",
        "\n",
    ]
    for text in texts:
        assert accepts(grammar, text, specials), text
    for text in walks(grammar, 25, seed=3):
        parsed = FORMATS[form].parse(text, offered)
        assert parsed.calls or parsed.content == (text or None)
        assert not parsed.invalid


WEATHER = [FunctionDefinition(name="get_weather", parameters=record(["city"], city=STRING, days=INTEGER))]
GOOD = {
    "llama3-json": [
        '{"name": "get_weather", "parameters": {"city": "Paris"}}',
        '{"type": "function", "name": "get_weather", "parameters": {"city": "Paris", "days": 3}}',
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris"}}',
        '<|python_tag|>{\n  "type": "function",\n  "name": "get_weather",\n  "parameters": {"city": "P"}\n}',
        '{"name":"get_weather","parameters":{"city": "P"}}; '
        '{"name": "get_weather", "parameters": {"city": "Q"}}',
    ],
    "llama-pythonic": [
        '[get_weather(city="Paris")]',
        '<|python_tag|>[get_weather(city="Paris", days=2), get_weather(city="Rome")]',
    ],
    "hermes": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>',
        'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>',
    ],
    "mistral": [
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
        'So: [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}',
    ],
}
BAD = {
    "llama3-json": [
        '{"name": "get_weather", "parameters": {}}',
        '{"name": "get_weather"}',
        '  {"type": "function", "name": "other", "parameters": {}}',
        "<|python_tag|>print(1)",
        '<function=get_weather>{"city": 1}</function>',
    ],
    "llama-pythonic": [
        "[get_weather()]",
        "[get_weather(city=1)]",
        "<|python_tag|>print(1)",
        " [ get_weather (1)]",
    ],
    "hermes": ["<tool_call>hello", 'x <tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'],
    "mistral": ["[TOOL_CALLS]hello", '[TOOL_CALLS]get_weather[ARGS]{"city": 1}'],
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("specials", [SPECIALS, {}], ids=["tokens", "text"])
def test_what_models_write_is_allowed_and_a_broken_call_is_not(form: str, specials: dict[str, int]) -> None:
    grammar = FORMATS[form].grammar(WEATHER, must_call=False, parallel=True, specials=specials)
    for text in GOOD[form]:
        tagged = text.startswith("<|python_tag|>") or "[ARGS]" in text
        if specials or not tagged:
            assert accepts(grammar, text, specials), text
            assert FORMATS[form].parse(text, WEATHER).calls, text
    for text in BAD[form]:
        assert not accepts(grammar, text, specials), text


def test_older_mistral_lists_its_calls() -> None:
    grammar = format_for("mistral").grammar(WEATHER, must_call=False, parallel=True, specials=WITHOUT_ARGS)
    listed = ", ".join(f'{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}' for city in "AB")
    text = f"[TOOL_CALLS] [{listed}]"
    assert accepts(grammar, text, WITHOUT_ARGS)


def test_a_grammar_is_checked_against_a_vocabulary() -> None:
    constraints.check(constraints.answer(SCHEMAS["types"]), VOCABULARY, param="x")
    missing = llguidance.LLMatcher.grammar_from_lark("start: <|nowhere|>")
    with pytest.raises(InvalidRequest) as refused:
        constraints.check(missing, VOCABULARY, param="tools")
    assert refused.value.param == "tools" and "nowhere" in str(refused.value)
