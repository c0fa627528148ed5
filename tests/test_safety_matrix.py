"""Nothing gets past the guard: every route, every place for text in requests and answers, whole and streamed.

The rows are held against the routes and the types themselves, so that a new one without a row fails.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import pytest
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel

from llama_stack_lite.api.inference import ChatChunk, ChatRequest, Completion, CompletionRequest
from llama_stack_lite.api.messages import MessagesRequest
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import UpstreamError
from llama_stack_lite.safety import texts
from llama_stack_lite.safety.normal import normalised
from llama_stack_lite.server import create_app
from tests.support import matrix, message_matrix
from tests.support.guarded import (
    CHAT,
    MESSAGES,
    QUIET,
    TEXT,
    WORD,
    Answer,
    Guarded,
    Speaker,
    config,
    guarded,
)
from tests.support.matrix import TEXTS, Row, Text
from tests.support.paths import paths

T = TypeVar("T")
WIDE = {"tokens": 10_000, "milliseconds": 600_000}
NARROW = {"tokens": 1, "milliseconds": 1}
PROMPT: dict[str, dict[str, Any]] = {
    CHAT: QUIET,
    TEXT: {"prompt": "what flew there?"},
    MESSAGES: message_matrix.QUIET,
}

DOORS = {CHAT, TEXT, MESSAGES}
NOTHING_WRITTEN = {
    "/v1/messages/count_tokens": "a count",
    "/v1/embeddings": "vectors",
    "/v1/rerank": "scores, and the client's own documents",
    "/v1/models": "cards",
    "/v1/models/{model_id:path}": "a card",
    "/v1/shields": "what shields there are",
    "/v1/shields/{identifier:path}": "a shield",
    "/v1/safety/run-shield": "a verdict",
    "/v1/moderations": "verdicts",
    "/v1/containers": "names",
    "/v1/containers/{container_id}": "a name",
    "/v1/containers/{container_id}/files": "names; what comes in is judged: tests/test_containers.py",
    "/v1/containers/{container_id}/files/{file_id}": "a name",
    "/v1/containers/{container_id}/files/{file_id}/content": "judged: tests/test_containers.py",
    "/v1/health": "a state",
    "/v1/version": "a version",
    "/v1/providers": "names",
    "/metrics": "counts",
    "/openapi.json": "the API's own description",
    "/docs": "the same as a page",
    "/docs/oauth2-redirect": "part of that page",
    "/redoc": "the same as another page",
}
# where a distribution keeps its state: by which test of the guard, or what is answered there
KEPT = {
    "/v1/responses": "tests/test_safety_turns.py",
    "/v1/responses/compact": "a summary, which a model says by the door",
    "/v1/responses/input_tokens": "a count",
    "/v1/responses/{response_id}": "what was told before",
    "/v1/responses/{response_id}/cancel": "the same",
    "/v1/responses/{response_id}/input_items": "what was let in before",
    "/v1/agents/{agent_id}/turns": "a turn of /v1/responses; tests/test_agents.py",
    "/v1/agents": "the client's own definitions, or the operator's",
    "/v1/agents/{agent_id}": "one of them",
    "/v1/agents/{agent_id}/versions": "the same in its versions",
    "/v1/agents/{agent_id}/sessions": "the client's own items",
    "/mcp": "turns of agents and calls of tools; tests/test_mcp_server.py",
    "/v1/conversations": "the client's own items",
    "/v1/conversations/{conversation_id}": "the client's own metadata",
    "/v1/conversations/{conversation_id}/items": "the client's own items, and what was told before",
    "/v1/conversations/{conversation_id}/items/{item_id}": "one of them",
    # kept as they came, and judged on their way to a model: tests/test_file_references.py
    "/v1/files": "the client's own",
    "/v1/files/{file_id}": "what is known of one",
    "/v1/files/{file_id}/content": "one of them, as it came",
    "/v1/prompts": "the client's own texts, which are judged when a model reads them",
    "/v1/prompts/{prompt_id}": "one of them",
    "/v1/prompts/{prompt_id}/versions": "the same in its versions",
    "/v1/prompts/{prompt_id}/set-default-version": "the same",
    "/v1/vector_stores": "names, and counts",
    "/v1/vector_stores/{vector_store_id}": "one of them",
    "/v1/vector_stores/{vector_store_id}/search": "what was let in, judged again: tests/test_search.py",
    "/v1/vector_stores/{vector_store_id}/files": "names; their text is judged: tests/test_ingestion.py",
    "/v1/vector_stores/{vector_store_id}/files/{file_id}": "one of them",
    "/v1/vector_stores/{vector_store_id}/files/{file_id}/content": "what was let in before",
    "/v1/vector_stores/{vector_store_id}/file_batches": "counts",
    "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}": "counts",
    "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/cancel": "counts",
    "/v1/vector_stores/{vector_store_id}/file_batches/{batch_id}/files": "names",
    "/v1/vector-io/insert": "judged: tests/test_store_life.py",
    "/v1/vector-io/query": "as a search",
    "/v1/vector-io/delete": "ids",
}
INPUTS = {CHAT: matrix.CHAT_INPUTS, TEXT: matrix.TEXT_INPUTS, MESSAGES: message_matrix.INPUTS}
OUTPUTS = {CHAT: matrix.CHAT_OUTPUTS, TEXT: matrix.TEXT_OUTPUTS, MESSAGES: matrix.CHAT_OUTPUTS}
TYPES: list[tuple[type[BaseModel], dict[str, Any], dict[str, str]]] = [
    (ChatRequest, matrix.CHAT_INPUTS, matrix.SILENT_CHAT_INPUTS),
    (CompletionRequest, matrix.TEXT_INPUTS, matrix.SILENT_TEXT_INPUTS),
    (MessagesRequest, message_matrix.INPUTS, message_matrix.SILENT),
    (ChatChunk, matrix.CHAT_OUTPUTS, matrix.SILENT_OUTPUTS),
    (Completion, matrix.TEXT_OUTPUTS, matrix.SILENT_TEXT_OUTPUTS),
]
FAULTS = ["error", "timeout", "garbage", "unknown code", "empty", "crash"]

# ------------------------------------------------------------ the rows are all there


def test_every_route_is_a_door_or_writes_nothing() -> None:
    plain, keeping = (
        {route.path for route in iter_route_contexts(create_app(StackConfig.model_validate(config)).routes)}
        for config in ({}, {"storage": "sqlite", "vector_io": {"index": {"provider": "faiss"}}})
    )
    assert plain == DOORS | set(NOTHING_WRITTEN)
    assert keeping - plain == KEPT.keys()


@pytest.mark.parametrize(("kind", "rows", "silent"), TYPES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_place_for_text_has_a_row(
    kind: type[BaseModel], rows: dict[str, Any], silent: dict[str, str]
) -> None:
    assert set(paths(kind)) == rows.keys() | silent.keys()
    assert not rows.keys() & silent.keys()


def test_no_other_field_of_a_request_is_left_unjudged() -> None:
    fields = {*ChatRequest.model_fields, *CompletionRequest.model_fields}
    silent = {path.rstrip("[]{}") for path in matrix.SILENT_INPUTS}
    assert texts.SILENT & fields == {"messages", "prompt"} | silent
    # OpenAI's own, which its servers show to no model
    assert texts.SILENT - fields == {"metadata", "safety_identifier", "prompt_cache_key"}


# ------------------------------------------------------------ the cells


@dataclass(frozen=True)
class Input:
    door: str
    path: str
    variant: str
    resident: bool
    stream: bool
    text: Text


@dataclass(frozen=True)
class Output:
    door: str
    path: str
    variant: str
    window: str | None  # None for a whole answer
    text: Text
    choices: int

    @property
    def row(self) -> Row:
        return OUTPUTS[self.door][self.path][self.variant]


@dataclass(frozen=True)
class Fault:
    door: str
    fault: str
    touchpoint: str
    stream: bool


def inputs() -> Iterator[Input]:
    for door, rows in INPUTS.items():
        for path, builds in rows.items():
            streams = (True,) if path.startswith("stream_options") else (False, True)
            for rest in product(builds, (False, True), streams, TEXTS):
                yield Input(door, path, *rest)


def outputs() -> Iterator[Output]:
    for door, rows in OUTPUTS.items():
        for path, variants in rows.items():
            counts = (1,) if door == MESSAGES else (1, 3)
            for rest in product(variants, (None, "wide", "narrow", "resident"), TEXTS, counts):
                yield Output(door, path, *rest)


def faults() -> Iterator[Fault]:
    for door in sorted(DOORS):
        for touchpoint in ("input", "output", *(() if door == TEXT else ("tool_call", "tool_result"))):
            for fault in FAULTS:
                yield from (Fault(door, fault, touchpoint, stream) for stream in (False, True))


def by_row(cells: Iterator[T]) -> list[Any]:
    """The cells by path and variant: a test for each."""
    rows: dict[str, list[T]] = {}
    for cell in cells:
        name = (
            f"{vars(cell)['door'].removeprefix('/v1/')} {vars(cell)['path']} {vars(cell)['variant']}".strip()
        )
        rows.setdefault(name, []).append(cell)
    return [pytest.param(found, id=name) for name, found in rows.items()]


def test_the_size_of_the_matrix(capsys: pytest.CaptureFixture[str]) -> None:
    counts = {name: len(list(cells)) for name, cells in (("input", inputs()), ("output", outputs()))}
    counts |= {"failing model": len(list(failures())), "failing guard": len(list(faults()))}
    with capsys.disabled():
        total = ", ".join(f"{count} {name}" for name, count in counts.items())
        print(f"\nsafety matrix: {sum(counts.values())} cells ({total})")
    assert counts["input"] >= 2200 and counts["output"] >= 1900 and counts["failing guard"] >= 120


# ------------------------------------------------------------ the servers, each for the whole file


RESIDENT = {"provider": "tests.support.guarded:Resident"}
CONFIGS = {
    # images are for shields that see them, and for another test
    "input": config(images="allow"),
    "input, resident": config(model=RESIDENT, images="allow"),
    "wide": config(window=WIDE),
    # pauses, so that a window ends before the next piece
    "narrow": config(model={"pause": 0.0015}, window=NARROW),
    "resident": config(model=RESIDENT | {"pause": 0.0015}, window=NARROW),
}


class Servers:
    """Servers that are started once, in the one loop of this file."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.run = runner.run
        self._open: dict[str, tuple[Any, Guarded]] = {}

    def __getitem__(self, name: str) -> Guarded:
        if name not in self._open:
            context = guarded(CONFIGS[name])
            self._open[name] = context, self.run(context.__aenter__())
        return self._open[name][1]

    def close(self) -> None:
        for context, _ in self._open.values():
            self.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with asyncio.Runner() as runner:
        found = Servers(runner)
        yield found
        found.close()


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever is logged, at any level, is silent of what was judged."""
    caplog.set_level(logging.DEBUG)
    yield
    assert not any(
        WORD in f"{record.getMessage()} {record.exc_text}".casefold() for record in caplog.get_records("call")
    )


def kept(value: Any, known: set[int]) -> Iterator[str]:
    """Every string that an object holds on to."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, bytes):
        yield value.decode("utf-8", "replace")
    elif id(value) not in known and not isinstance(value, type):
        known.add(id(value))
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else []
        inner += value if isinstance(value, list | tuple | set | frozenset) else []
        inner += vars(value).values() if hasattr(value, "__dict__") else []
        inner += [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
        for each in inner:
            yield from kept(each, known)


def check_state(server: Guarded) -> None:
    """Nothing of what was judged stays in the server, but for what model and canary of these tests keep."""
    stack = server.app.state.stack
    mine = {id(each) for each in (stack.config, server.model, server.canary)}
    assert not any(WORD in text.casefold() for text in kept(stack, mine))


def test_the_look_into_the_state_finds_what_is_there(servers: Servers) -> None:
    server = servers["wide"]
    server.app.state.stack.judge._passed[WORD.encode()] = None
    with pytest.raises(AssertionError):
        check_state(server)
    del server.app.state.stack.judge._passed[WORD.encode()]
    check_state(server)


# ------------------------------------------------------------ requests


@pytest.mark.parametrize("cells", by_row(inputs()))
def test_what_a_request_says_is_judged_before_a_byte_leaves(cells: list[Input], servers: Servers) -> None:
    for cell in cells:
        server = servers["input, resident" if cell.resident else "input"]
        fields = INPUTS[cell.door][cell.path][cell.variant](cell.text)
        if cell.stream:
            fields = {"stream": True, **fields}
        server.model.asked.clear()
        before = len(server.canary.seen)
        answer = servers.run(server.post(cell.door, fields))
        assert answer.status == 200, (cell, answer.raw)
        assert WORD not in answer.raw.casefold(), (cell, answer.raw)
        assert any(WORD in turn.text for turn in server.canary.seen[before : answer.began]), cell
        assert len(server.model.asked) == cell.resident, cell
        choices = [choice for choice, _ in message_matrix.told(answer)]
        touchpoint = "tool_result" if cell.variant.split(",")[0] == matrix.TOOL_RESULT else "input"
        for choice in choices:
            assert choice["finish_reason"] == "content_filter", cell
            assert choice["safety"]["touchpoint"] == touchpoint, cell
        assert len(choices) == (len(fields["prompt"]) if isinstance(fields.get("prompt"), list) else 1)
    for name in ("input", "input, resident"):
        check_state(servers[name])


@pytest.mark.parametrize("path", [path for path, why in message_matrix.SILENT.items() if why == "dropped"])
def test_what_is_dropped_reaches_no_model(path: str, servers: Servers) -> None:
    server = servers["wide"]
    server.model.frames = [
        {"choices": [{"index": 0, "delta": {"content": "plain"}, "finish_reason": "stop"}]}
    ]
    server.model.asked.clear()
    answer = servers.run(server.post(MESSAGES, message_matrix.put(path, WORD)))
    [asked] = server.model.asked
    assert answer.status == 200 and WORD not in asked.model_dump_json()


# ------------------------------------------------------------ answers


def frames(cell: Output) -> list[dict[str, Any]]:
    """What the model says: a harmless word first and last, and of several choices only one is bad."""
    row, text = cell.row, cell.text
    pieces = [text.whole] if row.whole or row.dropped else text.pieces
    found = []
    bad = cell.choices // 2
    key = "text" if cell.door == TEXT else "delta"
    plain: Any = "plain " if cell.door == TEXT else {"content": "plain "}
    for piece in (None, *pieces, None):
        choices = [{"index": index, key: plain} for index in range(cell.choices)]
        if piece is not None:
            choices[bad] |= row.choice(piece)
        found.append({"choices": choices, **(row.frame(piece) if piece is not None else {})})
    ends = [{"index": index, "finish_reason": "stop"} for index in range(cell.choices)]
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
    return [
        *found,
        {"choices": ends},
        {"choices": [], "usage": usage | row.frame(text.whole).get("usage", {})},
    ]


def leaves(value: Any, way: str = "") -> Iterator[tuple[str, str]]:
    """Each string and each run of bytes with its place; what comes later at a place goes on with it."""
    if isinstance(value, str):
        yield way, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("role", "type", "finish_reason", "safety"):
                yield from leaves(inner, f"{way}.{key}")
    elif isinstance(value, list) and way.endswith("bytes"):
        yield way, bytes(value).decode()
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            number = inner.get("index", "") if isinstance(inner, dict) else ""
            yield from leaves(inner, f"{way}[{place if 'top_logprobs' in way else number}]")


def check_seen(answer: Answer, server: Guarded) -> None:
    """All that has left of a choice by any moment was in one turn that the shield had seen by then."""
    said: dict[str, str] = {}
    for choice, seen in message_matrix.told(answer):
        turns = [turn.text for turn in server.canary.seen[:seen]]
        if "safety" in choice:
            continue  # our own words
        for way, text in leaves({key: choice[key] for key in choice if key != "index"}):
            place = f"{choice['index']}{way}"
            said[place] = text if "top_logprobs" in place else said.get(place, "") + text
            assert any(normalised(said[place]) in turn for turn in turns), (place, said[place], turns)
    assert not any(WORD in text.casefold() for text in said.values()), said


@pytest.mark.parametrize("cells", by_row(outputs()))
def test_what_a_model_says_is_judged_before_it_leaves(cells: list[Output], servers: Servers) -> None:
    for cell in cells:
        server = servers[cell.window or "wide"]
        server.model.frames = frames(cell)
        before = len(server.canary.seen)
        asked = {**PROMPT[cell.door], "n": cell.choices, **cell.row.asked}
        stream = {"stream": True, "stream_options": {"include_usage": True}} if cell.window else {}
        answer = servers.run(server.post(cell.door, message_matrix.spoken(cell.door, asked | stream)))
        assert answer.status == 200, (cell, answer.raw)
        assert WORD not in answer.raw.casefold(), (cell, answer.raw)
        check_seen(answer, server)
        check_ends(cell, answer, [turn.text for turn in server.canary.seen[before:]])
        if cell is cells[-1]:
            check_state(server)


def check_ends(cell: Output, answer: Answer, seen: list[str]) -> None:
    """The bad choice is refused once and for all, and the others end as ever."""
    choices = [choice for choice, _ in message_matrix.told(answer)]
    ends = {
        index: [c for c in choices if c["index"] == index and c["finish_reason"]]
        for index in range(cell.choices)
    }
    assert all(len(found) == 1 for found in ends.values()), (cell, choices)
    bad = cell.choices // 2
    for index, [end] in ends.items():
        refused = index == bad and not cell.row.dropped
        assert end["finish_reason"] == ("content_filter" if refused else "stop"), (cell, answer.raw)
        assert ("safety" in end) == refused
    if cell.row.dropped:
        return
    assert any(WORD in text for text in seen), cell
    mine = [choice for choice in choices if choice["index"] == bad]
    assert mine[-1] is ends[bad][0], (cell, "something came after the refusal")
    if cell.window in (None, "wide"):
        assert len(mine) == 1, (cell, "a part of a refused window has left")


# ------------------------------------------------------------ errors, which may quote an answer


@dataclass(frozen=True)
class Failure:
    door: str
    kind: str
    stream: bool
    after: bool  # some text
    text: Text

    def error(self) -> Exception:
        if self.kind == "crash":
            return KeyError(self.text.whole)
        error = UpstreamError("it broke: " + (self.text.whole if self.kind == "message" else "..."))
        if self.kind != "message":
            setattr(error, self.kind, self.text.whole)
        return error


def failures() -> Iterator[Failure]:
    for door in sorted(DOORS):
        for kind in ("message", "param", "code", "crash"):
            for stream in (False, True):
                for after in (False, True):
                    yield from (Failure(door, kind, stream, after, text) for text in TEXTS)


@pytest.mark.parametrize("cell", list(failures()), ids=lambda cell: f"{cell.door} {cell.kind}")
def test_an_error_does_not_tell_what_a_model_said(cell: Failure, servers: Servers) -> None:
    server = servers["wide"]
    text: Any = {"text": "plain "} if cell.door == TEXT else {"delta": {"content": "plain "}}
    server.model.frames = [{"choices": [{"index": 0, **text}]}] if cell.after else []
    server.model.error = cell.error()
    before = len(server.canary.seen)
    answer = servers.run(server.post(cell.door, {**PROMPT[cell.door], "stream": cell.stream}))
    server.model.error = None
    assert WORD not in answer.raw.casefold(), answer.raw
    status = 500 if cell.kind == "crash" else 502
    assert answer.status == (200 if cell.stream and cell.after else status)
    last, _ = list(answer.frames())[-1]
    if cell.door == MESSAGES:
        assert last["type"] == "error" and last["error"]["type"] == "api_error"
    else:
        assert last["error"]["code"] == ("internal_error" if cell.kind == "crash" else "upstream_error")
    seen = any(WORD in turn.text for turn in server.canary.seen[before:])
    assert seen != (cell.kind == "crash")


# ------------------------------------------------------------ guards that fail


# what a guard that is a model answers, for each of the faults that only such a one has
ANSWERS = {"garbage": "safety cannot be told", "unknown code": "unsafe\nS99", "empty": ""}


@asynccontextmanager
async def failing(touchpoint: str, fault: str) -> AsyncIterator[tuple[Guarded, Callable[[], None]]]:
    """A server of which one touchpoint has a guard that will fail; and what makes it fail."""
    quiet: dict[str, list[str]] = {"input": [], "output": [], "tool_call": [], "tool_result": []}
    enforce: dict[str, Any] = {**quiet, touchpoint: ["bird"], "timeout": 0.05 if fault == "timeout" else 60}
    if fault not in ANSWERS:
        async with guarded(config(**enforce)) as server:
            yield server, lambda: setattr(server.canary, "fault", fault)
        return
    settings = config(**enforce).model_dump(mode="json")
    scripted = {"provider": "scripted", "models": ["llama-guard-3-1b"], "replies": ["safe"], "loop": True}
    settings["inference"] = {"m": {"provider": "tests.support.guarded:Speaker"}, "g": scripted}
    settings["safety"] = {"bird": {"provider": "llama-guard", "model": "g/llama-guard-3-1b"}}
    async with guarded(StackConfig.model_validate(settings)) as server:
        guard = server.app.state.stack.inference["g"]

        def fail() -> None:
            guard.replies.clear()
            guard.queue(ANSWERS[fault])

        yield server, fail


def touching(touchpoint: str, door: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A request and an answer that come by a touchpoint."""
    text: Any = {"text": WORD} if door == TEXT else {"delta": {"content": WORD}}
    if touchpoint == "tool_call":
        text = {
            "delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": WORD}}]}
        }
    result = message_matrix.RESULT if door == MESSAGES else matrix.turn("tool", WORD)
    fields = result if touchpoint == "tool_result" else PROMPT[door]
    return fields, [{"choices": [{"index": 0, **text, "finish_reason": "stop"}]}]


@pytest.mark.parametrize(
    "cell", list(faults()), ids=lambda cell: f"{cell.fault} {cell.touchpoint} {cell.stream}"
)
def test_a_guard_that_fails_lets_nothing_pass(cell: Fault) -> None:
    async def main() -> tuple[Answer, Answer, Speaker]:
        async with failing(cell.touchpoint, cell.fault) as (server, fail):
            fields, said = touching(cell.touchpoint, cell.door)
            server.model.frames = [{"choices": [{"index": 0, "finish_reason": "stop"}]}]
            well = await server.post(cell.door, {**PROMPT[cell.door], "stream": cell.stream})
            server.model.asked.clear()
            server.model.frames = said
            fail()
            fields = {**fields, "stream": cell.stream}
            if cell.touchpoint == "input":
                fields |= {"stop_sequences": [WORD]} if cell.door == MESSAGES else {"stop": WORD}
            return well, await server.post(cell.door, fields), server.model

    well, answer, model = asyncio.run(main())
    assert well.status == 200 and ('"end_turn"' if cell.door == MESSAGES else '"stop"') in well.raw
    if cell.fault == "unknown code":  # it did say `unsafe`
        finishes = [choice["finish_reason"] for choice, _ in message_matrix.told(answer)]
        assert finishes == ["content_filter"], answer.raw
    else:
        [(frame, _)] = answer.frames()
        assert answer.status == 503 and "could not judge" in frame["error"]["message"], answer.raw
        if cell.door != MESSAGES:
            assert frame["error"]["code"] == "guard_unavailable"
    assert WORD not in answer.raw.casefold()
    assert bool(model.asked) == (cell.touchpoint in ("output", "tool_call"))
