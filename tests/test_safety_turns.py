"""Nothing gets past the guard in a turn: what is asked, what the model says, what tools say, what is kept."""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llama_stack_lite.api.inference import FunctionDefinition
from llama_stack_lite.api.prompts import PromptText
from llama_stack_lite.api.tools import ToolResult
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import UpstreamError
from llama_stack_lite.providers.safety.canary import Fault
from llama_stack_lite.state import prompts
from tests.support import matrix, turn_matrix
from tests.support.guarded import WORD, Answer, Guarded, config, guarded, said
from tests.support.matrix import TEXTS, Row, Text

DOOR = "/v1/responses"
PLAIN = {"choices": [{"index": 0, "delta": {"content": "plain "}}]}
NARROW = {"tokens": 1, "milliseconds": 1}


class Shelf:
    """A tool server that says what it is told to, and keeps what it is asked."""

    kind = "mcp"

    class Config(BaseModel):
        description: str = "looks on the shelf"

    def __init__(self, config: Config) -> None:
        self.description = config.description
        self.result = ToolResult(text="nothing there")
        self.calls: list[tuple[dict[str, Any], str]] = []

    async def tools(self) -> list[FunctionDefinition]:
        schema = {"type": "object", "properties": {"where": {"type": "string"}}}
        return [FunctionDefinition(name="look", description=self.description, parameters=schema)]

    async def call(self, name: str, arguments: dict[str, Any], *, session: str) -> ToolResult:
        self.calls.append((arguments, session))
        return self.result


@asynccontextmanager
async def served(folder: Path, **settings: Any) -> AsyncIterator[Guarded]:
    shelf = settings.pop("shelf", {})
    whole = config(**settings).model_dump()
    whole["storage"] = f"sqlite:///{folder}/state.db"
    whole["tools"] = {"shelf": {"provider": "tests.test_safety_turns:Shelf", **shelf}}
    whole["inference"] = {"m": {"provider": "tests.support.guarded:Speaker", **settings.get("model", {})}}
    whole["safety"] = {"bird": {"provider": "canary", "words": [WORD], **settings.get("bird", {})}}
    async with guarded(StackConfig.model_validate(whole)) as server:
        yield server


def shelf_of(server: Guarded) -> Shelf:
    found: Shelf = server.app.state.stack.tools["shelf"]
    return found


def kept(folder: Path) -> bytes:
    """Every byte that the database has on disk."""
    return b"".join(path.read_bytes() for path in folder.glob("state.db*")).lower()


def check_withheld(answer: Answer, folder: Path) -> None:
    assert WORD not in answer.raw.casefold(), answer.raw
    assert WORD not in told(answer).casefold(), answer.raw
    assert WORD.encode() not in kept(folder)


def told(answer: Answer) -> str:
    """All deltas of a stream, each kind one after the other, as a client puts them together."""
    joined: dict[str, str] = {}
    for frame, _ in answer.frames():
        if "delta" in frame and isinstance(frame["delta"], str):
            joined[frame["type"]] = joined.get(frame["type"], "") + frame["delta"]
    return "\n".join(joined.values())


def final(answer: Answer) -> dict[str, Any]:
    frames = [frame for frame, _ in answer.frames()]
    found: dict[str, Any] = frames[-1].get("response", frames[-1])
    return found


# ------------------------------------------------------------ what a request says


def test_every_place_for_text_is_judged_or_has_a_reason() -> None:
    assert len(turn_matrix.JUDGED) >= 20
    unused = [
        pattern
        for pattern in turn_matrix.SILENT
        if not any(re.fullmatch(pattern, path) for path in turn_matrix.PATHS)
    ]
    assert not unused


class Served:
    """Servers that stand for all of this file, in one loop, each with its folder."""

    def __init__(self, runner: asyncio.Runner, folders: pytest.TempPathFactory) -> None:
        self.run = runner.run
        self.folders = folders
        self._open: dict[str, tuple[Any, Guarded, Path]] = {}

    def get(self, name: str, **settings: Any) -> tuple[Guarded, Path]:
        if name not in self._open:
            folder = self.folders.mktemp(name)
            context = served(folder, **settings)
            self._open[name] = context, self.run(context.__aenter__()), folder
        return self._open[name][1:]

    def close(self) -> None:
        for context, _, _ in self._open.values():
            self.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with asyncio.Runner() as runner:
        found = Served(runner, tmp_path_factory)
        yield found
        found.close()


@pytest.mark.parametrize("path", turn_matrix.PATHS)
def test_what_a_request_says_reaches_no_model_unjudged(path: str, servers: Served) -> None:
    server, folder = servers.get("asked", images="allow")
    server.model.frames = said("plain")
    for stream in (False, True):
        for text in TEXTS:
            fields = {**turn_matrix.put(path, text.whole), "stream": stream}
            servers.run(check_asked(server, path, fields, folder))


