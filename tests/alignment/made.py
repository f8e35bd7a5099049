"""Tokenizers of every kind, trained on the spot."""

import functools
import json

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "the sum of two and three is five",
    "def add(a, b): return a + b",
    "there they then than that thing think things",
    "a list keeps its order and a set does not, 1234 times 56 is 69104",
    "for item in things:\n    print(item)\n",
    "naïve café, 日本語のテキスト, 😀🎉 e\u0301",
    "an exception that nobody catches ends the program",
) * 3

SPECIAL = ["<pad>", "<s>", "</s>"]


def wrapped(raw: Tokenizer, special: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    names = special or {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


@functools.cache
def byte_level(size: int = 330, text: tuple[str, ...] = TEXT, prefix: bool = False) -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=prefix), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        text,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return wrapped(raw)


@functools.cache
def tiktoken_like(size: int = 320) -> PreTrainedTokenizerFast:
    """Split by a pattern that takes three digits at a time, then byte-level without one of its own."""
    raw = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return wrapped(raw)


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@functools.cache
def sentencepiece_bpe(size: int = 340) -> PreTrainedTokenizerFast:
    """As Llama 2 and Gemma: a space is a letter, what is not known is bytes."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<unk>", *SPECIAL, *BYTES], limit_alphabet=40, show_progress=False
    )
    raw.train_from_iterator(TEXT, trainer)
    return _bytes_are_text(raw)


@functools.cache
def unigram(size: int = 330) -> PreTrainedTokenizerFast:
    """As T5: pieces of the likeliest cut, with bytes."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>", *SPECIAL], show_progress=False
    )
    raw.train_from_iterator([line for line in TEXT if line.isascii()], trainer)
    told = json.loads(raw.to_str())
    told["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
    told["model"]["byte_fallback"] = True
    raw = Tokenizer.from_str(json.dumps(told))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return wrapped(raw)


def _bytes_are_text(raw: Tokenizer) -> PreTrainedTokenizerFast:
    """Bytes were told to the trainer as special tokens, which they are not."""
    told = json.loads(raw.to_str())
    told["added_tokens"] = [one for one in told["added_tokens"] if not one["content"].startswith("<0x")]
    return wrapped(Tokenizer.from_str(json.dumps(told)))


@functools.cache
def word_level() -> PreTrainedTokenizerFast:
    """Every character is a word."""
    letters = [chr(i) for i in range(32, 127)] + ["\n", "é", "ï"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", *SPECIAL, *letters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    return wrapped(raw)


KINDS = {
    "byte-level BPE": byte_level,
    "tiktoken-like": tiktoken_like,
    "SentencePiece BPE": sentencepiece_bpe,
    "Unigram": unigram,
    "WordLevel": word_level,
}
