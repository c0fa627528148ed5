"""Searches of every index, on both databases, beside an oracle that looks at every chunk."""

import asyncio
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_stack_lite.config import StackConfig
from llama_stack_lite.rag import search as searching
from llama_stack_lite.rag.search import words
from tests.support.databases import database
from tests.support.responding import responding
from tests.support.tiny import write_llama

BACKENDS = ["faiss-sqlite", "faiss-postgresql", "pgvector-postgresql", "qdrant-sqlite"]
# every index passes its own conformance suite with as many vectors: with texts too, one does in each run
BIG = BACKENDS if "LLAMA_LITE_ALL" in os.environ else BACKENDS[:1]
DIMENSION = 16
VOCABULARY = words(
    "amber birch cedar delta ember frost grove haven inlet jetty knoll larch maple north ocean"
)
Chunk = dict[str, Any]
Filter = dict[str, Any]


@pytest.fixture(params=BACKENDS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StackConfig]:
    provider, kind = request.param.split("-")
    with database(kind, tmp_path) as url:
        yield configured(provider, url, tmp_path)


def configured(provider: str, url: str, folder: Path) -> StackConfig:
    settings = {
        "faiss": {"folder": str(folder / "faiss")},
        "pgvector": {},
        "qdrant": {"path": str(folder / "qdrant")},
    }
    return StackConfig.model_validate(
        {
            "inference": {
                "test": {
                    "provider": "scripted",
                    "embedding_models": ["embedder"],
                    "embedding_dimension": DIMENSION,
                }
            },
            "vector_io": {"index": {"provider": provider, **settings[provider]}},
            "defaults": {"embedding_model": "test/embedder"},
            "storage": url,
        }
    )


@asynccontextmanager
async def serving(config: StackConfig) -> AsyncIterator[httpx.AsyncClient]:
    async with responding(config) as server:
        yield server.http


async def posted(http: httpx.AsyncClient, path: str, **body: Any) -> Any:
    reply = await http.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def made(http: httpx.AsyncClient, chunks: list[Chunk]) -> str:
    """A new store with these chunks."""
    store: str = (await posted(http, "/v1/vector_stores", name="s"))["id"]
    await insert(http, store, chunks)
    return store


async def insert(http: httpx.AsyncClient, store: str, chunks: list[Chunk]) -> None:
    for start in range(0, len(chunks), 2048):
        await posted(http, "/v1/vector-io/insert", vector_store_id=store, chunks=chunks[start : start + 2048])


async def query(http: httpx.AsyncClient, store: str, **asked: Any) -> list[tuple[str, float]]:
    """The ids that a search finds, with their scores."""
    found = await posted(http, "/v1/vector-io/query", vector_store_id=store, **asked)
    return [(hit["chunk_id"], hit["score"]) for hit in found["chunks"]]


def corpus(count: int, *, seed: int = 7) -> list[Chunk]:
    """Chunks of eight different words each, with attributes of every kind, some of which lack."""
    dice = random.Random(seed)
    made: list[Chunk] = []
    for number in range(count):
        vector = [dice.gauss(0, 1) for _ in range(DIMENSION)]
        metadata: dict[str, Any] = {
            "lang": dice.choice(["en", "de", "日本", "É"]),
            "draft": dice.random() < 0.5,
        }
        if number % 3:
            metadata["year"] = (
                dice.choice([1999, 2005, 2020.5]) if number % 5 else str(dice.choice([1999, 2005]))
            )
        length = math.hypot(*vector)
        made.append(
            {
                "chunk_id": f"c{number}",
                "content": " ".join(dice.sample(VOCABULARY, 8)),
                "metadata": metadata,
                "embedding": [value / length for value in vector],
            }
        )
    return made


# ------------------------------------------------------------ the oracle

ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "gt": lambda a, b: a > b,
    "gte": lambda a, b: a >= b,
    "lt": lambda a, b: a < b,
    "lte": lambda a, b: a <= b,
}


def alike(a: Any, b: Any) -> bool:
    kinds = [bool if isinstance(each, bool) else str if isinstance(each, str) else float for each in (a, b)]
    return kinds[0] is kinds[1]


