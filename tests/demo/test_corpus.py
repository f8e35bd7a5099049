import ast
import re
from itertools import combinations

import pytest

from polydistill.demo.corpus import DOMAINS, SPLITS, Corpus, read_corpus, split_of
from polydistill.demo.dialogues import dialogue

SMALL = 60_000
"""Characters per domain: a fraction of a second to read."""


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus(seed=3, characters=SMALL)


@pytest.mark.slow
def test_the_same_seed_reads_the_same_corpus(corpus):
    again = read_corpus(seed=3, characters=SMALL)
    assert again == corpus
    assert again.fingerprint == corpus.fingerprint


@pytest.mark.slow
def test_another_seed_splits_and_generates_differently(corpus):
    assert read_corpus(seed=4, characters=SMALL).fingerprint != corpus.fingerprint


@pytest.mark.slow
def test_every_split_has_every_domain_within_the_budget(corpus):
    for domain in DOMAINS:
        documents = [d for split in SPLITS for d in corpus.documents[split][domain]]
        assert all(corpus.documents[split][domain] for split in SPLITS)
        assert sum(len(d.text) for d in documents) <= SMALL


def test_no_source_is_in_two_splits(corpus):
    for domain in DOMAINS:
        sources = [{d.source for d in corpus.documents[split][domain]} for split in SPLITS]
        assert all(not one & other for one, other in combinations(sources, 2))


def test_a_file_is_in_one_split_in_both_of_its_domains(corpus):
    for split in SPLITS:
        for domain in DOMAINS:
            assert {split_of(d.source, 3) for d in corpus.documents[split][domain]} == {split}


def test_no_paragraph_of_prose_is_in_two_splits(corpus):
    paragraphs = [{p for d in corpus.documents[s]["prose"] for p in d.text.split("\n\n")} for s in SPLITS]
    assert all(not one & other for one, other in combinations(paragraphs, 2))


def test_no_problem_of_a_dialogue_is_in_two_splits(corpus):
    def problems(split: str) -> set[tuple[str, str]]:
        text = "\n".join(d.text for d in corpus.documents[split]["arithmetic"])
        return {tuple(sorted(pair)) for pair in re.findall(r"(\d+) (?:plus|minus|times) (\d+)", text)}

    posed = [problems(split) for split in SPLITS]
    assert all(posed)
    assert all(not one & other for one, other in combinations(posed, 2))


def test_code_parses_and_has_neither_docstrings_nor_comments(corpus):
    whole = [d for s in SPLITS for d in corpus.documents[s]["code"] if len(d.text) < SMALL // 50]
    assert whole
    for document in whole:
        tree = ast.parse(document.text)
        assert ast.unparse(tree) == document.text
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                assert ast.get_docstring(node) is None


def test_prose_is_mostly_letters(corpus):
    for split in SPLITS:
        text = "".join(d.text for d in corpus.documents[split]["prose"])
        assert sum(c.isalpha() or c.isspace() for c in text) > 0.9 * len(text)


def test_answers_of_dialogues_are_right():
    for number in range(50):
        for left, right in re.findall(r"= (\d+ [-+] \d+) = (\d+)[.,]", dialogue(str(number))):
            a, sign, b = left.split()
            assert int(right) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


@pytest.mark.slow
def test_too_small_a_corpus_is_refused():
    with pytest.raises(ValueError, match="allow more characters"):
        read_corpus(characters=10)
