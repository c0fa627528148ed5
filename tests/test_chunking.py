"""Chunks: no longer than the model reads, counted exactly, and nothing of the document lost."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from llama_stack_lite.api.inference import ChatRequest, Embeddings, Inference
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.api.vector_stores import Chunking
from llama_stack_lite.config import StackConfig
from llama_stack_lite.errors import InvalidRequest, StackError, UpstreamError
from llama_stack_lite.models import card, pull
from llama_stack_lite.providers.inference.llama_cpp import LlamaCpp
from llama_stack_lite.providers.inference.onnx import Onnx
from llama_stack_lite.providers.inference.scripted import Scripted
from llama_stack_lite.rag.chunking import LONG, SHORT, Chunk, check, chunked, passages
from llama_stack_lite.rag.contextual import LONGEST, shortened, surroundings
from llama_stack_lite.rag.parsing import Block, Parsed
from llama_stack_lite.rag.splitting import Measured, between, cut, levels, windows
from llama_stack_lite.rag.tokens import BYTES
from llama_stack_lite.stack import Model, Stack
from tests.conformance.inference import InferenceConformance
from tests.support.serving import models_home
from tests.support.tiny_encoder import CONTEXT, write_encoder

MINILM = "all-minilm-l6-v2"
FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f467"
FLAGS = "\U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5"


def chunking(type: str, **fields: Any) -> Chunking:
    found: Chunking = TypeAdapter(Chunking).validate_python({"type": type, **fields})
    return found


def static(size: int, overlap: int = 0) -> Chunking:
    return chunking("static", static={"max_chunk_size_tokens": size, "chunk_overlap_tokens": overlap})


AUTO = chunking("auto")


def parsed(*blocks: Block | str, title: str | None = None) -> Parsed:
    """Blocks as they are; of a text, paragraphs, and headings where it begins with `#`."""
    found = []
    for block in blocks:
        if isinstance(block, str):
            level = len(block) - len(block.lstrip("#"))
            kind: Any = "heading" if level else "text"
            block = Block(kind, block.lstrip("# "), level)
        found.append(block)
    return Parsed(found, title)


def prose(sentences: int, word: str = "word") -> str:
    return " ".join(f"Sentence {number} says {word} of {number * 7}." for number in range(sentences))


def stack_of(**sections: Any) -> Stack:
    return Stack(StackConfig.model_validate(sections))


def scripted(limit: int | None = None, **facts: Any) -> tuple[Stack, Model]:
    """A model whose tokens are words, without special ones."""
    provider = Scripted(Scripted.Config(embedding_models=["e"], embedding_dimension=1))
    found = ModelCard(id="e", kind="embedding", context_length=limit, **facts)
    return stack_of(), Model("s/e", "e", "s", cast(Inference, provider), found)


async def counted(model: Model, chunks: Sequence[Chunk]) -> list[int]:
    return [
        (await model.provider.embed(model.name, [text])).prompt_tokens for text in passages(model, chunks)
    ]


def made(document: Parsed, how: Chunking = AUTO, *, limit: int | None = 64, **facts: Any) -> list[Chunk]:
    """Chunks by the scripted model, whose `limit` is their size; their tokens are checked."""

    async def main() -> list[Chunk]:
        stack, model = scripted(limit, **facts)
        chunks = await chunked(stack, model, document, how)
        assert [chunk.tokens for chunk in chunks] == await counted(model, chunks)
        assert all(chunk.tokens <= limit for chunk in chunks if limit)
        return chunks

    return asyncio.run(main())


def letters(text: str) -> str:
    return "".join(text.split())


# ------------------------------------------------------------ auto


def test_headings_are_said_once_and_kept_with_each_chunk() -> None:
    document = parsed("# Guide", "Read this.", "## Install", prose(30), "## Use", prose(6), title="guide")
    chunks = made(document)
    assert chunks[0].text.startswith("Guide\n\nRead this.\n\nInstall\n\nSentence 0")
    assert (chunks[0].headings, chunks[0].context) == (["Guide"], None)
    assert chunks[1].headings == ["Guide", "Install"] and chunks[1].context == "Guide > Install"
    assert chunks[1].embedded().startswith("Guide > Install\n\nSentence")
    last = chunks[-1]
    assert last.text.startswith("Use\n\n") and last.headings == ["Guide", "Use"] and last.context == "Guide"
    for chunk in chunks:
        assert not chunk.text.endswith(("Guide", "Install", "Use"))


def test_a_title_that_the_text_does_not_say_stands_above_all() -> None:
    [chunk] = made(parsed("## Part", "Some text.", title="The title"))
    assert (chunk.headings, chunk.context, chunk.text) == (
        ["The title", "Part"],
        "The title",
        "Part\n\nSome text.",
    )


def test_small_sections_share_a_chunk_and_large_ones_do_not() -> None:
    small = made(parsed("# A", "one two", "# B", "three four", "# C", "five"))
    assert [chunk.text for chunk in small] == ["A\n\none two\n\nB\n\nthree four\n\nC\n\nfive"]
    assert small[0].headings == []
    large = made(parsed("# A", prose(5), "# B", prose(5)))
    assert [chunk.headings for chunk in large] == [["A"], ["B"]]


def test_a_long_section_is_divided_evenly_and_at_sentences() -> None:
    chunks = made(parsed(prose(33)))
    assert all(re.fullmatch(r"Sentence.*\.", chunk.text) for chunk in chunks)
    assert min(chunk.tokens for chunk in chunks) > 0.5 * max(chunk.tokens for chunk in chunks)


def test_a_path_that_is_too_long_loses_its_middle() -> None:
    names = [f"level {number} of many" for number in range(1, 7)]
    headings = [f"{'#' * level} {name}" for level, name in enumerate(names, 1)]
    chunks = made(parsed(*headings, prose(40)))
    assert chunks[-1].headings == names
    assert chunks[-1].context == " > ".join([names[0], *names[4:]])


def test_a_heading_of_many_words_is_text() -> None:
    chunks = made(parsed("# " + prose(20), "text"))
    assert all(not chunk.headings for chunk in chunks) and len(chunks) > 1


def test_headings_alone_are_kept() -> None:
    assert [chunk.text for chunk in made(parsed("# A", "## B", "# C"))] == ["A\n\nB\n\nC"]
    many = made(parsed(*[f"# Heading number {number}" for number in range(60)]))
    assert letters("".join(chunk.text for chunk in many)) == letters(
        "".join(f"Heading number {number}" for number in range(60))
    )


def test_a_table_is_cut_between_rows_and_says_its_header_again() -> None:
    rows = [f"| row {number} | {number * 3} |" for number in range(30)]
    table = "\n".join(["| name | value |", "|---|---|", *rows])
    chunks = made(parsed("# T", Block("table", table)))
    assert len(chunks) > 2
    for chunk in chunks:
        assert chunk.text.removeprefix("T\n\n").startswith("| name | value |\n|---|---|\n| row ")
        assert all(line.endswith("|") for line in chunk.text.removeprefix("T\n\n").splitlines())
    assert [row for chunk in chunks for row in chunk.text.splitlines() if row in rows] == rows


def test_code_is_cut_before_lines_of_least_indent() -> None:
    code = "\n\n".join(f"def f{n}(a, b):\n    c = a + b\n\n    return c * {n}" for n in range(20))
    chunks = made(parsed(Block("code", code)))
    assert len(chunks) > 2
    assert all(re.match(r"def f\d+\(", chunk.text) and "return" in chunk.text for chunk in chunks)


def test_pages_are_those_where_chunks_begin() -> None:
    chunks = made(Parsed([Block("text", prose(9), page=1), Block("text", prose(9), page=2)], None))
    assert [chunk.page for chunk in chunks] == [1, 2]


def test_nothing_is_made_of_nothing() -> None:
    for how in (AUTO, static(32)):
        assert made(parsed(), how) == made(parsed(" \n ", Block("text", "")), how) == []


def test_the_size_is_the_models_or_what_finds_best() -> None:
    document = parsed(*[prose(12) for _ in range(40)])
    for limit, most in ((100, 100), (512, SHORT), (8192, LONG), (None, LONG)):
        largest = max(chunk.tokens for chunk in made(document, limit=limit))
        assert 0.7 * most < largest <= most


def test_a_prefix_of_the_card_is_counted() -> None:
    chunks = made(parsed(prose(30)), passage_prefix="so it is said: ")
    plain = made(parsed(prose(30)))
    assert "".join(chunk.text for chunk in chunks)[:40] == "".join(chunk.text for chunk in plain)[:40]


@pytest.mark.parametrize("kind", ["heading", "text", "list", "table", "code"])
def test_a_block_of_many_pages_is_measured_in_parts(kind: Any) -> None:
    lines = [f"{number} and so on and so forth | {number % 7}" for number in range(1500)]
    for end in ("\n", " "):
        text = end.join(["a first row " * (80 if end == " " else 2), *lines])
        chunks = made(parsed(Block(kind, text)), limit=400)
        said = letters("".join(chunk.text for chunk in chunks))
        assert said == letters(text) if kind != "table" or end == " " else len(said) > len(letters(text))
        assert sum(chunk.tokens for chunk in chunks) < 1.2 * len(text.split())


BLOCKS = st.lists(
    st.builds(
        Block,
        st.sampled_from(["heading", "text", "list", "code"]),
        st.text(st.sampled_from("ab .\n!\u0301\U0001f469\u200d\u732b\u3002-"), max_size=200),
        st.integers(1, 4),
    ),
    max_size=12,
)
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@QUICK
@given(BLOCKS, st.integers(20, 60))
def test_auto_keeps_every_letter_in_order_and_every_size(blocks: list[Block], limit: int) -> None:
    document = Parsed(blocks, None)
    chunks = made(document, limit=limit)
    assert letters("".join(chunk.text for chunk in chunks)) == letters("".join(b.text for b in blocks))
    assert chunks == made(document, limit=limit)


# ------------------------------------------------------------ static


def test_windows_slide_over_the_whole_text() -> None:
    chunks = made(parsed("# A", prose(40), prose(40)), static(32, 8))
    text = "\n\n".join(["A", prose(40), prose(40)])
    place = 0
    for number, chunk in enumerate(chunks):
        begin = text.index(chunk.text, max(0, place - 200)) if number else 0
        assert begin <= place, "what is between two windows is lost"
        if number:
            shared = (place - begin, len(text[begin:place].split()))
            assert 8 <= shared[1] <= 16
        place = begin + len(chunk.text)
        assert chunk.context is None and chunk.headings == ["A"]
    assert place == len(text)


@QUICK
@given(BLOCKS, st.integers(16, 40), st.integers(0, 8))
def test_static_covers_every_character(blocks: list[Block], size: int, overlap: int) -> None:
    text = "\n\n".join(block.text for block in blocks)
    chunks = made(Parsed(blocks, None), static(size, overlap), limit=None)
    assert all(chunk.tokens <= size for chunk in chunks)
    if not overlap:
        assert "".join(chunk.text for chunk in chunks) == (text if text.strip() else "")
    place = 0
    for chunk in chunks:
        begin = max(at for at in range(place + 1) if text.startswith(chunk.text, at))
        place = begin + len(chunk.text)
    assert not chunks or place == len(text)


@pytest.mark.parametrize(
    ("size", "overlap", "says"),
    [
        (800, 400, "is 800, and `s/e` reads at most 512 tokens: say 512 or less"),
        (513, 0, 'or `{"type": "auto"}`'),
        (8, 0, "a chunk needs at least"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused_by_name(size: int, overlap: int, says: str) -> None:
    async def main() -> None:
        stack, model = scripted(512)
        await check(stack, model, AUTO)
        await check(stack, model, static(512, 256))
        with pytest.raises(InvalidRequest, match=re.escape(says)) as refused:
            await check(stack, model, static(size, overlap))
        assert refused.value.param == "chunking_strategy.static.max_chunk_size_tokens"
        with pytest.raises(InvalidRequest):
            await chunked(stack, model, parsed("text"), static(size, overlap))

    asyncio.run(main())


# ------------------------------------------------------------ where a text is cut


@pytest.mark.parametrize(
    "one", [FAMILY, "e\u0301\u0323", "\U0001f44d\U0001f3fd", "\u1112\u1161\u11ab", "\r\n", FLAGS[:2]]
)
def test_what_readers_see_as_one_character_is_not_cut(one: str) -> None:
    text = f"a{one}b{one}"
    places = {between(text, place, 0) for place in range(1, len(text))}
    assert places == {1, 1 + len(one), 2 + len(one)}


def test_flags_are_pairs_of_letters() -> None:
    assert [between(FLAGS, place, 0) for place in range(1, 4)] == [None, 2, 2]


def test_a_character_longer_than_the_room_is_cut_all_the_same() -> None:
    zalgo = "a" + "\u0301" * 50
    measured = Measured(zalgo, range(len(zalgo)))
    spans = cut(measured, 8, levels("text", zalgo))
    assert "".join(zalgo[a:b] for a, b in spans) == zalgo and max(b - a for a, b in spans) == 8


def test_abbreviations_and_numbers_end_no_sentence() -> None:
    text = "See e.g. this of 3.14 here. Then that."
    assert [text[a:b] for a, b in cut(Measured(text, range(len(text))), 28, levels("text", text))] == [
        "See e.g. this of 3.14 here. ",
        "Then that.",
    ]


def test_windows_go_on_where_many_tokens_are_one_character() -> None:
    measured = Measured("ab", [0] * 40 + [1] * 40)
    assert list(windows(measured, 16, 8))[-1][1] == 2


# ------------------------------------------------------------ tokens


def test_without_a_tokenizer_to_ask_bytes_are_counted_carefully() -> None:
    class Remote:
        async def embed(self, model: str, inputs: list[str], *, dimensions: int | None = None) -> Embeddings:
            raise AssertionError("chunking embeds nothing")

    async def main() -> None:
        found = ModelCard(id="e", kind="embedding")
        model = Model("r/e", "e", "r", cast(Inference, Remote()), found)
        chunks = await chunked(stack_of(), model, parsed(prose(200), "\u732b" * 900), AUTO)
        for chunk in chunks:
            assert len(chunk.embedded().encode()) <= BYTES * chunk.tokens and chunk.tokens <= LONG
        assert letters("".join(chunk.text for chunk in chunks)) == letters(prose(200) + "\u732b" * 900)

    asyncio.run(main())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("bert") / "bert.gguf")


@asynccontextmanager
async def of_llama_cpp(path: Path) -> AsyncIterator[tuple[Stack, Model]]:
    stack = stack_of()
    provider = LlamaCpp(LlamaCpp.Config.model_validate({"models": [str(path)], "threads": 1}), stack)
    try:
        [found] = await provider.models()
        yield stack, Model(f"l/{found.id}", found.id, "l", cast(Inference, provider), found)
    finally:
        await provider.aclose()


LATIN = "The cat's na\u00efve caf\u00e9, 3.14 \u00a0\u2003 end. [CLS]"
ODD = f"{LATIN} \u732b\u306f\u5bdd\u308b {FAMILY} {FLAGS} {'x' * 300} " * 4


@pytest.mark.parametrize("how", [AUTO, static(64, 32), static(CONTEXT)])
def test_a_tiny_berts_tokens_are_counted_exactly(bert: Path, how: Chunking) -> None:
    async def main() -> None:
        async with of_llama_cpp(bert) as (stack, model):
            assert model.card.context_length == CONTEXT
            await exactly(stack, model, how, most=64 if how == static(64, 32) else CONTEXT)

    asyncio.run(main())


async def exactly(stack: Stack, model: Model, how: Chunking, *, most: int) -> None:
    """Special tokens, headings and all: a chunk has the tokens that `embed` reads, and fits."""
    document = parsed("# The cat", prose(50), "## Sleeps", ODD, Block("table", "a|b\n" * 60), title="A title")
    chunks = await chunked(stack, model, document, how)
    assert [chunk.tokens for chunk in chunks] == await counted(model, chunks)
    assert 0.6 * most < max(chunk.tokens for chunk in chunks) <= most


@pytest.fixture
def minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_LITE_HOME", str(models_home()))
    pull(card(MINILM))


@pytest.mark.model
@pytest.mark.usefixtures("minilm")
def test_minilms_tokens_are_counted_exactly() -> None:
    async def main() -> None:
        provider = Onnx(Onnx.Config(models=[MINILM]))
        [found] = await provider.models()
        model = Model(f"o/{MINILM}", MINILM, "o", cast(Inference, provider), found)
        try:
            for how, most in ((AUTO, SHORT), (static(512, 100), 512), (static(100, 50), 100)):
                await exactly(stack_of(), model, how, most=most)
            with pytest.raises(InvalidRequest, match="say 512 or less"):
                await check(stack_of(), model, static(800, 400))
        finally:
            await provider.aclose()

    asyncio.run(main())


class Wrong:
    """The scripted provider, with a fault in what it says of tokens."""

    def __init__(self, fault: Callable[[list[int]], list[int]]) -> None:
        self.whole = Scripted(Scripted.Config(embedding_models=["e"]))
        self.fault = fault
        self.models, self.embed, self.chat = self.whole.models, self.whole.embed, self.whole.chat

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        return [self.fault(row) for row in await self.whole.token_starts(model, texts)]


@pytest.mark.parametrize(
    "fault",
    [
        lambda row: row[:-1],
        lambda row: [0, *row],
        lambda row: row[::-1],
        lambda row: [start + 99 for start in row],
        lambda row: [0] * len(row),
    ],
)
def test_the_conformance_suite_finds_tokens_that_begin_elsewhere(
    fault: Callable[[list[int]], list[int]],
) -> None:
    class Suite(InferenceConformance):
        def provider(self) -> Inference:
            return cast(Inference, Wrong(fault))

    with pytest.raises(AssertionError):
        Suite().test_tokens_begin_where_they_are_said_to()


# ------------------------------------------------------------ contextual


@asynccontextmanager
async def writing(*replies: Any, **fields: Any) -> AsyncIterator[tuple[Stack, Model, Scripted]]:
    entry = {"provider": "scripted", "replies": list(replies), "loop": True, "embedding_models": ["e"]}
    stack = await Stack.build(
        StackConfig.model_validate({"inference": {"s": entry}, "defaults": {"model": "s/scripted"}, **fields})
    )
    try:
        yield stack, stack.model("s/e", "embedding"), cast(Scripted, stack.inference["s"])
    finally:
        await stack.aclose()


def asked(request: ChatRequest) -> str:
    return str(request.messages[-1].content)


def test_a_line_of_a_model_goes_before_each_chunk_and_is_counted() -> None:
    async def main() -> None:
        line = "It is about words. " + "Then on and on " * 40
        async with writing(line) as (stack, model, provider):
            document = parsed("# Guide", prose(200))
            chunks = await chunked(stack, model, document, chunking("contextual"))
            assert len(chunks) == len(provider.requests) > 2
            assert [chunk.tokens for chunk in chunks] == await counted(model, chunks)
            for chunk in chunks:
                assert chunk.tokens <= LONG and "It is about words." in (chunk.context or "")
            assert (chunks[1].context or "").startswith("Guide\nIt is about")
            for request in provider.requests:
                assert request.temperature == 0 and request.max_completion_tokens == LONGEST
                assert any(chunk.text in asked(request) for chunk in chunks) and "Guide" in asked(request)
            assert letters("".join(chunk.text for chunk in chunks)) == letters("Guide" + prose(200))

    asyncio.run(main())


def test_a_prompt_of_ones_own_is_filled_once() -> None:
    async def main() -> None:
        async with writing("line") as (stack, model, provider):
            how = chunking("contextual", contextual={"prompt": "D {document} C {chunk}"})
            await chunked(stack, model, parsed("say {chunk} and {document}"), how)
            assert asked(provider.requests[0]) == "D say {chunk} and {document} C say {chunk} and {document}"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"model": "nobody"}, "model", "There is no model `nobody`"),
        ({"model": "s/e"}, "model", "is no chat model"),
        ({"prompt": "say something"}, "prompt", "needs `{chunk}`"),
        ({"max_chunk_size_tokens": 4}, "max_chunk_size_tokens", "at least"),
    ],
)
def test_options_that_cannot_be_kept_are_refused(options: dict[str, Any], param: str, says: str) -> None:
    async def main() -> None:
        async with writing("line") as (stack, model, _):
            with pytest.raises(InvalidRequest, match=re.escape(says)) as refused:
                await check(stack, model, chunking("contextual", contextual=options))
            assert refused.value.param == f"chunking_strategy.contextual.{param}"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reply", "error"),
    [({"error": {"status": 503}}, StackError), ("   ", UpstreamError), ("a canary sings", InvalidRequest)],
)
def test_a_document_fails_with_the_reason_why_a_line_was_not_written(
    reply: Any, error: type[StackError]
) -> None:
    guard = {"safety": {"bird": {"provider": "canary"}}, "enforce": {"output": ["bird"]}}

    async def main() -> None:
        async with writing(reply, **guard) as (stack, model, _):
            with pytest.raises(error):
                await chunked(stack, model, parsed(prose(300)), chunking("contextual"))

    asyncio.run(main())


def test_what_a_model_sees_of_a_document_fits() -> None:
    texts = [f"part {number} " + "x" * 300 for number in range(40)]
    seen = surroundings(texts, 20, 1000)
    assert seen.startswith("part 0") and len(seen) < 1100 and "x" * 100 in seen
    assert surroundings(["a", "b"], 0, 1000) == "a\n\nb" and surroundings(texts, 3, 0) == ""


def test_a_line_that_is_too_long_ends_at_a_sentence_or_a_word() -> None:
    def short(line: str, room: int) -> str:
        return shortened(line, [match.start() for match in re.finditer(r"\S+", line)], room)

    assert short("One two. Three four five.", 4) == "One two."
    assert short("One two three four", 2) == "One two"
    assert short("One two", 5) == "One two" and short("One", 0) == ""


# ------------------------------------------------------------ while others wait


def test_a_long_text_leaves_the_event_loop_free() -> None:
    def lines() -> Iterator[str]:
        for number in range(3000):
            yield f"# Heading {number}" if number % 20 == 0 else prose(3)

    async def main() -> float:
        stack, model = scripted(512)
        working = asyncio.create_task(chunked(stack, model, parsed(*lines()), AUTO))
        turns = 0
        while not working.done():
            await asyncio.sleep(0)
            turns += 1
        assert len(await working) > 100
        return turns

    assert asyncio.run(main()) > 50
