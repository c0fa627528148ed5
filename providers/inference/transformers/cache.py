"""What a model remembers of the sequences that it is writing: rows of one batch, or each by itself."""

import inspect
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

Tensor = torch.Tensor

LEAST = 256  # tokens that there is room for at first; it doubles where that is not enough


class Memory(Protocol):
    """Runs a model over sequences, which it knows by any hashable name."""

    def read(self, name: Hashable, tokens: list[int], *, media: Mapping[str, Tensor], every: bool) -> Tensor:
        """Read on in a sequence; returns logits of shape (tokens, vocabulary), or (1, ...) without `every`.

        `media` are the model's other inputs for a prompt with images, which is read at once.
        """
        ...

    def write(self, tokens: Mapping[Any, int]) -> Tensor:
        """Read one more token in each sequence; returns logits of shape (sequences, vocabulary), in order."""
        ...

    def free(self, name: Hashable) -> None:
        """Forget a sequence; one that it never saw is no error."""
        ...


def memory_of(model: PreTrainedModel) -> Memory:
    """Rows of one batch where all layers remember every token, else each sequence by itself."""
    layers = DynamicCache(config=model.config).layers
    joins = all(type(layer) is DynamicLayer for layer in layers)
    sees = hasattr(model.config, "vision_config")  # positions or layers of its own for images
    takes = inspect.signature(model.forward).parameters
    return Together(model, len(layers)) if joins and not sees and "position_ids" in takes else Apart(model)


