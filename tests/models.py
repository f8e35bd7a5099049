"""Tiny models and a tokenizer, made on the spot: nothing is downloaded."""

import functools
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' }}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ '<|user|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

SENTENCES = (
    "the sum of two and three is five",
    "def add(a, b): return a + b",
    "a list keeps its order and a set does not",
    "seven times eight is fifty six",
    "for item in things: print(item)",
    "an exception that nobody catches ends the program",
    "nine minus four leaves five",
    "return None if not values else max(values)",
)


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens with a chat template that marks what the assistant says."""
    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(SENTENCES, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    made.chat_template = CHAT_TEMPLATE
    return made


def llama(
    seed: int = 0,
    *,
    width: int = 32,
    layers: int = 1,
    rows: int | None = None,
    tied: bool = False,
    dropout: float = 0.0,
) -> LlamaForCausalLM:
    """A Llama with the vocabulary of `tokenizer()`; `rows` pads its embedding matrices."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows or len(tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        attention_dropout=dropout,
        pad_token_id=tokenizer().pad_token_id,
        eos_token_id=tokenizer().eos_token_id,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def saved(folder: Path, seed: int = 0, **options) -> Path:
    """A `llama` and the tokenizer in a folder."""
    llama(seed, **options).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


SMALL = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Arguments of trl for a small run: no logging to anywhere, no accelerator."""


def saved_all(folder: Path, *names: str, **options) -> None:
    """A `saved` model of each name, from seeds 0, 1, ..."""
    for seed, name in enumerate(names):
        saved(folder / name, seed, **options)


def written(path: Path, rows: Iterable[dict]) -> Path:
    """Rows as JSON, one a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(n: int = 16) -> Dataset:
    """Language modelling: documents of different lengths, with task, severity and named teacher."""
    return Dataset.from_dict(
        {
            "text": [" ".join(SENTENCES[: 1 + i % 4]) + f" {i}" for i in range(n)],
            "task": ["code" if i % 2 else "maths" for i in range(n)],
            "severity": [(i % 5) / 4 for i in range(n)],
            "teacher_id": ["b" if i % 3 else "a" for i in range(n)],
        }
    )


def conversations(n: int = 16) -> Dataset:
    """Messages: one question, one answer."""
    return Dataset.from_dict(
        {
            "messages": [
                [
                    {"role": "user", "content": f"say {i}"},
                    {"role": "assistant", "content": SENTENCES[i % len(SENTENCES)]},
                ]
                for i in range(n)
            ]
        }
    )


def completions(n: int = 16) -> Dataset:
    """Prompt and completion."""
    return Dataset.from_dict(
        {
            "prompt": [f"question {i}: " for i in range(n)],
            "completion": [SENTENCES[i % len(SENTENCES)] for i in range(n)],
        }
    )
