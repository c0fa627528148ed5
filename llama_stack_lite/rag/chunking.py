"""A parsed document as chunks that fit the model which embeds them."""

import asyncio
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from llama_stack_lite.api.vector_stores import Chunking, ContextualOptions, StaticChunking, StaticSizes
from llama_stack_lite.errors import InvalidRequest
from llama_stack_lite.stack import Model, Stack

from . import contextual
from .outline import BREAK, Draft, Outline, Piece, pieces
from .parsing import Parsed
from .splitting import Measured, Span, windows
from .tokens import Tokens, sliced

# Encoders of BERT's kind were taught to find by short texts: MiniLM by 128 tokens, cut off at 256, though it
# has positions for 512. Those that read more were taught by longer ones, but one vector says less of each
# sentence the more of them it stands for, so that theirs are not much longer.
SHORT, LONG = 256, 400
SHORT_LIMIT = 512
LEAST = 16  # tokens of a chunk, beside those that every text has: a character may take several
SIZE = "chunking_strategy.{}.max_chunk_size_tokens"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document, in its words; `tokens` is what the embedding model reads of it.

    `headings` are those that it stands under, the outermost first; `context` is said before the text where
    the chunk is embedded and searched, and never shown as text.
    """

    text: str
    headings: list[str]
    page: int | None
    tokens: int
    context: str | None

    def embedded(self) -> str:
        """What is embedded and searched by keyword."""
        return f"{self.context}{BREAK}{self.text}" if self.context else self.text


def passages(model: Model, chunks: Sequence[Chunk]) -> list[str]:
    """What the model is asked to embed: the chunks behind what its card puts before passages."""
    prefix = model.card.passage_prefix or ""
    return [prefix + chunk.embedded() for chunk in chunks]


async def check(stack: Stack, model: Model, chunking: Chunking) -> None:
    """Raise `InvalidRequest`, naming the field, where chunks would be longer than the model reads."""
    if isinstance(chunking, StaticChunking):
        _check_sizes(await Tokens.of(model), chunking.static)
    elif chunking.type == "contextual":
        options = chunking.contextual
        contextual.check(stack, options)
        if options.max_chunk_size_tokens:
            _check_size(await Tokens.of(model), options.max_chunk_size_tokens, SIZE.format("contextual"))


def _check_sizes(tokens: Tokens, sizes: StaticSizes) -> None:
    size, param = sizes.max_chunk_size_tokens, SIZE.format("static")
    _check_size(tokens, size, param)
    if size - tokens.ends <= sizes.chunk_overlap_tokens:
        raise InvalidRequest(
            f"{param} is {size}, of which {tokens.ends} are special tokens: an overlap of "
            f"{sizes.chunk_overlap_tokens} leaves no room for new text",
            param=param,
        )


def _check_size(tokens: Tokens, size: int, param: str) -> None:
    most, least = tokens.limit, tokens.ends + LEAST
    if most and size > most:
        raise InvalidRequest(
            f"{param} is {size}, and `{tokens.model.id}` reads at most {most} tokens: say {most} or less "
            '(at most half of it as overlap), or `{"type": "auto"}`, which fits the model, or choose an '
            "embedding model that reads more",
            param=param,
        )
    if size < least:
        raise InvalidRequest(f"{param} is {size}; a chunk needs at least {least}", param=param)


async def chunked(stack: Stack, model: Model, parsed: Parsed, chunking: Chunking) -> list[Chunk]:
    """The chunks of a document, in its order; none where it has no text.

    Their tokens are counted by the model's own tokenizer, or estimated where its provider has none to ask.
    Raises `InvalidRequest` as `check`, and where a chunk's line of `contextual` was refused.
    """
    await check(stack, model, chunking)
    tokens = await Tokens.of(model)
    if isinstance(chunking, StaticChunking):
        return await _static(tokens, parsed, chunking.static)
    if chunking.type == "contextual":
        return await _contextual(stack, tokens, parsed, chunking.contextual)
    return await _auto(tokens, parsed, _usual(tokens))


def _usual(tokens: Tokens) -> int:
    if not tokens.limit:
        return LONG
    return min(tokens.limit, SHORT if tokens.limit <= SHORT_LIMIT else LONG)


# ------------------------------------------------------------ by structure


async def _auto(tokens: Tokens, parsed: Parsed, size: int) -> list[Chunk]:
    outline = Outline(size - tokens.ends)
    if title := (parsed.title or "").strip():
        [starts] = await tokens.starts([title])
        outline.entitle(title, len(starts))
    for part in await asyncio.to_thread(_parts, parsed):
        starts_of = await tokens.starts([piece.text for piece in part])
        await asyncio.to_thread(_add, outline, part, starts_of)
    return await _measured(tokens, await asyncio.to_thread(outline.drafts), size)


def _parts(parsed: Parsed) -> list[list[Piece]]:
    """A document in pieces, as many together as are measured by one call."""
    found = (piece for block in parsed.blocks for piece in pieces(block))
    return list(sliced(found, lambda piece: len(piece.text)))


def _add(outline: Outline, found: Sequence[Piece], starts: Sequence[Sequence[int]]) -> None:
    for piece, places in zip(found, starts, strict=True):
        outline.add(piece, places)


async def _measured(tokens: Tokens, drafts: Sequence[Draft], size: int) -> list[Chunk]:
    """Chunks of the drafts, which are cut until none is too long: a text is no sum of its pieces' tokens."""
    found: Sequence[Chunk | Draft] = drafts
    while True:
        chunks, texts = await asyncio.to_thread(_written, found)
        if not texts:
            return chunks
        found = await asyncio.to_thread(_settled, found, chunks, await tokens.counted(texts), size)


