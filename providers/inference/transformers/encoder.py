"""A model that embeds or reranks: every text becomes one row of numbers."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from tokenizers import Encoding
from transformers import PreTrainedModel

from llama_stack_lite.api.inference import Embeddings, Ranking
from llama_stack_lite.api.models import Kind, ModelCard
from llama_stack_lite.errors import ConfigError, InvalidRequest, TextTooLong, Unavailable
from llama_stack_lite.local.places import from_offsets

from .loading import Checkpoint, placed

T = TypeVar("T")
Pooling = Literal["mean", "cls", "last"]

STEP = 2048  # tokens, padding included, that texts fill together
TEXTS = 64  # texts of one step, at most
# how sentence-transformers names the poolings
POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
MODULES = ("Transformer", "Pooling", "Normalize")


class Encoder:
    """One model that embeds, or one that reranks.

    One thread computes, a step at a time: a short query waits for one step of a long request and not for
    all of it, and a request that is given up stops with its step. Raises `ConfigError` where the files or
    the device will not do.
    """

    broken: str | None = None

    def __init__(self, checkpoint: Checkpoint, *, device: str, dtype: str) -> None:
        self.card = described(checkpoint)
        self.limit = self.card.context_length
        self.pooling = self.card.pooling
        self.tokenizer = checkpoint.tokenizer.backend_tokenizer
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.model: PreTrainedModel = checkpoint.model(device=device, dtype=dtype)
        self.memory: int = self.model.get_memory_footprint()
        self.detail = f"texts of up to {self.limit} tokens, on {placed(self.model)}"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="transformers")

    async def embed(
        self, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        """Unit vectors; raises `ContextOverflow` for a text that is too long, and cuts none."""
        self._check("embedding")
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < len(inputs):
            raise InvalidRequest(
                f"`{self.card.id}` takes text, not token ids, which another tokenizer made "
                "(in LangChain: check_embedding_ctx_length=False)",
                param="input",
            )
        if dimensions not in (None, self.card.embedding_dimension):
            raise InvalidRequest(
                f"`{self.card.id}` has {self.card.embedding_dimension} dimensions", param="dimensions"
            )
        rows = await self._work(self._texts, texts)
        return Embeddings(vectors=await self._all(rows, self._vectors), prompt_tokens=sum(map(len, rows)))

    async def token_starts(self, texts: list[str]) -> list[list[int]]:
        """Where in each text its tokens begin, in characters, special tokens included."""
        self._check("embedding")
        return await asyncio.to_thread(self._starts, texts)

    def _starts(self, texts: list[str]) -> list[list[int]]:
        rows = self.tokenizer.encode_batch(texts)
        return [from_offsets(row.offsets, len(text)) for row, text in zip(rows, texts, strict=True)]

    async def rerank(self, query: str, documents: list[str]) -> Ranking:
        """A score for each document; raises `ContextOverflow` where one does not fit beside the query."""
        self._check("rerank")
        rows = await self._work(lambda given: self._pairs(query, given), documents)
        return Ranking(scores=await self._all(rows, self._scores), prompt_tokens=sum(map(len, rows)))

    def _check(self, kind: Kind) -> None:
        if self.card.kind != kind:
            raise InvalidRequest(f"`{self.card.id}` is no {kind} model", param="model")

    async def _all(self, rows: list[Encoding], call: Callable[[list[Encoding]], list[T]]) -> list[T]:
        found: dict[int, T] = {}
        for step in _steps(rows):
            found |= zip(step, await self._work(call, [rows[index] for index in step]), strict=True)
        return [found[index] for index in range(len(rows))]

    async def _work(self, call: Callable[[Any], T], given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, call, given)

    def _texts(self, texts: list[str]) -> list[Encoding]:
        rows: list[Encoding] = self.tokenizer.encode_batch(texts)
        for index, row in enumerate(rows):
            self._fits(row, f"text {index}", f"input[{index}]")
        return rows

    def _pairs(self, query: str, documents: list[str]) -> list[Encoding]:
        self._fits(self.tokenizer.encode(query, ""), "the query", "query")
        pairs = [(query, document) for document in documents]
        rows: list[Encoding] = self.tokenizer.encode_batch(pairs)
        for index, row in enumerate(rows):
            self._fits(row, f"document {index}, with the query,", f"documents[{index}]")
        return rows

    def _fits(self, row: Encoding, what: str, param: str) -> None:
        if not row.ids:
            raise InvalidRequest(f"{what} has no tokens", param=param)
        if self.limit and len(row) > self.limit:
            raise TextTooLong(what, limit=self.limit, tokens=len(row), param=param)

    def _vectors(self, rows: list[Encoding]) -> list[list[float]]:
        """One unit vector for each text, in one pass of the model."""
        batch = self._batch(rows)
        pooled = self._pooled(self._run(batch).last_hidden_state.float(), batch.mask)
        found: list[list[float]] = torch.nn.functional.normalize(pooled, dim=1).tolist()
        return _finite(found, self.card.id)

    def _pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """From (texts, tokens, dimension) to (texts, dimension)."""
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            return hidden[torch.arange(len(hidden), device=mask.device), mask.sum(1) - 1]
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    def _scores(self, rows: list[Encoding]) -> list[float]:
        """One score from 0 to 1 for each pair, in one pass of the model."""
        logits = self._run(self._batch(rows)).logits[:, 0]
        scores: list[float] = torch.sigmoid(logits.float()).tolist()
        return [score for [score] in _finite([[score] for score in scores], self.card.id)]

    def _batch(self, rows: list[Encoding]) -> "Batch":
        width = max(map(len, rows))

        def padded(values: list[list[int]]) -> torch.Tensor:
            filled = [row + [0] * (width - len(row)) for row in values]
            return torch.tensor(filled, device=self.model.device)

        return Batch(
            padded([row.ids for row in rows]),
            padded([[1] * len(row) for row in rows]),
            padded([row.type_ids for row in rows]),
        )

    def _run(self, batch: "Batch") -> Any:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        if batch.types.any():
            inputs["token_type_ids"] = batch.types
        with torch.inference_mode():
            return self.model(**inputs)

    def close(self) -> None:
        """Wait for the step that is being computed."""
        self._worker.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, where they are no padding, and of which text of a pair; each of shape (texts, tokens)."""

    ids: torch.Tensor
    mask: torch.Tensor
    types: torch.Tensor


