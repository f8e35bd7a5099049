"""The learned gate: bounds by construction, trained on the likelihood and not on the distillation loss."""

import math

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polydistill.axioms import B, C, E, M, U, X
from polydistill.certification import certify
from polydistill.logprobs import Positions, Statistics
from polydistill.simplex import clip_spread
from polydistill.weighting import Gate
from polydistill.weighting.signals import Entropy, LabelLikelihood, Margin

NAMES = ("a", "b", "c")


def learned(seed, size, teachers=3, bound=3.0, modulus=0.7):
    g = torch.Generator().manual_seed(seed)
    gate = Gate([Entropy(spread=6), Margin(spread=3)], bound, modulus).bind([f"t{k}" for k in range(teachers)])
    with torch.no_grad():
        gate.matrix.copy_(size * torch.randn(gate.matrix.shape, generator=g))
        gate.bias.copy_(size * torch.randn(gate.bias.shape, generator=g))
    return gate


def rule(gate):
    def of(evidence):  # [n, 2, K]
        clipped = torch.stack([clip_spread(evidence[:, 0], 6.0), clip_spread(evidence[:, 1], 3.0)], 1)
        return gate.log_weights(clipped, gate.matrix.detach().double(), gate.bias.detach().double())

    return of


@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 1e3]), st.integers(2, 6))
def test_range_and_modulus_hold_whatever_was_learned(seed, size, teachers):
    gate = learned(seed, size, teachers)
    g = torch.Generator().manual_seed(seed)
    first = 5 * torch.randn(64, 2, teachers, generator=g, dtype=torch.float64)
    second = first + torch.randn(64, 2, teachers, generator=g, dtype=torch.float64) * 10.0 ** -(seed % 4)
    assert B(rule(gate), evidence=first, range=gate.guarantee().range) is None
    assert C(rule(gate), first=first, second=second, modulus=(0.7, 0.7)) is None
    assert X(rule(gate), evidence=first, shift=torch.ones(64, 2, dtype=torch.float64)) is None


def test_the_modulus_is_attained_with_two_teachers():
    gate = learned(0, 0.0, teachers=2, bound=50.0)
    with torch.no_grad():
        gate.matrix[0] = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])
    first = torch.zeros(1, 2, 2, dtype=torch.float64)
    second = torch.tensor([[[1e-3, 0.0], [0.0, 0.0]]], dtype=torch.float64)
    assert C(rule(gate), first=first, second=second, modulus=(0.69, 0.69), tolerance=1e-9) is not None


def test_it_is_not_refuted_after_learning():
    certificate = certify(learned(1, 2.0), effort=0.05)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").tightness > 0.8


def test_it_declares_neither_equivariance_nor_monotonicity_nor_neutrality():
    gate = learned(2, 1.0)
    evidence = torch.randn(64, 2, 3, dtype=torch.float64)
    assert E(rule(gate), evidence=evidence, order=[1, 2, 0]) is not None
    assert U(rule(gate), evidence=evidence) is not None
    teacher, rise = torch.randint(3, (64,)), torch.ones(64, 2, dtype=torch.float64)
    assert M(rule(gate), evidence=evidence, teacher=teacher, rise=rise) is not None
    assert gate.laws == {"X"}


def domains(n=600):
    """Teacher 0 is right where it is sure, teacher 1 elsewhere; teacher 2 is never right and nearest to the student."""
    g = torch.Generator().manual_seed(0)
    first = torch.rand(n, generator=g) < 0.5
    entropy = torch.stack([torch.where(first, 0.5, 3.0), torch.where(first, 3.0, 0.5), torch.full((n,), 1.5)], -1)
    label = torch.stack([torch.where(first, -0.5, -6.0), torch.where(first, -6.0, -0.5), torch.full((n,), -5.0)], -1)
    gap = torch.tensor([3.0, 3.0, 0.1]).expand(n, 3)
    target = torch.zeros(n, dtype=torch.int64)
    positions = Positions.of(target, torch.ones(n, dtype=torch.bool))
    return first, Statistics(positions, label, entropy=entropy, student_gap=gap)


