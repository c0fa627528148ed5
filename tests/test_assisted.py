"""Assisted tool calling: the choice of a function, the grammar of its arguments, the answer from a result."""

import json
import math
import random
import re
from typing import Any

import llguidance
import pytest
from jsonschema import Draft202012Validator

from llama_stack_lite.api.inference import FunctionDefinition, Message
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.prompting import assisted
from llama_stack_lite.prompting.copying import arguments_grammar
from llama_stack_lite.prompting.router import CHAT, NONE, Router, choose_by_likelihood, nearest

Schema = dict[str, Any]

# ---------------------------------------------------------------- a walk through a grammar

END = 256


class Bytes:
    """A vocabulary of the 256 bytes and an end: every string has one tokenisation."""

    eos_token_id, bos_token_id = END, None
    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>")
    special_token_ids = (END,)

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text if isinstance(text, bytes) else text.encode())


VOCABULARY = llguidance.LLTokenizer(llguidance.TokenizerWrapper(Bytes()), slices=[])


def matcher(grammar: str) -> llguidance.LLMatcher:
    found = llguidance.LLMatcher(VOCABULARY, llguidance.LLMatcher.grammar_from_lark(grammar), log_level=0)
    assert not found.is_error(), f"{found.get_error()}\n{grammar}"
    return found


