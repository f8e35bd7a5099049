import math

import pytest
import torch
from cases import head, hidden, outputs, positions

from polydistill.logprobs import Head
from polydistill.objective import (
    JSD,
    Alpha,
    DivideThenPool,
    ForwardKL,
    Mixed,
    PoolThenDivide,
    ReverseKL,
    SkewForward,
    SkewReverse,
    distil,
)

N, V, K = 6, 11, 3
PAIRS = [JSD(0.3), SkewForward(0.2), SkewReverse(0.2)]
FAMILY = [
    ForwardKL(),
    ReverseKL(),
    *[PoolThenDivide(pair=pair) for pair in PAIRS],
    *[DivideThenPool(pair=pair) for pair in PAIRS],
    Alpha(alpha=0.5),
    Alpha(alpha=-0.7),
    Alpha(alpha=1.6),
    Mixed(share=0.3),
]


def name(divergence):
    return f"{type(divergence).__name__} {getattr(getattr(divergence, 'pair', None), '__class__', type(None)).__name__}"


def definition(rule, log_p, log_q, w):
    """`[n]` divergences from the definitions, differentiable."""
    p, q = log_p.exp(), log_q.exp()
    pool = torch.einsum("nk,knv->nv", w, p)

    def pair(pair, p, q):
        if isinstance(pair, JSD):
            m = pair.beta * p + (1 - pair.beta) * q
            return (pair.beta * p * (p / m).log() + (1 - pair.beta) * q * (q / m).log()).sum(-1)
        if isinstance(pair, SkewForward):
            return (p * (p / (pair.skew * p + (1 - pair.skew) * q)).log()).sum(-1)
        return (q * (q / (pair.skew * q + (1 - pair.skew) * p)).log()).sum(-1)

    if isinstance(rule, PoolThenDivide):
        return pair(rule.pair, pool, q)
    forward = (p * (log_p - log_q)).sum(-1).T
    reverse = (q * (log_q - log_p)).sum(-1).T
    if isinstance(rule, DivideThenPool):
        each = torch.stack([pair(rule.pair, x, q) for x in p], -1)
    elif isinstance(rule, Alpha):
        a = rule.alpha
        each = (1 - (p**a * q ** (1 - a)).sum(-1).T) / (a * (1 - a))
    elif isinstance(rule, Mixed):
        each = rule.share * forward + (1 - rule.share) * reverse
    else:
        each = forward if isinstance(rule, ForwardKL) else reverse
    return (w * each).sum(-1)


def case(seed=0):
    g = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(N, V, generator=g, dtype=torch.float64)
    log_p = (2 * torch.randn(K, N, V, generator=g, dtype=torch.float64)).log_softmax(-1)
    log_w = torch.randn(N, K, generator=g, dtype=torch.float64).log_softmax(-1)
    label = torch.randint(V, (N,), generator=g)
    return z, log_p, log_w, label


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("rule", FAMILY, ids=name)
def test_value_and_gradient_are_those_of_the_definition(rule, temperature):
    rule = type(rule)(**{**rule.__dict__, "temperature": temperature, "ce": 0.25})
    z, log_p, log_w, label = case()
    z.requires_grad_()
    w = log_w.exp()
    tempered = (log_p / temperature).log_softmax(-1)
    truth = definition(rule, tempered, (z / temperature).log_softmax(-1), w)
    loss = 0.75 * truth + 0.25 * -z.log_softmax(-1).gather(1, label[:, None]).squeeze(1)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    entropy = -(tempered.exp() * tempered).sum(-1).T
    kept = rule.keep(tempered, tempered.exp()).clone()
    found = rule.evaluate(z.detach().clone(), kept, entropy, log_w, label, True)
    torch.testing.assert_close(found.divergence, truth.detach(), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("rule", FAMILY, ids=name)
def test_gradients_of_the_whole_objective_pass_gradcheck(rule):
    student = hidden(N, 4, seed=1, dtype=torch.float64).requires_grad_()
    own = head(V, 4, seed=2, dtype=torch.float64, bias=True, softcap=3.0)
    heard, where = outputs(N, V, [4, 5], dtype=torch.float64), positions(N, V)
    log_w = torch.tensor([0.3, 0.7], dtype=torch.float64).log().expand(N, 2)

    def loss(h, weight, bias):
        return distil(h, Head(weight, bias, 1.0, 3.0), heard, where, lambda s, c: (log_w, c), rule).loss

    leaves = (student, own.weight.requires_grad_(), own.bias.requires_grad_())
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.5, -0.7, 1.6])
def test_the_alpha_family_is_the_power_mean_pool_with_its_factor(alpha):
    z, log_p, log_w, label = case(1)
    log_q = z.log_softmax(-1)
    got = Alpha(alpha=alpha).evaluate(z.clone(), log_p, log_w, log_w, label, False).divergence
    mean = (log_w.T[:, :, None] + alpha * log_p).logsumexp(0) / alpha
    log_z = mean.logsumexp(-1)
    r, factor = (mean - log_z[:, None]).exp(), (alpha * log_z).exp()
    own = (1 - (r**alpha * log_q.exp() ** (1 - alpha)).sum(-1)) / (alpha * (1 - alpha))
    torch.testing.assert_close(got, factor * own + (1 - factor) / (alpha * (1 - alpha)))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: type(p).__name__)
def test_pooling_first_and_dividing_first_are_two_objectives(pair):
    z, log_p, log_w, label = case(3)
    first, second = (
        rule(pair=pair).evaluate(z.clone(), log_p, log_w, log_w, label, False).divergence
        for rule in (PoolThenDivide, DivideThenPool)
    )
    assert (first <= second + 1e-12).all(), "convexity in the first argument"
    assert (second - first).max() > 1e-3
    alone = [
        rule(pair=pair).evaluate(z.clone(), log_p[:1], log_w[:, :1], torch.zeros(N, 1), label, False).divergence
        for rule in (PoolThenDivide, DivideThenPool)
    ]
    torch.testing.assert_close(*[x.double() for x in alone])


@pytest.mark.parametrize("rule", FAMILY, ids=name)
def test_extreme_logits_stay_finite_in_single_precision(rule):
    heard, where = outputs(40, 300, [4, 4], size=30.0), positions(40, 300)
    student = (30.0 * hidden(40, 4, seed=1)).requires_grad_()
    out = distil(student, head(300, 4, seed=2), heard, where, lambda s, c: (torch.full((40, 2), -math.log(2)), c), rule)
    out.loss.backward()
    assert torch.isfinite(out.divergence).all() or isinstance(rule, Alpha)
    assert torch.isfinite(student.grad).all() or isinstance(rule, Alpha)


@pytest.mark.parametrize(
    "make",
    [
        lambda: JSD(0.0), lambda: SkewForward(1.0), lambda: SkewReverse(-0.1), lambda: Alpha(alpha=1.0),
        lambda: Mixed(share=1.5),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="must"):
        make()