class Together(Cache):  # type: ignore[misc]
    """One cache for all sequences, a row each; nothing is copied when one comes, and one row when one goes.

    A row is filled from its left. A step reads a piece of one row, or one token at the end of every row.
    """

    def __init__(self, model: PreTrainedModel, layers: int) -> None:
        super().__init__(layers=[_Layer(self) for _ in range(layers)])
        self.model = model
        self.names: list[Hashable] = []
        self.lengths: list[int] = []  # tokens in each row
        self.rows = slice(0, 0)  # of this step
        self.places = torch.zeros(0)  # of this step's tokens in their rows, shape (rows, tokens)
        self.end = 0  # of the longest row of this step, after it

    def read(self, name: Hashable, tokens: list[int], *, media: Mapping[str, Tensor], every: bool) -> Tensor:
        if name not in self.names:
            self.names.append(name)
            self.lengths.append(0)
        row = self.names.index(name)
        start, end = self.lengths[row], self.lengths[row] + len(tokens)
        self._step(slice(row, row + 1), torch.arange(start, end)[None])
        self.lengths[row] = end
        return self._run(torch.tensor([tokens]), mask=None, keep=0 if every else 1)[0]

    def write(self, tokens: Mapping[Any, int]) -> Tensor:
        # rows that are still being read get a token too, and overwrite what it left with their next piece
        ids = torch.tensor([[tokens.get(name, 0)] for name in self.names])
        places = torch.tensor(self.lengths)[:, None]
        self._step(slice(0, len(self.names)), places)
        mask = torch.arange(self.end)[None] <= places
        logits = self._run(ids, mask=None if mask.all() else mask, keep=1)[:, 0]
        rows = [self.names.index(name) for name in tokens]
        for row in rows:
            self.lengths[row] += 1
        return logits[rows]

    def free(self, name: Hashable) -> None:
        if name not in self.names:
            return
        row, length = self.names.index(name), self.lengths[-1]
        for layer in self.layers:
            layer.move(len(self.names) - 1, row, length)
        self.names[row], self.lengths[row] = self.names[-1], length
        self.names.pop()
        self.lengths.pop()
        if not self.names:
            self.reset()

    def _step(self, rows: slice, places: Tensor) -> None:
        self.rows, self.places = rows, places.to(self.model.device)
        self.end = int(places.max()) + 1

    def _run(self, ids: Tensor, *, mask: Tensor | None, keep: int) -> Tensor:
        output = self.model(
            input_ids=ids.to(self.model.device),
            attention_mask=None if mask is None else mask.to(self.model.device),
            position_ids=self.places,
            past_key_values=self,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: Tensor = output.logits
        return logits


class _Layer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys and values, each of shape (rows, heads, room, size of a head)."""

    def __init__(self, step: Together) -> None:
        super().__init__()
        self.step = step

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.keys = key_states.new_zeros(0, key_states.shape[1], LEAST, key_states.shape[3])
        self.values = value_states.new_zeros(0, value_states.shape[1], LEAST, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Put in place a step's keys and values, shape (rows, heads, tokens, size); returns its rows."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        rows, places, end = self.step.rows, self.step.places, self.step.end
        self.keys, self.values = (_with_room(kept, rows.stop, end) for kept in (self.keys, self.values))
        numbers = torch.arange(rows.start, rows.stop, device=places.device)[:, None]
        self.keys[numbers, :, places] = key_states.transpose(1, 2)
        self.values[numbers, :, places] = value_states.transpose(1, 2)
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def move(self, source: int, row: int, length: int) -> None:
        """Put `length` tokens of the last row into another, and nothing behind them.

        What lies behind a row's end is masked, but a number that is none would go through every mask.
        """
        for kept in (self.keys, self.values) if self.is_initialized else ():
            if source >= len(kept):
                continue  # the step that was to make room for the row failed before this layer
            kept[row, :, :length] = kept[source, :, :length].clone()
            kept[row, :, length:] = 0
            if source != row:
                kept[source] = 0

    def reset(self) -> None:
        self.keys = self.values = torch.zeros(0)
        self.is_initialized = False

    def get_seq_length(self) -> int:
        return self.step.end - self.step.places.shape[1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.step.end, 0

    def get_max_length(self) -> int:
        return -1


def _with_room(kept: Tensor, rows: int, length: int) -> Tensor:
    """The same, with at least so many rows and so much room in each."""
    held, heads, room, size = kept.shape
    if rows <= held and length <= room:
        return kept
    while room < length:
        room *= 2
    found = kept.new_zeros(max(rows, held), heads, room, size)
    found[:held, :, : kept.shape[2]] = kept
    return found


@dataclass(eq=False)
class _Own:
    """A sequence by itself: its tokens so far, and the model's inputs beside them."""

    ids: Tensor
    cache: Cache
    inputs: dict[str, Any] = field(default_factory=dict)


class Apart:
    """A cache for each sequence, and a batch of one for each: windows, states and images fit in no row.

    Inputs are prepared as `generate` prepares them, so each architecture keeps its own ways.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.kept: dict[Hashable, _Own] = {}

    def read(self, name: Hashable, tokens: list[int], *, media: Mapping[str, Tensor], every: bool) -> Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        first = name not in self.kept
        if first:
            self.kept[name] = self._new(ids, media)
        else:
            self._extend(self.kept[name], ids)
        own = self.kept[name]
        inputs = self.model.prepare_inputs_for_generation(
            own.ids,
            next_sequence_length=len(tokens),
            is_first_iteration=first,
            logits_to_keep=0 if every else 1,
            **own.inputs,
        )
        logits: Tensor = self.model(**inputs).logits[0]
        return logits

    def write(self, tokens: Mapping[Any, int]) -> Tensor:
        rows = [self.read(name, [token], media={}, every=False) for name, token in tokens.items()]
        return torch.cat(rows)

    def free(self, name: Hashable) -> None:
        self.kept.pop(name, None)

    def _new(self, ids: Tensor, media: Mapping[str, Tensor]) -> _Own:
        own = _Own(ids, DynamicCache(config=self.model.config))
        own.inputs = {"attention_mask": torch.ones_like(ids), "use_cache": True}
        for key, value in media.items():
            dtype = self.model.dtype if value.is_floating_point() else value.dtype
            own.inputs[key] = value.to(self.model.device, dtype)
        own.inputs["position_ids"] = self.model._prepare_position_ids_for_generation(ids, own.inputs)
        own.inputs["past_key_values"] = own.cache
        return own

    def _extend(self, own: _Own, ids: Tensor) -> None:
        own.ids = torch.cat([own.ids, ids], dim=1)
        own.inputs = self.model._update_model_kwargs_for_generation(
            BaseModelOutputWithPast(past_key_values=own.cache),
            own.inputs,
            is_encoder_decoder=False,
            num_new_tokens=ids.shape[1],
        )
