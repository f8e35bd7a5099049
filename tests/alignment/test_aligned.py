import pytest
import torch
from enumerable import Enumerated, bpe, positions, unigram


def apart(p, q):
    return float((p - q).abs().sum() / 2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_bound_holds_at_every_position_of_random_byte_pair_encodings(seed):
    teacher = Enumerated(bpe(seed, 3), bpe(seed + 100, 3), seed)
    found = list(positions(teacher, 12))
    for ids, truth, q, error in found:
        assert apart(truth, q) <= error + 1e-5, (ids, truth, q)
        assert float(q.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_equal_tokenizers_are_exact_and_their_bound_is_0():
    for seed in range(3):
        for _, truth, q, error in positions(Enumerated(bpe(seed, 3), bpe(seed, 3), seed)):
            assert error < 1e-6
            assert apart(truth, q) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [(bpe, unigram), (unigram, bpe), (unigram, unigram)])
def test_with_unigrams_the_bound_holds_as_well(first, second):
    """A cut into the likeliest pieces hangs on text further away: what may stray is part of the bound."""
    for seed in (1, 3):
        for ids, truth, q, error in positions(Enumerated(first(seed, 3), second(seed + 100, 3), seed), 12):
            assert apart(truth, q) <= error + 1e-5, (ids, truth, q)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "seed"), [(bpe, bpe, 0), (bpe, bpe, 1), (unigram, bpe, 1), (bpe, unigram, 3)]
)
def test_running_the_teacher_further_lowers_the_bound_which_still_holds(first, second, seed):
    teacher = Enumerated(first(seed, 3), second(seed + 100, 3), seed)
    before = [error for _, _, _, error in positions(teacher, 6)]
    for most, share in ((2, 0.8), (32, 0.8)):
        found = list(positions(teacher, 6, most))
        for ids, truth, q, error in found:
            assert apart(truth, q) <= error + 1e-5, (ids, truth, q)
        assert sum(error for _, _, _, error in found) < share * sum(before)
    if second is bpe:  # all of it was looked behind
        assert sum(error for _, _, _, error in found) < 0.05 * sum(before)


@pytest.mark.parametrize("student", [bpe(101, 3), bpe(102, 4), bpe(1, 3), unigram(5, 3)])
def test_evidence_adds_up_to_the_teachers_log_likelihood_whatever_the_students_tokenizer(student):
    teacher = Enumerated(bpe(1, 3), student, 1)
    bos, eos = teacher.pair.same[teacher.bos], teacher.pair.same[teacher.eos]
    for tokens, mass in list(teacher.texts().items())[:10]:
        ids = [bos, *(teacher.student.read(teacher.text(tokens))[0] if tokens else []), eos]
        aligned, log_mass, told = teacher.aligned(ids)
        inside = sum(float(log_mass[i + 1] - log_mass[i]) for i in range(len(ids) - 2))
        assert inside + float(told[len(ids) - 2]) == pytest.approx(float(torch.tensor(mass).log()), abs=1e-6)
        assert len(aligned) == len(ids)


@pytest.mark.parametrize("most", [0, 4])
@pytest.mark.parametrize(
    ("first", "second", "seed"), [(bpe, bpe, 0), (bpe, bpe, 1), (unigram, bpe, 1), (bpe, unigram, 3)]
)
def test_what_is_not_asked_about_is_in_the_bound(monkeypatch, first, second, seed, most):
    """Which must not hang on what was asked for other texts: all of it, or nothing."""

    def teacher():
        return Enumerated(first(seed, 3), second(seed + 100, 3), seed)

    knows = teacher()
    least = sum(error for *_, error in positions(knows, 6, most))
    for module in ("aligned", "branches"):
        monkeypatch.setattr(f"polydistill.alignment.{module}.NEGLIGIBLE", 0.2)
    found = list(positions(teacher(), 6, most))
    assert sum(error for *_, error in found) > least + 1e-3
    for (ids, truth, q, error), (_, _, other, same) in zip(found, positions(knows, 6, most), strict=True):
        assert apart(truth, q) <= error + 1e-5, (ids, truth, q)
        assert torch.equal(q, other)
        assert error == same


def test_of_too_many_tokens_one_may_follow(monkeypatch):
    monkeypatch.setattr("polydistill.alignment.reader.LARGE", 0)
    monkeypatch.setattr("polydistill.alignment.reader.TRIED", 0)
    for ids, truth, q, error in positions(Enumerated(bpe(0, 3), bpe(100, 3), 0), 12):
        assert apart(truth, q) <= error + 1e-5, (ids, truth, q)


@pytest.mark.parametrize("most", [0, 4])
def test_one_position_at_a_time_is_all_of_them_at_once(monkeypatch, most):
    """As where a teacher's vocabulary is so large that distributions of one position fill the room."""
    together = list(positions(Enumerated(bpe(1, 3), bpe(101, 3), 1), 6, most))
    for module in ("aligned", "likelihood"):
        monkeypatch.setattr(f"polydistill.alignment.{module}.KEPT", 1)
    apart = list(positions(Enumerated(bpe(1, 3), bpe(101, 3), 1), 6, most))
    for (_, _, q, error), (_, _, other, same) in zip(together, apart, strict=True):
        assert torch.allclose(q, other, atol=1e-6)
        assert error == pytest.approx(same, abs=1e-6)


def test_answers_that_were_forgotten_are_found_again(monkeypatch):
    kept = list(positions(Enumerated(bpe(2, 3), unigram(5, 3), 2), 6, 2))
    monkeypatch.setattr("polydistill.alignment.reader.MEMO", 2)
    for (_, _, q, error), (_, _, other, same) in zip(
        kept, positions(Enumerated(bpe(2, 3), unigram(5, 3), 2), 6, 2), strict=True
    ):
        assert torch.equal(q, other)
        assert error == same
