"""Every law accepts a rule that has it and shows a rule that does not, in numbers and in a prompt."""

import contextlib
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill.axioms import AXIOMS, O1, O2, B, C, D, E, M, N, S, U, X, evidence_distance


def softmax(evidence):
    return torch.log_softmax(evidence, -1)


def tilted(evidence, severity):
    return torch.log_softmax(evidence + severity[:, None] * torch.arange(evidence.shape[-1]), -1)


def first_of_the_best(evidence):
    return torch.nn.functional.one_hot(evidence.argmax(-1), evidence.shape[-1]).double().log()


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


EVIDENCE = rows([0.0, 1.0, -2.0], [3.0, 3.0, 3.0], [50.0, 0.0, 0.0])


def test_every_law_says_what_it_is():
    assert list(AXIOMS) == ["N", "B", "C", "O1", "O2", "E", "M", "U", "X", "S", "D"]
    assert {name for name, axiom in AXIOMS.items() if axiom.required} == {"N", "B", "C", "O1", "O2"}
    for axiom in AXIOMS.values():
        assert axiom.words.endswith(".")
        assert axiom.formula
        assert axiom.source


HOLDS = {
    "N": (N, softmax, {"evidence": EVIDENCE}),
    "B": (B, softmax, {"evidence": EVIDENCE, "range": 50.0}),
    "C": (C, softmax, {"first": EVIDENCE, "second": EVIDENCE + rows([0.1, 0.2, -0.3]), "modulus": 1.0}),
    "O1": (O1, tilted, {"evidence": EVIDENCE[:2], "severity": rows(3.0, 1.0), "sigma": [0, 1, 2], "critical": 1.0}),
    "O2": (O2, tilted, {"evidence": EVIDENCE, "low": rows(0, 0, 0), "high": rows(1, 1, 1), "sigma": [0, 1, 2]}),
    "E": (E, softmax, {"evidence": EVIDENCE, "order": [2, 0, 1]}),
    "M": (M, softmax, {"evidence": EVIDENCE, "teacher": torch.tensor([0, 1, 2]), "rise": rows(1, 1, 1)}),
    "U": (U, softmax, {"evidence": EVIDENCE}),
    "X": (X, softmax, {"evidence": EVIDENCE, "shift": rows(1, -5, 100)}),
    "S": (S, softmax, {"evidence": EVIDENCE[None], "other": EVIDENCE[None] + 1, "scale": "token"}),
    "D": (
        D,
        lambda e: torch.nn.functional.one_hot(e.argmax(-1), e.shape[-1]).log(),
        {"evidence": EVIDENCE, "clone": 1},
    ),
}
FAILS = {
    "N": (N, lambda e: softmax(e) + 1e-4, {"evidence": EVIDENCE}),
    "B": (B, softmax, {"evidence": EVIDENCE, "range": 49.0}),
    "C": (C, lambda e: softmax(2 * e), {"first": EVIDENCE, "second": EVIDENCE + rows([0.1, 0, 0]), "modulus": 1.9}),
    "O1": (O1, tilted, {"evidence": EVIDENCE, "severity": rows(1, 1, 1), "sigma": [0, 1, 2], "critical": 1.0}),
    "O2": (
        O2,
        lambda e, s: tilted(e, -s),
        {"evidence": EVIDENCE, "low": rows(0, 0, 0), "high": rows(1, 1, 1), "sigma": [0, 1, 2]},
    ),
    "E": (E, lambda e: softmax(e + torch.arange(3)), {"evidence": EVIDENCE, "order": [2, 0, 1]}),
    "M": (M, lambda e: softmax(-e), {"evidence": EVIDENCE, "teacher": torch.tensor([0, 1, 2]), "rise": rows(1, 1, 1)}),
    "U": (U, lambda e: softmax(e + torch.arange(3)), {"evidence": EVIDENCE}),
    "X": (X, lambda e: softmax(e.clamp(0, 1)), {"evidence": EVIDENCE, "shift": rows(1, -5, 100)}),
    "S": (
        S,
        lambda e: softmax(e.mean(0).expand_as(e)),
        {"evidence": EVIDENCE[None], "other": EVIDENCE[None] + 1, "scale": "token"},
    ),
    "D": (D, softmax, {"evidence": EVIDENCE, "clone": 1}),
}


