"""llama.cpp's own log: passed on to ours, and its last complaints kept for error messages."""

import ctypes
import logging
from collections import deque

import llama_cpp.llama_cpp as lib

log = logging.getLogger(__name__)
complaints: list[str] = []
attentions: deque[str] = deque(maxlen=1)
_ERROR = 4  # GGML_LOG_LEVEL_ERROR, which the binding does not name


def _on_log(level: int, text: bytes, data: object) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if level == _ERROR and line:
        complaints.append(line)
        del complaints[:-5]
    if "Flash Attention" in line:
        attentions.append("flash attention" if "enabled" in line else "no flash attention")
    if line:
        log.debug("%s", line)


# llama.cpp keeps the bare pointer: a collected callback would crash the next load
CALLBACK = lib.llama_log_callback(_on_log)
lib.llama_log_set(CALLBACK, ctypes.c_void_p(0))
lib.llama_backend_init()


def attention() -> str:
    """The attention of the context made last: llama.cpp chooses it, and only its log tells."""
    return attentions[0] if attentions else "no flash attention"


def last_words() -> str:
    """What llama.cpp complained of last, in one line."""
    return " / ".join(" ".join(each.split()) for each in complaints[-2:]) or "it gave no reason"
