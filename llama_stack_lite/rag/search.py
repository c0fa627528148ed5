"""What a query finds in vector stores: by vectors, by words, or by both."""

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import snowballstemmer
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, select, text, update

from llama_stack_lite import enforcement
from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.api.vector_stores import (
    FileContent,
    HybridWeights,
    Search,
    SearchHit,
    SearchMode,
    SearchPage,
)
from llama_stack_lite.errors import InvalidRequest, NotFound
from llama_stack_lite.safety.texts import strings
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.tables import chunks, documents, vector_stores

from .filters import condition
from .found import Found
from .reranking import ranker, reranked
from .rewriting import rewritten
from .window import around

DAY = 86_400  # seconds
DEPTH = 50  # hits by vectors, and by words, that are fused at least
RRF = 60  # how much less the next rank is worth (Cormack et al. 2009, reciprocal rank fusion)
CANDIDATES = 20  # hits that a model ranks again
LONGEST = 64  # different words of a query
MOST_ROWS = 4000  # chunks that are looked at for their words

CHUNK = select(
    *(chunks.c[name] for name in ("key", "document", "position", "text", "headings", "page")),
    *(documents.c[name] for name in ("id", "raw", "filename", "attributes")),
).join(documents, chunks.c.document == documents.c.key)

WORD = re.compile(r"[^\W_]+")
# where a name that programmers write falls apart: `parseHTML5Doc` into parse, HTML5, Doc
HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")
# writing without spaces between words: found by pairs of characters
UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def words(text: str) -> list[str]:
    """The words of a text in the one form in which keyword searches compare them, in their order.

    Small letters, English endings cut off, names such as `readFile` and `read_file` in parts too.
    """
    found: list[str] = []
    for match in WORD.finditer(text):
        word = match[0]
        found += _forms(word) if word.isascii() else _foreign(word)
    return found


@lru_cache(65_536)
def _forms(word: str) -> list[str]:
    parts = HUMP.findall(word) if not (word.islower() or word.isupper()) else []
    whole = _stem(word.lower())
    return [whole, *(_stem(part.lower()) for part in parts)] if len(parts) > 1 else [whole]


def _foreign(word: str) -> list[str]:
    found: list[str] = []
    last = 0
    for match in UNSPACED.finditer(word):
        found += [each.casefold() for each in [word[last : match.start()]] if each]
        run, last = match[0], match.end()
        found += [run[place : place + 2] for place in range(max(1, len(run) - 1))]
    return [*found, *([word[last:].casefold()] if word[last:] else [])]


_english = snowballstemmer.stemmer("english")


def _stem(word: str) -> str:
    stem: str = _english.stemWord(word)
    return stem


# ------------------------------------------------------------ a search


async def search(
    stack: Stack,
    stores: Sequence[str],
    queries: Sequence[str],
    asked: Search,
    *,
    embedding: list[float] | None = None,
) -> SearchPage:
    """What queries find in vector stores, best first, as far as the shields of `retrieval` let it pass.

    Without `queries` an `embedding` finds by vectors, and neither of them lists what `filters` finds.
    Raises `NotFound` for a store, `InvalidRequest` where it has expired or its model is gone.
    """
    rows = await stack.store.read(lambda connection: _stores(connection, stores))
    await _touch(stack, rows)
    if asked.rewrite_query:
        queries = [await rewritten(stack, query) for query in queries]
    model = ranker(stack, asked.ranking_options) if queries else None
    depth = max(DEPTH, 2 * asked.max_num_results)
    texts: list[str | None] = [*queries] or [None]
    seekers = [Seeker(stack, row, asked, depth, query, embedding) for row in rows for query in texts]
    found: dict[int, Found] = {}
    for part in await asyncio.gather(*(seeker.found() for seeker in seekers)):
        for each in part:
            if each.row.key not in found or found[each.row.key].score < each.score:
                found[each.row.key] = each
    best = sorted(found.values(), key=lambda each: (-each.score, each.row.key))
    if model:
        wanted = asked.ranking_options.candidates or max(CANDIDATES, asked.max_num_results)
        best = await reranked(stack, model, queries[0], best[:wanted])
    best = [each for each in best if each.score >= asked.ranking_options.score_threshold]
    hits = await _told(stack, best[: asked.max_num_results], asked.window)
    return SearchPage(search_query=list(queries), data=await _judged(stack, hits, asked.guardrails))


