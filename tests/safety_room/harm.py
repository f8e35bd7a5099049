"""A tiny text classifier that has really learned to tell some words, and prompts for it."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

WORDS = "the is tell me about a nice lamp kettle garden how to build bomb poison weapon please now".split()  # noqa: SIM905
BAD = {"bomb", "poison", "weapon"}


def prompts(n: int) -> list[str]:
    generator = torch.Generator().manual_seed(5)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (4,), generator=generator).tolist()) for _ in range(n)]


def write_classifier(folder: Path) -> Path:
    """A folder with a tiny BERT that gives `toxic` to texts with bad words in them."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32)
    torch.manual_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
            pad_token_id=0,
            id2label={0: "harmless", 1: "toxic"},
            label2id={"harmless": 0, "toxic": 1},
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    texts = prompts(200)
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    labels = torch.tensor([int(bool(BAD & set(text.split()))) for text in texts])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss.detach()) < 0.2
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
