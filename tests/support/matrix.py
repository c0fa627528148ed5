"""The rows of the safety matrix: how to put a word into each place of a request or of an answer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from llama_stack_lite.api.inference import Message
from tests.support.guarded import QUIET, WORD

ROLES: tuple[str, ...] = get_args(Message.model_fields["role"].annotation)
Fields = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A text with the word at one of three places, cut inside the word at another of three."""

    position: int

    @property
    def whole(self) -> str:
        return (f"{WORD} over the river", f"there is a {WORD} here", f"look, a {WORD}")[self.position]

    @property
    def pieces(self) -> list[str]:
        cut = self.whole.index(WORD) + (1, 4, 9)[self.position]
        return [self.whole[:cut], self.whole[cut:]]

    @property
    def name(self) -> str:
        return self.whole.replace(",", "").replace(" ", "_")


TEXTS = [Text(position) for position in range(3)]

# ------------------------------------------------------------ what a request can say

Build = Callable[[Text], Fields]
Rows = dict[str, dict[str, Build]]

TOOL_RESULT = "tool"  # in a row's name: judged at its own touchpoint


def call(**function: Any) -> Fields:
    named = {"name": "look", "arguments": "{}", **function}
    return {"id": "c1", "type": "function", "function": named}


def tool(**function: Any) -> Fields:
    return {"type": "function", "function": {"name": "look", **function}}


def turn(role: str, content: Any = "hello", **fields: Any) -> Fields:
    """A conversation that ends with such a message, or with what may follow it."""
    message = {"role": role, "content": content, **fields}
    if role == "tool":
        message.setdefault("tool_call_id", "c1")
    return {"messages": [{"role": "user", "content": "what flew there?"}, message]}


def called(**fields: Any) -> Fields:
    return turn("assistant", None, tool_calls=[{**call(), **fields}])


def part(text: str, **fields: Any) -> Fields:
    return {"type": "text", "text": text, **fields}


def image(extra: Fields, **fields: Any) -> Fields:
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", **extra}, **fields}


def more(put: Callable[[Fields], Fields]) -> dict[str, Build]:
    """Fields that nobody knows, in each shape that they can have."""
    return {
        "value": lambda text: put({"note": text.whole}),
        "key": lambda text: put({text.whole: True}),
        "deep": lambda text: put({"note": [{"a": {"b": [text.whole]}}]}),
    }


def schemas(put: Callable[[Fields], Fields]) -> dict[str, Build]:
    def of(**fields: Any) -> Fields:
        return put({"type": "object", **fields})

    return {
        "property": lambda text: of(properties={text.whole: {"type": "string"}}),
        "enum": lambda text: of(properties={"a": {"enum": ["b", text.whole]}}),
        "const": lambda text: of(properties={"a": {"const": text.whole}}),
        "description": lambda text: of(properties={"a": {"type": "string", "description": text.whole}}),
        "required": lambda text: of(required=[text.whole]),
        "$defs": lambda text: of(**{"$defs": {"a": {"title": text.whole}}}),
    }


def formatted(**schema: Any) -> Fields:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "bird", **schema}}}


def chosen(function: Fields, **fields: Any) -> Fields:
    choice = {"type": "function", "function": {"name": "look", **function}, **fields}
    return {**QUIET, "tools": [tool()], "tool_choice": choice}


def allowed(choice: Fields, *, tools: Fields | None = None, **fields: Any) -> Fields:
    given = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "look"}, **choice}]}
    value = {"type": "allowed_tools", "allowed_tools": {**given, **(tools or {})}, **fields}
    return {**QUIET, "tools": [tool()], "tool_choice": value}


def allowed_function(extra: Fields) -> Fields:
    return allowed({"function": {"name": "look", **extra}})


def by_role(build: Callable[[str, Text], Fields]) -> dict[str, Build]:
    return {role: lambda text, role=role: build(role, text) for role in ROLES}  # type: ignore[misc]