def _written(found: Sequence[Chunk | Draft]) -> tuple[list[Chunk], list[str]]:
    """All as chunks, and the texts of those that are not measured yet."""
    chunks = [_chunk(each) if isinstance(each, Draft) else each for each in found]
    new = zip(found, chunks, strict=True)
    return chunks, [chunk.embedded() for each, chunk in new if isinstance(each, Draft)]


def _settled(
    found: Sequence[Chunk | Draft], chunks: Sequence[Chunk], counts: Sequence[int], size: int
) -> list[Chunk | Draft]:
    """The chunks that fit, and the halves of drafts that do not, to be measured again."""
    measured = iter(counts)
    settled: list[Chunk | Draft] = []
    for each, chunk in zip(found, chunks, strict=True):
        if isinstance(each, Chunk):
            settled.append(each)
        elif (count := next(measured)) <= size:
            settled.append(replace(chunk, tokens=count))
        elif len(halves := each.halves()) > 1:
            settled += halves
        else:
            raise InvalidRequest(f"{chunk.text[:20]!r} alone has {count} tokens, and a chunk at most {size}")
    return settled


def _chunk(draft: Draft) -> Chunk:
    headings = [heading.text for heading in draft.path()]
    return Chunk(draft.text(), headings, draft.pieces[0].page, 0, draft.context())


# ------------------------------------------------------------ with a line of a model


async def _contextual(
    stack: Stack, tokens: Tokens, parsed: Parsed, options: ContextualOptions
) -> list[Chunk]:
    size = options.max_chunk_size_tokens or _usual(tokens)
    room = min(contextual.LONGEST, size // 4)
    chunks = await _auto(tokens, parsed, size - room)
    lines = await contextual.lines(stack, [chunk.text for chunk in chunks], options)
    starts = await tokens.starts(lines)
    while True:
        found, texts = await asyncio.to_thread(_with_lines, chunks, lines, starts, room)
        counts = await tokens.counted(texts)
        over = max((count - size for count in counts), default=0)
        if over <= 0:
            return [replace(chunk, tokens=count) for chunk, count in zip(found, counts, strict=True)]
        room = max(0, room - over)  # all lines by as much as the longest is too long: a few tokens at most


def _with_lines(
    chunks: Sequence[Chunk], lines: Sequence[str], starts: Sequence[Sequence[int]], room: int
) -> tuple[list[Chunk], list[str]]:
    found = []
    for chunk, line, places in zip(chunks, lines, starts, strict=True):
        said = [chunk.context, contextual.shortened(line, places, room)]
        found.append(replace(chunk, context="\n".join(filter(None, said)) or None))
    return found, [chunk.embedded() for chunk in found]


# ------------------------------------------------------------ by length


async def _static(tokens: Tokens, parsed: Parsed, sizes: StaticSizes) -> list[Chunk]:
    """Windows over the whole text; where one cut inside a word reads as more tokens, all are made shorter."""
    text, starts = await _whole(tokens, parsed)
    size, overlap = sizes.max_chunk_size_tokens, sizes.chunk_overlap_tokens
    own = size - tokens.ends
    while own > overlap:
        spans, texts = await asyncio.to_thread(_windows, Measured(text, starts), own, overlap)
        counts = await tokens.counted(texts)
        over = max((count - size for count in counts), default=0)
        if over <= 0:
            return await asyncio.to_thread(_placed, parsed, text, spans, counts)
        own -= over
    raise InvalidRequest(
        f"no chunks of {size} tokens with an overlap of {overlap} can be made of this text: make them longer",
        param=SIZE.format("static"),
    )


def _windows(measured: Measured, size: int, overlap: int) -> tuple[list[Span], list[str]]:
    spans = list(windows(measured, size, overlap))
    return spans, [measured.text[begin:end] for begin, end in spans]


async def _whole(tokens: Tokens, parsed: Parsed) -> tuple[str, Sequence[int]]:
    """The text of a document, and where its tokens begin."""
    text = await asyncio.to_thread(BREAK.join, [block.text for block in parsed.blocks])
    starts = array("Q")
    place = 0

    def note(part: Sequence[Piece], rows: Sequence[Sequence[int]]) -> None:
        nonlocal place
        for piece, row in zip(part, rows, strict=True):
            begin = text.index(piece.text, place)
            starts.extend(begin + start for start in row)
            place = begin + len(piece.text)

    # measured in parts that end where words do, which changes no token
    for part in await asyncio.to_thread(_parts, parsed):
        await asyncio.to_thread(note, part, await tokens.starts([piece.text for piece in part]))
    return text, starts


def _placed(parsed: Parsed, text: str, spans: Sequence[Span], counts: Sequence[int]) -> list[Chunk]:
    """Windows as chunks, each with the page and the headings of the block in which it begins."""
    begins = list(accumulate((len(block.text) + len(BREAK) for block in parsed.blocks), initial=0))
    paths: list[list[tuple[int, str]]] = []
    path: list[tuple[int, str]] = []
    for block in parsed.blocks:
        if block.kind == "heading":
            path = [*(each for each in path if each[0] < block.level), (block.level, block.text)]
        paths.append(path)
    found = []
    for (begin, end), count in zip(spans, counts, strict=True):
        at = min(bisect_right(begins, begin), len(paths)) - 1
        headings = [heading for _, heading in paths[at]]
        found.append(Chunk(text[begin:end], headings, parsed.blocks[at].page, count, None))
    return found
