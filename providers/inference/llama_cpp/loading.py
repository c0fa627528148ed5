"""A GGUF file, loaded: the model, its context, its vocabulary and what the file says of itself."""

import ctypes
import logging
import re
import sys
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from llama_stack_lite.errors import ConfigError, StackError, Unavailable
from llama_stack_lite.models import format_size

from .log import attention, attentions, complaints, last_words
from .vision import VISION_BATCH, Vision
from .vocab import Vocab

log = logging.getLogger(__name__)


class Weights:
    """A model without a context; with `vocab_only` just what the file says of itself.

    Raises `ConfigError` with llama.cpp's own last words where the file will not do.
    """

    def __init__(self, path: Path, *, vocab_only: bool = False) -> None:
        complaints.clear()
        params = lib.llama_model_default_params()
        params.vocab_only = vocab_only
        self.path = path
        self.model: Any = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ConfigError(f"llama.cpp cannot load {path}: {last_words()}")
        self.architecture = self.meta("general.architecture") or "unknown"
        # from the metadata, as a vocabulary alone does not know it
        self.trained_context = self._number("context_length") or sys.maxsize

    @property
    def encodes(self) -> bool:
        """Whether it reads whole texts, and cannot write."""
        causal = self.meta(f"{self.architecture}.attention.causal")
        return bool(lib.llama_model_has_encoder(self.model)) or causal == "false"

    def meta(self, key: str) -> str | None:
        """A string of the file's metadata, such as `general.architecture`."""
        room = 256
        while True:
            buffer = ctypes.create_string_buffer(room)
            length = lib.llama_model_meta_val_str(self.model, key.encode(), buffer, room)
            if length < room:
                return None if length < 0 else buffer.value.decode("utf-8", "replace")
            room = length + 1

    def chat_template(self) -> str | None:
        """The Jinja source of the model's own template; None where the file holds none."""
        found = lib.llama_model_chat_template(self.model, None)
        return found.decode() if found else None

    @property
    def rewinds(self) -> bool:
        """Whether the last tokens that a sequence has read can be forgotten, and nothing else with them."""
        holds_all = not lib.llama_model_is_recurrent(self.model) and not lib.llama_model_is_hybrid(self.model)
        return holds_all and lib.llama_model_n_swa(self.model) == 0

    def cell(self) -> int:
        """The bytes that a token takes in the KV cache, at most: keys and values of 16 bits in each layer."""
        heads = self._number("attention.head_count") or 1
        width = self._number("attention.key_length") or self._number("embedding_length") // heads
        return (
            self._number("block_count") * (self._number("attention.head_count_kv") or heads) * width * 2 * 2
        )

    def _number(self, key: str) -> int:
        """A number of the architecture's, the largest where layers have their own; 0 where it is not said."""
        return max(map(int, re.findall(r"\d+", self.meta(f"{self.architecture}.{key}") or "")), default=0)

    def close(self) -> None:
        lib.llama_model_free(self.model)