def holds(filter: Filter | None, metadata: dict[str, Any]) -> bool:
    if filter is None:
        return True
    if "filters" in filter:
        return (all if filter["type"] == "and" else any)(holds(each, metadata) for each in filter["filters"])
    has, value = metadata.get(filter["key"]), filter["value"]
    if filter["type"] in ("ne", "nin"):
        return not holds(filter | {"type": {"ne": "eq", "nin": "in"}[filter["type"]]}, metadata)
    if filter["type"] in ("eq", "in"):
        wanted = value if isinstance(value, list) else [value]
        return has is not None and any(alike(has, each) and has == each for each in wanted)
    return has is not None and alike(has, value) and ORDER[filter["type"]](has, value)


def near(chunks: list[Chunk], vector: list[float]) -> dict[str, float]:
    """All chunks by the cosine to a vector of length 1, best first."""
    found = {
        chunk["chunk_id"]: max(0.0, sum(a * b for a, b in zip(chunk["embedding"], vector, strict=True)))
        for chunk in chunks
    }
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def worded(chunks: list[Chunk], among: list[Chunk], text: str) -> dict[str, float]:
    """Those `among` the chunks that have any of the words, by BM25, where all are of one length."""
    terms = list(dict.fromkeys(words(text)))
    has = {chunk["chunk_id"]: set(words(chunk["content"])) for chunk in chunks}
    idf = {}
    for term in terms:
        n = sum(term in found for found in has.values())
        idf[term] = max(1e-6, math.log((len(chunks) - n + 0.5) / (n + 0.5)))
    scores = {
        chunk["chunk_id"]: min(
            1.0, sum(idf[term] for term in terms if term in has[chunk["chunk_id"]]) / sum(idf.values())
        )
        for chunk in among
        if has[chunk["chunk_id"]] & set(terms)
    }
    return dict(sorted(scores.items(), key=lambda each: -each[1]))


def same(found: list[tuple[str, float]], oracle: dict[str, float], limit: int) -> None:
    """The same scores in the same order, each of them its chunk's; equals may stand in any order."""
    assert [score for _, score in found] == pytest.approx([*oracle.values()][:limit], abs=1e-4)
    assert dict(found) == pytest.approx({id: oracle[id] for id, _ in found}, abs=1e-4)
    assert len({id for id, _ in found}) == len(found)


FILTERS: list[Filter | None] = [
    None,
    {"type": "eq", "key": "lang", "value": "en"},
    {"type": "ne", "key": "lang", "value": "日本"},
    {"type": "eq", "key": "year", "value": 2020.5},
    {"type": "ne", "key": "year", "value": 1999},
    {"type": "gt", "key": "year", "value": 1999},
    {"type": "gte", "key": "year", "value": 2005},
    {"type": "lt", "key": "year", "value": 2005},
    {"type": "lte", "key": "year", "value": "1999"},
    {"type": "gt", "key": "lang", "value": "en"},
    {"type": "in", "key": "year", "value": [1999, "2005"]},
    {"type": "nin", "key": "year", "value": [1999, "1999"]},
    {"type": "eq", "key": "draft", "value": True},
    {"type": "eq", "key": "draft", "value": 1},
    {"type": "eq", "key": "nowhere", "value": "x"},
    {"type": "ne", "key": "nowhere", "value": "x"},
    {
        "type": "and",
        "filters": [
            {"type": "eq", "key": "draft", "value": False},
            {
                "type": "or",
                "filters": [
                    {"type": "eq", "key": "lang", "value": "É"},
                    {"type": "gte", "key": "year", "value": 2005},
                ],
            },
        ],
    },
]


def test_every_filter_in_every_mode_finds_what_an_oracle_finds(config: StackConfig) -> None:
    chunks = corpus(240)
    vector = near_to(chunks[11])

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            for filter in FILTERS:
                among = [chunk for chunk in chunks if holds(filter, chunk["metadata"])]
                asked = {"filters": filter, "max_num_results": 30}
                by_vector, by_words = near(among, vector), worded(chunks, among, "frost haven maples")
                same(await query(http, store, embedding=vector, search_mode="vector", **asked), by_vector, 30)
                found = await query(http, store, query="frost haven maples", search_mode="keyword", **asked)
                same(found, by_words, 30)
                found = await query(http, store, query="frost haven maples", embedding=vector, **asked)
                assert {id for id, _ in found} <= {chunk["chunk_id"] for chunk in among}
                assert len(found) == min(30, len(among))
                assert [score for _, score in found] == sorted((s for _, s in found), reverse=True)
                listed = await query(http, store, **asked)
                assert [id for id, _ in listed] == [chunk["chunk_id"] for chunk in among][:30]

    asyncio.run(scenario())


