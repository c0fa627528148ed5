"""What a query finds in vector stores: by vectors, by words, or by both."""

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import snowballstemmer
from sqlalchemy import ColumnElement, Connection, Row, and_, func, select

from llama_stack_lite.api.ids import token, well_formed
from llama_stack_lite.api.vector_io import Index
from llama_stack_lite.api.vector_stores import HybridWeights, Search, SearchHit, SearchMode, SearchPage
from llama_stack_lite.errors import InvalidRequest, NotFound
from llama_stack_lite.stack import Stack
from llama_stack_lite.state.keywords import STATEMENTS, Statements
from llama_stack_lite.state.store import Store
from llama_stack_lite.state.tables import chunks, documents, vector_stores
from llama_stack_lite.state.vector_stores import STORES, touch

from .filters import condition
from .found import CHUNK, SHOWN, Found
from .reranking import ranker, reranked
from .rewriting import rewritten
from .showing import around, judged
from .unspaced import foreign

DEPTH = 30  # hits by vectors, and by words, that are fused at least
RRF = 5  # from which rank on the next is worth little less; benchmarks/rag.py
CANDIDATES = 20  # hits that a model ranks again
LONGEST = 64  # different words of a query
LONGEST_WORD = 128  # characters
MOST_ROWS = 600  # chunks of a large store that are looked at for their words, about
SMALL = 20_000  # chunks of a store of which twice as many are, as it takes less to find them
CHOSEN = 40  # of those that are looked at, that are scored
RAREST = 6  # words of a query that choose them
TOGETHER = 2  # how much more often words stand together than they would by chance
AGE = 10  # seconds after which all chunks are counted again
COMMON = 500  # chunks with a word from which on their number is remembered

Choice = list[tuple[str, list[str]]]  # words, each with those of which it needs one beside it

WORD = re.compile(r"[^\W_]+")
# where a name that programmers write falls apart: `parseHTML5Doc` into parse, HTML5, Doc
HUMP = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+\d*|[A-Z]+\d*|\d+")

_english, _stemming = snowballstemmer.stemmer("english"), Lock()  # which keeps its place in the word it cuts


def words(text: str) -> list[str]:
    """The words of a text in the one form in which keyword searches compare them, in their order.

    Small letters, English endings cut off, names such as `readFile` and `read_file` in parts too.
    """
    found: list[str] = []
    for match in WORD.finditer(text):
        word = match[0][:LONGEST_WORD]
        found += _forms(word) if word.isascii() else foreign(word)
    return found


@lru_cache(65_536)
def _forms(word: str) -> list[str]:
    parts = HUMP.findall(word) if not (word.islower() or word.isupper()) else []
    with _stemming:
        return [_english.stemWord(each.lower()) for each in (word, *(parts if len(parts) > 1 else ()))]


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
    named = asked.ranking_options.ranker
    named = (stack.config.defaults.rerank_model or "none") if named == "auto" else named
    model = ranker(stack, named) if queries and named != "none" else None
    wanted = max(asked.max_num_results, asked.ranking_options.candidates or CANDIDATES if model else 0)
    texts: list[str | None] = [*queries] or [None]
    seekers = [Seeker(stack, row, asked, wanted, query, embedding) for row in rows for query in texts]
    found: dict[int, Found] = {}
    for part in await asyncio.gather(*(seeker.found() for seeker in seekers)):
        for each in part:
            if each.row.key not in found or found[each.row.key].score < each.score:
                found[each.row.key] = each
    best = sorted(found.values(), key=lambda each: (-each.score, each.row.key))
    if model:
        best = await reranked(stack, model, queries[0], best[:wanted])
    best = [each for each in best if each.score >= asked.ranking_options.score_threshold]
    best = best[: asked.max_num_results]
    texts_of = await around(stack.store, best, asked.window) if asked.window else {}
    hits = [SearchHit.of(each.row, each.score, texts_of.get(each.row.key)) for each in best]
    if asked.guardrails or stack.judge.enforced:
        hits = await judged(stack, hits, asked.guardrails)
    return SearchPage(search_query=list(queries), data=hits)


