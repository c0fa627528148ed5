"""A GGUF file, loaded: the model, its context, its vocabulary and what the file says of itself."""

import ctypes
import logging
import os
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib

from llama_stack_lite.errors import ConfigError

from .vocab import Vocab

log = logging.getLogger(__name__)
_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the binding does not name
_complaints: list[str] = []


def _on_log(level: int, text: bytes, data: object) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if level == _ERROR and line:
        _complaints.append(line)
        del _complaints[:-5]
    if line:
        log.debug("%s", line)


# llama.cpp keeps the bare pointer: a collected callback would crash the next load
_LOG_CALLBACK = lib.llama_log_callback(_on_log)
lib.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
lib.llama_backend_init()


class Loaded:
    """A model and one context of `slots` sequences, each of `context` tokens.

    Raises `ConfigError` with llama.cpp's own last words where the file or the memory will not do.
    """

    def __init__(self, path: Path, *, context: int, slots: int, threads: int, batch: int) -> None:
        _complaints.clear()
        params = lib.llama_model_default_params()
        self.model: Any = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ConfigError(f"llama.cpp cannot load {path}: {_last_words()}")
        causal = self.meta(f"{self.meta('general.architecture')}.attention.causal")
        if lib.llama_model_has_encoder(self.model) or causal == "false":
            lib.llama_model_free(self.model)
            raise ConfigError(f"{path} is an encoder, and this provider serves models that write text only")
        self.trained_context: int = lib.llama_model_n_ctx_train(self.model)
        wanted = min(context, self.trained_context)
        self.context: Any = lib.llama_init_from_model(
            self.model, _context_params(wanted * slots, slots=slots, threads=threads, batch=batch)
        )
        if not self.context:
            lib.llama_model_free(self.model)
            raise ConfigError(
                f"no memory for {slots} contexts of {wanted} tokens of {path}: {_last_words()}; "
                "lower `context` or `slots`"
            )
        self.memory: Any = lib.llama_get_memory(self.context)
        self.context_length: int = lib.llama_n_ctx_seq(self.context)
        self.vocab = Vocab(self.model)

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

    def close(self) -> None:
        lib.llama_free(self.context)
        lib.llama_model_free(self.model)


def _context_params(total: int, *, slots: int, threads: int, batch: int) -> Any:
    params = lib.llama_context_default_params()
    params.n_ctx = total
    params.n_seq_max = slots
    params.n_batch = params.n_ubatch = batch
    params.n_threads = params.n_threads_batch = threads
    params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
    # a stream of its own for each sequence: 7 to 19 % faster than one unified cache
    params.kv_unified = False
    params.no_perf = True
    return params


def _last_words() -> str:
    return " / ".join(_complaints[-2:]) or "it gave no reason"


def default_threads() -> int:
    """One less than the physical cores: ggml's threads spin at barriers, so a busy core stalls them all."""
    topology = Path("/sys/devices/system/cpu").glob("cpu[0-9]*/topology/thread_siblings_list")
    cores = {path.read_text(encoding="ascii") for path in topology}
    return max(1, (len(cores) or os.cpu_count() or 1) - 1)