def near_to(chunk: Chunk) -> list[float]:
    mixed = [value + 0.1 * (-1) ** place for place, value in enumerate(chunk["embedding"])]
    length = math.hypot(*mixed)
    return [value / length for value in mixed]


def test_ranks_are_fused_with_the_weights_that_are_asked_for(config: StackConfig) -> None:
    chunks = corpus(28)
    vector = near_to(chunks[3])

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            lists = {"vector": near(chunks, vector), "keyword": worded(chunks, chunks, "ocean")}
            for weights in ((1, 1), (3, 1), (0, 1), (1, 0)):
                options: dict[str, Any] = {
                    "hybrid_search": {"embedding_weight": weights[0], "text_weight": weights[1]},
                    "fusion": "weighted",
                }
                found = await query(
                    http, store, query="ocean", embedding=vector, max_num_results=10, ranking_options=options
                )
                fused = {
                    chunk["chunk_id"]: sum(
                        weight * ranked.get(chunk["chunk_id"], 0.0) / sum(weights)
                        for weight, ranked in zip(weights, lists.values(), strict=True)
                    )
                    for chunk in chunks
                }
                best = dict(sorted(fused.items(), key=lambda each: -each[1]))
                same(found, best, 10)
            found = await query(http, store, query="ocean", embedding=vector, max_num_results=50)
            first = next(iter(lists["vector"]))
            assert dict(found)[first] >= 0.5
            assert all(0 <= score <= 1 for _, score in found)
            only = [lists["vector"][id] for id, _ in found if id not in lists["keyword"]]
            assert only == sorted(only, reverse=True)

    asyncio.run(scenario())


def test_what_is_replaced_or_deleted_is_found_no_more(config: StackConfig) -> None:
    chunks = corpus(40)

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            changed = {**chunks[5], "content": "zebra " * 8, "embedding": chunks[6]["embedding"]}
            await insert(http, store, [changed])
            found = await query(http, store, query="zebra", search_mode="keyword")
            assert [id for id, _ in found] == ["c5"]
            both = await query(
                http, store, embedding=chunks[6]["embedding"], search_mode="vector", max_num_results=2
            )
            assert {id for id, _ in both} == {"c5", "c6"}
            assert [score for _, score in both] == pytest.approx([1, 1], abs=1e-5)
            gone = await posted(
                http, "/v1/vector-io/delete", vector_store_id=store, chunk_ids=["c5", "c6", "no"]
            )
            assert sorted(gone["chunk_ids"]) == ["c5", "c6"]
            kept = [chunk for chunk in chunks if chunk["chunk_id"] not in ("c5", "c6")]
            found = await query(
                http, store, embedding=chunks[6]["embedding"], search_mode="vector", max_num_results=50
            )
            same(found, near(kept, chunks[6]["embedding"]), 50)
            assert await query(http, store, query="zebra", search_mode="keyword") == []
        async with serving(config) as http:  # it was closed, and opened again
            again = await query(
                http, store, embedding=chunks[6]["embedding"], search_mode="vector", max_num_results=50
            )
            same(again, near(kept, chunks[6]["embedding"]), 50)

    asyncio.run(scenario())