SHARED: Rows = {
    "stop": {"": lambda text: {"stop": text.whole}},
    "stop[]": {"": lambda text: {"stop": ["never", text.whole]}},
    "stream_options.*": more(lambda extra: {"stream_options": extra}),
    "response_format.json_schema.name": {"": lambda text: formatted(name=text.name)},
    "response_format.json_schema.description": {"": lambda text: formatted(description=text.whole)},
    "response_format.json_schema.schema{}": schemas(lambda schema: formatted(schema=schema)),
    "response_format.json_schema.*": more(lambda extra: formatted(**extra)),
    "response_format.*": more(lambda extra: {"response_format": {"type": "text", **extra}}),
    "*": {
        **more(lambda extra: extra),
        "a known name": lambda text: {"reasoning_effort": text.whole},
        "prediction": lambda text: {"prediction": {"type": "content", "content": text.whole}},
    },
}
CHAT_INPUTS: Rows = {
    **{
        path: {name: lambda text, build=build: {**QUIET, **build(text)} for name, build in builds.items()}  # type: ignore[misc]
        for path, builds in SHARED.items()
    },
    "messages[].content": by_role(lambda role, text: turn(role, text.whole)),
    "messages[].content[]<TextPart>.text": {
        **by_role(lambda role, text: turn(role, [part(text.whole)])),
        **{
            f"{role}, in two": lambda text, role=role: turn(role, [part(piece) for piece in text.pieces])  # type: ignore[misc]
            for role in ROLES
        },
        "beside an image": lambda text: turn("user", [part(text.pieces[0]), image({}), part(text.pieces[1])]),
    },
    "messages[].content[]<TextPart>.*": more(lambda extra: turn("user", [part("hello", **extra)])),
    "messages[].content[]<RefusalPart>.refusal": {
        "": lambda text: turn("assistant", [{"type": "refusal", "refusal": text.whole}]),
        "in two": lambda text: turn(
            "assistant", [{"type": "refusal", "refusal": piece} for piece in text.pieces]
        ),
    },
    "messages[].content[]<RefusalPart>.*": more(
        lambda extra: turn("assistant", [{"type": "refusal", "refusal": "no", **extra}])
    ),
    "messages[].content[]<ImagePart>.image_url.*": more(lambda extra: turn("user", [image(extra)])),
    "messages[].content[]<ImagePart>.*": more(lambda extra: turn("user", [image({}, **extra)])),
    "messages[].name": by_role(lambda role, text: turn(role, name=text.whole)),
    "messages[].refusal": by_role(lambda role, text: turn(role, refusal=text.whole)),
    "messages[].tool_calls[].id": {"": lambda text: called(id=text.whole)},
    "messages[].tool_calls[].function.name": {"": lambda text: called(**call(name=text.whole))},
    "messages[].tool_calls[].function.arguments": {
        "": lambda text: called(**call(arguments=f'{{"at": "{text.whole}"}}')),
        "no JSON": lambda text: called(**call(arguments=text.whole)),
    },
    "messages[].tool_calls[].function.*": more(lambda extra: called(**call(**extra))),
    "messages[].tool_calls[].*": more(lambda extra: called(**extra)),
    "messages[].tool_call_id": {"tool": lambda text: turn("tool", tool_call_id=text.whole)},
    "messages[].*": {
        **more(lambda extra: turn("user", **extra)),
        "tool": lambda text: turn("tool", note=text.whole),
    },
    "tools[].function.name": {"": lambda text: {**QUIET, "tools": [tool(name=text.name)]}},
    "tools[].function.description": {"": lambda text: {**QUIET, "tools": [tool(description=text.whole)]}},
    "tools[].function.parameters{}": schemas(
        lambda schema: {**QUIET, "tools": [tool(parameters=schema)]},
    ),
    "tools[].function.*": more(lambda extra: {**QUIET, "tools": [tool(**extra)]}),
    "tools[].*": more(lambda extra: {**QUIET, "tools": [{**tool(), **extra}]}),
    "tool_choice<NamedTool>.function.*": more(chosen),
    "tool_choice<NamedTool>.*": more(lambda extra: chosen({}, **extra)),
    "tool_choice<AllowedToolChoice>.allowed_tools.tools[].function.*": more(allowed_function),
    "tool_choice<AllowedToolChoice>.allowed_tools.tools[].*": more(allowed),
    "tool_choice<AllowedToolChoice>.allowed_tools.*": more(lambda extra: allowed({}, tools=extra)),
    "tool_choice<AllowedToolChoice>.*": more(lambda extra: allowed({}, **extra)),
}
TEXT_INPUTS: Rows = {
    **{
        path: {
            name: lambda text, build=build: {"prompt": "what flew there?", **build(text)}  # type: ignore[misc]
            for name, build in builds.items()
        }
        for path, builds in SHARED.items()
    },
    "prompt": {"": lambda text: {"prompt": text.whole}},
    "prompt[]": {
        "first": lambda text: {"prompt": [text.whole, "hello"]},
        "last": lambda text: {"prompt": ["hello", text.whole]},
    },
    "suffix": {"": lambda text: {"prompt": "what flew there?", "suffix": text.whole}},
}
# what is no text to a model, and why
SILENT_INPUTS = {
    "model": "names a model of the stack",
    "user": "names who asks; servers keep it for themselves",
    "logit_bias{}": "the keys are token ids",
    "guardrails[]": "names shields of the stack",
}
SILENT_CHAT_INPUTS = SILENT_INPUTS | {
    "messages[].content[]<ImagePart>.image_url.url": "an image, which is judged as one or refused",
    "messages[].content[]<OtherPart>.*": "refused, unless the operator allows what no shield can see",
    "tool_choice<NamedTool>.function.name": "names one of the tools, whose names are judged",
    "tool_choice<AllowedToolChoice>.allowed_tools.tools[].function.name": "the same",
}
SILENT_TEXT_INPUTS = SILENT_INPUTS | {"prompt[][]": "token ids, which are refused"}

