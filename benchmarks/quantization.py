"""What a quantization gains and costs: file size, speed and perplexity of one model in several types.

Speeds are the engine's kind of batches without a server (see `engine.py`), in rounds in which every type has
its turn; medians are shown, and their ratios to the first type. The perplexity is of real English text.

    python -m benchmarks.quantization
    python -m benchmarks.quantization q4_k_m q8_0 --model llama-3.2-1b-instruct
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np

from benchmarks.engine import Context, Ids, Setting, contexts, measure, measured_by
from benchmarks.support import Figures, gguf, machine, table, vocabulary
from llama_stack_lite.errors import NotFound
from llama_stack_lite.local.logits import logprobs
from llama_stack_lite.models import card, format_size
from llama_stack_lite.providers.inference.llama_cpp.quantizing import quantize
from llama_stack_lite.providers.inference.llama_cpp.sampling import row_of

WINDOW = 512  # tokens: of the prompt that is timed, and of a window of the perplexity
SHORT = 64  # tokens of each prompt where several sequences write
WRITTEN = 24  # tokens that each sequence writes
STREAMS = (1, 4, 16)
KINDS = ["q4_1", "q4_0", "q8_0", "q6_k", "q4_k_m"]
# the language reference behind `help()`: the same on every machine with this Python
TEXT = "\n".join(topics[name] for name in sorted(topics))


def files_of(model: str, kinds: list[str], folder: Path) -> dict[str, Path]:
    """The model's own file where it is of the type, else one made of it."""
    source, own = gguf(model), quantization_of(model)
    files = {}
    for kind in kinds:
        files[kind] = source if kind == own else folder / f"{kind}.gguf"
        if kind != own:
            print(f"making {kind}", file=sys.stderr)
            quantize(source, files[kind], kind)
    return files


def quantization_of(model: str) -> str | None:
    try:
        return (card(model).quantization or "").lower()
    except NotFound:
        return None


def speeds(context: Context) -> Iterator[tuple[str, float]]:
    """Tokens a second: of one long prompt, then of 1, 4 and 16 sequences that write."""
    for streams in STREAMS:
        prompt = WINDOW if streams == 1 else SHORT
        figures = context.generate(streams=streams, prompt=prompt, tokens=WRITTEN)
        if streams == 1:
            yield f"prompt of {WINDOW}", figures["reading tok/s"]
        yield f"{streams} writing", figures["writing tok/s"]


def perplexity(context: Context, tokens: Ids, *, windows: int) -> float:
    """Of the second half of each window, given the first: what llama.cpp's own tool takes."""
    total, half = 0.0, WINDOW // 2
    positions, slots = np.arange(WINDOW, dtype=np.int32), np.zeros(WINDOW, dtype=np.int32)
    for start in range(0, windows * WINDOW, WINDOW):
        window = tokens[start : start + WINDOW]
        context.clear()
        for part in (slice(0, half - 1), slice(half - 1, WINDOW - 1)):
            outputs = np.full(len(window[part]), part.start > 0)
            context.fill(window[part], positions[part], slots[part], outputs)
            context.decode()
        for row, token in enumerate(window[half:]):
            total += logprobs(row_of(context.handle, row, context.vocab), int(token), 0)[0]
    return math.exp(-total / (windows * half))


def tokens_of(path: Path, count: int) -> Ids:
    """So many tokens of the text, in the model's own vocabulary."""
    with vocabulary(path) as vocab:
        tokens = vocab.tokens_of(TEXT, special=False)
    if len(tokens) < count:
        raise SystemExit(f"the text has {len(tokens) // WINDOW} windows")
    return np.array(tokens[:count], dtype=np.int32)


def shown(results: dict[str, Figures]) -> Iterator[list[str]]:
    """A row for each type, with ratios to the first."""
    first = next(iter(results.values()))
    for kind, figures in results.items():
        ratios = {name: figures[name] / first[name] for name in figures}
        cells = {name: f"{figure:,.0f} ({ratios[name]:.2f})" for name, figure in figures.items()}
        cells["size"] = f"{format_size(int(figures['size']))} ({ratios['size']:.2f})"
        cells["perplexity"] = f"{figures['perplexity']:.2f} ({ratios['perplexity']:.3f})"
        yield [kind, *cells.values()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="TYPE", help="llama.cpp's names")
    parser.add_argument("--model", default="smollm2-135m", help="of the catalogue, or a .gguf file")
    parser.add_argument("--windows", type=int, default=16, help=f"of {WINDOW} tokens, for the perplexity")
    return measured_by(parser)


def main() -> None:
    """Make the files, measure them, print a table."""
    options = arguments()
    with tempfile.TemporaryDirectory() as folder:
        files = files_of(options.model, options.kinds, Path(folder))
        settings = [Setting(str(path)) for path in files.values()]
        made = contexts(settings, slots=max(STREAMS), room=WINDOW + SHORT, threads=options.threads)
        sizes = {kind: path.stat().st_size for kind, path in files.items()}
        tokens = tokens_of(next(iter(files.values())), options.windows * WINDOW)
    found = dict(zip(files, made.values(), strict=True))
    for context in found.values():
        context.clock = time.thread_time if options.cpu_time else time.perf_counter
    taken = measure(found, speeds, rounds=options.rounds)
    results: dict[str, Figures] = {}
    for kind, context in found.items():
        print(f"perplexity of {kind}", file=sys.stderr)
        medians = {what: statistics.median(values[kind]) for what, values in taken.items()}
        found_perplexity = perplexity(context, tokens, windows=options.windows)
        results[kind] = {"size": sizes[kind], **medians, "perplexity": found_perplexity}
        context.close()
    print(machine("llama-cpp-python"))
    print(f"{options.threads} threads, tokens a second, medians of {options.rounds} rounds\n")
    print(table(["type", *results[options.kinds[0]]], shown(results)))
    if options.json:
        options.json.write_text(json.dumps({"medians": results, "rounds": taken}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
