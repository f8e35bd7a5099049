"""Models with random weights, which cost what trained ones cost, and a tokenizer with a word for every id."""

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def llama(seed: int, vocabulary: int, width: int, layers: int, heads: int, **more: Any) -> LlamaForCausalLM:
    """A Llama; its inner width is four times the width, unless it is told."""
    torch.manual_seed(seed)
    shape = {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width} | more
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, num_attention_heads=heads, num_key_value_heads=heads, **shape)
    )


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word for every id."""
    words = Tokenizer(models.WordLevel({f"t{i}": i for i in range(vocabulary)}, unk_token="t0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="t1", pad_token="t2", unk_token="t0")