@dataclass(frozen=True, slots=True)
class Seeker:
    """One query of one store: lists of keys by vectors and by words, made one list of chunks."""

    stack: Stack
    store: Row[Any]
    asked: Search
    depth: int
    query: str | None
    embedding: list[float] | None

    async def found(self) -> list[Found]:
        """The chunks that may be shown, in no order.

        What is near is looked up first, and then whether it may be shown: only where too little is left are
        all that may be shown picked out, and searched alone.
        """
        read = self.stack.store.read
        if self.query is None and self.embedding is None:
            listed = await read(lambda connection: self._listed(connection))
            return [Found(row, 1.0) for row in listed]
        limit = self.depth * (1 if self.asked.filters is None else 4)
        lists = await self._lists(limit, None)
        rows = await read(lambda connection: self._shown(connection, lists))
        if any(len(ranked) == limit and len(rows.keys() & ranked) < self.depth for ranked in lists.values()):
            among = await read(lambda connection: self._all(connection))
            lists = await self._lists(self.depth, among)
            rows = await read(lambda connection: self._shown(connection, lists))
        shown = {mode: {key: ranked[key] for key in ranked if key in rows} for mode, ranked in lists.items()}
        return [Found(rows[key], score) for key, score in self._fused(shown).items()]

    async def _lists(self, limit: int, among: list[int] | None) -> dict[SearchMode, dict[int, float]]:
        """For each way of searching the scores of keys, from 0 to 1, best first."""
        mode = self.asked.search_mode
        ways: dict[SearchMode, Awaitable[dict[int, float]]] = {}
        if mode != "keyword" or self.query is None:
            ways["vector"] = self._near(limit, among)
        if mode != "vector" and self.query is not None:
            terms = list(dict.fromkeys(words(self.query)))[:LONGEST]
            ways["keyword"] = self.stack.store.read(
                lambda connection: _by_words(connection, self.store.id, terms, limit, among)
            )
        return dict(zip(ways, await asyncio.gather(*ways.values()), strict=True))

    async def _near(self, limit: int, among: list[int] | None) -> dict[int, float]:
        index = Index(self.store.id, self.store.dimension, self.store.version)
        provider = self.stack.vector_io[self.store.provider]
        near = await provider.nearest(index, await self._vector(), limit=limit, among=among)
        return {key: min(1.0, max(0.0, score)) for key, score in near}

    async def _vector(self) -> list[float]:
        """What the index is asked for, of length 1."""
        vector, param = self.embedding, "embedding"
        if vector is None:
            model = self.stack.model(self.store.model, "embedding")
            text = f"{model.card.query_prefix or ''}{self.query}"
            vector, param = (await model.provider.embed(model.name, [text])).vectors[0], "query"
        length = math.hypot(*vector)
        if len(vector) != self.store.dimension or not math.isfinite(length) or not length:
            raise InvalidRequest(
                f"{param}: the vectors of this store have {self.store.dimension} dimensions, and are not 0",
                param=param,
            )
        return [value / length for value in vector]

    def _fused(self, lists: dict[SearchMode, dict[int, float]]) -> dict[int, float]:
        """One score for each key; that of the first in every list is 1 where ranks are fused."""
        if len(lists) == 1:
            return next(iter(lists.values()))
        options = self.asked.ranking_options
        weights = options.hybrid_search or HybridWeights(embedding_weight=1, text_weight=1)
        shares = {"vector": weights.embedding_weight, "keyword": weights.text_weight}
        fused: dict[int, float] = {}
        for mode, ranked in lists.items():
            share = shares[mode] / sum(shares.values())
            for rank, (key, score) in enumerate(ranked.items()):
                part = score if options.fusion == "weighted" else (RRF + 1) / (RRF + 1 + rank)
                fused[key] = fused.get(key, 0.0) + share * part
        return {key: min(1.0, score) for key, score in fused.items()}

    def _may(self) -> ColumnElement[bool]:
        """What a document must be for its chunks to be found."""
        filters = [condition(self.asked.filters)] if self.asked.filters else []
        return and_(documents.c.store == self.store.id, documents.c.status == "completed", *filters)

    def _shown(
        self, connection: Connection, lists: dict[SearchMode, dict[int, float]]
    ) -> dict[int, Row[Any]]:
        keys = {key for ranked in lists.values() for key in ranked}
        return {row.key: row for row in connection.execute(CHUNK.where(chunks.c.key.in_(keys), self._may()))}

    def _all(self, connection: Connection) -> list[int]:
        joined = chunks.join(documents, chunks.c.document == documents.c.key)
        return list(connection.scalars(select(chunks.c.key).select_from(joined).where(self._may())))

    def _listed(self, connection: Connection) -> list[Row[Any]]:
        query = CHUNK.where(self._may()).order_by(chunks.c.key).limit(self.asked.max_num_results)
        return list(connection.execute(query))