class Loaded:
    """A model that writes, and one context of `slots` sequences, each of `context` tokens.

    `vision` reads images, where there is an mmproj file; `adapters` are the LoRA adapters that could be laid
    over it, and `refused` says why others cannot. `flash` attention is by default for GPUs only.
    Raises `ConfigError` where the file or the memory will not do.
    """

    def __init__(
        self,
        path: Path,
        *,
        context: int,
        slots: int,
        threads: int,
        batch: int,
        flash: bool | None = None,
        mmproj: Path | None = None,
        adapters: dict[str, Path] | None = None,
    ) -> None:
        self.weights = Weights(path)
        self.model = self.weights.model
        self.context: Any = None
        self.threads = threads
        self.vision: Vision | None = None
        batch = VISION_BATCH if mmproj else batch
        try:
            if self.weights.encodes:
                raise ConfigError(f"{path} is an encoder: it makes embeddings, and cannot write")
            self.context = self._context(context, slots=slots, threads=threads, batch=batch, flash=flash)
            self.context_length: int = lib.llama_n_ctx_seq(self.context)
            self.vocab = Vocab(self.model)
            if mmproj:
                self.vision = Vision(
                    mmproj,
                    self.model,
                    vocab=self.vocab,
                    threads=threads,
                    batch=batch,
                    context=self.context_length,
                )
        except StackError:
            self.close()
            raise
        self.memory: Any = lib.llama_get_memory(self.context)
        self.rewinds: bool = self.weights.rewinds
        self.size: int = (
            lib.llama_model_size(self.model) + lib.llama_n_ctx(self.context) * self.weights.cell()
        )
        self.adapters: dict[str, Any] = {}
        self.refused: dict[str, str] = {}
        for name, file in (adapters or {}).items():
            self._read_adapter(name, file)
        self.detail = f"{slots} x {self.context_length} tokens, a KV stream each, {attention()}"

    def _context(self, context: int, *, slots: int, threads: int, batch: int, flash: bool | None) -> Any:
        wanted = min(context, self.weights.trained_context)
        lower = f"for {slots} contexts of {wanted} tokens of {self.weights.path}; lower `context` or `slots`"
        needed, free = wanted * slots * self.weights.cell(), _free_memory()
        if free is not None and needed > free:
            raise ConfigError(f"{format_size(needed)} are needed and {format_size(free)} are free {lower}")
        attentions.clear()
        params = _context_params(wanted * slots, slots=slots, threads=threads, batch=batch, flash=flash)
        found = lib.llama_init_from_model(self.model, params)
        if not found:
            raise ConfigError(f"no memory {lower} ({last_words()})")
        return found

    def _read_adapter(self, name: str, path: Path) -> None:
        complaints.clear()
        found = lib.llama_adapter_lora_init(self.model, str(path).encode()) if path.is_file() else None
        if found:
            self.adapters[name] = found
        else:
            reason = last_words() if path.is_file() else f"there is no file {path}"
            self.refused[name] = f"{path} cannot be laid over {self.weights.path.name}: {reason}"
            log.error("adapter `%s`: %s", name, self.refused[name])

    def use_threads(self, count: int) -> None:
        """Compute on so many threads from the next decode on."""
        if count != self.threads:
            lib.llama_set_n_threads(self.context, count, count)
            self.threads = count

    def use_adapter(self, name: str | None) -> None:
        """Lay one adapter over the model, or none, from the next decode on."""
        chosen = [self.adapters[name]] if name else []
        adapters = (lib.llama_adapter_lora_p_ctypes * len(chosen))(*chosen)
        scales = (ctypes.c_float * len(chosen))(*[1.0] * len(chosen))
        if lib.llama_set_adapters_lora(self.context, adapters, len(chosen), scales):
            raise Unavailable(f"the adapter `{name}` cannot be used: {last_words()}")

    def close(self) -> None:
        if self.vision:  # it reads the model's vocabulary
            self.vision.close()
        if self.context:
            lib.llama_free(self.context)
        self.weights.close()


def _context_params(total: int, *, slots: int, threads: int, batch: int, flash: bool | None) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = total
    params.n_seq_max = slots
    # of prompts so many rows at once; the rows of those who write llama.cpp runs before them
    params.n_ubatch, params.n_batch = batch, batch + slots
    params.n_threads = params.n_threads_batch = threads
    # both by measurement (benchmarks/RESULTS.md): flash attention on CPUs rounds differently for one row, for
    # few and for many, so that answers change with what is cached, and it gets slow in long conversations;
    # and a stream for each sequence beats one unified cache
    on = lib.llama_supports_gpu_offload() if flash is None else flash
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO if on else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.kv_unified = False
    params.no_perf = True
    return params


def _free_memory() -> int | None:
    """Bytes to be had without swapping; None where the system does not say, or a GPU holds the cache."""
    if lib.llama_supports_gpu_offload():
        return None
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"]) * 1024 if "MemAvailable" in found else None
