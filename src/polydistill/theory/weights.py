"""Statements about weights alone: T1 products, T2 perturbation, T3 the floor."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.simplex import clip_spread, compose, hilbert, mix, normalise, power, spread, total_variation
from polydistill.theory.scene import with_entropy
from polydistill.theory.search import HUGE, ascend, evidence, one_apart, osc, weights
from polydistill.theory.statement import Claim, Result, Statement, Trial, Worst, at_least, equal, normal
from polydistill.weighting import Softmax, TaskPrior, Uniform
from polydistill.weighting.signals import Entropy

SPREADS, TEMPERATURES = (4.0, 1.0), (2.0, 0.5)


def _factors(e: Float[Tensor, "... 2 K"]) -> list[Float[Tensor, "... K"]]:
    """Two clipped softmaxes, each of its own evidence."""
    return [
        Softmax(tau).log_weights(clip_spread(e[..., i, :], c))
        for i, (c, tau) in enumerate(zip(SPREADS, TEMPERATURES, strict=True))
    ]


def _promise(teachers: int, exponent: float = 1.0) -> calculus.Guarantee:
    factors = [
        calculus.softmax(teachers, tau, c, f"evidence {c:g}") for c, tau in zip(SPREADS, TEMPERATURES, strict=True)
    ]
    return calculus.power(calculus.product(*factors), exponent)


def check_products(trial: Trial) -> Result:
    """T1."""
    generator = trial.generator(1)
    mass, permuted, odds, undone, grouped, shifts = (Worst() for _ in range(6))
    ranges, moduli = Worst(), Worst()
    cases = trial.times(2000)
    for teachers in (1, 2, 3, 5, 8, 64):
        promise = _promise(teachers)
        e = torch.stack([evidence(cases, teachers, generator) for _ in range(2)], 1)
        one, two = _factors(e)
        both = compose(one, two)
        mass.see((both.exp().sum(-1) - 1.0).abs() + (~torch.isfinite(both)).sum(-1), 1e-12)
        ranges.see(spread(both), promise.range)
        order = torch.randperm(teachers, generator=generator)
        permuted.see((compose(*_factors(e[..., order])) - both[..., order]).abs().amax(-1), 1e-9)
        log_odds = (both - both[:, :1]) - (one - one[:, :1]) - (two - two[:, :1])
        odds.see(log_odds.abs().amax(-1), 1e-9)
        undone.see((compose(both, power(two, -1.0)) - one).abs().amax(-1), 1e-9)
        three = weights(cases, teachers, generator)
        grouped.see((compose(compose(one, two), three) - compose(one, compose(two, three))).abs().amax(-1), 1e-9)
        shifts.see((compose(one, torch.zeros_like(one)) - one).abs().amax(-1), 1e-9)
        if teachers == 1:
            continue
        other = e + torch.stack([evidence(cases, teachers, generator) for _ in range(2)], 1)
        _modulus(promise, e, other, moduli)
        start = normal((trial.times(16), 2, teachers), generator)
        _, found = ascend(lambda x: osc(compose(*_factors(x))), start, trial.times(60), 0.2)
        ranges.see(spread(compose(*_factors(found))), promise.range)
        pair = normal((trial.times(16), 2, 2, teachers), generator)
        _, found = ascend(_modulus_ratio, pair, trial.times(60), 0.05)
        _modulus(promise, found[:, 0], found[:, 1], moduli)
    parts = (
        ranges.part("range of a product of two clipped softmaxes, against the sum of their ranges (B)"),
        moduli.part("Hilbert distance of two products, against the sum of modulus times evidence error (C)"),
        mass.part("|sum of weights - 1| and infinities, evidence up to 1e4 nats, K = 1 to 64, ties (N)"),
        permuted.part("product of permuted evidence minus permuted product (E)"),
        odds.part("log-odds of the product minus the sum of the factors' log-odds (non-interference)"),
        undone.part("a factor divided out again leaves the other"),
        grouped.part("associativity"),
        shifts.part("uniform weights are the identity"),
        _powers(trial),
        _real_stack(trial),
        _floor_inside(trial),
    )
    return Result(parts)


def _modulus(promise: calculus.Guarantee, e: Tensor, other: Tensor, worst: Worst) -> None:
    limit = sum(m.once * osc(e[:, i] - other[:, i]) for i, m in enumerate(promise.moduli))
    moved = hilbert(compose(*_factors(e)), compose(*_factors(other)))
    # 1e4 nats leave an absolute rounding error of 1e-12 relative to themselves.
    worst.see(moved, limit + 1e-11 * e.abs().amax((-1, -2)))


def _modulus_ratio(pair: Float[Tensor, "r 2 2 K"]) -> Float[Tensor, " r"]:
    first, second = compose(*_factors(pair[:, 0])), compose(*_factors(pair[:, 1]))
    error = osc(pair[:, 0] - pair[:, 1])
    return osc(first - second) / (error @ error.new_tensor([1.0 / tau for tau in TEMPERATURES]) + 1e-9)


def _powers(trial: Trial) -> Claim:
    generator, worst = trial.generator(11), Worst()
    for exponent in (-2.0, -1.0, 0.0, 0.5, 3.0):
        e = torch.stack([evidence(trial.times(500), 5, generator) for _ in range(2)], 1)
        worst.see(spread(power(compose(*_factors(e)), exponent)), _promise(5, exponent).range)
    return worst.part("range of a power, against |a| R")


def _real_stack(trial: Trial) -> Claim:
    """A bound stack of the package, its range measured against the certificate that it derives for itself."""
    names = ("a", "b", "c")
    stack = (TaskPrior({"t": {"a": 4, "b": 1, "c": 1}}) * Softmax(2.0)(Entropy(spread=4)) ** 1.5 * Uniform()).bind(
        names, ("t",)
    )
    generator, worst = trial.generator(12), Worst(1e-6)
    promised = stack.guarantee().range
    for e in (evidence(trial.times(2000), 3, generator), torch.tensor([[9.0, 0.0, 0.0]], dtype=torch.float64)):
        statistics = with_entropy(-e)
        statistics.positions.task.zero_()
        worst.see(spread(stack(statistics)[0]), promised)
    return worst.part(f"range of the stack `{stack!r}`, against the certificate that it derives")


def _floor_inside(trial: Trial) -> Claim:
    """A floor inside a factor: `(w * v) * u` and `w * (v * u)` differ when `*` ends with a floor."""
    share = 0.1

    def floored(*factors: Tensor) -> Tensor:
        return mix(compose(*factors), share)

    def gap(x: Float[Tensor, "r 3 K"]) -> Float[Tensor, " r"]:
        u, v, w = (normalise(x[:, i]) for i in range(3))
        return total_variation(floored(floored(u, v), w), floored(u, floored(v, w)))

    start = normal((trial.times(16, 16), 3, 3), trial.generator(13))
    best, _ = ascend(gap, start, trial.times(150, 150), 0.1)
    return at_least(
        "a floor of 0.1 inside every product breaks associativity (total variation)", float(best.max()), 0.19, len(best)
    )


def check_perturbation(trial: Trial) -> Result:
    """T2."""
    generator, worst, attained = trial.generator(2), Worst(), Worst()
    for teachers in (2, 3, 5, 16, 64):
        size = float(torch.rand((), generator=generator)) * 6
        one = weights(trial.times(3000), teachers, generator, size)
        two = weights(trial.times(3000), teachers, generator)
        worst.see(total_variation(one, two), torch.tanh(hilbert(one, two) / 4))

        def ratio(pair: Float[Tensor, "r 2 K"]) -> Float[Tensor, " r"]:
            one, two = normalise(pair[:, 0]), normalise(pair[:, 1])
            return total_variation(one, two) / torch.tanh(osc(one - two) / 4).clamp_min(1e-6)

        start = normal((trial.times(16), 2, teachers), generator)
        _, found = ascend(ratio, start, trial.times(200), 0.05)
        one, two = normalise(found[:, 0]), normalise(found[:, 1])
        worst.see(total_variation(one, two), torch.tanh(hilbert(one, two) / 4))
    for distance in (1e-3, 0.1, 1.0, 5.0, 20.0):
        half = torch.tensor([[distance / 4, -distance / 4]], dtype=torch.float64)
        one, two = normalise(half), normalise(-half)
        attained.see((total_variation(one, two) - torch.tanh(hilbert(one, two) / 4)).abs(), 1e-12)
    return Result(
        (
            worst.part("total variation of two weight vectors, against tanh(d / 4)"),
            attained.part("two teachers with opposite odds attain it: difference from tanh(d / 4)"),
        )
    )


def check_floor(trial: Trial) -> Result:
    """T3."""
    generator = trial.generator(3)
    ranges, moduli, floors, attained = Worst(), Worst(), Worst(), Worst()
    for teachers in (2, 3, 8, 64):
        for share in (0.001, 0.02, 0.1, 0.5, 0.9):
            for limit in (0.1, 2.0, 8.0):
                log_w = normalise(clip_spread(weights(trial.times(400), teachers, generator, 4.0), limit))
                mixed, bound = mix(log_w, share), calculus.mix_range(limit, teachers, share)
                ranges.see(spread(mixed), bound)
                attained.see((spread(mix(one_apart(teachers, limit), share)) - bound).abs(), 1e-9)
                floor = (1 - share) * calculus.floor_of(limit, teachers) + share / teachers
                floors.see(floor - mixed.exp().amin(-1), 0.0)
                other = normalise(clip_spread(weights(trial.times(400), teachers, generator, 4.0), limit))
                factor = calculus.mix_modulus(limit, teachers, share)
                moduli.see(hilbert(mixed, mix(other, share)), factor * hilbert(log_w, other))
            sure = mix(one_apart(teachers, 700.0), share)
            attained.see((spread(sure) - math.log1p(teachers * (1 - share) / share)).abs(), 1e-9)
    tight = _floor_ascent(trial, moduli)
    huge = torch.tensor([calculus.mix_range(r, 8, 0.02) for r in (HUGE, math.inf)], dtype=torch.float64)
    return Result(
        (
            ranges.part("range after mixing with uniform, against the row of the calculus"),
            attained.part("one teacher ahead of all others attains it, R = 700 nats included: difference"),
            moduli.part("contraction of the Hilbert distance, against min(Birkhoff, ceiling)"),
            floors.part("least weight below the floor (1 - lam) floor + lam / K"),
            equal(
                "a range of 1e4 nats or infinity does not overflow",
                float((huge - math.log1p(8 * 0.98 / 0.02)).abs().max()),
                2,
            ),
        ),
        details=f"the contraction is attained up to a factor {tight:.3f} by ascent.",
    )


def _floor_ascent(trial: Trial, worst: Worst) -> float:
    teachers, share, limit = 3, 0.1, 2.0
    factor = calculus.mix_modulus(limit, teachers, share)

    def ratio(pair: Float[Tensor, "r 2 K"]) -> Float[Tensor, " r"]:
        one, two = (normalise(clip_spread(pair[:, i], limit)) for i in range(2))
        return osc(mix(one, share) - mix(two, share)) / osc(one - two).clamp_min(1e-4)

    best, found = ascend(ratio, normal((trial.times(32), 2, teachers), trial.generator(31)), trial.times(300), 0.03)
    one, two = (normalise(clip_spread(found[:, i], limit)) for i in range(2))
    worst.see(hilbert(mix(one, share), mix(two, share)), factor * hilbert(one, two))
    return float(best.max()) / factor


T1 = Statement(
    number=1,
    title="closure and non-interference",
    words="A product of operators that satisfy N, B, C and E satisfies them, with ranges and moduli that add; before "
    "the floor the log-odds of the scales add, so each scale's contribution can be read off and removed.",
    formula="osc(log prod_i w_i) <= sum_i R_i;  d(W(e), W(e')) <= sum_i L_i osc(e_i - e'_i)",
    source="Aitchison 1986 for the vector space; constants ours",
    run=check_products,
    code=("simplex.compose", "simplex.power", "weighting.Product", "guarantee.product"),
    remarks="Normalisation of the factors is not used: composition restores it. A floor belongs behind the product; "
    "inside it associativity and the identity are lost.",
)
T2 = Statement(
    number=2,
    title="weight perturbation",
    words="Weights at Hilbert distance d differ in total variation by at most tanh(d / 4), and this is attained.",
    formula="TV(w, w') <= tanh(d(w, w') / 4)",
    source="Birkhoff 1957 for the contraction; this form ours",
    run=check_perturbation,
    code=("simplex.hilbert", "simplex.total_variation", "guarantee.Guarantee.weight_shift"),
)
T3 = Statement(
    number=3,
    title="one floor",
    words="Mixing with uniform weights turns a range R into the one given by the calculus, attained; finite even when "
    "R is infinite; and contracts the Hilbert distance.",
    formula="R' = log(((1-lam) e^R + lam S/K) / ((1-lam) + lam S/K)), S = e^R + K - 1;  "
    "L' = L min(tanh(Delta/4), (1-lam) M / ((1-lam) M + lam/K))",
    source="Birkhoff 1957; the second factor ours",
    run=check_floor,
    code=("simplex.mix", "guarantee.mix_range", "guarantee.mix_modulus"),
)
