"""Tiny random mmproj files that fit the tiny Llama, one for each way in which models see; and images."""

import base64
import io
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from PIL import Image

from .tiny import hash_of

WIDTH, LAYERS, HEADS, INNER, PATCH = 32, 2, 2, 64, 4
# llava reads 64 rows an image; idefics3 4 an overview and a slice, 16 pixels a side; gemma3 at once;
# qwen2vl as many as the image has, with positions in two dimensions
SIDES = {"mlp": 32, "idefics3": 16, "gemma3": 32, "qwen2vl_merger": 32}


def write_mmproj(path: Path, *, projector: str = "mlp", width: int = 64, seed: int = 0) -> Path:
    """Write a random vision encoder of two layers for a text model of `width`."""
    side = SIDES[projector]
    writer = gguf.GGUFWriter(str(path), "clip")
    writer.add_type("mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", projector)
    writer.add_bool("clip.use_gelu", True)
    for name, value in {
        "image_size": side,
        "patch_size": PATCH,
        "embedding_length": WIDTH,
        "feed_forward_length": INNER,
        "block_count": LAYERS,
        "projection_dim": width,
        "attention.head_count": HEADS,
        "projector.scale_factor": 2,
        "preproc_image_size": 2 * side,
    }.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-5)
    writer.add_array("clip.vision.image_mean", [0.5, 0.5, 0.5])
    writer.add_array("clip.vision.image_std", [0.5, 0.5, 0.5])
    shapes = _encoder((side // PATCH) ** 2) | _projector(projector, width)
    for name, shape in shapes.items():
        writer.add_tensor(name, _weights(name, shape, seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _encoder(patches: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "v.patch_embd.weight": (WIDTH, 3, PATCH, PATCH),
        "v.position_embd.weight": (patches, WIDTH),
        "v.post_ln.weight": (WIDTH,),
        "v.post_ln.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        for name, shape in {
            "ln1": (WIDTH,),
            "ln2": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (WIDTH, WIDTH),
            "attn_v": (WIDTH, WIDTH),
            "attn_out": (WIDTH, WIDTH),
            "ffn_up": (INNER, WIDTH),
            "ffn_down": (WIDTH, INNER),
        }.items():
            shapes[f"v.blk.{layer}.{name}.weight"] = shape
            shapes[f"v.blk.{layer}.{name}.bias"] = shape[:1]
    return shapes


def _projector(projector: str, width: int) -> dict[str, tuple[int, ...]]:
    if projector == "idefics3":
        return {"mm.model.fc.weight": (width, 4 * WIDTH)}
    if projector == "gemma3":
        return {"mm.input_projection.weight": (WIDTH, width), "mm.soft_emb_norm.weight": (WIDTH,)}
    merged = {"mlp": WIDTH, "qwen2vl_merger": 4 * WIDTH}[projector]
    shapes: dict[str, tuple[int, ...]] = {
        "mm.0.weight": (INNER, merged),
        "mm.0.bias": (INNER,),
        "mm.2.weight": (width, INNER),
        "mm.2.bias": (width,),
    }
    if projector == "qwen2vl_merger":
        shapes["v.patch_embd.weight.1"] = (WIDTH, 3, PATCH, PATCH)
    return shapes


def _weights(name: str, shape: tuple[int, ...], seed: int) -> Any:
    if len(shape) == 1:
        return np.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=np.float32)
    generator = np.random.default_rng(hash_of(name) + sum(name.encode()) + seed)
    return (generator.standard_normal(shape) * 0.15).astype(np.float32)


def image_file(colour: str, *, size: tuple[int, int] = (40, 30), kind: str = "PNG", **more: Any) -> bytes:
    """The bytes of an image file in one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **more)
    return file.getvalue()


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes) -> dict[str, Any]:
    """A part of a message's content, as OpenAI's clients send it."""
    return {"type": "image_url", "image_url": {"url": data_url(data)}}