def test_an_empty_store_and_words_of_every_writing(config: StackConfig) -> None:
    texts = {
        "japanese": "東京都に行くバスは毎日ある",
        "thai": "รถไฟไปเชียงใหม่",
        "greek": "Ὁ δρόμος τῆς ΘΑΛΆΣΣΗΣ",
        "quotes": "it's \"quoted\" AND (NOT) NEAR* ^begin - {terms}: \\ ' 'x' & | !",
        "code": "def readFile(file_name): raise ValueError",
        "emoji": "🚀 launch 🧑‍🚀",
    }

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, [{"content": "-", "chunk_id": "x"}])
            await posted(http, "/v1/vector-io/delete", vector_store_id=store, chunk_ids=["x"])
            for mode in ("vector", "keyword", "hybrid"):
                assert await query(http, store, query="anything", search_mode=mode) == []
            await insert(http, store, [{"chunk_id": id, "content": text} for id, text in texts.items()])
            asked = {
                "東京": "japanese",
                "เชียงใหม่": "thai",
                "θαλάσσης": "greek",
                '"quoted" AND NOT (': "quotes",
                "read file": "code",
                "launching": "emoji",
            }
            for text, id in asked.items():
                found = await query(http, store, query=text, search_mode="keyword")
                assert [each for each, _ in found][:1] == [id], text
            for text in ("'", '"', "\\", "& | !", "*", "🚀", "a" * 3000, "\u0000x"):
                await query(http, store, query=text)

    asyncio.run(scenario())


def test_words_of_a_large_store_are_wanted_in_pairs_and_alone_where_none_are(
    config: StackConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "MOST_ROWS", 8)
    monkeypatch.setattr(searching, "SMALL", 0)
    texts = {"owls": "owl night " * 3, "storks": "stork roof " * 3, "both": "owl stork barn nest"}
    chunks: list[Chunk] = [
        {"chunk_id": f"{name}-{number}", "content": text}
        for name, text in texts.items()
        for number in range(5 if name == "both" else 20)
    ]

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            asked = {"search_mode": "keyword", "max_num_results": 50}
            found = [id for id, _ in await query(http, store, query="owls and storks", **asked)]
            assert all(id.startswith("both") for id in found[:5])
            assert {id.split("-")[0] for id in found} == set(texts)
            # no chunk has both of these
            found = [id for id, _ in await query(http, store, query="night roofs", **asked)]
            assert {id.split("-")[0] for id in found} == {"owls", "storks"} and len(found) == 40

    asyncio.run(scenario())


def test_many_write_and_search_at_once(config: StackConfig) -> None:
    chunks = corpus(200)

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks[:1])
            parts = [chunks[start : start + 10] for start in range(0, 200, 10)]

            async def look() -> None:
                for _ in range(5):
                    found = await query(http, store, embedding=chunks[0]["embedding"], max_num_results=50)
                    assert all(0 <= score <= 1 for _, score in found)

            await asyncio.gather(*(insert(http, store, part) for part in parts), *(look() for _ in range(4)))
            vector = near_to(chunks[150])
            same(
                await query(http, store, embedding=vector, search_mode="vector", max_num_results=50),
                near(chunks, vector),
                50,
            )

    asyncio.run(scenario())


def test_the_threshold(config: StackConfig) -> None:
    chunks = corpus(30)

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            asked = {"embedding": chunks[2]["embedding"], "search_mode": "vector"}
            found = await query(http, store, ranking_options={"score_threshold": 0.4}, **asked)
            assert found[0][0] == "c2" and found[0][1] == pytest.approx(1, abs=1e-5)
            assert all(score >= 0.4 for _, score in found)

    asyncio.run(scenario())


def test_the_mode_says_which_side_of_a_search_is_looked_at(config: StackConfig) -> None:
    chunks = corpus(30)

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            words, vector = {"query": "amber birch"}, {"embedding": chunks[2]["embedding"]}
            asked: list[dict[str, Any]] = [
                words | {"search_mode": "keyword"},
                words | vector | {"search_mode": "keyword"},
                vector,
                words | vector | {"search_mode": "vector"},
            ]
            said, said_too, near, near_too = [dict(await query(http, store, **each)) for each in asked]
            assert [*said] == [*said_too] and [*near] == [*near_too] and [*said] != [*near]

    asyncio.run(scenario())


