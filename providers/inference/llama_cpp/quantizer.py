"""llama.cpp's quantizer as a program of its own, so that Ctrl-C ends it, and a crash ends nothing else.

Arguments: the source, the target and the number of a `llama_ftype`. All that llama.cpp has to say goes to
stderr, the size of the result first. The exit code is 0 where all went well.
"""

import ctypes
import signal
import sys

import llama_cpp.llama_cpp as lib


def quantize(source: str, target: str, kind: int) -> int:
    """Work out what the result will be, then make it; 0 on success."""
    params = lib.llama_model_quantize_default_params()
    params.ftype = kind
    params.allow_requantize = True
    for params.dry_run in (True, False):
        if code := int(lib.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))):
            return code
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # whoever started this reads its words; if that process dies, so does this one at its next word
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    lib.llama_log_set(lib.llama_log_callback(), None)  # llama.cpp's own callback instead of its binding's
    sys.exit(quantize(sys.argv[1], sys.argv[2], int(sys.argv[3])))
