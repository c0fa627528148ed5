"""A classifier by onnxruntime, without torch."""

import json
from typing import Any

from llama_stack_lite.api.models import ModelCard
from llama_stack_lite.errors import ConfigError
from llama_stack_lite.models import paths
from llama_stack_lite.providers.inference.onnx import INPUTS, default_threads, load, padded

from .windows import Windows, limit_of


class Engine:
    """An .onnx file, its tokenizer.json, and a config.json where the labels are not Prompt Guard's own."""

    def __init__(self, card: ModelCard, *, overlap: int, device: str) -> None:
        tokenizer, self.session = load(card, default_threads())
        config = _config(card)
        self.inputs = {given.name for given in self.session.get_inputs()}
        if not self.inputs <= INPUTS:
            raise ConfigError(f"`{card.id}` is no classifier of texts: it wants {', '.join(self.inputs)}")
        self.labels: list[str] = list(config.get("id2label", {"0": "BENIGN", "1": "MALICIOUS"}).values())
        limit = limit_of(card, config.get("max_position_embeddings"))
        self.windows = Windows(tokenizer, limit=limit, overlap=overlap)

    def logits(self, windows: list[list[int]]) -> list[list[float]]:
        """Of shape (windows, labels); they are padded on the right, as the mask tells."""
        given = padded(windows)
        found = self.session.run(None, {name: given[name] for name in self.inputs})[0]
        rows: list[list[float]] = found.tolist()
        return rows


def _config(card: ModelCard) -> dict[str, Any]:
    path = paths(card).get("config.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return found
