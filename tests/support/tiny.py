"""A tiny random Llama, written as GGUF in seconds: it knows nothing, so whatever holds for it is no luck."""

import json
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
]

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

LLAMA3_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{%- set role = 'ipython' if message.role == 'tool' else message.role %}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}
{%- if message.tool_calls %}
{%- for call in message.tool_calls %}
{{- '{"name": "' + call.function.name + '", "parameters": ' + (call.function.arguments | tojson) + '}' }}
{%- endfor %}
{%- else %}
{{- message.content }}
{%- endif %}
{{- '<|eot_id|>' }}
{%- if loop.first and tools %}
{{- 'Functions: ' + (tools | tojson) }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

TEXT = [
    "The quick brown fox jumps over the lazy dog. 0123456789",
    'What is the weather in Paris? {"name": "weather", "parameters": {"city": "Paris", "days": 3}}',
    "user assistant system ipython functions call required true false null",
]


def write_llama(
    path: Path,
    *,
    template: str | list[dict[str, str]] | None = LLAMA3_TEMPLATE,
    context: int = 4096,
    seed: int = 0,
    causal: bool = True,
    architecture: str = "llama",
    specials: Sequence[str] = (),
) -> Path:
    """Write a random two-layer Llama (vocabulary 512, width 64) with a real byte-level BPE tokenizer.

    `specials` are control tokens beside those that it has. A `qwen3` is a reranker that says yes or no.
    """
    tokens, merges = vocabulary()
    tokens += specials
    writer = gguf.GGUFWriter(str(path), architecture)
    if architecture == "qwen2vl":
        writer.add_rope_dimension_sections([2, 3, 3, 0])  # of half a head: time, height, width
    if architecture == "qwen3":
        writer.add_pooling_type(gguf.PoolingType.RANK)
        writer.add_classifier_output_labels(["yes", "no"])
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_causal_attention(causal)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in (*SPECIALS, *specials) else normal for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    writer.add_eos_token_id(tokens.index("<|eot_id|>"))
    if template is not None:
        writer.add_chat_template(template)
    for name, shape in _tensors(len(tokens), architecture).items():
        writer.add_tensor(name, _weights(name, shape, seed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vocabulary() -> tuple[list[str], list[str]]:
    """Its tokens in the order of their ids, and its merges."""
    tokenizer = byte_pairs(TEXT * 20, size=512)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    merges = merges_of(tokenizer)
    return tokens, merges


def byte_pairs(texts: list[str], *, size: int) -> Tokenizer:
    """A tokenizer of Llama 3's kind with so many tokens, trained on the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIALS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def merges_of(tokenizer: Tokenizer) -> list[str]:
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _tensors(vocabulary: int, architecture: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (vocabulary, 64),
        "output_norm.weight": (64,),
        "output.weight": (vocabulary, 64),
    }
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_norm.weight": (64,),
            f"blk.{layer}.attn_q.weight": (64, 64),
            f"blk.{layer}.attn_k.weight": (32, 64),
            f"blk.{layer}.attn_v.weight": (32, 64),
            f"blk.{layer}.attn_output.weight": (64, 64),
            f"blk.{layer}.ffn_norm.weight": (64,),
            f"blk.{layer}.ffn_gate.weight": (128, 64),
            f"blk.{layer}.ffn_up.weight": (128, 64),
            f"blk.{layer}.ffn_down.weight": (64, 128),
        }
    if architecture == "qwen3":
        norms = [f"blk.{layer}.attn_{name}_norm.weight" for layer in range(2) for name in "qk"]
        shapes |= {"cls.output.weight": (2, 64)} | dict.fromkeys(norms, (16,))
    return shapes


def _weights(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    if len(shape) == 1:
        return np.ones(shape, dtype=np.float32)
    generator = np.random.default_rng(hash_of(name) + seed)
    return (generator.standard_normal(shape) * 0.15).astype(np.float16)


def hash_of(name: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(name.encode()[-7:], "little")
