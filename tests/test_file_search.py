"""`file_search`: in responses, agents and /mcp; what is found, read, told, cited, and withheld."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from llama_stack_lite.agent.resuming import resumed
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.api.responses import FileSearchItem, FileSearchTool, ResponseRequest
from llama_stack_lite.config import StackConfig
from llama_stack_lite.rag.file_search import CUT, fitted
from llama_stack_lite.stack import Stack
from tests.support import official
from tests.support.configs import isolate, mistakes, read, write
from tests.support.responding import Responding, responding, texts
from tests.support.serving import Running
from tests.support.shelves import INDEX, passage, shelved

FILES = {
    "leave.md": [
        passage("Parental leave lasts 16 weeks and is paid in full.", "Handbook", "Leave"),
        passage("Sick leave needs a doctor's note from the third day.", "Handbook", "Leave", page=3),
    ],
    "office.pdf": [passage("The office in Lisbon opens at 8:30.", page=12)],
}
CALL = {"name": "file_search", "arguments": {"query": "how long is parental leave"}}
SEARCHED = {"tool_calls": [CALL]}


def config(folder: Path, *replies: Any, models: dict[str, Any] | None = None, **sections: Any) -> StackConfig:
    scripted = {"provider": "scripted", "replies": list(replies), "embedding_models": ["embedder"]}
    return StackConfig.model_validate(
        {
            "inference": {"test": scripted | (models or {})},
            "storage": f"sqlite:///{folder}/state.db",
            "vector_io": INDEX,
            "defaults": {"embedding_model": "test/embedder"},
            **sections,
        }
    )


@pytest.fixture(autouse=True)
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Indexes are beside the database; the starter has a home of its own."""
    if "starter" not in request.fixturenames:
        monkeypatch.setenv("LLAMA_LITE_HOME", str(tmp_path / "home"))


@asynccontextmanager
async def served(settings: StackConfig) -> AsyncIterator[Responding]:
    async with responding(settings) as server:
        await shelved(stack_of(server), "handbook", FILES, description="the rules of the house")
        yield server


def stack_of(server: Responding) -> Stack:
    found: Stack = server.app.state.stack
    return found


def run(settings: StackConfig, work: Callable[[Responding], Awaitable[None]]) -> None:
    async def main() -> None:
        async with served(settings) as server:
            await work(server)

    asyncio.run(main())


def tool(*stores: str, **fields: Any) -> dict[str, Any]:
    return {"type": "file_search", "vector_store_ids": list(stores or ["handbook"]), **fields}


def asks(*tools: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"input": "How long is parental leave?", "tools": list(tools) or [tool()], **fields}


def annotations(response: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        each
        for item in response["output"]
        if item["type"] == "message"
        for part in item["content"]
        for each in part["annotations"]
    ]


# ------------------------------------------------------------ a turn