def trained(loss, steps=200):
    gate = Gate([Entropy(spread=6)], bound=6.0, modulus=2.0).bind(NAMES)
    optimizer = torch.optim.Adam(gate.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(gate).backward()
        optimizer.step()
    return gate


def test_trained_on_the_likelihood_it_finds_the_right_teacher():
    first, statistics = domains()
    gate = trained(lambda gate: gate.likelihood(statistics))
    best = gate(statistics)[0].argmax(-1)
    assert (best == torch.where(first, 0, 1)).float().mean() > 0.99


@pytest.mark.slow
def test_trained_on_the_distillation_loss_it_collapses_onto_the_teacher_nearest_to_the_student():
    _, statistics = domains()
    evidence = Entropy(spread=6)(statistics)[:, None]

    def distillation(gate):
        weights = gate.log_weights(evidence, gate.matrix, gate.bias).exp()
        return (weights * statistics.student_gap).sum(-1).mean()

    gate = trained(distillation)
    weights = gate(statistics)[0].exp()
    assert (weights.argmax(-1) == 2).all()
    assert weights[:, 2].mean() > 0.9
    fair = trained(lambda gate: gate.likelihood(statistics))
    assert gate.likelihood(statistics) > fair.likelihood(statistics) + 2.0


def test_its_weights_carry_no_gradient_to_its_parameters():
    statistics = cases.statistics(8, 3)
    log_w, _ = learned(0, 1.0)(statistics)
    assert not log_w.requires_grad


def test_the_likelihood_is_the_pooled_targets():
    statistics = cases.statistics(32, 3, loss_share=0.5)
    gate = learned(3, 1.0)
    log_w = gate(statistics)[0].double()
    rows = statistics.positions.has_loss
    by_hand = -(log_w.exp() * statistics.label_log_prob.exp()).sum(-1).log()[rows].mean()
    torch.testing.assert_close(gate.likelihood(statistics).double(), by_hand, rtol=1e-5, atol=1e-6)


def test_reset_forgets():
    gate = learned(4, 1.0)
    gate.reset()
    assert gate(cases.statistics(4, 3))[0].exp().allclose(torch.full((4, 3), 1 / 3, dtype=torch.float64))


def test_bad_gates_are_refused():
    with pytest.raises(ValueError, match="label likelihood reads the label that the gate is scored on"):
        Gate([LabelLikelihood()])
    with pytest.raises(ValueError, match="bound must be > 0 and finite, got inf"):
        Gate([Entropy()], bound=math.inf)
    with pytest.raises(ValueError, match="at least one signal"):
        Gate([])
    with pytest.raises(ValueError, match="no position of this chunk has loss"):
        learned(0, 1.0).likelihood(cases.statistics(4, 3, loss_share=0.0))


def test_it_learns_by_itself_whom_to_trust_and_where() -> None:
    generator = torch.Generator().manual_seed(3)

    def text(n: int) -> Statistics:
        """The first teacher is as good as it is sure; the second is always the same, and its entropy says nothing."""
        entropy = torch.rand(n, 2, generator=generator) * 3
        log_p = torch.stack([-entropy[:, 0], torch.full((n,), -1.5)], -1)
        positions = Positions.of(torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool))
        return Statistics(positions, log_p, entropy=entropy)

    gate, held_out = Gate([Entropy(4.0)], rate=3.0).bind(["sure and right", "always the same"]), text(2000)
    before = float(gate.likelihood(held_out).detach())
    for _ in range(60):
        seen = text(64)
        for half in (slice(0, 32), slice(32, 64)):
            gate.observe(seen.at(half))
        gate.commit()
    assert float(gate.likelihood(held_out).detach()) < before - 0.03
    assert float(gate.pending.abs().sum()) == 0.0
