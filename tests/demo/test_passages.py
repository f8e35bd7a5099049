import pytest
import torch
from transformers import AutoTokenizer

from polydistill.demo.corpus import DOMAINS, SPLITS, Corpus, Document
from polydistill.demo.dialogues import dialogue
from polydistill.demo.passages import draw, train_tokenizer, windows

LENGTH = 16


def _invented(domain: str, split: str, number: int) -> Document:
    seed = f"{domain}{split}{number}"
    text = dialogue(seed)
    if domain == "code":
        text = "\n".join(f"def {word}(x):\n    return x" for word in text.split()[:60] if word.isidentifier())
    if domain == "prose":
        text = "\n\n".join(line.split(":")[0] + " explains what is meant by this." for line in text.splitlines())
    return Document(seed, text)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus({s: {d: tuple(_invented(d, s, n) for n in range(12)) for d in DOMAINS} for s in SPLITS})


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(corpus, 400)


@pytest.mark.parametrize("text", ["", "x = 1\n\tif  y:\n", "1024 + 17 = 1041.", "Müller, 日本 \u200b 🙂", "<|end|"])
def test_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer("31415")["input_ids"]) == 5


def test_the_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert (again.eos_token, again.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert again("a  b\n1")["input_ids"] == tokenizer("a  b\n1")["input_ids"]


def test_the_tokenizer_has_the_size_that_was_asked_for(corpus, tokenizer):
    assert len(tokenizer) == 400
    with pytest.raises(ValueError, match="at least 258"):
        train_tokenizer(corpus, 200)


def test_windows_stay_within_one_document(corpus, tokenizer):
    documents = corpus.documents["held_out"]["arithmetic"]
    rows = windows(documents, tokenizer, LENGTH)
    assert rows.shape[1] == LENGTH
    assert all(any(tokenizer.decode(row) in document.text for document in documents) for row in rows)


def test_passages_have_the_domains_that_were_asked_for(corpus, tokenizer):
    passages = draw(corpus.documents["student"], tokenizer, LENGTH, whole=4, mixed=2, seed=0)
    assert len(passages) == 4 * 3 + 2 * 6
    assert passages.ids.shape == passages.domain.shape == (24, LENGTH)
    assert (passages.ids[:, 0] == tokenizer.bos_token_id).all()
    assert int(passages.mixed.sum()) == 12
    pairs = passages.domain[passages.mixed][:, [0, -1]]
    assert all((pairs == torch.tensor(p)).all(1).sum() == 2 for p in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)])
    halves = passages.domain[passages.mixed].unflatten(1, (2, LENGTH // 2))
    assert (halves == halves[:, :, :1]).all()


def test_passages_depend_on_the_seed_and_on_nothing_else(corpus, tokenizer):
    one, same, other = (draw(corpus.documents["student"], tokenizer, LENGTH, 4, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(one.ids, same.ids)
    assert torch.equal(one.domain, same.domain)
    assert not torch.equal(one.ids, other.ids)


def test_passages_of_different_splits_share_no_text(corpus, tokenizer):
    drawn = [draw(corpus.documents[split], tokenizer, LENGTH, 6, 0, 0) for split in SPLITS]
    texts = [{tokenizer.decode(row[1:]) for row in passages.ids} for passages in drawn]
    assert not texts[0] & texts[2]


def test_too_few_windows_and_odd_lengths_are_refused(corpus, tokenizer):
    with pytest.raises(ValueError, match="ask for fewer or shorter passages"):
        draw(corpus.documents["student"], tokenizer, LENGTH, whole=10_000, mixed=0, seed=0)
    with pytest.raises(ValueError, match="length must be even"):
        draw(corpus.documents["student"], tokenizer, 15, whole=1, mixed=1, seed=0)
