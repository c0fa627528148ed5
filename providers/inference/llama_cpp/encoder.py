"""A GGUF that embeds or reranks: every text becomes one pooled row of numbers."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from llama_stack_lite.api.inference import Embeddings, Ranking
from llama_stack_lite.api.models import Kind, ModelCard
from llama_stack_lite.errors import ConfigError, InvalidRequest, StackError, TextTooLong, Unavailable

from .batch import Batch, Ids
from .loading import Weights
from .log import attention, last_words
from .threads import rest
from .vocab import Vocab

T = TypeVar("T")
Rows = NDArray[np.float64]

STEP = 256  # tokens that short texts fill together; more are no faster, and others wait longer
TEXTS = 64  # texts of one step, at most
RANK = lib.LLAMA_POOLING_TYPE_RANK
POOLING = {
    "mean": lib.LLAMA_POOLING_TYPE_MEAN,
    "cls": lib.LLAMA_POOLING_TYPE_CLS,
    "last": lib.LLAMA_POOLING_TYPE_LAST,
}
SAYS_YES = ("qwen3", "qwen3vl")  # rerankers that answer with P(yes) and P(no); all others with one logit


class Encoder:
    """One model that embeds, or one that reranks; which of them, its card or its file says.

    One thread computes, a step at a time: a short query waits for one step of a long request and not for
    all of it, and a request that is given up stops with its step. Raises `ConfigError` where the file or
    the memory will not do.
    """

    def __init__(self, card: ModelCard, path: Path, *, context: int, threads: int) -> None:
        self._pooler = Pooler(card, path, context=context, threads=threads)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self.card = self._pooler.card
        self.memory, self.detail = self._pooler.memory, self._pooler.detail

    @property
    def broken(self) -> str | None:
        """Why llama.cpp gave up, if it did."""
        return self._pooler.broken

    async def embed(
        self, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        """Unit vectors of the first `dimensions`; raises `ContextOverflow` for a long text, and cuts none."""
        width = self._check("embedding").width
        if dimensions is not None and dimensions > width:
            raise InvalidRequest(f"`{self.card.id}` has {width} dimensions", param="dimensions")
        texts = await self._work(self._pooler.texts, inputs)
        vectors: list[list[float]] = []
        for step in _steps(texts):
            vectors += await self._work(self._pooler.vectors, step, dimensions)
        return Embeddings(vectors=vectors, prompt_tokens=sum(map(len, texts)))

    async def token_starts(self, texts: list[str]) -> list[list[int]]:
        """Where in each text its tokens begin, in characters, special tokens included."""
        vocab = self._check("embedding").vocab
        return [await self._work(vocab.starts, text) for text in texts]

    async def rerank(self, query: str, documents: list[str]) -> Ranking:
        """A score for each document; raises `ContextOverflow` where one does not fit beside the query."""
        self._check("rerank")
        texts = await self._work(self._pooler.pairs, query, documents)
        scores: list[float] = []
        for step in _steps(texts):
            scores += await self._work(self._pooler.scores, step)
        return Ranking(scores=scores, prompt_tokens=sum(map(len, texts)))

    def _check(self, kind: Kind) -> "Pooler":
        if self.card.kind != kind:
            raise InvalidRequest(f"`{self.card.id}` is no {kind} model", param="model")
        return self._pooler

    async def _work(self, call: Callable[..., T], *given: Any) -> T:
        def work() -> T:
            try:
                return call(*given)
            finally:
                rest()

        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def close(self) -> None:
        """Wait for the step that is being computed, and give the memory back."""
        self._worker.shutdown(cancel_futures=True)
        self._pooler.close()


class Pooler:
    """A loaded model and its context, for one thread at a time. `memory` is in bytes."""

    def __init__(self, card: ModelCard, path: Path, *, context: int, threads: int) -> None:
        self.broken: str | None = None
        self.weights = Weights(path)
        self._context: Any = None
        try:
            self.card = described(card, self.weights, context=context)
            self.limit = self.card.context_length or context
            self.vocab = Vocab(self.weights.model)
            self._open(threads)
            if self.card.kind == "rerank":
                self._pair = Pair(self.weights, self.vocab)
                self._check_head()
        except StackError:
            self.close()
            raise

    def _open(self, threads: int) -> None:
        model, pooling = self.weights.model, _pooling(self.card, self.weights)
        # a causal model, whose last token has seen all others, can read a text in pieces
        in_pieces = not self.weights.encodes and pooling in (RANK, POOLING["last"])
        self._step = STEP if in_pieces else max(STEP, self.limit)
        params = lib.llama_context_default_params()
        params.n_ctx = max(STEP, self.limit)
        params.n_batch = params.n_ubatch = self._step
        params.n_seq_max = TEXTS
        params.n_threads = params.n_threads_batch = threads
        params.embeddings = True
        params.pooling_type = pooling
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
        params.kv_unified = True  # the texts of a step share one cache
        params.no_perf = True
        self._context = lib.llama_init_from_model(model, params)
        if not self._context:
            raise ConfigError(
                f"no memory to read {self.limit} tokens with {self.weights.path}; lower `context` "
                f"({last_words()})"
            )
        self._cache = lib.llama_get_memory(self._context)
        if not self._cache:  # then a step is all that it can read
            self.limit = min(self.limit, self._step)
        self._run = lib.llama_encode if lib.llama_model_has_encoder(model) else lib.llama_decode
        self._batch = Batch(self._step)
        self.width: int = (
            lib.llama_model_n_cls_out(model) if pooling == RANK else lib.llama_model_n_embd_out(model)
        )
        cell = self.weights.cell() if self._cache else 0
        self.memory: int = lib.llama_model_size(model) + params.n_ctx * cell
        self.detail = f"texts of up to {self.limit} tokens, {attention()}, threads: {threads}"

    def _check_head(self) -> None:
        """Without a head, or with one of another kind, numbers come all the same, but they are no scores."""
        one, other = self._pair.tokens("probe", "probe"), self._pair.tokens("probe", "quite another text")
        if len(other) > self.limit:
            raise ConfigError(f"`context` is {self.limit}, and the shortest pair has {len(other)} tokens")
        rows = np.concatenate([self.rows(step) for step in _steps([one, one, other])])
        first, again, different = rows[:, 0].tolist()
        is_score = abs(first - again) <= 0.01 * max(1, abs(first)) and first != different
        if self.weights.architecture in SAYS_YES:
            is_score &= self.width > 1 and bool(np.allclose(rows.sum(axis=1), 1, atol=1e-3))
        else:
            is_score &= self.width == 1
        if not is_score:
            raise ConfigError(f"`{self.card.id}` cannot rerank: {self.weights.path} has no head that scores")

    def texts(self, inputs: Sequence[str | list[int]]) -> list[Ids]:
        """The token ids of each text, with the special tokens around it.

        Ids that come instead of text were made by another tokenizer, as a rule, and would mean nothing here.
        """
        return [self._text(given, index) for index, given in enumerate(inputs)]

    def _text(self, given: str | list[int], index: int) -> Ids:
        param = f"input[{index}]"
        if not isinstance(given, str):
            raise InvalidRequest(
                f"`{self.card.id}` takes text, not the token ids of another model's tokenizer "
                "(in LangChain: check_embedding_ctx_length=False)",
                param=param,
            )
        row = self.vocab.tokens_of(given, special=False, ends=True)
        if not row:
            raise InvalidRequest(f"text {index} has no tokens", param=param)
        if len(row) > self.limit:
            raise TextTooLong(f"text {index}", limit=self.limit, tokens=len(row), param=param)
        return np.array(row, np.int32)

    def pairs(self, query: str, documents: list[str]) -> list[Ids]:
        """The token ids of each document beside the query, as the model was trained to read them."""
        alone = len(self._pair.tokens(query, ""))
        if alone >= self.limit:
            raise TextTooLong("the query", limit=self.limit, tokens=alone, param="query")
        rows = [self._pair.tokens(query, document) for document in documents]
        for index, row in enumerate(rows):
            if len(row) > self.limit:
                what, param = f"document {index}, with the query,", f"documents[{index}]"
                raise TextTooLong(what, limit=self.limit, tokens=len(row), param=param)
        return rows

    def vectors(self, texts: list[Ids], dimensions: int | None = None) -> list[list[float]]:
        """One unit vector for each text."""
        rows = self.rows(texts)[:, :dimensions]
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        found: list[list[float]] = (rows / np.maximum(lengths, 1e-12)).tolist()
        return found

    def scores(self, texts: list[Ids]) -> list[float]:
        """One score from 0 to 1 for each pair."""
        first = self.rows(texts)[:, 0]
        # the sigmoid, in the form that cannot overflow
        scores = first if self.weights.architecture in SAYS_YES else (1 + np.tanh(first / 2)) / 2
        found: list[float] = scores.tolist()
        return found

    def rows(self, texts: list[Ids]) -> Rows:
        """What the model makes of each text, of shape (texts, width)."""
        if self._cache:
            lib.llama_memory_clear(self._cache, False)
        for start in range(0, max(map(len, texts)), self._step):
            self._batch.clear()
            for slot, text in enumerate(texts):
                self._batch.add(text[start : start + self._step], start=start, slot=slot, outputs="all")
            if status := self._run(self._context, self._batch.handle):
                self.broken = f"llama.cpp failed with status {status}: {last_words()}"
                raise Unavailable(f"`{self.card.id}` stopped: {self.broken}")
        pooled = [lib.llama_get_embeddings_seq(self._context, slot) for slot in range(len(texts))]
        found = np.array([np.ctypeslib.as_array(row, (self.width,)) for row in pooled], np.float64)
        if not np.isfinite(found).all():
            raise Unavailable(f"`{self.card.id}` made numbers that are not finite")
        return found

    def close(self) -> None:
        if self._context:
            lib.llama_free(self._context)
            self._context = None
        if self.weights.model:
            self.weights.close()
            self.weights.model = None


class Pair:
    """How a reranker reads a query and a document as one text.

    By the `rerank` template in its file, or as query and document with the special tokens that its
    vocabulary puts between and around two texts. Raises `ConfigError` where it has neither.
    """

    def __init__(self, weights: Weights, vocab: Vocab) -> None:
        self.vocab = vocab
        template = lib.llama_model_chat_template(weights.model, b"rerank")
        self.template: str | None = template.decode("utf-8", "replace") if template else None
        longest_first = sorted(vocab.specials, key=len, reverse=True)
        self._specials = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        handle = vocab.handle
        separator = lib.llama_vocab_sep(handle)
        end = lib.llama_vocab_eos(handle)
        self._between = [end if end >= 0 else separator] if lib.llama_vocab_get_add_eos(handle) else []
        self._between += [separator] if lib.llama_vocab_get_add_sep(handle) else []
        if self.template is None and not self._between:
            raise ConfigError(
                f"{weights.path} does not say how it reads two texts: it has no `rerank` template, and no "
                "token that stands between them"
            )

    def tokens(self, query: str, document: str) -> Ids:
        """The token ids of the pair; a control token that is written in one of the texts stays text."""
        if self.template is not None:
            return np.array(self.vocab.prompt(self._pieces(query, document)), np.int32)
        asked, answer = (self.vocab.tokens_of(text, special=False) for text in (query, document))
        begin = [self.vocab.bos] if self.vocab.adds_bos else []
        # BERT ends in the token that stands between, RoBERTa in the first of two
        return np.array([*begin, *asked, *self._between, *answer, *self._between[:1]], np.int32)

    def _pieces(self, query: str, document: str) -> Iterator[tuple[str, bool]]:
        texts = {"query": query, "document": document}
        for number, piece in enumerate(self._specials.split(self.template or "")):
            is_special = number % 2 == 1
            yield re.sub(r"\{(query|document)\}", lambda place: texts[place[1]], piece), is_special


def kind_of(card: ModelCard, weights: Weights) -> Kind:
    """What the card and the file make of a model: one that only encodes writes nothing."""
    pooling = _pooling_of_file(weights)
    if card.kind == "rerank" or (pooling == RANK and not card.pooling):
        return "rerank"
    embeds = card.kind == "embedding" or card.pooling or weights.encodes or pooling in POOLING.values()
    return "embedding" if embeds else "chat"


def described(card: ModelCard, weights: Weights, *, context: int) -> ModelCard:
    """The card of a model that embeds or reranks, with the facts that the file adds.

    `context` is what is configured, in tokens. Raises `ConfigError` where card and file contradict.
    """
    kind, architecture = kind_of(card, weights), weights.architecture
    facts: dict[str, Any] = {
        "kind": kind,
        "context_length": min(context, weights.trained_context),
        "family": card.family or architecture,
    }
    if kind == "embedding":
        sizes = [weights.meta(f"{architecture}.embedding_length{end}") for end in ("_out", "")]
        facts["embedding_dimension"] = next((int(size) for size in sizes if size), card.embedding_dimension)
        if card.embedding_dimension not in (None, facts["embedding_dimension"]):
            raise ConfigError(
                f"the card of `{card.id}` says {card.embedding_dimension} dimensions; "
                f"it has {facts['embedding_dimension']}"
            )
    return card.model_copy(update=facts)


def _pooling(card: ModelCard, weights: Weights) -> int:
    """llama.cpp's number for the pooling: the card's, the file's, or else what is usual for such a model."""
    if kind_of(card, weights) == "rerank":
        return int(RANK)
    if card.pooling:
        return int(POOLING[card.pooling])
    usual = POOLING["mean" if weights.encodes else "last"]
    return _pooling_of_file(weights) or int(usual)


def _pooling_of_file(weights: Weights) -> int | None:
    found = weights.meta(f"{weights.architecture}.pooling_type")
    return int(found) if found and int(found) > lib.LLAMA_POOLING_TYPE_NONE else None


def _steps(texts: list[Ids]) -> Iterator[list[Ids]]:
    """As many texts as fill a step together; a longer one has a step of its own."""
    step: list[Ids] = []
    for text in texts:
        if step and (len(step) == TEXTS or sum(map(len, step)) + len(text) > STEP):
            yield step
            step = []
        step.append(text)
    if step:
        yield step
