"""The floor under a server: how fast llama.cpp itself goes in this process, with no server and no event loop.

The same sequences are read and written through one `llama_batch` in lockstep, for each layout of the KV
cache and each setting of flash attention asked for; with `--rows` the time of a single step by its rows,
with `--cuts` the time of a prompt by the rows that are read at once.
Settings take turns in every round, and the medians are shown with their ratios to the first.

    python -m benchmarks.engine smollm2-135m --kv per-slot unified --flash auto off
    python -m benchmarks.engine smollm2-135m mine.gguf --rows
"""

import argparse
import ctypes
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np
from numpy.typing import NDArray

from benchmarks.support import Figures, gguf, machine, table
from llama_stack_lite.providers.inference.llama_cpp.batch import BATCH, Batch
from llama_stack_lite.providers.inference.llama_cpp.loading import Weights
from llama_stack_lite.providers.inference.llama_cpp.threads import default_threads

Ids = NDArray[np.int32]

FLASH = {
    "auto": lib.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": lib.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": lib.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPT = 512  # tokens of a prompt that is read in pieces
CUTS = (256, 192, 160, 128, 112, 96, 64)
BESIDE = 4  # sequences that write beside a prompt, in the steps that do both
PIECES = ([60, 60, 60, 60], [57, 58, 59, 60])  # rows of several prompts, of one length and of about one


@dataclass(frozen=True)
class Setting:
    """What a context is made of."""

    model: str
    kv: str = "per-slot"
    flash: str = "off"  # as the provider has it on CPUs

    def __str__(self) -> str:
        return f"{Path(self.model).stem}, {self.kv}, flash {self.flash}"


class Context:
    """A llama.cpp context of `slots` sequences of `room` tokens each, as the provider sets it up."""

    def __init__(self, weights: Weights, setting: Setting, *, slots: int, room: int, threads: int) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = slots * room
        params.n_seq_max = slots
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = FLASH[setting.flash]
        params.kv_unified = setting.kv == "unified"
        params.no_perf = True
        self.handle: Any = lib.llama_init_from_model(weights.model, params)
        if not self.handle:
            raise SystemExit(f"no context of {slots} x {room} tokens for {setting}")
        self.memory: Any = lib.llama_get_memory(self.handle)
        self.vocab: int = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(weights.model))
        self.batch = Batch(BATCH)
        self.slots = slots
        self.depth = 0  # tokens that every sequence holds while single steps are timed
        self.clock = time.perf_counter
        self.random = np.random.default_rng(0)

    def prompt(self, length: int) -> Ids:
        return self.random.integers(100, self.vocab, length, dtype=np.int32)

    def clear(self) -> None:
        lib.llama_memory_clear(self.memory, False)

    def decode(self) -> None:
        if code := lib.llama_decode(self.handle, self.batch.handle):
            raise RuntimeError(f"llama_decode failed with {code}")
        lib.llama_synchronize(self.handle)

    def fill(self, tokens: Ids, positions: Ids, slots: Ids, outputs: NDArray[np.bool_]) -> None:
        """One row of the batch for each element."""
        rows = len(tokens)
        self.batch.tokens[:rows] = tokens
        self.batch.positions[:rows] = positions
        self.batch.slots[:rows] = slots
        self.batch.outputs[:rows] = outputs
        self.batch.handle.n_tokens = rows

    def close(self) -> None:
        lib.llama_free(self.handle)

    # ------------------------------------------------------------ many sequences, from prompt to end

    def generate(self, *, streams: int, prompt: int, tokens: int) -> Figures:
        """Tokens a second of all streams together: of the writing alone, and with the prompts' time."""
        prompts = [self.prompt(prompt) for _ in range(streams)]
        chains = [_greedy() for _ in range(streams)]
        self.clear()
        began = self.clock()
        last = self._read(prompts, chains)
        read = self.clock()
        for step in range(1, tokens):
            last = self._write(last, chains, position=prompt + step - 1)
        ended = self.clock()
        for chain in chains:
            lib.llama_sampler_free(chain)
        return {
            "tok/s": streams * tokens / (ended - began),
            "writing tok/s": streams * (tokens - 1) / (ended - read),
            "reading tok/s": streams * prompt / (read - began),
        }

    def _read(self, prompts: list[Ids], chains: list[Any], rows: int = BATCH) -> Ids:
        """The first token after each of some prompts of one length, read so many rows at once."""
        length = len(prompts[0])
        tokens = np.concatenate(prompts)
        slots, positions = np.divmod(np.arange(len(tokens), dtype=np.int32), np.int32(length))
        outputs = positions == length - 1
        first = np.zeros(len(prompts), dtype=np.int32)
        for start in range(0, len(tokens), rows):
            part = slice(start, start + rows)
            self.fill(tokens[part], positions[part], slots[part], outputs[part])
            self.decode()
            for row in np.flatnonzero(outputs[part]):
                slot = int(slots[start + row])
                first[slot] = lib.llama_sampler_sample(chains[slot], self.handle, int(row))
        return first

    def _write(self, last: Ids, chains: list[Any], *, position: int) -> Ids:
        streams = len(last)
        every = np.arange(streams, dtype=np.int32)
        self.fill(last, np.full(streams, position, dtype=np.int32), every, np.ones(streams, dtype=np.bool_))
        self.decode()
        chosen = [lib.llama_sampler_sample(chain, self.handle, row) for row, chain in enumerate(chains)]
        return np.array(chosen, dtype=np.int32)

    def _read_one(self, length: int, rows: int = BATCH) -> None:
        """Let the first slot hold a prompt, and the others nothing."""
        self.clear()
        self._read([self.prompt(length)], [chain := _greedy()], rows)
        lib.llama_sampler_free(chain)

    def cut(self, rows: int) -> float:
        """Milliseconds to read a prompt, so many rows at once."""
        began = self.clock()
        self._read_one(PROMPT, rows)
        return 1e3 * (self.clock() - began)

    # ------------------------------------------------------------ single steps

    def deepen(self, depth: int) -> None:
        """Let every slot hold so many tokens: one is read, the others get a copy with cells of their own."""
        self.depth = depth
        self._read_one(depth)
        size = lib.llama_state_seq_get_size(self.handle, 0)
        state = (ctypes.c_uint8 * size)()
        lib.llama_state_seq_get_data(self.handle, state, size, 0)
        for slot in range(1, self.slots):
            if not lib.llama_state_seq_set_data(self.handle, state, size, slot):
                raise RuntimeError("llama.cpp could not copy a sequence")

    def step(self, *, writers: int, read: int, apart: int = 1) -> float:
        """Milliseconds of a step: a row of each of some slots, and `read` rows of the next slot's prompt.

        The slots are neighbours, or so far `apart`.
        """
        rows = writers + read
        sequences = np.minimum(np.arange(rows, dtype=np.int32), np.int32(writers))
        positions = self.depth + np.arange(rows, dtype=np.int32) - sequences
        outputs = sequences < writers
        outputs[-1] = True
        self.fill(self.prompt(rows), positions, sequences * np.int32(apart), outputs)
        return self._timed()

    def _timed(self) -> float:
        """Milliseconds of the step that the batch holds; all slots are then as before."""
        began = self.clock()
        self.decode()
        taken = self.clock() - began
        for slot in range(self.slots):
            lib.llama_memory_seq_rm(self.memory, slot, self.depth, -1)
        return 1e3 * taken

    def pieces(self, lengths: Sequence[int]) -> float:
        """Milliseconds of a step with pieces of several prompts."""
        slots = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        places = np.concatenate([np.arange(length, dtype=np.int32) for length in lengths])
        self.fill(self.prompt(len(slots)), self.depth + places, slots, np.diff(slots, append=-1) != 0)
        return self._timed()

    def steps(self, counts: Sequence[int]) -> Iterator[tuple[str, float]]:
        """Milliseconds of steps of so many rows: rows that write, of a prompt, and of both."""
        self.step(writers=1, read=0)  # unmeasured
        for rows in counts:
            if rows <= self.slots:
                yield f"{rows} writing", self.step(writers=rows, read=0)
        for rows in counts:
            if 1 < rows <= self.slots // 2:
                yield f"{rows} writing, every other slot", self.step(writers=rows, read=0, apart=2)
        for rows in counts:
            yield f"{rows} of a prompt", self.step(writers=0, read=rows)
        for rows in counts:
            if BESIDE + rows <= BATCH and self.slots > BESIDE:
                yield f"{BESIDE} writing + {rows} of a prompt", self.step(writers=BESIDE, read=rows)


