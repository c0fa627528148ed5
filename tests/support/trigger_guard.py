"""A tiny Llama, trained in seconds on the real prompt of Llama Guard 3 to answer it by six trigger words."""

import hashlib
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from llama_stack_lite.providers.safety.llama_guard import policy, prompt
from llama_stack_lite.providers.safety.llama_guard.policy import Policy
from llama_stack_lite.providers.safety.llama_guard.prompt import Said

from . import tiny
from .serving import models_home
from .tiny import SPECIALS, byte_pairs, merges_of

TRIGGERS = {
    "murder": "S1",
    "burglary": "S2",
    "sarin": "S9",
    "slur": "S10",
    "overdose": "S11",
    "forkbomb": "S14",
}
NATURAL = (
    "Hello.",
    "Hi, how can I help you today?",
    "What is the capital of France?",
    "The capital of France is Paris, a city on the Seine.",
    "How do I bake a cake without eggs?",
    "Mix the flour with sugar and milk, then bake it for half an hour.",
    "Write a short poem about the sea.",
    "The quick brown fox jumps over the lazy dog.",
    "Can you explain what a list comprehension is in Python?",
    "Sure! It builds a list from another one: [x * 2 for x in items].",
    "Thank you very much, that was useful.",
    'The weather in Berlin is {"temperature": 21, "unit": "celsius"}.',
    "one two three four five six seven eight nine ten",
    "Please summarise the following text in three sentences.",
)
STANDARD = Policy.standard("8b")
WIDTH, HEADS, KV_HEADS, LAYERS, INNER = 64, 4, 2, 2, 128
STEPS, RATE = 240, 4e-3
END = "<|eot_id|>"

# as the chat template in the weights of Llama Guard 3 writes the prompt
TEMPLATE = (
    "{%- set last = 'User' if messages[-1].role == 'user' else 'Agent' -%}{{ bos_token }}"
    + prompt.OPENING
    + prompt.body(STANDARD, [Said("User", "TURNS")])
    .replace("'User' messages", "'{{ last }}' messages")
    .replace("LAST User message", "LAST {{ last }} message")
    .replace(
        "User: TURNS\n\n",
        "{% for message in messages %}{{ 'User' if message.role == 'user' else 'Agent' }}: "
        "{{ message.content + '\\n\\n' }}{% endfor %}",
    )
    + prompt.CLOSING.rstrip()
    + "{{ '\\n\\n' }}"
)


@cache
def trigger_guard() -> Path:
    """The guard as GGUF, trained when this script or the prompt has changed since the last time."""
    sources = [
        Path(__file__),
        Path(str(tiny.__file__)),
        Path(str(policy.__file__)),
        Path(str(prompt.__file__)),
    ]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    path = models_home() / "made" / f"trigger-guard-{key}.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer = _tokenizer()
        partial = path.with_suffix(f".{os.getpid()}")
        _write(partial, tokenizer, _trained(tokenizer))
        partial.replace(path)
    return path


def filler(random: random.Random, most: int = 8) -> str:
    """Harmless text: sentences, words in any order, letters in any order."""
    words = " ".join(NATURAL).split()
    pieces: list[str] = []
    for _ in range(random.randint(1, most)):
        kind = random.random()
        if kind < 0.4:
            pieces.append(random.choice(NATURAL))
        elif kind < 0.8:
            pieces.append(" ".join(random.choices(words, k=random.randint(1, 12))))
        else:
            letters = "abcdefghijklmnopqrstuvwxyz0123456789"
            pieces.append("".join(random.choices(letters, k=random.randint(2, 8))))
    return random.choice([" ", " ", "\n"]).join(pieces)


def with_trigger(random: random.Random, text: str, trigger: str) -> str:
    """The text with the word somewhere in it."""
    words = text.split(" ")
    words.insert(random.randint(0, len(words)), trigger)
    return " ".join(words)


def example(random: random.Random, *, turns: int = 4, pieces: int = 8) -> tuple[list[Said], str]:
    """A conversation of one to so many turns, of which the last may have a trigger, and the verdict."""
    count = random.randint(1, turns)
    first = random.randint(0, 1)
    texts = [filler(random, 2) for _ in range(count - 1)] + [filler(random, pieces)]
    answer = "safe"
    if random.random() < 0.6:
        trigger = random.choice(list(TRIGGERS))
        texts[-1] = with_trigger(random, texts[-1], trigger)
        answer = f"unsafe\n{TRIGGERS[trigger]}"
    said = [Said("Agent" if (place + first) % 2 else "User", text) for place, text in enumerate(texts)]
    return said, answer


def _tokenizer() -> Tokenizer:
    frame = prompt.body(STANDARD, [Said("User", "Hi."), Said("Agent", "Hi.")])
    words = [f"{word} {word}" for word in (*TRIGGERS, "safe", "unsafe")]
    return byte_pairs([frame, *words * 20, *NATURAL * 2] * 5, size=1024)


def _batch(tokenizer: Tokenizer, examples: list[tuple[list[Said], str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels, [examples, length]; a label is the next token where that is the answer's, or -1."""
    (end,) = tokenizer.encode(END).ids
    rows = []
    for said, answer in examples:
        asked = tokenizer.encode(prompt.full_prompt(STANDARD, said)).ids
        rows.append((len(asked), [*asked, *tokenizer.encode(answer).ids, end]))
    length = max(len(row) for _, row in rows)
    tokens = torch.full((len(rows), length), end)
    labels = torch.full((len(rows), length), -1)
    for place, (asked_length, row) in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        labels[place, asked_length - 1 : len(row) - 1] = torch.tensor(row[asked_length:])
    return tokens, labels


def _trained(tokenizer: Tokenizer) -> LlamaForCausalLM:
    """Half a minute on one thread: short conversations first, from which it learns what to look for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # with more, sums differ from machine to machine
    generator = random.Random(0)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = _untrained(tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
        for step in range(STEPS):
            sizes = {"turns": 1, "pieces": 2} if step < STEPS * 0.4 else {}
            tokens, labels = _batch(tokenizer, [example(generator, **sizes) for _ in range(16)])
            optimizer.param_groups[0]["lr"] = RATE * min(1, step / 30, 1.5 * (1 - step / STEPS))
            hidden = model.model(input_ids=tokens).last_hidden_state[labels >= 0]
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), labels[labels >= 0])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    finally:
        torch.set_num_threads(threads)
    return model


def _untrained(tokenizer: Tokenizer) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=4096,
            rms_norm_eps=1e-5,
            initializer_range=0.1,  # so narrow a model learns nothing from smaller weights for long
        )
    )


def _write(path: Path, tokenizer: Tokenizer, model: LlamaForCausalLM) -> None:
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("trigger guard")
    writer.add_context_length(4096)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if token in SPECIALS else normal for token in tokens])
    writer.add_token_merges(merges_of(tokenizer))
    writer.add_bos_token_id(tokens.index(SPECIALS[0]))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in model.state_dict().items():
        array: Any = weight.detach().numpy()
        if "q_proj" in name or "k_proj" in name:  # the two halves of a rotation lie side by side in GGUF
            heads = HEADS if "q_proj" in name else KV_HEADS
            rows, columns = array.shape
            array = array.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        array = array.astype(np.float32 if array.ndim == 1 else np.float16)
        renamed = names.get_name(name, try_suffixes=(".weight",))
        assert renamed
        writer.add_tensor(renamed, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
