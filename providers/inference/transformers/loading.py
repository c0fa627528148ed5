"""A checkpoint on this disk, and how it is loaded: safetensors or GGUF; no pickle, no code of its own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)
from transformers.utils import logging as speech

from llama_stack_lite.api.models import Kind, ModelCard
from llama_stack_lite.errors import ConfigError
from llama_stack_lite.models import PICKLES, paths

speech.set_verbosity_error()
speech.disable_progress_bar()

WRITES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


class Checkpoint:
    """A card's files: a folder as Hugging Face lays it out, or one GGUF.

    Everything raises `ConfigError` where the files will not do. Tokenizer and configuration are read once.
    """

    def __init__(self, card: ModelCard) -> None:
        files = paths(card)
        ggufs = [name for name in files if name.endswith(".gguf")]
        folders = {path.parent for path in files.values()}
        if not ggufs and not any(name.endswith(".safetensors") for name in files):
            raise ConfigError(_no_weights(card, list(files)))
        if len(ggufs) > 1 or (not ggufs and len(folders) > 1):
            raise ConfigError(f"the files of `{card.id}` must be one GGUF, or lie in one folder")
        self.card = card
        self.gguf = ggufs[0] if ggufs else None
        self.folder = files[self.gguf].parent if self.gguf else folders.pop()
        self.path = files[self.gguf] if self.gguf else self.folder

    def weights(self) -> list[Path]:
        """The files that hold the weights."""
        return [self.path] if self.gguf else sorted(self.folder.glob("*.safetensors"))

    @property
    def kind(self) -> Kind:
        """What the files are, by their own word; a card that says more than `chat` is believed."""
        if self.card.kind != "chat" or self.gguf:
            return self.card.kind
        if (self.folder / "modules.json").is_file():
            return "embedding"
        names = self.read("config.json").get("architectures") or [""]
        if names[0].endswith("ForSequenceClassification"):
            return "rerank"
        return "chat" if names[0].endswith(WRITES) else "embedding"

    def read(self, name: str) -> Any:
        """A JSON file of the folder; an empty object where there is none."""
        path = self.folder / name
        if self.gguf or not path.is_file():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path} is no JSON: {error}") from error

    @cached_property
    def config(self) -> PreTrainedConfig:
        with self._reading():
            return AutoConfig.from_pretrained(self.folder, **self._options)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        with self._reading():
            found = AutoTokenizer.from_pretrained(self.folder, **self._options)
        if not isinstance(found, PreTrainedTokenizerFast):
            raise ConfigError(f"{self.path} has a tokenizer without tokenizer.json, which is not supported")
        return found

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the model's own template; None where it has none."""
        source = self.tokenizer.chat_template or (self.processor.chat_template if self.sees else None)
        return source.get("default") if isinstance(source, dict) else source

    @property
    def sees(self) -> bool:
        return (
            not self.gguf
            and self.kind == "chat"
            and type(self.config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        )

    @cached_property
    def processor(self) -> ProcessorMixin:
        with self._reading():
            return AutoProcessor.from_pretrained(self.folder, **self._options)

    @property
    def _options(self) -> dict[str, Any]:
        options = {"local_files_only": True, "trust_remote_code": False}
        return options | ({"gguf_file": self.path.name} if self.gguf else {})

    def model(self, *, device: str, dtype: str) -> PreTrainedModel:
        """The weights, all of them, on a device; `auto` is the best there is, and the files' own dtype."""
        options = self._options | {"dtype": dtype, "output_loading_info": True}
        if self.gguf:
            options["quantization_config"] = GgufConfig(dequantize=True)
        else:
            options["use_safetensors"] = True
        place = device_of(device)
        with self._reading():
            model, info = self._class().from_pretrained(self.folder, **options)
            # a pooler is for a head that embeddings do not have
            if missing := sorted(name for name in info["missing_keys"] if not name.startswith("pooler.")):
                raise ConfigError(f"{self.path} lacks weights: {', '.join(missing[:3])}")
            if place.type == "cpu" and model.dtype == torch.float16 and dtype == "auto":
                model = model.float()  # CPUs compute with halves slowly, or not at all
            model = model.to(place).eval()
        self.config = model.config  # to read a GGUF's takes seconds
        found: PreTrainedModel = model
        return found

    def _class(self) -> Any:
        if self.kind == "embedding":
            return AutoModel
        if self.kind == "rerank":
            return AutoModelForSequenceClassification
        if self.gguf:
            return AutoModelForCausalLM
        if self.config.is_encoder_decoder:
            raise ConfigError(f"{self.path} is an encoder-decoder: only decoders write here")
        return AutoModelForImageTextToText if self.sees else AutoModelForCausalLM

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:  # the library raises what it likes, and only for files it cannot use
            reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise ConfigError(f"transformers cannot load {self.path}: {reason}") from error


def device_of(name: str) -> torch.device:
    """The device of that name, or the best there is; raises `ConfigError` where there is none."""
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(1, device=name)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(f"device: `{name}` cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def placed(model: PreTrainedModel) -> str:
    """Where a model is, and in which numbers, in words."""
    return f"{model.device} in {str(model.dtype).removeprefix('torch.')}"


def _no_weights(card: ModelCard, names: list[str]) -> str:
    pickled = [name for name in names if name.endswith(PICKLES)]
    if pickled:
        return (
            f"`{card.id}` has pickled weights only ({', '.join(pickled[:3])}): these can run code when they "
            "are read, so convert them to safetensors"
        )
    return f"`{card.id}` has no .safetensors or .gguf file, and transformers reads no other here"