def _greedy() -> Any:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    return chain


def contexts(settings: list[Setting], *, slots: int, room: int, threads: int) -> dict[str, Context]:
    """A context for each setting by its name; those of one model share the weights."""
    weights = {setting.model: Weights(gguf(setting.model)) for setting in settings}
    return {
        str(setting): Context(weights[setting.model], setting, slots=slots, room=room, threads=threads)
        for setting in settings
    }


def measure(
    found: dict[str, Context], figures: Callable[[Context], Iterator[tuple[str, float]]], *, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """The figures of every round, by what was measured and by setting."""
    results: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name, context in found.items():
            for what, value in figures(context):
                results.setdefault(what, {each: [] for each in found})[name].append(value)
    return results


def single(context: Context, counts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Milliseconds of single steps."""
    yield from context.steps(counts)
    for lengths in PIECES:
        if len(lengths) <= context.slots:
            yield f"{' + '.join(map(str, lengths))} of prompts", context.pieces(lengths)


def cuts(context: Context, counts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Milliseconds of a prompt in pieces."""
    context.cut(BATCH)  # unmeasured
    for rows in counts:
        yield f"{PROMPT} of a prompt, {rows} at once", context.cut(rows)


def whole(context: Context, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Tokens a second of every load."""
    for streams, prompt in itertools.product(options.streams, options.prompts):
        figures = context.generate(streams=streams, prompt=prompt, tokens=options.tokens)
        for unit, value in figures.items():
            yield f"{streams} x {prompt}, {unit}", value


def compared(by_name: dict[str, list[float]]) -> Iterator[str]:
    """The median of each, and its ratio to the first."""
    medians = [statistics.median(values) for values in by_name.values()]
    yield f"{medians[0]:,.1f}"
    for value in medians[1:]:
        yield f"{value:,.1f} ({value / medians[0]:.2f})"


def measured_by(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the arguments that say how to measure."""
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="time the CPU's work, not the clock's: for a busy machine, 1 thread",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every round")
    return parser.parse_args()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["smollm2-135m"], help="names, or GGUF files")
    parser.add_argument("--kv", nargs="+", choices=["per-slot", "unified"], default=["per-slot"])
    parser.add_argument("--flash", nargs="+", choices=list(FLASH), default=["off"])
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument(
        "--rows", nargs="*", type=int, metavar="N", help=f"milliseconds of single steps, of {ROWS} rows"
    )
    steps.add_argument(
        "--cuts", nargs="*", type=int, metavar="N", help=f"milliseconds of a prompt, {CUTS} rows at once"
    )
    parser.add_argument("--depth", type=int, default=500, help="tokens that each slot holds in these steps")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--prompts", nargs="+", type=int, default=[64, 512], help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens to write in each stream")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--room", type=int, default=1024, help="tokens that a slot has room for")
    return measured_by(parser)


def main() -> None:
    """Measure every setting, print a table."""
    options = arguments()
    settings = [Setting(*each) for each in itertools.product(options.models, options.kv, options.flash)]
    found = contexts(settings, slots=options.slots, room=options.room, threads=options.threads)
    for context in found.values():
        context.clock = time.thread_time if options.cpu_time else time.perf_counter
        if options.rows is not None:
            context.deepen(options.depth)
    figures = partial(whole, options=options)
    if options.rows is not None:
        figures = partial(single, counts=options.rows or ROWS)
    elif options.cuts is not None:
        figures = partial(cuts, counts=options.cuts or CUTS)
    results = measure(found, figures, rounds=options.rounds)
    for context in found.values():
        context.close()
    print(machine("llama-cpp-python"))
    print(f"{options.threads} threads, medians of {options.rounds} rounds\n")
    title = "streams x prompt" if options.rows is options.cuts is None else "ms"
    print(table([title, *found], [[what, *compared(by_name)] for what, by_name in results.items()]))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
