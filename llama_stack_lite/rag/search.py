"""What a query finds in vector stores: by vectors, by words, or by both."""

import asyncio
import json
import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import snowballstemmer
from sqlalchemy import ColumnElement, Connection, Row, and_, bindparam, func, select

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

DEPTH = 20  # hits by vectors, and by words, that are fused at least
RRF = 5  # from which rank on the next is worth little less; benchmarks/rag.py
CANDIDATES = 20  # hits that a model ranks again
LONGEST = 64  # different words of a query
LONGEST_WORD = 128  # characters
MOST_ROWS = 450  # chunks of a large store that are looked at for their words, about
SMALL = 20_000  # chunks of a store of which twice as many are, as it takes less to find them
CHOSEN = 40  # of those that are looked at, that are scored
RAREST = 6  # words of a query that choose them
TOGETHER = 2  # how much more often words stand together than they would by chance
TOUCHED = 60  # seconds for which a store counts as in use after a search
AGE = 10  # seconds after which all chunks are counted again
COMMON = 500  # chunks with a word from which on their number is remembered

STORE = STORES.where(vector_stores.c.id == bindparam("id"))  # built once: that takes longer than to run it

Lists = dict[SearchMode, dict[int, float]]  # scores of keys, from 0 to 1, best first
Among = list[int] | None  # the only keys that are looked at
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
    if asked.rewrite_query:
        queries = [await rewritten(stack, query) for query in queries]
    named = asked.ranking_options.ranker
    named = (stack.config.defaults.rerank_model or "none") if named == "auto" else named
    model = ranker(stack, named) if queries and named != "none" else None
    wanted = max(asked.max_num_results, asked.ranking_options.candidates or CANDIDATES if model else 0)
    texts: list[str | None] = [*queries] or [None]
    known = _known.setdefault(stack.store, Known())
    asks = [(id, text) for id in dict.fromkeys(stores) for text in texts]
    seekers = [Seeker(stack, known, id, asked, wanted, text, embedding) for id, text in asks]
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
    known: "Known"
    id: str
    asked: Search
    wanted: int
    query: str | None
    embedding: list[float] | None

    async def found(self) -> list[Found]:
        """The chunks that may be shown, in no order.

        What is near is looked up first, and then whether it may be shown: only where too little is left are
        all that may be shown picked out, and searched alone.
        """
        read, wanted = self.stack.store.read, self.wanted
        depth = max(DEPTH, 2 * wanted)
        limit = depth if self.asked.filters is None else 4 * depth
        # what takes longest begins at once where the store's model is known, which never is another
        vector, (store, lists) = await asyncio.gather(
            self._vector(self.known.models.get(self.id)),
            read(lambda connection: self._opened(connection, limit)),
        )
        self.known.models[self.id] = store.model
        if store.last_active_at < time.time() - TOUCHED:
            await self.stack.store.write(partial(touch, store_id=self.id))
        if self.query is None and self.embedding is None:
            return [Found(row, 1.0) for row in await read(self._listed)]
        vector = vector or await self._vector(store.model)
        lists |= await self._near(store, vector, limit, None)
        rows = await read(lambda connection: self._shown(connection, lists))
        if any(len(near) == limit and len(rows.keys() & near) < wanted for near in lists.values()):
            among = await read(self._all)
            lists = await read(lambda connection: self._said(connection, store, depth, among))
            lists |= await self._near(store, vector, depth, among)
            rows = await read(lambda connection: self._shown(connection, lists))
        shown = {mode: {key: ranked[key] for key in ranked if key in rows} for mode, ranked in lists.items()}
        return [Found(rows[key], score) for key, score in self._fused(shown).items()]

    def _opened(self, connection: Connection, limit: int) -> tuple[Row[Any], Lists]:
        """The store as it is now, and what has words of the query."""
        store = _store(connection, self.id)
        return store, self._said(connection, store, limit, None)

    def _said(self, connection: Connection, store: Row[Any], limit: int, among: Among) -> Lists:
        if self.query is None or self.asked.search_mode == "vector":
            return {}
        terms = list(dict.fromkeys(words(self.query)))[:LONGEST]
        return {"keyword": _by_words(connection, store, self.known, terms, limit, among)}

    async def _vector(self, model_id: str | None) -> list[float] | None:
        """What the index is asked for; None where it is not asked, or no model is known yet."""
        if self.query is not None and self.asked.search_mode == "keyword":
            return None
        if self.query is None or self.embedding is not None or model_id is None:
            return self.embedding
        model = self.stack.model(model_id, "embedding")
        text = f"{model.card.query_prefix or ''}{self.query}"
        return (await model.provider.embed(model.name, [text])).vectors[0]

    async def _near(self, store: Row[Any], vector: list[float] | None, limit: int, among: Among) -> Lists:
        if vector is None:
            return {}
        length = math.hypot(*vector)
        if len(vector) != store.dimension or not math.isfinite(length) or not length:
            param = "query" if self.embedding is None else "embedding"
            raise InvalidRequest(
                f"{param}: the vectors of this store have {store.dimension} dimensions, and are not 0",
                param=param,
            )
        unit = [value / length for value in vector]
        index = Index(store.id, store.dimension, store.version)
        near = await self.stack.vector_io[store.provider].nearest(index, unit, limit=limit, among=among)
        return {"vector": {key: min(1.0, max(0.0, score)) for key, score in near}}

    def _fused(self, lists: Lists) -> dict[int, float]:
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
        return and_(documents.c.store == self.id, documents.c.status == "completed", *filters)

    def _shown(self, connection: Connection, lists: Lists) -> dict[int, Row[Any]]:
        given = {"keys": [*{key for ranked in lists.values() for key in ranked}], "store": self.id}
        query = SHOWN.where(condition(self.asked.filters)) if self.asked.filters else SHOWN
        return {row.key: row for row in connection.execute(query, given)}

    def _all(self, connection: Connection) -> list[int]:
        joined = chunks.join(documents, chunks.c.document == documents.c.key)
        return list(connection.scalars(select(chunks.c.key).select_from(joined).where(self._may())))

    def _listed(self, connection: Connection) -> list[Row[Any]]:
        query = CHUNK.where(self._may()).order_by(chunks.c.key).limit(self.asked.max_num_results)
        return list(connection.execute(query))


