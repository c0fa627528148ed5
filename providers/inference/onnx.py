"""Sentence embeddings in this process: ONNX models by onnxruntime, without torch."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import Field
from tokenizers import Tokenizer

from llama_stack_lite.api.inference import Embeddings
from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ConfigError, InvalidRequest, NotFound, TextTooLong
from llama_stack_lite.local.places import from_offsets
from llama_stack_lite.models import LocalModels, paths

A = TypeVar("A")
T = TypeVar("T")

STEP = 1024  # tokens of a batch, padding included: others wait no longer for one of long texts
NICE = 10  # of a thread that gives way: beside a chat on every core it still has a tenth of one
INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


def default_threads() -> int:
    """One core stays free for everything else."""
    return max(1, (os.cpu_count() or 2) - 1)


class Onnx:
    """Embeddings of local models: `model.onnx` beside its `tokenizer.json`.

    Two threads compute, a batch at a time: one for requests of a batch or less, and one for longer ones,
    which gives way to all else that this machine does: to those short queries, and to a chat. A request that
    is given up stops with its batch.
    """

    class Config(LocalModels):
        threads: int = Field(default_factory=default_threads, ge=1, description="CPU threads")
        batch_size: int = Field(8, ge=1, description="texts computed together")

    def __init__(self, config: Config) -> None:
        self.batch_size = config.batch_size
        self._encoders = {card.id: Encoder(card, threads=config.threads) for card in config.cards()}
        self._short = ThreadPoolExecutor(1, thread_name_prefix="onnx")
        self._long = ThreadPoolExecutor(1, thread_name_prefix="onnx-long", initializer=give_way)

    async def models(self) -> list[ModelCard]:
        return [encoder.card for encoder in self._encoders.values()]

    def _named(self, model: str) -> "Encoder":
        if model not in self._encoders:
            raise NotFound("model", model, self._encoders, param="model", code="model_not_found")
        return self._encoders[model]

    async def token_starts(self, model: str, texts: list[str]) -> list[list[int]]:
        # tokenizers are safe to share between threads, and queries do not wait for a long document
        return await asyncio.to_thread(self._named(model).starts, texts)

    async def embed(
        self, model: str, inputs: list[str] | list[list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        """Unit vectors; raises `ContextOverflow` for a text that is too long, and cuts none."""
        encoder = self._named(model)
        texts = [text for text in inputs if isinstance(text, str)]
        if len(texts) < len(inputs):
            raise InvalidRequest(
                f"`{model}` takes text, not token ids, which another tokenizer made "
                "(in LangChain: check_embedding_ctx_length=False)",
                param="input",
            )
        if dimensions not in (None, encoder.dimension):
            raise InvalidRequest(f"`{model}` has {encoder.dimension} dimensions", param="dimensions")
        if len(texts) == 1:  # a query: on idle cores each change of threads costs a part of a millisecond
            row, vector = await _work(self._short, encoder.encoded, texts[0])
            return Embeddings.model_construct(vectors=[vector], prompt_tokens=len(row))
        worker = self._short if len(texts) <= self.batch_size else self._long
        rows = await _work(worker, encoder.tokens, texts)
        found: dict[int, list[float]] = {}
        for batch in batches(rows, self.batch_size):
            vectors = await _work(worker, encoder.vectors, [rows[index] for index in batch])
            found |= zip(batch, vectors, strict=True)
        # made here, so that to validate a million floats would only hold up the event loop
        return Embeddings.model_construct(
            vectors=[found[index] for index in range(len(rows))], prompt_tokens=sum(map(len, rows))
        )

    async def aclose(self) -> None:
        for worker in (self._short, self._long):
            await asyncio.to_thread(worker.shutdown, cancel_futures=True)


async def _work(worker: ThreadPoolExecutor, call: Callable[[A], T], given: A) -> T:
    return await asyncio.get_running_loop().run_in_executor(worker, call, given)


def give_way() -> None:
    """Let the system prefer all other threads to this one, where it knows priorities of threads."""
    if sys.platform == "linux":
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def batches(rows: list[list[int]], most: int) -> Iterator[list[int]]:
    """The numbers of rows that go together: of about one length, so that little is computed for padding."""
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: len(rows[index])):
        if batch and (len(batch) == most or (len(batch) + 1) * len(rows[index]) > STEP):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


class Encoder:
    """One model: its tokenizer, its graph, and the pooling that its card asks for."""

    def __init__(self, card: ModelCard, *, threads: int) -> None:
        self.tokenizer, self.session = load(card, threads)
        names = {given.name for given in self.session.get_inputs()}
        shape = self.session.get_outputs()[0].shape
        if not names <= INPUTS or len(shape) not in (2, 3):
            raise ConfigError(f"`{card.id}` is no text encoder: it wants {', '.join(sorted(names))}")
        self.inputs = names
        self.pooling = card.pooling or "mean"
        self.limit = card.context_length
        self.dimension = len(self.vectors(self.tokens(["probe"]))[0])
        if card.embedding_dimension not in (None, self.dimension):
            raise ConfigError(
                f"the card of `{card.id}` says {card.embedding_dimension} dimensions; it has {self.dimension}"
            )
        self.card = card.model_copy(update={"kind": "embedding", "embedding_dimension": self.dimension})

    def tokens(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        for index, row in enumerate(rows):
            if self.limit and len(row) > self.limit:
                raise TextTooLong(f"text {index}", limit=self.limit, tokens=len(row), param=f"input[{index}]")
        return rows

    def starts(self, texts: list[str]) -> list[list[int]]:
        """Where in each text its tokens begin, in characters, special tokens included."""
        rows = self.tokenizer.encode_batch(texts)
        return [from_offsets(row.offsets, len(text)) for row, text in zip(rows, texts, strict=True)]

    def encoded(self, text: str) -> tuple[list[int], list[float]]:
        """A text's token ids and its vector."""
        rows = self.tokens([text])
        return rows[0], self.vectors(rows)[0]

    def vectors(self, rows: list[list[int]]) -> list[list[float]]:
        """One unit vector for each row of token ids, in one pass of the model."""
        given = padded(rows)
        hidden = self.session.run(None, {name: given[name] for name in self.inputs})[0]
        mask = given["attention_mask"][..., None].astype(np.float32)
        pooled = self._pooled(hidden.astype(np.float32), mask)
        found: list[list[float]] = (pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).tolist()
        return found

    def _pooled(self, hidden: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.float32]:
        """From (texts, tokens, dimension) to (texts, dimension); some graphs have done it themselves."""
        if hidden.ndim == 2:
            return hidden
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "last":
            last: NDArray[np.float32] = hidden[np.arange(len(hidden)), mask.sum(axis=(1, 2)).astype(int) - 1]
            return last
        mean: NDArray[np.float32] = (hidden * mask).sum(axis=1) / mask.sum(axis=1)
        return mean


def padded(rows: list[list[int]]) -> dict[str, NDArray[np.int64]]:
    """All that a graph may want of rows of token ids, padded on the right: by its names in `INPUTS`."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def load(card: ModelCard, threads: int) -> tuple[Tokenizer, onnxruntime.InferenceSession]:
    """A card's tokenizer and graph; raises `ConfigError` where its files will not do."""
    files = paths(card)
    graphs = [path for name, path in files.items() if name.endswith(".onnx")]
    if len(graphs) != 1 or "tokenizer.json" not in files:
        raise ConfigError(
            f"`{card.id}` needs one .onnx file and its tokenizer.json; it has {', '.join(files)}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        tokenizer = Tokenizer.from_file(str(files["tokenizer.json"]))
        session = onnxruntime.InferenceSession(graphs[0], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # both libraries raise plain exceptions, and only for files they cannot read
        raise ConfigError(f"`{card.id}` cannot be loaded: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, session