# ------------------------------------------------------------ what an answer can say


@dataclass(frozen=True)
class Row:
    """How a model says a piece of text there: in its choice, or in the frame around the choices.

    A text that comes `whole` is in one piece. What is `dropped` does not leave, whatever it says.
    """

    choice: Callable[[str], Fields] = lambda piece: {}
    frame: Callable[[str], Fields] = lambda piece: {}
    whole: bool = False
    dropped: bool = False
    asked: Fields = field(default_factory=dict)


def delta(put: Callable[[str], Fields], **how: Any) -> Row:
    return Row(lambda piece: {"delta": put(piece)}, **how)


def calling(put: Callable[[str], Fields], **how: Any) -> Row:
    return delta(lambda piece: {"tool_calls": [{"index": 0, **put(piece)}]}, **how)


def scored(put: Callable[[str], Fields], *, field: str = "content", **how: Any) -> Row:
    """A token with its log-probability, beside text that is harmless."""

    def choice(piece: str) -> Fields:
        token = {"token": "x", "logprob": -1.0, "bytes": None, "top_logprobs": [], **put(piece)}
        return {"delta": {"content": "x"}, "logprobs": {field: [token]}}

    return Row(choice, **how)


def top(put: Callable[[str], Fields]) -> Callable[[str], Fields]:
    return lambda piece: {"top_logprobs": [{"token": "y", "logprob": -2.0, **put(piece)}]}


def as_bytes(piece: str) -> Fields:
    return {"bytes": list(piece.encode())}


def log_probabilities(field: str) -> dict[str, dict[str, Row]]:
    place = f"choices[].logprobs.{field}[]"
    unknown = {"": scored(lambda piece: {"note": piece}, field=field, dropped=True)}
    return {
        f"{place}.token": {
            "without bytes": scored(lambda piece: {"token": piece}, field=field),
            "other bytes": scored(lambda piece: {"token": piece, "bytes": [120]}, field=field),
        },
        f"{place}.bytes[]": {"": scored(as_bytes, field=field)},
        f"{place}.top_logprobs[].token": {
            "": scored(top(lambda piece: {"token": piece}), field=field, whole=True)
        },
        f"{place}.top_logprobs[].bytes[]": {"": scored(top(as_bytes), field=field, whole=True)},
        f"{place}.top_logprobs[].*": {
            "": scored(top(lambda piece: {"note": piece}), field=field, dropped=True)
        },
        f"{place}.*": unknown,
    }


def around(put: Callable[[str], Fields]) -> dict[str, Row]:
    """What a server says around its choices, which is none of the model's words."""
    return {"": Row(lambda piece: {}, put, dropped=True)}


