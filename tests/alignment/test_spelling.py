import made
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from polydistill.alignment import NoBytesError, Spelling

SPELLED = {name: Spelling(kind()) for name, kind in made.KINDS.items()}
PRINTABLE = st.text([chr(i) for i in range(32, 127)] + ["\n", "é"])
ODD = ["😀🎉", "e\u0301", "a\r\nb", "a\x00b", " a", "a ", "\u2581", "日本"]
ODD += ["👩\u200d👩", "\u00a0", "123456", "", "<s>", "<0x41>"]


def gives_back(spelling, text):
    ids, lead = spelling.read(text)
    return spelling.join(ids) == b" " * lead + text.encode()


@pytest.mark.parametrize("name", SPELLED)
def test_bytes_of_the_tokens_are_the_bytes_of_the_text(name):
    spelling = SPELLED[name]

    @settings(max_examples=300, deadline=None)
    @given(PRINTABLE if name.startswith("Word") else st.text())
    def told(text):
        if not text:
            return
        if not name.startswith(("byte", "tik")) and "\u2581" in text:
            return  # SentencePiece itself cannot tell it from a space
        assert gives_back(spelling, text)

    told()


@pytest.mark.parametrize("name", ["byte-level BPE", "tiktoken-like", "SentencePiece BPE", "Unigram"])
@pytest.mark.parametrize("text", ODD)
def test_odd_text_is_read_back_whole_and_in_pieces(name, text):
    spelling = SPELLED[name]
    if not text or ("\u2581" in text and not spelling.is_byte_level):
        return
    if name == "Unigram" and text in ("<s>", "<0x41>"):  # its pieces hold these names, which it would write
        assert spelling.read(text) is None
        return
    assert gives_back(spelling, text)
    string = text.encode()
    cut = [string[i:j] for i in range(len(string)) for j in range(i + 1, len(string) + 1)]
    assert [spelling.join(ids) for ids in spelling.pieces(cut)] == cut


def test_special_tokens_are_no_text_and_have_roles():
    spelling = SPELLED["byte-level BPE"]
    assert spelling.special == {0: ("pad", "<pad>"), 1: ("bos", "<s>"), 2: ("eos", "</s>")}
    assert spelling.spelled[:3] == [None] * 3
    assert 2 not in spelling.read("</s>")[0]


def test_tokens_with_a_beginning_are_an_interval():
    order = SPELLED["byte-level BPE"].sorted
    for beginning in (b"", b"t", b"th", b"\xff", b"zzz"):
        low, high = order.interval(beginning)
        assert order.keys[low:high] == [key for key in order.keys if key.startswith(beginning)]
        low, high = order.longer(beginning)
        assert order.keys[low:high] == [k for k in order.keys if k.startswith(beginning) and k != beginning]


def test_a_tokenizer_that_does_not_give_text_back_is_refused_by_its_class():
    raw = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##a": 2, "b": 3, ",": 4}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with pytest.raises(NoBytesError, match=r"\(WordPiece\) marks what goes on .* can tell 'a b' and 'a  b', 'a b' and"):
        Spelling(made.wrapped(raw, {"unk_token": "[UNK]"}))
    raw = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(NoBytesError, match=r"\(WordLevel\) does not give the text .* back byte for byte"):
        Spelling(made.wrapped(raw, {"unk_token": "[UNK]"}))
