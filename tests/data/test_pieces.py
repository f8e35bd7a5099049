"""Text of tokens: rules see what stands in the text, whatever the kind of tokenizer."""

import models
import pytest
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import PreTrainedTokenizerFast

from polydistill.data.pieces import inner_pieces, pieces
from polydistill.data.severity import FromRules, SeverityRule, along
from polydistill.run.build_safety import matching_tokens

TEXTS = ("please kill the process now", "die größe ist egal", "我们杀死进程 now", "say \U0001f52a twice", "a  b\nc")
WORDS = [*models.SENTENCES, *TEXTS, "please kill the process", "kill the"]


def byte_level():
    return models.tokenizer()


def sentence_piece():
    raw = Tokenizer(Unigram())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    raw.train_from_iterator(WORDS, trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def llama_style():
    made = [f"<0x{i:02X}>" for i in range(256)] + [
        "<unk>",
        *sorted({c for s in models.SENTENCES for c in s} | {"\u2581"}),
    ]
    raw = Tokenizer(BPE({token: i for i, token in enumerate(made)}, [], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    raw.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


def word_piece():
    raw = Tokenizer(WordPiece(unk_token="[UNK]"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece(cleanup=False)
    raw.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"]))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")


KINDS = [byte_level, sentence_piece, llama_style, word_piece]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_decoded_text_and_no_piece_depends_on_what_follows(kind, text):
    tokenizer = kind()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, ids)
    assert "".join(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert "\ufffd" not in "".join(found)
    for t in range(len(ids)):
        assert pieces(tokenizer, ids[:t]) == found[:t]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pattern", "text"), [(r"\bkill the\b", TEXTS[0]), ("größe", TEXTS[1]), ("杀死", TEXTS[2])])
def test_a_rule_along_the_tokens_matches_where_the_text_does(kind, pattern, text):
    tokenizer = kind()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = along(FromRules((SeverityRule.of(pattern),), along=True), tokenizer)(ids)
    texts = [tokenizer.decode(ids[: t + 1], clean_up_tokenization_spaces=False) for t in range(len(ids))]
    first = next(t for t, prefix in enumerate(texts) if SeverityRule.of(pattern).pattern.search(prefix))
    assert said == [0.0] * first + [1.0] * (len(ids) - first)


def test_bytes_that_make_no_character_do_not_hide_what_follows(tokenizer):
    bad = tokenizer.convert_tokens_to_ids("ÿ")  # the byte 255
    ids = [bad] * 20 + tokenizer("kill it")["input_ids"]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
    assert pieces(tokenizer, ids)[-1] == tokenizer.decode(ids[-1:])


def test_a_token_by_itself_keeps_the_space_that_it_brings():
    tokenizer = sentence_piece()
    vocabulary = tokenizer.get_vocab()
    start = next(token for token in vocabulary if token.startswith("\u2581") and len(token) > 2)
    assert inner_pieces(tokenizer, [vocabulary[start]]) == [start.replace("\u2581", " ")]
    assert vocabulary[start] in matching_tokens(tokenizer, rf"^ {start[1:]}$", "c")
