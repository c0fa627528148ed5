"""Tiny random models in Hugging Face's layout: a Llama that writes, a BERT that embeds or reranks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from .tiny import LLAMA3_SPLIT, LLAMA3_TEMPLATE, SPECIALS, vocabulary

WORDS = (
    "a the cat sleeps on sofa parliament passed budget short text that is rather longer than other middling"
)


def llama_tokenizer(
    *, template: str | None = LLAMA3_TEMPLATE, specials: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """The tokenizer of the tiny GGUF Llama; `specials` are control tokens beside those that it has."""
    tokens, merges = vocabulary()
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    known = [AddedToken(text, special=True, normalized=False) for text in (*SPECIALS, *specials)]
    tokenizer.add_special_tokens(known)
    first = (SPECIALS[0], tokenizer.token_to_id(SPECIALS[0]))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first[0]} $A", pair=f"{first[0]} $A $B", special_tokens=[first]
    )
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    found.chat_template = template
    return found


def write_llama(
    path: Path, *, like: type[PreTrainedConfig] = LlamaConfig, seed: int = 0, **settings: Any
) -> Path:
    """Write a random two-layer Llama of width 64, or a relative of it, as `save_pretrained` writes models."""
    tokenizer = llama_tokenizer()
    config = like(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )
    save(AutoModelForCausalLM.from_config(config), path, seed=seed)
    tokenizer.save_pretrained(path)
    return path


def write_bert(path: Path, *, pooling: str | None = None, labels: int = 0, seed: int = 0) -> Path:
    """Write a random two-layer BERT of width 32: for embeddings, or with a head of so many `labels`.

    `pooling` is written as sentence-transformers writes it, such as `cls_token`.
    """
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    entries = list(dict.fromkeys([*marks, *WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]))
    config = BertConfig(
        vocab_size=len(entries),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        num_labels=labels,
    )
    save(BertForSequenceClassification(config) if labels else BertModel(config), path, seed=seed)
    BertTokenizer(
        vocab={entry: at for at, entry in enumerate(entries)}, model_max_length=256
    ).save_pretrained(path)
    if pooling:
        kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
        modules = [
            {"path": name, "type": f"sentence_transformers.models.{kind}"} for name, kind in kinds.items()
        ]
        (path / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
        (path / "1_Pooling").mkdir()
        modes = {
            f"pooling_mode_{name}": name == pooling for name in ("cls_token", "mean_tokens", "lasttoken")
        }
        (path / "1_Pooling" / "config.json").write_text(json.dumps(modes), encoding="utf-8")
    return path


def save(model: PreTrainedModel, path: Path, *, seed: int) -> None:
    """Write a model with random weights that differ enough for it to have a mind of its own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.15, generator=generator)
            elif name.endswith("gate"):
                weight.fill_(1.0)  # a new model's gates let nothing through
    model.save_pretrained(path)