def walk(grammar: str, dice: random.Random) -> str:
    """A random text of the grammar, which has to end by itself."""
    state, text = matcher(grammar), b""
    while len(text) < 20_000:
        mask = state.compute_bitmask()
        allowed = [token for token in range(END + 1) if mask[token // 8] >> token % 8 & 1]
        assert allowed, f"stuck after {text!r}\n{grammar}"
        token = dice.choice(allowed)
        if token == END:
            return text.decode()
        assert state.consume_token(token)
        text += bytes([token])
    raise AssertionError(f"no end in sight: {text[:200]!r}\n{grammar}")


def derives(schema: Schema, message: str, text: str) -> bool:
    state = matcher(arguments_grammar(schema, message))
    return state.try_consume_tokens(list(text.encode())) == len(text.encode()) and state.is_accepting()


def record(required: list[str] | None = None, /, **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
EMAIL: Schema = {"type": "string", "format": "email"}
UNIT: Schema = {"enum": ["celsius", "kelvin"]}

SCHEMAS: dict[str, Schema] = {
    "nothing": {"type": "object"},
    "empty": {},
    "text": record(city=TEXT),
    "two texts": record(title={**TEXT, "description": "what"}, when=TEXT),
    "number": record(amount={"type": "number"}),
    "integer in a range": record(n={"type": "integer", "minimum": 3, "maximum": 17}),
    "fraction in a range": record(n={"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}),
    "multiple": record(n={"type": "integer", "multipleOf": 7}),
    "enum": record(unit={"type": "string", "enum": ["celsius", "fahren\"heit", "é"]}),
    "const and boolean": record(kind={"const": [1, "a"]}, on={"type": "boolean"}, nothing={"type": "null"}),
    "short text": record(code={"type": "string", "maxLength": 3}),
    "long text": record(code={"type": "string", "minLength": 30, "maxLength": 40}),
    "formats": record(to=EMAIL, on={**TEXT, "format": "date"}, at={**TEXT, "format": "odd"}),
    "pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"}),
    "array": record(tags={"type": "array", "items": TEXT}, few={"type": "array", "maxItems": 0}),
    "counted array": record(n={"type": "array", "items": WHOLE, "minItems": 2, "maxItems": 3}),
    "unique array": record(n={"type": "array", "items": TEXT, "uniqueItems": True}),
    "nested": record(place=record(city=TEXT, zip=WHOLE), list={"type": "array", "items": record(a=TEXT)}),
    "nullable": record(city={"type": ["string", "null"]}, days={"anyOf": [WHOLE, {"type": "null"}]}),
    "all optional": record([], city=TEXT, unit={"enum": ["c", "f"], "default": "c"}),
    "reference": {**record(pet={"$ref": "#/$defs/pet"}), "$defs": {"pet": record(name=TEXT, age=WHOLE)}},
    "recursive": {
        **record(tree={"$ref": "#/$defs/tree"}),
        "$defs": {
            "tree": record(["name"], name=TEXT, children={"type": "array", "items": {"$ref": "#/$defs/tree"}})
        },
    },
    "alternatives": record(id={"anyOf": [{**WHOLE, "minimum": 5}, TEXT]}, x={"type": ["number", "string"]}),
    "intersection": record(x={"allOf": [{"type": "string"}, {"maxLength": 5}]}),
    "strict": {**record(city=TEXT), "additionalProperties": False},
    "strange names": record(None, **{'a"b\\c': TEXT, "naïve": WHOLE, "{x}": TEXT}),
}  # fmt: skip

MESSAGES = {
    "plain": "What is the weather in New York tomorrow at 10:30?",
    "numbers": "Move 12 boxes, 1,200.50 euros and -5 degrees, or 0.25 of 14 on 2026-05-03",
    "quotes": 'He said "hi\\there" to bob@example.com, in C:\\new\\table {"a": 1}',
    "lines": "\n first line\n\tsecond\r\nthird \u0007 bell\u2028end\n",
    "unicode": "北京明天天气怎么样? Ça va, naïve é 🙂🙂 กรุงเทพ",
    "lone surrogate": "bad \ud800 text",
    "blank": " \n ",
    "empty": "",
    "signs": "?!",
    "long": "all work and no play " * 300,
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_whatever_is_decoded_is_valid_by_the_schema(schema: Schema, message: str) -> None:
    grammar, dice = arguments_grammar(schema, message), random.Random(repr(message))
    for _ in range(5):
        arguments = json.loads(walk(grammar, dice))
        assert isinstance(arguments, dict)
        Draft202012Validator(schema).validate(arguments)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for part in inner for text in strings(part)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("name", ["plain", "numbers", "quotes", "lines", "unicode", "signs", "long"])
@pytest.mark.parametrize("kind", ["text", "two texts", "array", "nested", "reference"])
def test_strings_are_copied_from_the_message(kind: str, name: str) -> None:
    message, dice = MESSAGES[name], random.Random(name)
    grammar = arguments_grammar(SCHEMAS[kind], message)
    for _ in range(10):
        for text in strings(json.loads(walk(grammar, dice))):
            assert text in message
            assert text == text.strip() != ""


CITY = record(city=TEXT)


@pytest.mark.parametrize(
    ("schema", "message", "arguments", "possible"),
    [
        (CITY, "Rain in New York?", {"city": "New York"}, True),
        (CITY, "Rain in New York?", {"city": "York?"}, True),
        (CITY, "Rain in New York?", {"city": "ork"}, False),
        (CITY, "Rain in New York?", {"city": "New  York"}, False),
        (CITY, "Rain in New York?", {"city": "Paris"}, False),
        (CITY, "北京明天下雨吗", {"city": "北京"}, True),
        (CITY, 'Say "hi" now', {"city": '"hi"'}, True),
        (CITY, "How much is 23 * 17?", {"city": "23 * 17"}, True),
        (CITY, "How much is 23 * 17?", {"city": "17"}, False),
        (CITY, "Call me at 3 pm", {"city": "3 pm"}, True),
        (CITY, "Call me at 3 pm", {"city": "3"}, False),
        (CITY, "", {"city": "anything"}, True),
        (record(n=WHOLE), "Add 1,200 and 7", {"n": 1200}, True),
        (record(n=WHOLE), "Add 1,200 and 7", {"n": 200}, False),
        (record(n=WHOLE), "It costs 2.50", {"n": 2}, True),
        (record(n=WHOLE), "For three people", {"n": 3}, True),
        (record(n=WHOLE), "For three people", {"n": 4}, False),
        (record(n=WHOLE), "For everybody", {"n": 4}, True),
        (record(n={"type": "integer", "maximum": 9}), "Take 12 or 7", {"n": 12}, False),
        (record(n={"type": "integer", "maximum": 9}), "Take 12", {"n": 8}, True),
        (record(u=UNIT), "in Kelvin please", {"u": "kelvin"}, True),
        (record(u=UNIT), "in Kelvin please", {"u": "celsius"}, False),
        (record(to=EMAIL), "Write to a@b.org.", {"to": "a@b.org"}, True),
        (record(to=EMAIL), "Write to a@b.org.", {"to": "x@y.com"}, False),
        (record(to=EMAIL), "Write to Ann", {"to": "x@y.com"}, True),
    ],
)  # fmt: skip
def test_what_can_be_copied(schema: Schema, message: str, arguments: Any, possible: bool) -> None:
    assert derives(schema, message, json.dumps(arguments, ensure_ascii=False)) is possible


@pytest.mark.parametrize(
    ("schema", "message", "names"),
    [
        (record(["city"], city=TEXT, days=WHOLE), "Weather in Rome", {"city"}),
        (record(["city"], city=TEXT, days=WHOLE), "Weather in Rome for 3 days", {"city", "days"}),
        (record(["city"], city=TEXT, max_day=WHOLE), "Rome, the next 3 days", {"city", "max_day"}),
        (record(["city"], city=TEXT, unit=UNIT), "Rome in kelvin", {"city", "unit"}),
        (record([], city=TEXT, days=WHOLE), "Weather in Rome", {"city"}),
        (record([], limit={**WHOLE, "default": 5}, city=TEXT), "Weather in Rome", {"city"}),
        (record([], city=TEXT), "", set()),
    ],
)  # fmt: skip
def test_optional_parameters_are_filled_when_the_message_speaks_of_them(
    schema: Schema, message: str, names: set[str]
) -> None:
    grammar = arguments_grammar(schema, message)
    assert json.loads(walk(grammar, random.Random(0))).keys() == names


def test_a_nullable_parameter_is_null_unless_the_message_speaks_of_it() -> None:
    schema = record(city=TEXT, days={"type": ["integer", "null"]})
    assert json.loads(walk(arguments_grammar(schema, "Weather in Rome"), random.Random(0)))["days"] is None
    assert json.loads(walk(arguments_grammar(schema, "Rome, 3 days"), random.Random(0)))["days"] == 3


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"parameters\.properties\.n\.type.*strng") as caught:
        arguments_grammar(record(n={"type": "strng"}), "hello")
    assert caught.value.param == "tools"


# ---------------------------------------------------------------- which function


class WordVectors:
    """Embeds a text as the unit vector of its words: texts that share words are near."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.axes: dict[str, int] = {}

    async def __call__(self, texts: list[str]) -> list[list[float]]:
        self.seen += texts
        return [self.vector(text) for text in texts]

    def vector(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for word in re.findall(r"\w+", text.lower()):
            vector[self.axes.setdefault(word, len(self.axes))] += 1
        length = math.hypot(*vector) or 1
        return [part / length for part in vector]


WEATHER = FunctionDefinition(name="get_weather", description="Current weather in a city", parameters=CITY)
TIMER = FunctionDefinition(name="set_timer", description="Start a timer", parameters=record(minutes=WHOLE))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("text", "must_call", "chosen"),
    [
        ("What is the weather in Rome?", False, WEATHER),
        ("Start the timer", False, TIMER),
        ("Tell me a joke.", False, None),
        ("Tell me a joke about the weather in a city", True, WEATHER),
        ("xyzzy", False, WEATHER),
    ],
)
async def test_the_nearest_function_is_chosen(
    text: str, must_call: bool, chosen: FunctionDefinition | None
) -> None:
    choice = await Router(WordVectors()).choose([WEATHER, TIMER], text, must_call=must_call)
    assert choice.function is chosen
    assert choice.scores.keys() == {"get_weather", "set_timer", NONE}


@pytest.mark.anyio
async def test_required_never_yields_plain_chat() -> None:
    choice = await Router(WordVectors()).choose([WEATHER, TIMER], CHAT[0], must_call=True)
    assert choice.function is not None
    assert choice.scores[NONE] == pytest.approx(1)


@pytest.mark.anyio
async def test_functions_are_embedded_once_and_at_most_so_many_are_kept() -> None:
    embed = WordVectors()
    router = Router(embed, room=len(CHAT) + 1)
    for _ in range(2):
        await router.choose([WEATHER], "rain?", must_call=False)
    assert len(embed.seen) == 1 + len(CHAT) + 2
    await router.choose([TIMER], "rain?", must_call=False)
    await router.choose([WEATHER], "rain?", must_call=False)
    assert embed.seen.count("get weather: Current weather in a city") == 2


@pytest.mark.anyio
async def test_without_embeddings_the_likeliest_cause_of_the_request_is_chosen() -> None:
    async def score(prompt: str, continuation: str) -> float:
        shared = set(re.findall(r"\w+", prompt.lower())) & set(re.findall(r"\w+", continuation.lower()))
        return float(len(shared))

    functions = [WEATHER, TIMER]
    choice = await choose_by_likelihood(functions, "Weather in my city?", score=score, must_call=False)
    assert choice.function is WEATHER
    assert max(choice.scores, key=choice.scores.__getitem__) == "get_weather"
    talk = "Talk, joke and write for me"
    assert (await choose_by_likelihood(functions, talk, score=score, must_call=False)).function is None
    assert (await choose_by_likelihood(functions, talk, score=score, must_call=True)).function is not None


# ---------------------------------------------------------------- prompts


def test_the_arguments_prompt_differs_only_in_its_last_message() -> None:
    weather = assisted.arguments_messages(WEATHER, "Rain in Rome?")
    timer = assisted.arguments_messages(TIMER, "10 minutes")
    assert weather[:-1] == timer[:-1]
    assert weather[-1].text() == (
        "Function: get_weather(city) Current weather in a city\nRequest: Rain in Rome?"
    )
    for message in weather:
        if message.role == "assistant":
            json.loads(message.text())


def conversation(*results: str, question: str = "Who runs\nit?") -> list[Message]:
    call = {"id": "1", "function": {"name": "search", "arguments": "{}"}}
    return [
        Message(role="system", content="Be kind."),
        Message(role="user", content="Earlier question"),
        Message(role="tool", content="Earlier result.", tool_call_id="0"),
        Message(role="user", content=question),
        Message.model_validate({"role": "assistant", "tool_calls": [call]}),
        *(Message(role="tool", content=text, tool_call_id="1") for text in results),
    ]


def test_the_answer_prompt_holds_the_results_since_the_last_question() -> None:
    messages = conversation("Ann runs it. Bob helps.", "", "It is big.")
    assert assisted.has_result(messages)
    assert assisted.answer_prompt(messages) == (
        "Context: Ann runs it. Bob helps.\n\nIt is big.\n\nQuestion: Who runs it?\nAnswer:",
        ["\n"],
    )
    assert assisted.sentences(messages) == ["Ann runs it.", "Bob helps.", "It is big."]
    found = conversation("[1] team.md — Who runs it\nAnn does.\n\n[2] size.md (page 3)\nIt is big.")
    assert assisted.sentences(found) == ["Ann does.", "It is big."]
    prompt, _ = assisted.answer_prompt(messages, passage="Ann runs it.")
    assert prompt == "Context: Ann runs it.\n\nQuestion: Who runs it?\nAnswer:"


@pytest.mark.anyio
async def test_the_sentence_nearest_to_the_question_is_found() -> None:
    texts = ["Bob helps.", "Ann runs the place.", "It is big."]
    assert await nearest(texts, "Who runs the place?", embed=WordVectors()) == "Ann runs the place."


def test_a_result_without_a_question_is_refused() -> None:
    orphan = [Message(role="tool", content="42", tool_call_id="1")]
    with pytest.raises(InvalidRequest, match="user message"):
        assisted.answer_prompt(orphan)
    with pytest.raises(InvalidRequest, match="user message"):
        assisted.last_request([Message(role="system", content="Be kind.")])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [(" It is Ann.", True), (" Ann", True), (" Carl runs it.", False), (" It runs.", False), ("", False)],
)
def test_an_answer_that_the_passage_does_not_hold_gives_way_to_the_passage(answer: str, kept: bool) -> None:
    passage = "Ann runs it since 1990."
    found = assisted.grounded(answer, passage=passage, request="Who runs it?")
    assert found == (answer if kept else passage)