def test_a_store_that_was_searched_is_searched_the_same_again_until_it_is_deleted(
    config: StackConfig,
) -> None:
    """Its model is known from then on, and the query is embedded while the store is read."""

    async def scenario() -> None:
        async with serving(config) as http:
            store, asked = await made(http, corpus(30)), {"query": "amber birch cedar"}
            first = await posted(http, f"/v1/vector_stores/{store}/search", **asked)
            assert first["data"] and first == await posted(http, f"/v1/vector_stores/{store}/search", **asked)
            await http.delete(f"/v1/vector_stores/{store}")
            gone = await http.post(f"/v1/vector_stores/{store}/search", json=asked)
            assert gone.status_code == 404 and gone.json()["error"]["param"] == "vector_store_id"

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("backend", BIG)
def test_ten_thousand_chunks(backend: str, tmp_path: Path) -> None:
    provider, kind = backend.split("-")
    chunks = corpus(10_000)

    async def scenario(config: StackConfig) -> None:
        async with serving(config) as http:
            store = await made(http, chunks)
            recalled = 0
            for place in range(0, 10_000, 500):
                vector = near_to(chunks[place])
                found = await query(http, store, embedding=vector, search_mode="vector", max_num_results=10)
                best = [*near(chunks, vector)][:10]
                recalled += len({id for id, _ in found} & set(best))
            assert recalled >= 0.98 * 200
            filter = {"type": "and", "filters": [FILTERS[3], FILTERS[12]]}
            among = [chunk for chunk in chunks if holds(filter, chunk["metadata"])]
            found = await query(
                http, store, embedding=vector, search_mode="vector", filters=filter, max_num_results=50
            )
            same(found, near(among, vector), 50)

    with database(kind, tmp_path) as url:
        asyncio.run(scenario(configured(provider, url, tmp_path)))


GUARD: dict[str, Any] = {"bird": {"provider": "canary", "words": ["goldfinch"]}}
BIRDS: list[Chunk] = [
    {"chunk_id": "plain", "content": "storks nest on roofs"},
    {"chunk_id": "text", "content": "a goldfinch nests in trees"},
    {"chunk_id": "attribute", "content": "owls nest in barns", "metadata": {"by": "Goldfinch & Sons"}},
]


@pytest.mark.parametrize("enforced", [True, False])
def test_what_a_shield_flags_is_not_found(enforced: bool, tmp_path: Path) -> None:
    config = configured("faiss", f"sqlite:///{tmp_path}/state.db", tmp_path).model_dump()
    guarded = config | {
        "safety": GUARD,
        "enforce": {"retrieval": ["bird"] if enforced else [], "upload": []},
    }
    asked: dict[str, Any] = {} if enforced else {"guardrails": ["bird"]}

    async def scenario() -> None:
        async with serving(StackConfig.model_validate(guarded)) as http:
            store = await made(http, BIRDS)
            for mode in ("vector", "keyword", "hybrid"):
                found = await query(http, store, query="what nests where", search_mode=mode, **asked)
                assert [id for id, _ in found] == ["plain"]
                page = await posted(
                    http, f"/v1/vector_stores/{store}/search", query="nests", search_mode=mode, **asked
                )
                assert [hit["chunk_id"] for hit in page["data"]] == ["plain"]
            assert [id for id, _ in await query(http, store, **asked)] == ["plain"]

    asyncio.run(scenario())


def test_nothing_is_found_where_a_shield_cannot_judge(tmp_path: Path) -> None:
    config = configured("faiss", f"sqlite:///{tmp_path}/state.db", tmp_path).model_dump()
    broken = {"bird": {"provider": "canary", "words": ["leave"], "fault": "error"}}
    guarded = config | {"safety": broken, "enforce": {"retrieval": ["bird"], "upload": []}}

    async def scenario() -> None:
        async with serving(StackConfig.model_validate(guarded)) as http:
            store = await made(http, BIRDS)
            reply = await http.post(f"/v1/vector_stores/{store}/search", json={"query": "nests"})
            assert reply.status_code == 503 and reply.json()["error"]["code"] == "guard_unavailable"

    asyncio.run(scenario())


# ------------------------------------------------------------ what a search may ask for besides


def extended(tmp_path: Path, **inference: Any) -> StackConfig:
    """A stack with more models than one that embeds, and files."""
    config = configured("faiss", f"sqlite:///{tmp_path}/state.db", tmp_path).model_dump()
    config["inference"]["test"] |= inference.pop("test", {})
    config["inference"] |= inference
    config["files"] = {"disk": {"provider": "local", "folder": str(tmp_path / "files")}}
    return StackConfig.model_validate(config)


