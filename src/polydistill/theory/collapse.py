"""T6: which weighted sums of divergences are one divergence to one target."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.objective import ForwardKL, ReverseKL
from polydistill.theory.scene import divergence_of, linear_pool, log_pool, say, tv
from polydistill.theory.search import distributions, weights
from polydistill.theory.statement import Claim, Result, Trial, Worst, at_least, at_most, normal
from polydistill.weighting import Uniform

TEACHERS, VOCABULARY = 3, 5
Divergence = Callable[[Tensor, Tensor], Tensor]


def kl(p: Float[Tensor, "*#n V"], q: Float[Tensor, "*#n V"]) -> Float[Tensor, "..."]:
    """`sum_v p log(p / q)`, nats; differentiable in both for positive entries."""
    return (p * (p.clamp_min(1e-300).log() - q.clamp_min(1e-300).log())).sum(-1)


def alpha_divergence(alpha: float) -> Divergence:
    """Amari's `(1 - sum p^alpha q^(1-alpha)) / (alpha (1 - alpha))`."""
    return lambda p, q: (1.0 - (p**alpha * q ** (1.0 - alpha)).sum(-1)) / (alpha * (1.0 - alpha))


def skew(beta: float) -> Divergence:
    """`KL(p || beta p + (1 - beta) q)`."""
    return lambda p, q: kl(p, beta * p + (1.0 - beta) * q)


def jensen_shannon(beta: float) -> Divergence:
    """`beta KL(p || m) + (1 - beta) KL(q || m)`, `m = beta p + (1 - beta) q`."""
    return lambda p, q: beta * skew(beta)(p, q) + (1 - beta) * kl(q, beta * p + (1 - beta) * q)


def check_collapse(trial: Trial) -> Result:
    """T6."""
    generator, cases = trial.generator(6), trial.times(500)
    forward, reverse, slopes, whole = Worst(), Worst(), Worst(), Worst()
    for temperature in (1.0, 2.0):
        log_p = distributions((TEACHERS, cases, VOCABULARY), generator, 1.0)
        log_w, logits = weights(cases, TEACHERS, generator), normal((cases, VOCABULARY), generator)
        tempered, q = (log_p / temperature).log_softmax(-1), (logits / temperature).softmax(-1)
        w, p = log_w.exp().T, tempered.exp()
        pool, product = linear_pool(log_w, tempered), log_pool(log_w, tempered)
        for rule, sums, target, worst in (
            (
                ForwardKL(temperature=temperature),
                (w * kl(p, q)).sum(0),
                kl(pool, q) + (w * kl(p, pool)).sum(0),
                forward,
            ),
            (
                ReverseKL(temperature=temperature),
                (w * kl(q, p)).sum(0),
                kl(q, product) - _log_z(log_w, tempered),
                reverse,
            ),
        ):
            value = divergence_of(rule, logits, log_p, log_w)
            worst.see((sums - target).abs(), 1e-9)
            worst.see((value.divergence - sums).abs(), 1e-9)
            assert value.gradient is not None
            slopes.see((value.gradient - _slope(rule, logits, p, w, temperature)).abs().amax(-1), 1e-9)
    squared = ForwardKL(temperature=2.0, temperature_squared=True)
    plain = ForwardKL(temperature=2.0)
    target = torch.zeros(cases, dtype=torch.long)
    stack = Uniform().bind(("a", "b", "c"))
    both = [say(log_p, target, stack, student=logits, divergence=rule) for rule in (squared, plain)]
    whole.see((both[0].loss - 4.0 * both[1].loss).abs() / both[1].loss, 1e-12)
    uniform = both[1].log_w
    whole.see((both[1].divergence - divergence_of(plain, logits, log_p, uniform).divergence).abs(), 1e-9)
    tempered_first = linear_pool(uniform, (log_p / 2).log_softmax(-1))
    tempered_last = linear_pool(uniform, log_p).pow(0.5)
    tempered_last = tempered_last / tempered_last.sum(-1, keepdim=True)
    return Result(
        (
            forward.part("forward KL: sum of divergences, objective's value, and KL(linear pool) + JS_w: difference"),
            reverse.part(
                "reverse KL: sum of divergences, objective's value, and KL(q || log pool) - log Z: difference"
            ),
            slopes.part("objective's gradient, against autograd through the uncollapsed sum"),
            _alpha(trial),
            _bregman_and_jeffreys(trial),
            whole.part("chunked objective against the sum over teachers; T^2 multiplies it exactly when asked"),
            at_least(
                "temper-then-pool and pool-then-temper are different targets (total variation)",
                float(tv(tempered_first, tempered_last).max()),
                0.05,
                cases,
            ),
            *_collapse_or_not(trial),
        )
    )


def _log_z(log_w: Float[Tensor, "n K"], log_p: Float[Tensor, "K n V"]) -> Float[Tensor, " n"]:
    return torch.einsum("nk,knv->nv", log_w.exp(), log_p).logsumexp(-1)