def test_a_turn_searches_and_cites(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        asked = [
            asks(tool(search_mode=mode), include=["file_search_call.results"])
            for mode in ("vector", "keyword", "hybrid")
        ]
        for response in [each for fields in asked for each in await server.both(**fields)]:
            call, message = response["output"]
            assert call["type"] == "file_search_call" and call["status"] == "completed"
            assert call["queries"] == ["how long is parental leave"]
            first = call["results"][0]
            assert (
                first["filename"] == "leave.md" and first["file_id"] == "file-1" and 0 < first["score"] <= 1
            )
            assert first["text"] == "Parental leave lasts 16 weeks and is paid in full."
            assert first["chunk_id"] == "file-1:0" and first["headings"] == ["Handbook", "Leave"]
            text = message["content"][0]["text"]
            assert text == "It lasts 16 weeks [1]."
            assert annotations(response) == [
                {
                    "type": "file_citation",
                    "file_id": "file-1",
                    "filename": "leave.md",
                    "index": text.index("[1]") + 3,
                    "chunk_id": "file-1:0",
                }
            ]
        read = server.asked()[1][-1]
        assert read["role"] == "tool"
        assert read["content"].startswith("[1] leave.md — Handbook > Leave\nParental leave lasts 16 weeks")

    run(config(tmp_path, *[SEARCHED, "It lasts 16 weeks [1]."] * 6), work)


def test_the_events_tell_of_the_search_and_of_each_citation(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        events = await server.stream(**asks())
        kinds = [event["type"].removeprefix("response.") for event in events]
        start = kinds.index("output_item.added")
        assert kinds[start : start + 5] == [
            "output_item.added",
            "file_search_call.in_progress",
            "file_search_call.searching",
            "file_search_call.completed",
            "output_item.done",
        ]
        assert events[start + 4]["item"]["results"] is None  # as it was not asked for
        end = kinds.index("output_text.done")
        assert kinds[end - 2 : end + 3] == [
            "output_text.annotation.added",
            "output_text.annotation.added",
            "output_text.done",
            "content_part.done",
            "output_item.done",
        ]
        told = events[end - 2 : end]
        assert [event["annotation_index"] for event in told] == [0, 1]
        assert [event["annotation"] for event in told] == events[end + 1]["part"]["annotations"]
        assert annotations(events[-1]["response"]) == [event["annotation"] for event in told]
        assert {event["annotation"]["filename"] for event in told} == {"leave.md", "office.pdf"}

    run(config(tmp_path, SEARCHED, "Sixteen weeks [1]. Also see the opening hours [3]."), work)


def test_an_answer_without_marks_is_cited_by_its_words(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        text = "Parental leave lasts 16 weeks. I like trains. The office in Lisbon opens at 8:30."
        for response in await server.both(**asks()):
            found = [(each["filename"], text[: each["index"]][-6:]) for each in annotations(response)]
            assert found == [("leave.md", "weeks."), ("office.pdf", " 8:30.")]

    answers = [SEARCHED, "Parental leave lasts 16 weeks. I like trains. The office in Lisbon opens at 8:30."]
    run(config(tmp_path, *answers, *answers), work)


def test_nothing_is_cited_that_was_not_found(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        assert annotations(await server.whole(**asks())) == []  # no search, and [1] is its own idea
        assert annotations(await server.whole(**asks())) == []

    run(config(tmp_path, "Sixteen weeks [1].", SEARCHED, "Twenty weeks [9]."), work)


def test_json_has_no_citations(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}}
        assert annotations(await server.whole(**asks(text={"format": schema}))) == []

    run(config(tmp_path, SEARCHED, '{"rows": [1], "leave": "Parental leave lasts 16 weeks"}'), work)


def test_numbers_go_on_through_a_conversation(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        first = await server.whole(**asks(tool(max_num_results=1)))
        second = await server.whole(
            input="And the office?",
            tools=[tool(max_num_results=1)],
            previous_response_id=first["id"],
            include=["file_search_call.results"],
        )
        calls = [item for item in second["output"] if item["type"] == "file_search_call"]
        assert [[each["number"] for each in call["results"]] for call in calls] == [[2], [3]]
        assert [each["filename"] for each in annotations(second)] == ["leave.md", "office.pdf"]
        read = [message["content"] for message in server.asked()[-1] if message["role"] == "tool"]
        assert [text[:3] for text in read] == ["[1]", "[2]", "[3]"]

    office = {"name": "file_search", "arguments": {"query": "when does the office in Lisbon open"}}
    run(
        config(
            tmp_path,
            SEARCHED,
            "16 weeks [1].",
            {"tool_calls": [office]},
            {"tool_calls": [CALL]},
            "Leave is long [1], and it opens at half past eight [2].",
        ),
        work,
    )


def test_calls_side_by_side_have_numbers_of_their_own(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        response = await server.whole(**asks(include=["file_search_call.results"]))
        calls = [item for item in response["output"] if item["type"] == "file_search_call"]
        told = [each["number"] for call in calls for each in call["results"]]
        assert len(calls) == 2 and sorted(told) == [1, 2, 3, 4, 5, 6]

    run(config(tmp_path, {"tool_calls": [CALL, CALL]}, "Done."), work)


def test_two_searches_are_two_functions(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        await shelved(stack_of(server), "menu", {"menu.txt": ["Soup is served on Monday."]})
        response = await server.whole(**asks(tool(), tool("menu"), include=["file_search_call.results"]))
        assert [each["filename"] for each in response["output"][0]["results"]] == ["menu.txt"]
        names = [each.function.name for each in server.scripted.requests[0].tools or []]
        assert names == ["file_search", "file_search_2"]

    soup = {"name": "file_search_2", "arguments": {"query": "when is soup"}}
    run(config(tmp_path, {"tool_calls": [soup]}, "On Monday [1]."), work)


def test_the_model_is_told_what_the_stores_are(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        await server.whole(**asks(tool_choice={"type": "file_search"}))
        request = server.scripted.requests[0]
        [function] = [each.function for each in request.tools or []]
        assert "handbook (the rules of the house)" in (function.description or "")
        assert "[1]" in (function.description or "")
        choice = request.model_dump()["tool_choice"]["allowed_tools"]
        assert choice["mode"] == "required"
        assert choice["tools"] == [{"type": "function", "function": {"name": "file_search"}}]

    run(config(tmp_path, SEARCHED, "16 weeks [1]."), work)


def test_a_store_has_a_name_and_an_id(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        store = await shelved(stack_of(server), "menu", {"menu.txt": ["Soup is served on Monday."]})
        asked = asks(tool("handbook", store), include=["file_search_call.results"])
        response = await server.whole(**asked)
        found = {each["filename"] for each in response["output"][0]["results"]}
        assert found == {"leave.md", "office.pdf", "menu.txt"}

    run(config(tmp_path, SEARCHED, "16 weeks [1]."), work)


def test_filters_and_limits_reach_the_search(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        new = {"leave.md": ["Parental leave lasts 20 weeks."]}
        await shelved(stack_of(server), "new", new, attributes={"year": 2026})
        only = {"type": "eq", "key": "year", "value": 2026}
        ranking = {"score_threshold": 0.01, "ranker": "auto"}
        asked = tool("handbook", "new", filters=only, ranking_options=ranking, max_num_results=5)
        for response in await server.both(**asks(asked, include=["file_search_call.results"])):
            [found] = response["output"][0]["results"]
            assert found["attributes"] == {"year": 2026} and "20 weeks" in found["text"]
            [told] = response["tools"]
            assert told["filters"] == only and told["ranking_options"] == ranking

    run(config(tmp_path, SEARCHED, "20 weeks [1].", SEARCHED, "20 weeks [1]."), work)


def test_what_is_not_found_is_told(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        only = {"type": "eq", "key": "year", "value": 1900}
        response = await server.whole(**asks(tool(filters=only), include=["file_search_call.results"]))
        assert response["output"][0]["results"] == []
        assert server.asked()[1][-1]["content"] == "Nothing was found."

    run(config(tmp_path, SEARCHED, "I do not know."), work)


def test_a_background_turn_cites_the_same(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        queued = await server.whole(**asks(background=True))
        for _ in range(200):
            found = (await server.http.get(f"/v1/responses/{queued['id']}")).json()
            if found["status"] == "completed":
                break
            await asyncio.sleep(0.02)
        assert [each["filename"] for each in annotations(official.response(found))] == ["leave.md"]

    run(config(tmp_path, SEARCHED, "16 weeks [1]."), work)


# ------------------------------------------------------------ what cannot be searched


def test_a_store_that_there_is_not_is_told_before_the_model_is_asked(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        error = await server.refused(**asks(tool("handbook", "vs_none")))
        assert error["status"] == 404 and "vs_none" in error["message"]
        assert error["param"] == "tools[0].vector_store_ids[1]"
        stack = stack_of(server)
        for _ in range(2):
            await shelved(stack, "twin", {"a": ["a b"]})
        error = await server.refused(**asks({"type": "function", "name": "f"}, tool("twin")))
        assert error["status"] == 400 and "by its id" in error["message"]
        assert error["param"] == "tools[1].vector_store_ids[0]"

    run(config(tmp_path), work)


def test_a_bad_field_is_named(tmp_path: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"filters": {"type": "near", "key": "a", "value": 1}}, "filters"),
        ({"filters": {"type": "in", "key": "a", "value": 1}}, "filters"),
        ({"ranking_options": {"score_threshold": 2}}, "ranking_options.score_threshold"),
        ({"max_num_results": 51}, "max_num_results"),
        ({"max_num_results": 0}, "max_num_results"),
        ({"search_mode": "psychic"}, "search_mode"),
        ({"window": 11}, "window"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"vector_store_ids": []}, "vector_store_ids"),
    ]

    async def main() -> None:
        async with responding(config(tmp_path)) as server:
            for fields, param in bad:
                error = await server.refused(**asks({**tool(), **fields}))
                assert error["status"] == 400 and param in (error["param"] or ""), error

    asyncio.run(main())


# ------------------------------------------------------------ the budget


async def by_words(text: str) -> int:
    return len(text.split())


def result(number: int, text: str) -> dict[str, Any]:
    return {"number": number, "file_id": "f", "filename": "a", "text": text}


def test_as_many_passages_as_fit_and_none_is_cut() -> None:
    found = [result(number, "one two three.") for number in range(1, 6)]  # five words each, with the head
    for budget, fits in ((25, 5), (24, 4), (10, 2), (5, 1)):
        assert asyncio.run(fitted(found, budget=budget, count=by_words)) == found[:fits]
    assert asyncio.run(fitted([], budget=5, count=by_words)) == []


def test_only_a_passage_that_fits_by_no_means_is_cut_and_says_so() -> None:
    found = [result(1, "One two. Three four. Five six. " + "Seven " * 30), result(2, "x")]
    room = len(CUT.split()) + 2  # its own words, and those of the head
    [cut] = asyncio.run(fitted(found, budget=room + 5, count=by_words))
    assert cut["text"] == f"One two. Three four.{CUT}" and cut["number"] == 1
    [word] = asyncio.run(fitted(found, budget=room + 1, count=by_words))
    assert word["text"] == f"One{CUT}"
    [none] = asyncio.run(fitted(found, budget=3, count=by_words))
    assert none["text"] == CUT.strip()


LONG = {
    f"{n}.txt": [passage("parental leave " + f"word{n} " * 58)] for n in range(8)
}  # 62 words with the head


def test_the_passages_fit_the_models_context(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        ({}, {}, 8),
        ({"context_length": 400}, {}, 3),  # half of what is left by the question
        ({"context_length": 400, "rag_chunks": 2}, {}, 2),
        ({"rag_chunks": 1}, {}, 1),
        ({}, {"max_tokens": 130}, 2),
        ({"context_length": 400}, {"max_tokens": 130}, 2),
        ({"context_length": 400}, {"max_tokens": 5000}, 3),
    ]

    async def work(server: Responding) -> None:
        stack = stack_of(server)
        await shelved(stack, "long", LONG)
        model = stack.models["test/scripted"]
        for card, fields, fits in cases:
            known = ModelCard(id="scripted", tool_calling="remote", **card)
            stack.models[model.id] = replace(model, card=known)
            asked = asks(tool("long", **fields), include=["file_search_call.results"])
            response = await server.whole(**asked)
            results = response["output"][0]["results"]
            assert len(results) == fits, (card, fields)
            assert all(each["text"] in server.asked()[-1][-1]["content"] for each in results)

    run(config(tmp_path, *[SEARCHED, "Done."] * len(cases)), work)


# ------------------------------------------------------------ what shields keep back

WORD = "kingfisher"
GUARD: dict[str, Any] = {"safety": {"bird": {"provider": "canary", "words": [WORD]}}}


PLAIN = "Parental leave of a heron is long."
FLAGGED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "text": ({"bird.txt": [PLAIN.replace("heron", WORD)]}, None),
    "filename": ({f"{WORD}.txt": [PLAIN]}, None),
    "heading": ({"bird.txt": [passage(PLAIN, "Birds", WORD)]}, None),
    "attribute": ({"bird.txt": [PLAIN]}, {"about": WORD}),
}


@pytest.mark.parametrize("by", ["retrieval", "input", "guardrails"])
def test_a_flagged_chunk_reaches_nobody(by: str, tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for place, (files, attributes) in FLAGGED.items():
            await shelved(stack_of(server), place, files, attributes=attributes)
        asked = asks(tool(*FLAGGED, "handbook"), include=["file_search_call.results"])
        if by == "guardrails":
            asked["guardrails"] = ["bird"]
        for response in await server.both(**asked):
            assert WORD not in json.dumps(response)
            assert {each["filename"] for each in response["output"][0]["results"]} == FILES.keys()
            assert texts(response) == ["16 weeks [1]."]
        assert all(WORD not in request.model_dump_json() for request in server.scripted.requests)
        kept = await server.http.get(f"/v1/responses/{response['id']}", params={"include": asked["include"]})
        assert WORD not in kept.text

    enforce = {} if by == "guardrails" else {by: ["bird"]}
    run(config(tmp_path, *[SEARCHED, "16 weeks [1]."] * 2, enforce=enforce, **GUARD), work)


def test_a_shield_that_cannot_judge_lets_nothing_through(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        for stream in (False, True):
            reply = await server.post(stream=stream, **asks(include=["file_search_call.results"]))
            assert "16 weeks" not in reply.text and "could not judge" in reply.text
        assert len(server.scripted.requests) == 2

    broken = {"bird": {"provider": "canary", "words": ["leave"], "fault": "error"}}
    enforce = {"input": [], "retrieval": ["bird"]}
    run(config(tmp_path, SEARCHED, SEARCHED, enforce=enforce, safety=broken), work)


def test_what_was_judged_is_not_judged_again_by_the_same(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        await server.whole(**asks())
        seen = [turn.text for turn in stack_of(server).safety["bird"].seen if "16 weeks and" in turn.text]  # type: ignore[attr-defined]
        # the chunk when it was found, and the conversation that has it when the model is asked
        assert len(seen) == 2

    run(config(tmp_path, SEARCHED, "16 weeks [1].", enforce={"input": ["bird"]}, **GUARD), work)


def test_what_only_the_shields_of_tools_find_is_kept_back_too(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        await shelved(stack_of(server), "birds", {"bird.txt": [f"Parental leave of a {WORD}."]})
        response = await server.whole(**asks(tool("birds"), include=["file_search_call.results"]))
        assert WORD not in json.dumps(response) and response["output"][0]["status"] == "failed"
        assert all(WORD not in request.model_dump_json() for request in server.scripted.requests)

    enforce: dict[str, Any] = {"retrieval": [], "tool_result": ["bird"]}
    run(config(tmp_path, SEARCHED, "I could not see.", enforce=enforce, **GUARD), work)


def test_what_the_tool_says_is_judged_as_the_request_is(tmp_path: Path) -> None:
    said: list[dict[str, Any]] = [
        {"filters": {"type": "eq", "key": WORD, "value": "a"}},
        {"filters": {"type": "or", "filters": [{"type": "in", "key": "a", "value": ["b", WORD]}]}},
        {"vector_store_ids": ["handbook", WORD]},
        {"ranking_options": {"ranker": WORD}},
    ]

    async def work(server: Responding) -> None:
        for fields in said:
            response = await server.whole(**asks({**tool(), **fields}))
            assert response["status"] == "incomplete" and response["safety"]["touchpoint"] == "input"
            assert WORD not in json.dumps(response) and not server.scripted.requests

    run(config(tmp_path, enforce={"input": ["bird"]}, **GUARD), work)
    assert not any(WORD.encode() in path.read_bytes() for path in tmp_path.glob("state.db*"))


# ------------------------------------------------------------ agents


def test_an_agent_searches_a_store_that_is_made_later(tmp_path: Path) -> None:
    agents = {"clerk": {"model": "test/scripted", "tools": [tool("late")]}}

    async def main() -> None:
        async with responding(config(tmp_path, SEARCHED, "16 weeks [1].", agents=agents)) as server:
            asked: dict[str, Any] = {"model": "agent:clerk", "input": "How long is parental leave?"}
            assert (await server.refused(**asked))["status"] == 404
            await shelved(stack_of(server), "late", FILES)
            response = await server.whole(**asked)
            assert [each["filename"] for each in annotations(response)] == ["leave.md"]

    asyncio.run(main())


def test_an_agent_of_the_api_searches(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        made = await server.http.post(
            "/v1/agents", json={"name": "clerk", "model": "test/scripted", "tools": [tool()]}
        )
        assert made.status_code == 200, made.text
        response = await server.whole(model="agent:clerk", input="How long is parental leave?")
        assert [each["filename"] for each in annotations(response)] == ["leave.md"]

    run(config(tmp_path, SEARCHED, "16 weeks [1]."), work)


def test_an_agent_cannot_search_where_nothing_can(tmp_path: Path) -> None:
    async def main() -> None:
        async with responding(config(tmp_path, vector_io={})) as server:
            agent = {"name": "clerk", "model": "test/scripted", "tools": [tool()]}
            reply = await server.http.post("/v1/agents", json=agent)
            assert reply.status_code == 400 and "`vector_io:`" in reply.text
            error = await server.refused(**asks())
            assert error["param"] == "tools[0]" and "`vector_io:`" in error["message"]

    asyncio.run(main())


def test_a_distribution_that_cannot_search_is_told_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolate(tmp_path, monkeypatch)
    searching = "  a: {tools: [{type: file_search, vector_store_ids: [docs]}]}\n"
    text = f"agents:\n{searching}storage: sqlite\nmcp: {{vector_stores: [docs]}}\n"
    first, second = mistakes(write(text))
    assert first.startswith("f.yaml:2:15 agents.a.tools[0]: `file_search` needs an index of vectors")
    assert second.startswith("f.yaml:4:23 mcp.vector_stores[0]: searches need an index of vectors")
    whole = text + "vector_io: {faiss: {provider: faiss}}\n"
    [misspelt] = mistakes(write(whole.replace("vector_store_ids", "vector_stores_ids")))
    assert "vector_store_ids" in misspelt
    read(whole)


# ------------------------------------------------------------ what the tool is


def test_a_tool_says_what_its_search_is() -> None:
    asked = FileSearchTool.model_validate(
        tool(max_num_results=3, window=1, rewrite_query=True, guardrails=["x"])
    )
    search = asked.search(["bird"])
    assert (search.max_num_results, search.window, search.rewrite_query) == (3, 1, True)
    assert search.guardrails == ["bird"] and search.search_mode == "hybrid"


def test_a_request_for_tokens_counts_the_tool(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        reply = await server.post("/input_tokens", **asks())
        assert reply.status_code == 200 and reply.json()["input_tokens"] > 0

    run(config(tmp_path), work)


# ------------------------------------------------------------ a server that stopped


def test_a_turn_that_is_resumed_cites_what_was_found_before(tmp_path: Path) -> None:
    async def work(server: Responding) -> None:
        turns = stack_of(server).agents.turns
        turn = await turns.begin(ResponseRequest.model_validate({"model": "test/scripted", **asks()}))
        found = {
            "number": 1,
            "file_id": "file-1",
            "filename": "leave.md",
            "chunk_id": "file-1:0",
            "text": "x",
        }
        turn.place(FileSearchItem(queries=["q"], results=[found]))
        told = [*turn.said("Sixteen weeks [1], paid [1].", logprobs=[]), *turn.closed()]
        kept = [event for event in told if event.data.get("annotation_index") != 1][:4]
        assert [event.type for event in kept][-1] == "response.output_text.annotation.added"
        again = await turns.begin(turn.request)
        again.response.output = [*turn.response.output]
        events = resumed(again, kept)
        kinds = [event.type.removeprefix("response.") for event in events]
        assert kinds == [
            "output_text.annotation.added",
            "output_text.done",
            "content_part.done",
            "output_item.done",
        ]
        assert events[0].data["annotation_index"] == 1  # the first was told before
        [part] = events[-1].data["item"]["content"]
        assert [each["index"] for each in part["annotations"]] == [17, 27]

    run(config(tmp_path), work)


# ------------------------------------------------------------ /mcp


def test_stores_are_tools_at_mcp(tmp_path: Path) -> None:
    served = {"vector_stores": ["the handbook", "none"], "agents": []}
    settings = config(tmp_path, mcp=served, enforce={"retrieval": ["bird"]}, **GUARD)

    async def main() -> None:
        async with responding(settings) as server:
            birds = {"bird.txt": [f"Parental leave of a {WORD}."]}
            files: dict[str, list[Any]] = {**FILES, **birds}
            await shelved(stack_of(server), "the handbook", files, description="rules")
            tools = await asked_mcp(server, "tools/list", {})
            [search] = tools["tools"]
            assert search["name"] == "search_the_handbook" and "rules" in search["description"]
            assert search["inputSchema"]["required"] == ["query"]

            async def called(**arguments: Any) -> dict[str, Any]:
                params = {"name": "search_the_handbook", "arguments": arguments}
                return await asked_mcp(server, "tools/call", params)

            found = await called(query="parental leave", max_num_results=2)
            assert not found.get("isError") and WORD not in json.dumps(found)
            [text] = [each["text"] for each in found["content"]]
            assert text.startswith("[1] leave.md — Handbook > Leave\nParental leave lasts 16 weeks")
            assert "[2]" not in text  # as a shield keeps it back
            assert WORD not in json.dumps(await called(query="parental leave"))
            assert (await called(query="parental leave", max_num_results=0))["isError"]

    asyncio.run(main())


async def asked_mcp(server: Responding, method: str, params: dict[str, Any]) -> dict[str, Any]:
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    headers = {"accept": "application/json, text/event-stream", "host": "localhost:8321"}
    reply = await server.http.post("/mcp", json=body, headers=headers)
    assert reply.status_code == 200, reply.text
    data = next(line for line in reply.text.splitlines() if line.startswith("data: {"))
    found: dict[str, Any] = json.loads(data.removeprefix("data: "))["result"]
    return found


# ------------------------------------------------------------ small models


@pytest.mark.model
def test_the_starters_models_find_answer_and_cite(starter: Running) -> None:
    with OpenAI(base_url=f"{starter.url}/v1", api_key="none", timeout=60) as client:
        store = client.vector_stores.create(name="handbook of small models")
        files = {
            name: "\n\n".join(f"# {' '.join(each.headings)}\n\n{each.text}" for each in found)
            for name, found in FILES.items()
        }
        for name, text in files.items():
            file = (name.replace(".pdf", ".md"), text.encode())
            done = client.vector_stores.files.upload_and_poll(vector_store_id=store.id, file=file)
            assert done.status == "completed", done.last_error
        response = client.responses.create(
            model="local/smollm2-135m",
            input="At what time does the office in Lisbon open?",
            tools=[{"type": "file_search", "vector_store_ids": [store.id]}],
            tool_choice={"type": "file_search"},
            include=["file_search_call.results"],
        )
        client.vector_stores.delete(store.id)
    call, message = official.response(response.model_dump(mode="json"))["output"]
    assert [each["filename"] for each in call["results"]] == ["office.md"]  # one is all that it can use
    assert "8:30" in response.output_text
    [cited] = message["content"][0]["annotations"]
    assert cited["filename"] == "office.md" and cited["index"] == len(response.output_text.rstrip())