async def check_asked(server: Guarded, path: str, fields: dict[str, Any], folder: Path) -> None:
    server.model.asked.clear()
    before = len(server.canary.seen)
    answer = await server.post(DOOR, fields)
    assert answer.status in (200, 400, 404), answer.raw
    if turn_matrix.why_silent(path) == turn_matrix.IMAGE:
        return
    assert not any(WORD in request.model_dump_json().casefold() for request in server.model.asked), path
    if path in turn_matrix.JUDGED or path in turn_matrix.SAID:
        assert any(WORD in turn.text for turn in server.canary.seen[before : answer.began]), path
        check_refused(answer)


def check_refused(answer: Answer) -> None:
    assert answer.status == 200 and WORD not in answer.raw.casefold(), answer.raw
    response = final(answer)
    assert response["status"] == "incomplete" and response["safety"]["shield"] == "bird"
    assert response["output"][-1]["content"][0]["type"] == "refusal"


def test_what_was_judged_and_refused_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, images="allow") as server:
            for path in [*turn_matrix.JUDGED, *turn_matrix.SAID]:
                check_refused(await server.post(DOOR, turn_matrix.put(path, TEXTS[1].whole)))
                assert WORD.encode() not in kept(tmp_path), path

    asyncio.run(main())


def test_what_is_put_into_a_stored_prompt_is_judged(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as server:
            text = PromptText(prompt="Speak of {{what}}.", variables=["what"])
            made = await prompts.create(server.app.state.stack.store, text)
            prompt = {"id": made.prompt_id, "variables": {"what": f"a {WORD}"}}
            check_refused(await server.post(DOOR, {**turn_matrix.QUIET, "prompt": prompt}))
            assert WORD.encode() not in kept(tmp_path)

    asyncio.run(main())


# ------------------------------------------------------------ what a model says


def frames(row: Row, text: Text) -> list[dict[str, Any]]:
    pieces = [text.whole] if row.whole or row.dropped else text.pieces
    bad = [{"choices": [{"index": 0, **row.choice(piece)}], **row.frame(piece)} for piece in pieces]
    return [PLAIN, *bad, PLAIN, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}]


def outputs() -> Iterator[Any]:
    for path, rows in matrix.CHAT_OUTPUTS.items():
        for name, row in rows.items():
            yield pytest.param(row, id=f"{path} {name}".strip())


@pytest.mark.parametrize("row", list(outputs()))
@pytest.mark.parametrize("narrow", [False, True])
def test_what_a_model_says_is_judged_before_it_is_told_or_kept(
    row: Row, narrow: bool, servers: Served
) -> None:
    window = NARROW if narrow else {"tokens": 10_000, "milliseconds": 600_000}
    pause = {"pause": 0.0015 if narrow else 0}
    server, folder = servers.get("narrow" if narrow else "wide", window=window, model=pause)
    tools = [{"type": "function", "name": "look"}]
    for stream in (False, True):
        for text in TEXTS:
            server.model.frames = frames(row, text)
            asked = {**turn_matrix.QUIET, "tools": tools, "stream": stream, "top_logprobs": 1}
            answer = servers.run(server.post(DOOR, asked))
            assert answer.status == 200, answer.raw
            check_withheld(answer, folder)
            if not row.dropped:
                assert final(answer)["incomplete_details"] == {"reason": "content_filter"}, answer.raw


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_an_error_does_not_tell_or_keep_what_a_model_said(stream: bool, after: bool, tmp_path: Path) -> None:
    async def main() -> Answer:
        async with served(tmp_path, window=NARROW, model={"pause": 0.002}) as server:
            server.model.frames = [PLAIN] if after else []
            server.model.error = UpstreamError(f"it broke at {WORD}")
            return await server.post(DOOR, {**turn_matrix.QUIET, "stream": stream})

    answer = asyncio.run(main())
    check_withheld(answer, tmp_path)


# ------------------------------------------------------------ what happens between two answers


MCP = {"type": "mcp", "server_label": "shelf", "require_approval": "never"}