AROUND: dict[str, dict[str, Row]] = {
    "id": around(lambda piece: {"id": piece}),
    "model": around(lambda piece: {"model": piece}),
    "usage.prompt_tokens_details.*": around(
        lambda piece: {"usage": {"prompt_tokens_details": {"note": piece}}}
    ),
    "usage.completion_tokens_details.*": around(
        lambda piece: {"usage": {"completion_tokens_details": {"note": piece}}}
    ),
    "usage.*": around(lambda piece: {"usage": {"note": piece}}),
    "choices[].*": {"": Row(lambda piece: {"note": piece}, dropped=True)},
    "choices[].logprobs.*": {"": Row(lambda piece: {"logprobs": {"note": piece}}, dropped=True)},
    "*": around(lambda piece: {"note": piece}),
}
JSON_ANSWER = {"response_format": {"type": "json_object"}}
CHAT_OUTPUTS: dict[str, dict[str, Row]] = {
    **AROUND,
    "choices[].stop_reason": {"": Row(lambda piece: {"stop_reason": piece}, whole=True)},
    **log_probabilities("content"),
    **log_probabilities("refusal"),
    "choices[].delta.content": {
        "": delta(lambda piece: {"content": piece}),
        "JSON": delta(lambda piece: {"content": piece}, asked=JSON_ANSWER),
        "reasoning between": delta(lambda piece: {"content": piece, "reasoning_content": "hm"}),
        "calls between": delta(
            lambda piece: {
                "content": piece,
                "tool_calls": [{"index": 0, "id": "c", "function": {"arguments": "1"}}],
            }
        ),
    },
    "choices[].delta.refusal": {"": delta(lambda piece: {"refusal": piece})},
    "choices[].delta.reasoning_content": {"": delta(lambda piece: {"reasoning_content": piece})},
    "choices[].delta.tool_calls[].id": {"": calling(lambda piece: {"id": piece}, whole=True)},
    "choices[].delta.tool_calls[].function.name": {"": calling(lambda piece: {"function": {"name": piece}})},
    "choices[].delta.tool_calls[].function.arguments": {
        "": calling(lambda piece: {"function": {"arguments": piece}}),
        "of the second call": calling(lambda piece: {"index": 1, "function": {"arguments": piece}}),
        "names between": calling(lambda piece: {"function": {"name": "look", "arguments": piece}}),
    },
    "choices[].delta.tool_calls[].function.*": {
        "": calling(lambda piece: {"function": {"note": piece}}),
        "key": calling(lambda piece: {"function": {piece: 1}}, whole=True),
    },
    "choices[].delta.tool_calls[].*": {
        "": calling(lambda piece: {"note": piece}),
        "custom": calling(lambda piece: {"custom": {"input": piece}}),
        "key": calling(lambda piece: {piece: 1}, whole=True),
    },
    "choices[].delta.*": {
        "": delta(lambda piece: {"note": piece}),
        "deep": delta(lambda piece: {"audio": {"id": "a", "transcript": piece}}),
        "list": delta(lambda piece: {"notes": [{"index": 0, "text": piece}, "plain"]}),
        "function call": delta(lambda piece: {"function_call": {"arguments": piece}}),
        "key": delta(lambda piece: {piece: 1}, whole=True),
        "deep key": delta(lambda piece: {"note": {"a": [{piece: None}]}}, whole=True),
    },
}
TEXT_OUTPUTS: dict[str, dict[str, Row]] = {
    **AROUND,
    "choices[].text": {
        "": Row(lambda piece: {"text": piece}),
        "JSON": Row(lambda piece: {"text": piece}, asked=JSON_ANSWER),
    },
    "choices[].refusal": {"": Row(lambda piece: {"refusal": piece})},
    "choices[].logprobs.tokens[]": {"": Row(lambda piece: {"text": "x", "logprobs": {"tokens": [piece]}})},
    "choices[].logprobs.top_logprobs[]{}": {
        "": Row(
            lambda piece: {"text": "x", "logprobs": {"tokens": ["x"], "top_logprobs": [{piece: -1.0}]}},
            whole=True,
        )
    },
}
SILENT_OUTPUTS = {
    "choices[].safety.shield": "a verdict that the server behind gave, of its own operator's shields",
    "choices[].safety.categories[]": "the same",
    "system_fingerprint": "the server's word for its own build",
}
SILENT_TEXT_OUTPUTS = SILENT_OUTPUTS | {"choices[].logprobs.text_offset[]": "places in the text"}