def _slope(
    rule: ForwardKL | ReverseKL, logits: Float[Tensor, "n V"], p: Float[Tensor, "K n V"], w: Tensor, temperature: float
) -> Float[Tensor, "n V"]:
    z = logits.clone().requires_grad_(True)
    q = (z / temperature).softmax(-1)
    each = kl(p, q) if isinstance(rule, ForwardKL) else kl(q.expand_as(p), p)
    return torch.autograd.grad((w * each).sum(), z)[0]


def _alpha(trial: Trial) -> Claim:
    """`sum_k w_k D_a(p_k || q) = Z^a D_a(r || q) + (1 - Z^a) / (a (1 - a))`, `r ~ (sum_k w_k p_k^a)^(1/a)`."""
    generator, cases, worst = trial.generator(61), trial.times(500), Worst(1e-8)
    for alpha in (-1.0, 0.3, 0.5, 2.0):
        p = distributions((TEACHERS, cases, VOCABULARY), generator, 0.5).exp()
        q, w = distributions((cases, VOCABULARY), generator, 0.5).exp(), weights(cases, TEACHERS, generator).exp()
        divergence = alpha_divergence(alpha)
        mean = torch.einsum("nk,knv->nv", w, p**alpha) ** (1 / alpha)
        z = mean.sum(-1)
        pooled = z**alpha * divergence(mean / z[:, None], q) + (1 - z**alpha) / (alpha * (1 - alpha))
        sums = torch.einsum("nk,kn->n", w, divergence(p, q))
        worst.see((sums - pooled).abs() / (1 + sums.abs()), 1e-9)
    return worst.part(
        "alpha-divergences, alpha in -1, 0.3, 0.5, 2: sum against Z^alpha times the pooled one: difference"
    )


def _bregman_and_jeffreys(trial: Trial) -> Claim:
    generator, cases, worst = trial.generator(62), trial.times(500), Worst()
    p = distributions((TEACHERS, cases, VOCABULARY), generator, 1.0)
    q, log_w = distributions((cases, VOCABULARY), generator, 1.0).exp(), weights(cases, TEACHERS, generator)
    w = log_w.exp().T
    mean = torch.einsum("kn,knv->nv", w, p)
    square = (w * (p - q).square().sum(-1)).sum(0)
    worst.see((square - (mean - q).square().sum(-1) - (w * (p - mean).square().sum(-1)).sum(0)).abs(), 1e-9)
    both = (w * (kl(p.exp(), q) + kl(q, p.exp()))).sum(0)
    linear, product = linear_pool(log_w, p), log_pool(log_w, p)
    constant = (w * kl(p.exp(), linear)).sum(0) - _log_z(log_w, p)
    worst.see((both - kl(linear, q) - kl(q, product) - constant).abs(), 1e-9)
    return worst.part("squared error of logits to their mean, Jeffreys to two targets: difference")


def _collapse_or_not(trial: Trial) -> list[Claim]:
    """Fit `sum_k w_k D(p_k, q) = c D(r, q) + constant` over r, c and constant, with two vocabulary entries."""
    parts = []
    for name, divergence, collapses in (
        ("forward KL", kl, True),
        ("alpha 0.5", alpha_divergence(0.5), True),
        ("JSD(0.5)", jensen_shannon(0.5), False),
        ("skew KL(0.5)", skew(0.5), False),
        ("total variation", tv, False),
    ):
        residual = _fit(divergence, trial.times(2000, 200))
        claim = f"{name}: relative residual of the best fit by one target"
        part = at_most(claim, residual, 2e-6, slack=0.0) if collapses else at_least(claim, residual, 1e-4)
        parts.append(part)
    return parts


def _fit(divergence: Divergence, targets: int) -> float:
    """Least relative residual over all targets, factors and constants; `r` on a grid that is then refined twice."""

    def two(x: Tensor) -> Tensor:
        return torch.stack([x, 1 - x], -1)

    q = two(torch.linspace(0.02, 0.98, 49, dtype=torch.float64))
    p, w = two(torch.tensor([0.9, 0.15], dtype=torch.float64)), torch.tensor([0.35, 0.65], dtype=torch.float64)
    sums = sum(w[k] * divergence(p[k].expand_as(q), q) for k in range(2))
    assert isinstance(sums, Tensor)
    centred = sums - sums.mean()
    low, high, best = 0.01, 0.99, math.inf
    for _ in range(4):
        r = torch.linspace(low, high, targets, dtype=torch.float64)
        one = divergence(two(r)[:, None].expand(-1, len(q), -1), q.expand(targets, -1, -1))
        one = one - one.mean(1, keepdim=True)
        factor = (one @ centred) / one.square().sum(1)
        residual = (centred - factor[:, None] * one).square().sum(1).sqrt() / centred.norm()
        i = int(residual.argmin())
        best = min(best, float(residual[i]))
        width = (high - low) / targets * 2
        low, high = max(0.001, float(r[i]) - width), min(0.999, float(r[i]) + width)
    return best