def calls(arguments: str, name: str = "look") -> list[dict[str, Any]]:
    function = {"name": name, "arguments": arguments}
    delta = {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": function}]}
    return [{"choices": [{"index": 0, "delta": delta, "finish_reason": "tool_calls"}]}]


class Script:
    """Makes a speaker say one list of frames after the other."""

    def __init__(self, server: Guarded, *answers: list[dict[str, Any]]) -> None:
        self.left = list(answers)
        model = server.model
        inner = model.chat

        async def chat(name: str, request: Any) -> AsyncGenerator[Any, None]:
            model.frames = self.left.pop(0)
            async for chunk in inner(name, request):
                yield chunk

        vars(model)["chat"] = chat


async def asked(server: Guarded, stream: bool, **fields: Any) -> Answer:
    return await server.post(DOOR, {**turn_matrix.QUIET, "tools": [MCP], "stream": stream, **fields})


@pytest.mark.parametrize("stream", [False, True])
def test_a_word_in_arguments_reaches_no_tool(stream: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as server:
            Script(server, calls(json.dumps({"where": WORD})))
            answer = await asked(server, stream)
            check_withheld(answer, tmp_path)
            assert not shelf_of(server).calls
            assert final(answer)["safety"]["touchpoint"] == "tool_call"

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "result",
    [
        ToolResult(text=f"a {WORD} sits there"),
        ToolResult(text=f"no such {WORD}", error=True),
        ToolResult(text="something", details={"note": f"a {WORD}"}),
    ],
)
def test_a_word_in_a_result_reaches_neither_model_nor_client_nor_the_next_tool(
    result: ToolResult, stream: bool, tmp_path: Path
) -> None:
    async def main() -> None:
        async with served(tmp_path) as server:
            shelf_of(server).result = result
            Script(server, calls("{}"), calls("{}"), said("I could not see."))
            answer = await asked(server, stream)
            check_withheld(answer, tmp_path)
            assert len(shelf_of(server).calls) == 2
            assert not any(WORD in request.model_dump_json() for request in server.model.asked)
            assert final(answer)["status"] == "completed"
            call = final(answer)["output"][1]
            assert call["status"] == "failed" and "safety policy" in json.dumps(call["error"])

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_word_in_a_description_reaches_neither_model_nor_client(stream: bool, tmp_path: Path) -> None:
    async def main() -> None:
        shelf = {"description": f"looks for a {WORD}"}
        async with served(tmp_path, shelf=shelf) as server:
            server.model.frames = said("There are no tools.")
            answer = await asked(server, stream)
            check_withheld(answer, tmp_path)
            [listed, _] = final(answer)["output"]
            assert listed["tools"] == [] and "safety policy" in listed["error"]
            assert server.model.asked[0].model_dump()["tools"] is None

    asyncio.run(main())


def test_a_list_that_the_client_brings_is_judged(tmp_path: Path) -> None:
    listed = {"name": "look", "description": f"a {WORD}", "input_schema": {"type": "object"}}
    item = {"type": "mcp_list_tools", "server_label": "shelf", "tools": [listed]}

    async def main() -> None:
        async with served(tmp_path) as server:
            server.model.frames = said("plain")
            answer = await asked(server, False, input=[*turn_matrix.QUIET["input"], item])
            assert not any(WORD in request.model_dump_json() for request in server.model.asked)
            check_withheld(answer, tmp_path)

    asyncio.run(main())


def test_a_refused_request_makes_no_approved_call(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as server:
            Script(server, calls("{}"))
            server_tool = {"type": "mcp", "server_label": "shelf"}
            first = final(await asked(server, False, tools=[server_tool]))
            approval = {
                "type": "mcp_approval_response",
                "approval_request_id": first["output"][-1]["id"],
                "approve": True,
            }
            given = [approval, {"role": "user", "content": f"and the {WORD}?"}]
            answer = await asked(
                server, False, tools=[server_tool], input=given, previous_response_id=first["id"]
            )
            check_withheld(answer, tmp_path)
            assert final(answer)["status"] == "incomplete" and not shelf_of(server).calls

    asyncio.run(main())


def test_a_background_request_is_judged_before_it_is_kept(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as server:
            given = {"role": "user", "content": f"and the {WORD}?"}
            answer = await server.post(DOOR, {**turn_matrix.QUIET, "input": [given], "background": True})
            check_withheld(answer, tmp_path)
            assert final(answer)["status"] == "incomplete" and not server.model.asked

    asyncio.run(main())


def test_what_was_refused_does_not_spoil_what_comes_after(tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path) as server:
            server.model.frames = said("plain")
            first = await server.post(
                DOOR, {**turn_matrix.QUIET, "input": f"a {WORD}", "instructions": "Be kind"}
            )
            found = final(first)
            assert found["status"] == "incomplete" and found["instructions"] is None
            then = {**turn_matrix.QUIET, "previous_response_id": found["id"]}
            assert final(await server.post(DOOR, then))["status"] == "completed"
            check_withheld(first, tmp_path)

    asyncio.run(main())


@pytest.mark.parametrize("fault", ["error", "timeout", "crash"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_guard_that_fails_lets_nothing_pass(fault: Fault, stream: bool, tmp_path: Path) -> None:
    async def main() -> None:
        async with served(tmp_path, timeout=0.05) as server:
            server.canary.fault = fault
            server.model.frames = said(WORD)
            answer = await asked(server, stream)
            assert answer.status == 503 and "guard_unavailable" in answer.raw
            assert not server.model.asked and WORD.encode() not in kept(tmp_path)

    asyncio.run(main())
