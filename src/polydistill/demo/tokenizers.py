"""Tokenizers for teachers that do not share the student's: one of another kind and size for every domain."""

import json
from collections.abc import Callable, Mapping, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from polydistill.demo.corpus import Corpus

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
MARK = "\u2581"


def own_tokenizers(corpus: Corpus) -> Mapping[str, PreTrainedTokenizerFast]:
    """By domain; each is learned from the teachers' split of all of them, twice from its own."""
    texts = [(domain, document.text) for domain, all_ in corpus.documents["teacher"].items() for document in all_]
    return {
        domain: train([text for _, text in texts] + [text for of, text in texts if of == domain], SIZES[domain])
        for domain, train in KINDS.items()
    }


def byte_level(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE that joins up to three digits and runs of spaces, as the tiktoken family."""
    raw = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
        ),
    )
    return _wrapped(raw)


def unigram(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """The likeliest cut into pieces, with bytes for what is not known, as T5."""
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    special = [UNKNOWN, BEGIN, END]
    plain = [line for text in texts for line in text.split("\n") if line.isascii()]
    raw.train_from_iterator(
        plain,
        trainers.UnigramTrainer(vocab_size=size - 256, unk_token=UNKNOWN, special_tokens=special, show_progress=False),
    )
    told = json.loads(raw.to_str())
    told["model"]["vocab"] += [[byte, -20.0] for byte in BYTES]
    told["model"]["byte_fallback"] = True
    raw = Tokenizer.from_str(json.dumps(told))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return _wrapped(raw)


def sentencepiece_bpe(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """BPE in which a space is a letter, with bytes for what is not known, as Llama 2 and Gemma."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token=UNKNOWN, fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", MARK)
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\d|" + MARK + r"?[^\n\d" + MARK + "]+"), "isolated")
    raw.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()])
    special = [UNKNOWN, BEGIN, END]
    raw.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size, special_tokens=[*special, *BYTES], limit_alphabet=100, show_progress=False
        ),
    )
    told = json.loads(raw.to_str())  # the trainer was told bytes as special tokens, which they are not
    told["added_tokens"] = [one for one in told["added_tokens"] if one["content"] in special]
    return _wrapped(Tokenizer.from_str(json.dumps(told)))


KINDS: Mapping[str, Callable[[Sequence[str], int], PreTrainedTokenizerFast]] = {
    "code": byte_level,
    "prose": unigram,
    "arithmetic": sentencepiece_bpe,
}
"""Domain -> how its teacher's tokenizer is trained."""

SIZES: Mapping[str, int] = {"code": 3072, "prose": 4096, "arithmetic": 3072}
"""Domain -> entries. Fewer of the Unigram one's would leave it more words that it begins with a lone space."""


def _wrapped(raw: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=END,
        clean_up_tokenization_spaces=False,
    )
