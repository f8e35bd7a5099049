"""The batched projection equals an independent solver of the KL problem."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from polydistill.safety import Ordered


def solve(w: np.ndarray, sigma: np.ndarray, low: float, high: float) -> np.ndarray:
    """`argmin KL(v || w)` over ordered weights within bounds, by SLSQP in the variables v."""
    teachers = len(w)
    pairs = [(i, j) for i in range(teachers) for j in range(teachers) if sigma[i] > sigma[j]]
    order = np.zeros((len(pairs), teachers))
    for row, (i, j) in enumerate(pairs):
        order[row, i], order[row, j] = 1.0, -1.0
    constraints = [{"type": "eq", "fun": lambda v: v.sum() - 1.0, "jac": lambda v: np.ones_like(v)}]
    if pairs:
        constraints.append({"type": "ineq", "fun": lambda v: order @ v, "jac": lambda v: order})
    best = minimize(
        lambda v: float((v * (np.log(v) - np.log(w))).sum()),
        np.full(teachers, 1.0 / teachers),
        jac=lambda v: np.log(v) - np.log(w) + 1.0,
        bounds=[(low, high)] * teachers,
        constraints=constraints,
        method="SLSQP",
        options={"ftol": 1e-16, "maxiter": 500},
    )
    return best.x


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("cases", [200, pytest.param(4000, marks=pytest.mark.long)])
def test_order_and_bounds_together_are_the_kl_projection(cases):
    rng = np.random.default_rng(cases)
    worst, divergence = 0.0, 0.0
    for _ in range(cases):
        teachers = int(rng.integers(2, 7))
        names = tuple("abcdefg"[:teachers])
        sigma = rng.integers(0, 4, teachers).astype(float)
        low = float(rng.uniform(0.005, 0.9 / teachers))
        high = float(rng.uniform(min(1.0, 1.1 / teachers), 1.0))
        raw = torch.tensor(rng.normal(scale=1.5, size=teachers)).log_softmax(-1)
        ours = Ordered(dict(zip(names, sigma, strict=True)), low=low, high=high).bind(names)
        v = ours.enforce(raw[None], torch.ones(1, dtype=torch.float64))[0].exp().numpy()
        w = raw.exp().numpy()
        truth = solve(w, sigma, low, high)
        worst = max(worst, float(np.abs(v - truth).max()))
        gap = (v * (np.log(v) - np.log(w))).sum() - (truth * (np.log(truth) - np.log(w))).sum()
        divergence = max(divergence, float(gap))
    assert worst < 1e-7, worst
    assert divergence < 1e-12, "the solver found something nearer"


def test_projection_is_batched_and_commutes_with_permuting_teachers():
    torch.manual_seed(1)
    log_w = torch.randn(500, 5, dtype=torch.float64).log_softmax(-1)
    severity = torch.rand(500, dtype=torch.float64)
    scores = {"a": 0.0, "b": 2.0, "c": 1.0, "d": 1.0, "e": 0.0}
    order = Ordered(scores, low=0.02, high=0.7).bind(tuple("abcde"))
    together = order.enforce(log_w, severity)
    for row in range(0, 500, 50):
        alone = order.enforce(log_w[row : row + 1], severity[row : row + 1])
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-12, rtol=0)
    turned = Ordered(scores, low=0.02, high=0.7).bind(tuple("edcba"))
    torch.testing.assert_close(turned.enforce(log_w.flip(-1), severity).flip(-1), together, atol=1e-12, rtol=0)
    assert ((together.exp() >= 0.02 - 1e-12) & (together.exp() <= 0.7 + 1e-12)).all()