def _steps(rows: list[Encoding]) -> Iterator[list[int]]:
    """The numbers of texts that go together: of about one length, so that little is computed for padding."""
    step: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        if step and (len(step) == TEXTS or (len(step) + 1) * len(rows[index]) > STEP):
            yield step
            step = []
        step.append(index)
    if step:
        yield step


def _finite(rows: list[list[float]], model: str) -> list[list[float]]:
    if not torch.isfinite(torch.tensor(rows)).all():
        raise Unavailable(f"`{model}` made numbers that are not finite")
    return rows


def described(checkpoint: Checkpoint) -> ModelCard:
    """The card with the facts that the files add; raises `ConfigError` where they cannot be kept."""
    card, config = checkpoint.card, checkpoint.config
    text = config.get_text_config()
    limits = [card.context_length, text.max_position_embeddings, checkpoint.tokenizer.model_max_length]
    facts: dict[str, Any] = {
        "kind": checkpoint.kind,
        "context_length": min(limit for limit in limits if limit),
        "family": card.family or config.model_type,
    }
    if checkpoint.kind == "rerank":
        if config.num_labels != 1:
            raise ConfigError(f"`{card.id}` has {config.num_labels} labels, and a reranker has one score")
        return card.model_copy(update=facts)
    dimension = text.hidden_size
    if card.embedding_dimension not in (None, dimension):
        raise ConfigError(
            f"the card of `{card.id}` says {card.embedding_dimension} dimensions; it has {dimension}"
        )
    facts |= {"embedding_dimension": dimension, "pooling": card.pooling or _pooling(checkpoint)}
    return card.model_copy(update=facts)


def _pooling(checkpoint: Checkpoint) -> Pooling:
    """As a folder of sentence-transformers says it, else the mean."""
    pooling: Pooling = "mean"
    for module in checkpoint.read("modules.json"):
        kind = module["type"].rpartition(".")[2]
        if kind not in MODULES:
            raise ConfigError(f"{checkpoint.path} has a {kind} layer, which this provider does not compute")
        if kind == "Pooling":
            settings = checkpoint.read(f"{module['path']}/config.json")
            modes = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on]
            if len(modes) != 1 or modes[0] not in POOLING:
                raise ConfigError(
                    f"{checkpoint.path} is pooled by {', '.join(modes)}; say `pooling` in its card"
                )
            pooling = POOLING[modes[0]]
    return pooling