@dataclass(frozen=True, slots=True)
class Seeker:
    """One query of one store: lists of keys by vectors and by words, made one list of chunks."""

    stack: Stack
    store: Row[Any]
    asked: Search
    wanted: int
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
        depth = max(DEPTH, 2 * self.wanted)
        limit = depth if self.asked.filters is None else 4 * depth
        lists = await self._lists(limit, None)
        rows = await read(lambda connection: self._shown(connection, lists))
        if any(len(near) == limit and len(rows.keys() & near) < self.wanted for near in lists.values()):
            among = await read(lambda connection: self._all(connection))
            lists = await self._lists(depth, among)
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
            counted = _counted.setdefault(self.stack.store, Counted())
            ways["keyword"] = self.stack.store.read(
                lambda connection: _by_words(connection, self.store, counted, terms, limit, among)
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
        """One score for each key, by reciprocal rank fusion unless the search asks for `weighted`.

        A rank by words counts as much as what they tell of the query, which is their score: of a question in
        other words than the documents' they find something too, and should not outdo what means the same.
        """
        if len(lists) == 1:
            return next(iter(lists.values()))
        options = self.asked.ranking_options
        weights = options.hybrid_search or HybridWeights(embedding_weight=1, text_weight=1)
        shares = {"vector": weights.embedding_weight, "keyword": weights.text_weight}
        fused: dict[int, float] = {}
        for mode, ranked in lists.items():
            share = shares[mode] / sum(shares.values())
            for rank, (key, score) in enumerate(ranked.items()):
                part = score
                if options.fusion == "rrf":
                    part = (score if mode == "keyword" else 1) * (RRF + 1) / (RRF + 1 + rank)
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
        query = SHOWN.where(condition(self.asked.filters)) if self.asked.filters else SHOWN
        return {row.key: row for row in connection.execute(query, {"keys": [*keys], "store": self.store.id})}

    def _all(self, connection: Connection) -> list[int]:
        joined = chunks.join(documents, chunks.c.document == documents.c.key)
        return list(connection.scalars(select(chunks.c.key).select_from(joined).where(self._may())))

    def _listed(self, connection: Connection) -> list[Row[Any]]:
        query = CHUNK.where(self._may()).order_by(chunks.c.key).limit(self.asked.max_num_results)
        return list(connection.execute(query))


def _stores(connection: Connection, ids: Sequence[str]) -> list[Row[Any]]:
    """The stores, in their order, as they are now."""
    wanted = [id for id in ids if well_formed(id)]
    found = {row.id: row for row in connection.execute(STORES.where(vector_stores.c.id.in_(wanted)))}
    for id in ids:
        if id not in found:
            raise NotFound("vector store", id, param="vector_store_id")
        if found[id].expired:
            raise InvalidRequest(f"vector store `{id}` has expired", param="vector_store_id", code="expired")
    return [found[id] for id in dict.fromkeys(ids)]


async def _touch(stack: Stack, rows: list[Row[Any]]) -> None:
    """Say that the stores are in use, as far as nobody did in the last minute."""
    for row in rows:
        if row.last_active_at < time.time() - 60:
            await stack.store.write(partial(touch, store_id=row.id))


# ------------------------------------------------------------ by words


@dataclass(slots=True)
class Counted:
    """What is known of a database's words for a while: they need not be counted for each search."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of stores: at which version, chunks
    whole: tuple[float, int] = (-math.inf, 0)  # when all chunks were counted, and how many there were
    words: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # when there were so many


_counted: WeakKeyDictionary[Store, Counted] = WeakKeyDictionary()


def _by_words(
    connection: Connection,
    store: Row[Any],
    counted: Counted,
    terms: list[str],
    limit: int,
    among: list[int] | None,
) -> dict[int, float]:
    """The chunks with the most, and the rarest, of the words, by BM25; 1 has all of them."""
    if not terms or among == []:
        return {}
    said = STATEMENTS[connection.dialect.name]
    mark = token(store.id)
    size, whole = _sizes(connection, store, counted)
    counts = _counts(connection, said, mark, terms, counted, size)
    if said.whole:
        counts = {term: math.ceil(count * size / whole) for term, count in counts.items()}
    if not counts:
        return {}
    weights = {
        term: max(1e-6, math.log((max(size, n) - n + 0.5) / (n + 0.5)))
        for term in terms
        for n in [counts.get(term, 0)]
    }
    quoted = {term: said.each.format(term) for term in counts}
    given = {
        "limit": max(limit, CHOSEN),
        "among": json.dumps(among),
        "terms": list(quoted.values()),
        "weights": [weights[term] for term in quoted],
    }
    rarest = sorted(counts, key=lambda term: (counts[term], term))[:RAREST]
    alone: Choice = [(term, []) for term in rarest[:2]]  # of words that never stand together
    keys: dict[int, None] = {}
    for chosen in (_selective(counts, rarest, size), alone):
        wanted = said.any.join(
            f"({quoted[term]}{said.all}({said.any.join(quoted[each] for each in others)}))"
            if others
            else quoted[term]
            for term, others in chosen
        )
        given["match"] = (said.alone if size * 2 > whole else said.match).format(store=mark, words=wanted)
        keys |= dict.fromkeys(connection.scalars(said.found if among is None else said.among, given))
        if len(keys) >= limit:
            break
    return _bm25(_often(connection, said, [*keys], list(counts)), weights, limit)


def _sizes(connection: Connection, store: Row[Any], counted: Counted) -> tuple[int, int]:
    """How many chunks a store has, and about how many there are in all."""
    version, size = counted.sizes.get(store.id, (None, 0))
    if version != store.version:
        query = select(func.sum(documents.c.chunks)).where(documents.c.store == store.id)
        size = int(connection.scalar(query) or 0)
        counted.sizes[store.id] = (store.version, size)
    if counted.whole[0] < time.monotonic() - AGE:
        counted.whole = time.monotonic(), connection.scalar(select(func.max(chunks.c.key))) or 1
    return size, max(size, counted.whole[1])


def _counts(
    connection: Connection, said: Statements, token: str, terms: list[str], counted: Counted, size: int
) -> dict[str, int]:
    """How many chunks have each word; those that none has are left out.

    What takes long to count, as many have it, is not counted again until the store is another.
    """
    place = "" if said.whole else token
    known = {
        term: count
        for term in terms
        for count, then in [counted.words.get((place, term), (0, 0))]
        if count and abs(size - then) * 10 <= size
    }
    if new := [term for term in terms if term not in known]:
        for term, count in connection.execute(said.counts, {"terms": new, "store": token}):
            known[term] = count
            if count >= COMMON:
                counted.words[place, term] = (count, size)
    return {term: count for term, count in known.items() if count}


def _selective(counts: Mapping[str, int], rarest: list[str], size: int) -> Choice:
    """Words that a chunk has to have, alone or with one of others: as many as let few enough chunks through.

    What is rare does alone; of words that are everywhere two are wanted together.
    """
    most = MOST_ROWS * (1 + SMALL / max(size, 1))
    chosen: Choice = []
    rows = 0.0
    for place, term in enumerate(rarest):
        if counts[term] <= min(most / 2, most - rows) or len(rarest) == 1:
            rows += counts[term]
            chosen.append((term, []))
            continue
        others = []
        for other in rarest[place + 1 :]:
            both = TOGETHER * counts[term] * counts[other] / max(size, 1)
            if rows + both <= most:
                rows += both
                others.append(other)
        if others:
            chosen.append((term, others))
    return chosen or [(rarest[0], rarest[1:2])]


def _often(
    connection: Connection, said: Statements, keys: list[int], terms: list[str]
) -> dict[int, tuple[int, dict[str, int]]]:
    """For each chunk how many words it has, and how often it has each that is searched for."""
    found: dict[int, tuple[int, dict[str, int]]] = {}
    wanted = frozenset(terms)
    if not keys:
        return found
    for key, length, said_words, count in connection.execute(said.often, {"keys": keys, "terms": terms}):
        if count is None:
            has = said_words.split()
            found[key] = (len(has), Counter(filter(wanted.__contains__, has)))
        else:
            found.setdefault(key, (length, {}))[1][said_words] = count
    return found


def _bm25(
    often: Mapping[int, tuple[int, Mapping[str, int]]], weights: Mapping[str, float], limit: int
) -> dict[int, float]:
    """Okapi BM25 with k1 = 1.2 and b = 0.75, as a part of what all of the words once would give."""
    average = sum(length for length, _ in often.values()) / max(1, len(often)) or 1
    scores = {
        key: sum(
            weights[term] * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / average))
            for term, count in has.items()
        )
        for key, (length, has) in often.items()
    }
    most = sum(weights.values())
    best = sorted(scores, key=lambda key: (-scores[key], key))[:limit]
    return {key: min(1.0, scores[key] / most) for key in best}