def test_a_model_made_for_it_ranks_what_was_found(tmp_path: Path) -> None:
    config = extended(tmp_path, test={"rerank_models": ["ranker"]})
    options = {"ranker": "test/ranker", "score_threshold": 0.3}

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, BIRDS)
            found = await query(http, store, query="owls in barns", ranking_options=options)
            assert found == [("attribute", 1.0), ("text", pytest.approx(1 / 3))]
            for wrong in ("test/embedder", "test/nobody"):
                body = {"query": "owls", "ranking_options": {"ranker": wrong}}
                reply = await http.post(f"/v1/vector_stores/{store}/search", json=body)
                assert reply.status_code in (400, 404), reply.text
            for fine in ("none", "auto", "default-2024-11-15"):
                assert len(await query(http, store, query="owls", ranking_options={"ranker": fine})) == 3

    asyncio.run(scenario())


def test_a_chat_model_ranks_by_how_sure_it_is(tmp_path: Path) -> None:
    tiny = write_llama(tmp_path / "tiny.gguf")
    card = {"id": "tiny", "files": [{"name": tiny.name, "sources": [f"file:{tiny}"]}]}
    local = {"provider": "llama-cpp", "models": [card], "slots": 2}

    async def scenario() -> None:
        async with serving(extended(tmp_path, local=local)) as http:
            store = await made(http, BIRDS)
            asked = {"query": "owls in barns", "ranking_options": {"ranker": "local/tiny"}}
            found = await query(http, store, **asked)
            scores = [score for _, score in found]
            assert len(found) == 3 and scores == sorted(scores, reverse=True)
            assert all(0 <= score <= 1 for score in scores)
            assert found == await query(http, store, **asked)

    asyncio.run(scenario())


def test_a_query_is_rewritten_by_the_chat_model(tmp_path: Path) -> None:
    config = extended(tmp_path, test={"replies": ['"owls barns"\nas you asked', ""]})
    config.defaults.model = "test/scripted"

    async def scenario() -> None:
        async with serving(config) as http:
            store = await made(http, BIRDS)
            body = {"query": "Could you please tell me about owls?", "rewrite_query": True}
            path = f"/v1/vector_stores/{store}/search"
            assert (await posted(http, path, **body))["search_query"] == ["owls barns"]
            assert (await posted(http, path, **body))["search_query"] == [body["query"]]

    asyncio.run(scenario())


def test_the_neighbours_of_a_hit_are_told_with_it(tmp_path: Path) -> None:
    said = [f"{word}{number}" for number in range(6) for word in VOCABULARY]

    async def scenario() -> None:
        async with serving(extended(tmp_path)) as http:
            upload = {"file": ("trees.txt", " ".join(said).encode())}
            file = (await http.post("/v1/files", files=upload, data={"purpose": "assistants"})).json()["id"]
            sizes = {"max_chunk_size_tokens": 16, "chunk_overlap_tokens": 0}
            strategy = {"type": "static", "static": sizes}
            store = await made(http, [{"content": "zebra", "chunk_id": "other"}])
            await posted(http, f"/v1/vector_stores/{store}/files", file_id=file, chunking_strategy=strategy)
            for _ in range(400):
                if (await http.get(f"/v1/vector_stores/{store}")).json()["status"] == "completed":
                    break
                await asyncio.sleep(0.05)
            path = f"/v1/vector_stores/{store}/search"
            asked = {"query": "cedar3", "search_mode": "keyword"}
            alone = (await posted(http, path, **asked))["data"][0]
            around = (await posted(http, path, window=1, **asked))["data"][0]
            texts = [part["text"] for part in around["content"]]
            assert alone["content"] == [around["content"][1]] and len(texts) == 3
            told = " ".join(texts).split()
            assert told == said[said.index(told[0]) :][: len(told)] and "cedar3" in texts[1]
            assert alone["chunk_id"] == f"{file}:{alone['position']}" and alone["filename"] == "trees.txt"

    asyncio.run(scenario())
