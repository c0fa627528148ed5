"""A random LoRA adapter for the tiny Llama, as GGUF."""

from pathlib import Path

import gguf
import numpy as np


def write_adapter(path: Path, *, width: int = 64, rank: int = 4, seed: int = 0) -> Path:
    """Write an adapter of the query projections; a `width` other than 64 fits no tiny Llama."""
    source = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 16.0)
    for layer in range(2):
        for part, shape in (("lora_a", (rank, width)), ("lora_b", (width, rank))):
            values = source.standard_normal(shape).astype(np.float32)
            writer.add_tensor(f"blk.{layer}.attn_q.weight.{part}", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