@pytest.mark.parametrize("name", AXIOMS)
def test_a_rule_that_has_the_law_has_no_witness(name):
    law, rule, inputs = HOLDS[name]
    assert law(rule, **inputs) is None


@pytest.mark.parametrize("name", AXIOMS)
def test_a_rule_that_breaks_the_law_is_shown_where_with_lines_that_fail_again_in_a_prompt(name):
    law, rule, inputs = FAILS[name]
    witness = law(rule, **inputs)
    assert witness is not None
    assert witness.axiom == name
    assert witness.gap > 0
    assert witness.says
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(witness.reproduce, {"rule": rule})
    assert printed.getvalue().strip() == str(witness)


def test_a_witness_fails_without_the_rows_it_was_found_among():
    def only_in_company(evidence):
        return softmax(evidence) + (0.1 if len(evidence) > 1 else 0.0)

    assert N(only_in_company, evidence=EVIDENCE) is None


def test_not_a_number_breaks_normalisation():
    witness = N(lambda e: e / 0.0, evidence=rows([0.0, 1.0]))
    assert witness is not None
    assert witness.gap == math.inf


def test_a_vanished_weight_has_no_range():
    assert B(lambda e: softmax(e).masked_fill(e < 0, -math.inf), evidence=EVIDENCE[:1], range=1e9) is not None


def test_a_masked_teacher_is_not_counted_against_the_range():
    masked = rows([0.0, -math.inf, 1.0])
    assert B(softmax, evidence=masked, range=1.0) is None


def test_context_weights_may_not_read_their_own_token():
    def before(evidence):  # cumulated evidence of earlier positions
        return softmax(evidence.cumsum(0) - evidence)

    inputs = {"evidence": EVIDENCE[None], "other": EVIDENCE[None] + rows([1.0, 2.0, 3.0])}
    assert S(before, **inputs, scale="context") is None
    assert S(lambda e: softmax(e.cumsum(0)), **inputs, scale="context") is not None
    assert S(lambda e: softmax(e.cumsum(0)), **inputs, scale="causal") is None
    assert S(lambda e: softmax(e.flip(0).cumsum(0)), **inputs, scale="causal") is not None


def test_task_weights_are_constant_within_a_task():
    inputs = {"evidence": EVIDENCE[None], "other": EVIDENCE[None], "scale": "task", "task": [0, 1, 0]}
    table = softmax(rows([0.0, 1.0, 2.0], [5.0, 0.0, 0.0]))
    assert S(lambda e: table[[0, 1, 0]], **inputs) is None
    assert S(softmax, **inputs) is not None


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale must be one of token, causal, context, task, got 'word'"):
        S(softmax, evidence=EVIDENCE[None], other=EVIDENCE[None], scale="word")


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_evidence_distance_ignores_a_common_shift_and_adds_up_over_channels(seed, teachers):
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 3, 2, teachers, generator=generator, dtype=torch.float64)
    shift = torch.randn(3, 2, 1, generator=generator, dtype=torch.float64)
    distance = evidence_distance(first, second, (2.0, 0.5))
    torch.testing.assert_close(distance, evidence_distance(first + shift, second, (2.0, 0.5)))
    by_hand = 2.0 * evidence_distance(first[:, 0], second[:, 0]) + 0.5 * evidence_distance(first[:, 1], second[:, 1])
    torch.testing.assert_close(distance, by_hand)


def test_errors_at_every_token_of_a_prefix_count_by_the_sustained_modulus_when_that_is_less():
    first = torch.zeros(1, 4, 2, dtype=torch.float64)
    second = first + rows([1.0, 0.0])
    assert evidence_distance(first, second, 1.0, prefix=3, sustained=1.5).item() == pytest.approx(1.5 + 1.0)
    assert evidence_distance(first, second, 1.0, prefix=3, sustained=9.0).item() == pytest.approx(3.0 + 1.0)