def _stores(connection: Connection, ids: Sequence[str]) -> list[Row[Any]]:
    """The stores, in their order, as they are now."""
    found = {
        row.id: row for row in connection.execute(select(vector_stores).where(vector_stores.c.id.in_(ids)))
    }
    for id in ids:
        if id not in found:
            raise NotFound("vector store", id, param="vector_store_id")
        days, active = found[id].expires_days, found[id].last_active_at
        if days and active + days * DAY < time.time():
            raise InvalidRequest(f"vector store `{id}` has expired", param="vector_store_id")
    return [found[id] for id in dict.fromkeys(ids)]


async def _touch(stack: Stack, rows: list[Row[Any]]) -> None:
    """Say that the stores are in use, as far as nobody did in the last minute."""
    now = time.time()
    idle = [row.id for row in rows if row.last_active_at < now - 60]
    if idle:
        change = update(vector_stores).where(vector_stores.c.id.in_(idle)).values(last_active_at=now)
        await stack.store.write(lambda connection: connection.execute(change) and None)


async def _told(stack: Stack, best: list[Found], window: int) -> list[SearchHit]:
    texts = await around(stack.store, best, window) if window and best else {}
    return [_hit(each, texts.get(each.row.key, [each.row.text])) for each in best]


def _hit(each: Found, texts: list[str]) -> SearchHit:
    row = each.row
    return SearchHit(
        file_id=row.id,
        filename=row.filename,
        score=each.score,
        attributes=json.loads(row.attributes),
        content=[FileContent(text=text) for text in texts],
        chunk_id=row.id if row.raw else f"{row.id}:{row.position}",
        position=row.position,
        headings=json.loads(row.headings),
        page=row.page,
    )


async def _judged(stack: Stack, hits: list[SearchHit], guardrails: list[str]) -> list[SearchHit]:
    """Those in which no shield found anything."""
    if not (guardrails or stack.judge.enforce.shields("retrieval")):
        return hits
    verdicts = await asyncio.gather(
        *(
            enforcement.judged(stack, "retrieval", "\n".join(strings(hit)), guardrails=guardrails)
            for hit in hits
        )
    )
    return [hit for hit, blocked in zip(hits, verdicts, strict=True) if not blocked]


# ------------------------------------------------------------ by words


def _by_words(
    connection: Connection, store: str, terms: list[str], limit: int, among: list[int] | None
) -> dict[int, float]:
    """The chunks with the most, and the rarest, of the words, by BM25; 1 has all of them.

    Words that many chunks have are left out, as long as rarer ones are there: they cost the most and tell
    the least.
    """
    if not terms or among == []:
        return {}
    lexeme = re.sub(r"[^0-9a-z]", "", store.lower())
    find = _by_fts5 if connection.dialect.name == "sqlite" else _by_tsvector
    return find(connection, lexeme, terms, limit, among)