def _store(connection: Connection, id: str) -> Row[Any]:
    """A store as it is now."""
    row = connection.execute(STORE, {"id": id}).one_or_none() if well_formed(id) else None
    if row is None:
        raise NotFound("vector store", id, param="vector_store_id")
    if row.expired:
        raise InvalidRequest(f"vector store `{id}` has expired", param="vector_store_id", code="expired")
    return row


# ------------------------------------------------------------ by words


@dataclass(slots=True)
class Known:
    """What is known of a database: its stores' models, and how often there are words, for a while."""

    models: dict[str, str] = field(default_factory=dict)  # of stores
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)  # of stores: at which version, chunks
    whole: tuple[float, int] = (-math.inf, 0)  # when all chunks were counted, and how many there were
    words: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # when there were so many


_known: WeakKeyDictionary[Store, Known] = WeakKeyDictionary()


def _by_words(
    connection: Connection, store: Row[Any], known: Known, terms: list[str], limit: int, among: Among
) -> dict[int, float]:
    """The chunks with the most, and the rarest, of the words, by BM25; 1 has all of them."""
    if not terms or among == []:
        return {}
    said = STATEMENTS[connection.dialect.name]
    mark = token(store.id)
    size, whole = _sizes(connection, store, known)
    counts = _counts(connection, said, mark, terms, known, size)
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
    return _bm25(_often(connection, said, [*keys], list(counts)), weights, limit) if keys else {}


def _sizes(connection: Connection, store: Row[Any], known: Known) -> tuple[int, int]:
    """How many chunks a store has, and about how many there are in all."""
    version, size = known.sizes.get(store.id, (None, 0))
    if version != store.version:
        query = select(func.sum(documents.c.chunks)).where(documents.c.store == store.id)
        size = int(connection.scalar(query) or 0)
        known.sizes[store.id] = (store.version, size)
    if known.whole[0] < time.monotonic() - AGE:
        known.whole = time.monotonic(), connection.scalar(select(func.max(chunks.c.key))) or 1
    return size, max(size, known.whole[1])


def _counts(
    connection: Connection, said: Statements, token: str, terms: list[str], known: Known, size: int
) -> dict[str, int]:
    """How many chunks have each word; those that none has are left out.

    What takes long to count, as many have it, is not counted again until the store is another.
    """
    place = "" if said.whole else token
    counts = {
        term: count
        for term in terms
        for count, then in [known.words.get((place, term), (0, 0))]
        if count and abs(size - then) * 10 <= size
    }
    if new := [term for term in terms if term not in counts]:
        for term, count in connection.execute(said.counts, {"terms": new, "store": token}):
            counts[term] = count
            if count >= COMMON:
                known.words[place, term] = (count, size)
    return {term: count for term, count in counts.items() if count}


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
    wanted, given = frozenset(terms), {"keys": json.dumps(keys), "terms": terms}
    for key, length, said_words, count in connection.execute(said.often, given):
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
