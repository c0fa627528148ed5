"""Vectors in memory: few are all looked at, and to many leads a graph (HNSW)."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import faiss
import numpy as np
from numpy.typing import NDArray

from llama_stack_lite.state.vectors import Matrix

LINKS = 32  # of a node in the graph, and twice as many in its lowest layer
BREADTH = 96  # nodes that a walk through the graph keeps in view at least
WIDE = 2048  # nodes beyond which looking at all of them takes no longer than a walk
PIECE = 128  # rows that are put into the graph at once, in about 20 ms
GATHERED = 8192  # rows that are copied together at once
Found = list[tuple[int, float]]
Keys = int | dict[int, None] | None  # one, several, or none


class Vectors:
    """The vectors of keys, and those nearest to another.

    Each vector is one node, however many keys have it: copies of one text would otherwise be the graph's
    only neighbours of each other, and nothing else could be reached from there. A node whose keys are all
    gone stays, as a step on the way; `wasted` tells how many do.

    A search may run beside others, a change beside nothing.
    """

    def __init__(self, dimension: int, *, exact: int) -> None:
        self.dimension = dimension
        self.exact = exact
        self.graph: faiss.IndexHNSWFlat | None = None
        self._flat = faiss.IndexFlatIP(dimension)
        self._rows: Matrix = np.empty((0, dimension), "<f4")
        self._node: dict[int, int] = {}  # of each key
        self._keys: list[Keys] = []  # of each node
        self._same: dict[bytes, int] = {}  # the node of a vector, by its digest
        self._gone = 0

    def __len__(self) -> int:
        return len(self._node)

    def __contains__(self, key: int) -> bool:
        return key in self._node

    def __iter__(self) -> Iterator[int]:
        return iter(self._node)

    @property
    def nodes(self) -> int:
        return len(self._keys)

    @property
    def wasted(self) -> int:
        """Nodes without a key."""
        return self._gone

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return self.nodes * (4 * self.dimension + 100 + (8 * LINKS + 20 if self.graph else 0)) + 150 * len(
            self
        )

    def rows(self, keys: Sequence[int]) -> Matrix:
        """The vectors of keys that are there."""
        found: Matrix = self._rows[[self._node[key] for key in keys]]
        return found

    # ------------------------------------------------------------ changes

    def add(self, keys: Sequence[int], rows: Matrix) -> None:
        """Take in a row for each key, in place of the one that it had."""
        new: list[int] = []
        for place, key in enumerate(keys):
            digest = hashlib.blake2b(rows[place].tobytes(), digest_size=16).digest()
            node = self._same.get(digest)
            if node is None:
                node = self._same[digest] = len(self._keys)
                self._keys.append(None)
                self._gone += 1
                new.append(place)
            self._name(key, node)
        if new:
            self._append(rows[new])

    def _name(self, key: int, node: int) -> None:
        before = self._node.get(key)
        if before == node:
            return
        if before is not None:
            self.remove([key])
        self._node[key] = node
        there = self._keys[node]
        if there is None:
            self._keys[node] = key
            self._gone -= 1
        elif isinstance(there, dict):
            there[key] = None
        else:
            self._keys[node] = {there: None, key: None}

    def remove(self, keys: Iterable[int]) -> None:
        """Forget keys; those that are not there too."""
        for key in keys:
            node = self._node.pop(key, None)
            if node is None:
                continue
            there = self._keys[node]
            if isinstance(there, dict):
                del there[key]
            if not isinstance(there, dict) or not there:
                self._keys[node] = None
                self._gone += 1

    def _append(self, rows: Matrix) -> None:
        if self.graph:
            _link(self.graph, rows)
        else:
            self._flat.add(rows)
        self._look()

    def _look(self) -> None:
        """See the rows where they are now, without a copy."""
        count = self._flat.ntotal
        seen = faiss.rev_swig_ptr(self._flat.get_xb(), count * self.dimension)
        self._rows = seen.reshape(count, self.dimension)

    # ------------------------------------------------------------ the graph

    def linked(self) -> faiss.IndexHNSWFlat | None:
        """A graph of all nodes, for `adopt`, where they have become too many to look at all."""
        if self.graph or self.nodes <= self.exact:
            return None
        graph = faiss.IndexHNSWFlat(self.dimension, LINKS, faiss.METRIC_INNER_PRODUCT)
        for start in range(0, self.nodes, PIECE):
            _link(graph, self._rows[start : start + PIECE])
        return graph

    def adopt(self, graph: faiss.IndexHNSWFlat) -> None:
        """Take a graph of all nodes, with their vectors in it."""
        self.graph, self._flat = graph, faiss.downcast_index(graph.storage)
        self._look()

    def attach(self, graph: faiss.IndexHNSWFlat) -> None:
        """Take a graph of the first nodes, without vectors, and put the others into it."""
        rest = self._rows[graph.ntotal :].copy()
        self._flat.remove_ids(faiss.IDSelectorRange(graph.ntotal, self.nodes))
        graph.storage, graph.own_fields = self._flat, False
        self.graph = graph
        for start in range(0, len(rest), PIECE):
            _link(graph, rest[start : start + PIECE])
        self._look()

    # ------------------------------------------------------------ searches

    def quick(self, among: Sequence[int] | None) -> bool:
        """Whether a search takes less than a thread would."""
        looked_at = len(among) if among is not None else 0 if self.graph else self.nodes
        return looked_at * self.dimension < 2_000_000

    def nearest(self, vector: Matrix, *, limit: int) -> Found:
        """The keys nearest to a vector, best first; more nodes are asked for where the first have no keys."""
        ask = max(limit, 0)
        while True:
            ask = min(ask, self.nodes)
            found = self._named(*self._top(vector, ask), limit)
            if len(found) >= limit or ask == self.nodes:
                return found
            ask *= 4

    def _top(self, vector: Matrix, count: int) -> tuple[NDArray[np.int64], Matrix]:
        """The nearest nodes, best first, and their cosines."""
        if self.graph is None or count > min(WIDE, self.nodes // 4):
            return _best(self._rows @ vector, count)
        walk = faiss.SearchParametersHNSW(efSearch=max(BREADTH, 2 * count))
        scores, nodes = self.graph.search(vector[None], count, params=walk)
        found = nodes[0] >= 0
        return nodes[0][found], scores[0][found]

    def _named(self, nodes: NDArray[np.int64], scores: Matrix, limit: int) -> Found:
        found: Found = []
        for node, score in zip(nodes.tolist(), np.clip(scores, -1, 1).tolist(), strict=True):
            found += [(key, score) for key in islice(_each(self._keys[node]), limit)]
            if len(found) >= limit:
                break
        return found[:limit]

    def among(self, vector: Matrix, keys: Sequence[int], *, limit: int) -> Found:
        """The keys nearest to a vector of those given, best first; all of them are looked at."""
        there = [key for key in dict.fromkeys(keys) if key in self._node]
        nodes = np.fromiter((self._node[key] for key in there), np.int64, len(there))
        pieces = [nodes[start : start + GATHERED] for start in range(0, len(nodes), GATHERED)]
        if not pieces:
            return []
        scores = np.concatenate([self._rows[piece] @ vector for piece in pieces])
        best, kept = _best(np.clip(scores, -1, 1), max(limit, 0))
        return [(there[place], score) for place, score in zip(best.tolist(), kept.tolist(), strict=True)]


def _each(keys: Keys) -> Iterable[int]:
    return keys if isinstance(keys, dict) else () if keys is None else (keys,)


def _link(graph: faiss.IndexHNSWFlat, rows: Matrix) -> None:
    faiss.omp_set_num_threads(1)  # of this thread; several wait for each other longer than they work
    graph.add(np.ascontiguousarray(rows))


def _best(scores: Matrix, count: int) -> tuple[NDArray[np.int64], Matrix]:
    """The places of the highest scores, best first, and these."""
    if 0 < count < len(scores):
        places = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
    else:
        places = np.arange(len(scores))
    places = places[np.argsort(-scores[places], kind="stable")][:count]
    return places, scores[places]