def _weights(terms: list[str], counts: Mapping[str, int], total: int) -> tuple[dict[str, float], float]:
    """How much each word tells that is searched for (its idf), and what all of the query's tell."""
    idf = {
        term: max(1e-6, math.log((total - min(n, total) + 0.5) / (n + 0.5)))
        for term in terms
        for n in [counts.get(term, 0)]
    }
    known = sorted((term for term in terms if counts.get(term)), key=lambda term: counts[term])
    read = list(accumulate(counts[term] for term in known))
    kept = [term for term, rows in zip(known, read, strict=True) if rows <= MOST_ROWS or term == known[0]]
    return {term: idf[term] for term in kept}, sum(idf.values())


def _by_fts5(
    connection: Connection, lexeme: str, terms: list[str], limit: int, among: list[int] | None
) -> dict[int, float]:
    counts = {row.term: row.doc for row in connection.execute(FTS5_COUNTS, {"terms": terms})}
    total = connection.scalar(FTS5_TOTAL) or 0
    weights, most = _weights(terms, counts, total)
    if not weights:
        return {}
    wanted = " OR ".join(f'"{term}"' for term in weights)
    given = {"match": f'store : "{lexeme}" AND terms : ({wanted})', "limit": limit}
    if among is None:
        rows = connection.execute(FTS5, given)
    else:
        rows = connection.execute(FTS5_AMONG, given | {"among": json.dumps(among)})
    return {row.key: min(1.0, -row.score / most) for row in rows}


def _by_tsvector(
    connection: Connection, lexeme: str, terms: list[str], limit: int, among: list[int] | None
) -> dict[int, float]:
    counts = {row.term: row.doc for row in connection.execute(TS_COUNTS, {"store": lexeme, "terms": terms})}
    total, average = connection.execute(TS_TOTAL).one()
    weights, most = _weights(terms, counts, total)
    if not weights:
        return {}
    given = {
        "match": f"'{lexeme}' & ({' | '.join(_quoted(term) for term in weights)})",
        "terms": [_quoted(term) for term in weights],
        "weights": list(weights.values()),
        "average": float(average or 1),
        "limit": limit,
        "among": among,
    }
    return {row.key: min(1.0, row.score / most) for row in connection.execute(TSVECTOR, given)}


def _quoted(term: str) -> str:
    return f"'{term}'"  # words hold neither quotes nor backslashes


FTS5_COUNTS = text("SELECT term, doc FROM keyword_counts WHERE term IN :terms").bindparams(
    bindparam("terms", expanding=True)
)
FTS5_TOTAL = text("SELECT seq FROM sqlite_sequence WHERE name = 'chunks'")
BM25 = "SELECT rowid AS key, bm25(keywords, 0.0, 1.0) AS score FROM keywords WHERE keywords MATCH :match"
FTS5 = text(f"{BM25} ORDER BY score LIMIT :limit")
FTS5_AMONG = text(f"{BM25} AND rowid IN (SELECT value FROM json_each(:among)) ORDER BY score LIMIT :limit")
TS_COUNTS = text(
    "SELECT term, (SELECT count(*) FROM keywords WHERE terms @@ (quote_literal(:store) || ' & ' || "
    "quote_literal(term))::tsquery) AS doc FROM unnest(CAST(:terms AS text[])) AS term"
)
TS_TOTAL = text(
    "SELECT greatest((SELECT reltuples FROM pg_class WHERE oid = 'keywords'::regclass), "
    "(SELECT count(*) FROM (SELECT 1 FROM keywords LIMIT 10000) AS some))::bigint, "
    "(SELECT avg(length) FROM (SELECT length FROM keywords LIMIT 1000) AS some)"
)
# a word's `ts_rank` is its frequency, in a scale that grows ever slower; 0.6079 where it is there once
TSVECTOR = text(
    """
    SELECT key, sum(weight * 2.2 * often / (often + 1.2 * (0.25 + 0.75 * length / :average))) AS score
    FROM (
        SELECT key, length, weight, ts_rank('{1,1,1,1}', terms, term::tsquery) / 0.60793 AS often
        FROM keywords, unnest(CAST(:terms AS text[]), CAST(:weights AS float8[])) AS asked(term, weight)
        WHERE terms @@ CAST(:match AS tsquery)
            AND (CAST(:among AS bigint[]) IS NULL OR key = ANY(CAST(:among AS bigint[])))
    ) AS matches
    GROUP BY key ORDER BY score DESC, key LIMIT :limit
    """
)
