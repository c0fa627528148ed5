"""BERTs as GGUF: tiny random ones that embed or rerank, and a real one out of its safetensors."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.support.tiny import hash_of

Arrays = dict[str, NDArray[Any]]
Pooling = Literal["mean", "cls", "rank"]

POOLING = {
    "mean": gguf.PoolingType.MEAN,
    "cls": gguf.PoolingType.CLS,
    "rank": gguf.PoolingType.RANK,
}
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'-"
WORDS = ["the", "cat", "sleeps", "on", "sofa", "parliament", "passed", "budget", "word", "text"]
VOCABULARY = [*SPECIALS, *LETTERS, *[f"##{letter}" for letter in LETTERS], *WORDS]

WIDTH, LAYERS, HEADS, CONTEXT = 64, 2, 4, 256

# the names of a tensor in GGUF, and in Hugging Face's BERT
NAMES = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
LAYER_NAMES = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}


def write_encoder(
    path: Path, *, pooling: Pooling | None = "mean", labels: Sequence[str] = (), headless: bool = False
) -> Path:
    """Write a random two-layer BERT that reads 256 tokens; one that ranks has a head, unless told not."""
    tensors = _random() | (head(max(1, len(labels))) if pooling == "rank" and not headless else {})
    return write_bert(path, VOCABULARY, tensors, heads=HEADS, pooling=pooling, labels=labels)


def head(outputs: int = 1) -> Arrays:
    """A classifier as BERT has it: a tanh layer over the first token, then the logits."""
    return {
        "cls.weight": _values("cls", (WIDTH, WIDTH)),
        "cls.bias": np.zeros(WIDTH, np.float32),
        "cls.output.weight": _values("cls.output", (outputs, WIDTH)),
        "cls.output.bias": np.zeros(outputs, np.float32),
    }


def convert_bert(folder: Path, path: Path) -> Path:
    """Write the BERT of a sentence-transformers folder, such as all-MiniLM-L6-v2, in 16 bits."""
    given = _safetensors(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = dict(NAMES)
    for layer in range(config["num_hidden_layers"]):
        names |= {f"blk.{layer}.{own}": f"encoder.layer.{layer}.{its}" for own, its in LAYER_NAMES.items()}
    tensors = {
        f"{own}.{kind}": given[f"{its}.{kind}"]
        for own, its in names.items()
        for kind in ("weight", "bias")
        if f"{its}.{kind}" in given
    }
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    return write_bert(path, vocabulary, tensors, heads=config["num_attention_heads"], pooling="mean")


def write_bert(
    path: Path,
    vocabulary: Sequence[str],
    tensors: Arrays,
    *,
    heads: int,
    pooling: Pooling | None,
    labels: Sequence[str] = (),
) -> Path:
    """Write a BERT; matrices as float16, all else as float32."""
    context, width = tensors["position_embd.weight"].shape
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name(path.stem)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(sum(name.endswith(".attn_q.weight") for name in tensors))
    writer.add_feed_forward_length(len(tensors["blk.0.ffn_up.weight"]))
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_token_type_count(len(tensors["token_types.weight"]))
    if pooling:
        writer.add_pooling_type(POOLING[pooling])
    if labels:
        writer.add_classifier_output_labels(labels)
    _add_word_pieces(writer, vocabulary)
    for name, values in tensors.items():
        small = values.ndim == 1 or name in ("position_embd.weight", "token_types.weight")
        writer.add_tensor(name, values.astype(np.float32 if small else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_word_pieces(writer: gguf.GGUFWriter, vocabulary: Sequence[str]) -> None:
    """A word begins with a phantom space, and what continues one with nothing."""
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    is_control = [piece.startswith("[") and piece.endswith("]") for piece in vocabulary]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    writer.add_token_list(
        [
            piece if special else piece[2:] if piece.startswith("##") else f"\u2581{piece}"
            for piece, special in zip(vocabulary, is_control, strict=True)
        ]
    )
    writer.add_token_types([control if special else normal for special in is_control])
    ids = {name: vocabulary.index(name) for name in SPECIALS}
    writer.add_pad_token_id(ids["[PAD]"])
    writer.add_unk_token_id(ids["[UNK]"])
    writer.add_bos_token_id(ids["[CLS]"])
    writer.add_sep_token_id(ids["[SEP]"])
    writer.add_mask_token_id(ids["[MASK]"])


def _random() -> Arrays:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (len(VOCABULARY), WIDTH),
        "position_embd": (CONTEXT, WIDTH),
        "token_types": (2, WIDTH),
        "token_embd_norm": (WIDTH,),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": (WIDTH, WIDTH) for name in LAYER_NAMES}
        shapes |= {f"blk.{layer}.ffn_up": (2 * WIDTH, WIDTH), f"blk.{layer}.ffn_down": (WIDTH, 2 * WIDTH)}
        shapes |= {f"blk.{layer}.{name}_output_norm": (WIDTH,) for name in ("attn", "layer")}
    tensors = {f"{name}.weight": _values(name, shape) for name, shape in shapes.items()}
    biased = [name for name in shapes if "norm" in name or name.startswith("blk.")]
    return tensors | {f"{name}.bias": np.zeros(shapes[name][0], np.float32) for name in biased}


def _values(name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if name.endswith("norm"):
        return np.ones(shape, np.float32)
    return np.random.default_rng(hash_of(name)).standard_normal(shape).astype(np.float32) * 0.2


def _safetensors(path: Path) -> Arrays:
    """The float32 tensors of a file: the length of its header, the header as JSON, then the numbers."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    found: Arrays = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if entry.get("dtype") == "F32":
            start, end = (8 + length + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[start:end], np.float32).reshape(entry["shape"])
    return found
