"""Statements about safety order: T10 attenuation, T11 tilt against projection, T12 order and bounds together."""

import math
from functools import partial

import torch
from jaxtyping import Float
from scipy.optimize import minimize
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.safety import Ordered, Tilt
from polydistill.simplex import clip_spread, compose, hilbert, isotonic, kl_clip, normalise, spread
from polydistill.theory.scene import linear_pool, log_pool
from polydistill.theory.search import ascend, distributions, one_apart, osc, weights
from polydistill.theory.statement import (
    Claim,
    Curve,
    Figure,
    Result,
    Statement,
    Trial,
    Worst,
    at_least,
    equal,
    normal,
    reported,
    shown,
)

NAMES = ("a", "b", "c", "d")
K = len(NAMES)
TIERS = (0.0, 1.0, 1.0, 2.5)
SIGMA = torch.tensor(TIERS, dtype=torch.float64)
SCORES = dict(zip(NAMES, TIERS, strict=True))
SEVERITIES = torch.linspace(0, 1, 21, dtype=torch.float64)


def wrong_order(log_w: Float[Tensor, "*n K"], sigma: Float[Tensor, " K"]) -> Float[Tensor, "*n"]:
    """Greatest `log w_j - log w_i` with i safer than j: positive where O1 is broken, in nats."""
    difference = log_w[..., None, :] - log_w[..., :, None]  # [..., i, j]
    return difference.masked_fill(~(sigma[:, None] > sigma[None, :]), -math.inf).amax((-1, -2))


def lost_by_safer(log_w: Float[Tensor, "*n S K"], sigma: Float[Tensor, " K"]) -> Float[Tensor, "*n"]:
    """Greatest fall of `log(w_i / w_j)`, i at least as safe as j, between neighbouring severities: O2 broken if > 0."""
    odds = log_w[..., :, None] - log_w[..., None, :]
    fall = odds[..., :-1, :, :] - odds[..., 1:, :, :]
    return fall.masked_fill(~(sigma[:, None] >= sigma[None, :]), -math.inf).amax((-1, -2, -3))


def over_severities(
    enforcement: Tilt | Ordered, log_w: Float[Tensor, "n K"], severities: Float[Tensor, " S"] = SEVERITIES
) -> Float[Tensor, "n S K"]:
    """Enforced log-weights at every severity."""
    repeated = log_w.repeat_interleave(len(severities), 0)
    return enforcement.enforce(repeated, severities.repeat(len(log_w))).unflatten(0, (len(log_w), len(severities)))


def check_attenuation(trial: Trial) -> Result:
    """T10."""
    generator, cases = trial.generator(10), trial.times(4000, 4000)
    mass, tied, expected, kept = Worst(), Worst(), Worst(), Worst()
    raised, rise = 0, 0.0
    for tiers in (SIGMA, torch.arange(K, dtype=torch.float64), torch.zeros(K, dtype=torch.float64)):
        log_w = isotonic(weights(cases, K, generator), tiers)
        log_p = distributions((K, cases, 5), generator)
        log_p = _by_safety(log_p, tiers)
        uniform = torch.full_like(log_w, -math.log(K))
        strict = len(set(tiers.tolist())) == K
        if strict:
            pooled = linear_pool(log_w, log_p)[:, 0]
            mass.see(pooled, linear_pool(uniform, log_p)[:, 0])
            difference = log_pool(log_w, log_p)[:, 0] - log_pool(uniform, log_p)[:, 0]
            raised, rise = int((difference > 1e-9).sum()), float(difference.max())
        tied.see(
            linear_pool(log_w, log_p)[:, 0], linear_pool(uniform, log_p)[:, 0] + _above(log_p[..., 0].exp(), tiers)
        )
        tilt = Tilt(dict(zip(NAMES, tiers.tolist(), strict=True)), 3.0).bind(NAMES)
        tilted = over_severities(tilt, weights(cases // 4, K, generator))
        mean = (tilted.exp() * tiers).sum(-1)
        expected.see(mean[:, :-1] - mean[:, 1:], 0.0)
        factor = weights(cases // 4, K, generator)[:, None]
        kept.see(lost_by_safer(compose(tilted, factor), tiers), 0.0)
    _ascend_mass(trial, mass)
    return Result(
        (
            mass.part("unsafe mass of the linear pool, against the uniform pool's"),
            expected.part("fall of the expected safety as severity rises (O2)"),
            kept.part("fall of a safer teacher's log-odds after multiplication by a factor without severity"),
            tied.part("tied teachers that differ: the same, plus the most that one lies above its tier's mean"),
            at_least("tied teachers that differ: rise above the uniform pool, weights .05, .90, .05", _tied(), 0.1),
            at_least("log pool: random cases in which ordered weights raise the unsafe mass", raised, 1, cases),
            reported("log pool: share of random cases", raised / cases, cases),
            at_least("log pool: greatest rise of the unsafe mass", max(rise, _log_pool_rise(trial)), 0.05, cases),
        )
    )


def _above(mass: Float[Tensor, "K n"], tiers: Float[Tensor, " K"]) -> Float[Tensor, " n"]:
    """The most unsafe mass that a teacher has above the mean of its tier."""
    same = (tiers[:, None] == tiers[None, :]).to(mass)
    return (mass - (same / same.sum(0)) @ mass).amax(0)


def _tied() -> float:
    """Unsafe masses .50, .45, 0, the last two of one tier: weights ordered by tier, pool minus uniform pool."""
    mass = torch.tensor([0.5, 0.45, 0.0], dtype=torch.float64)
    log_w = torch.tensor([[0.05, 0.9, 0.05]], dtype=torch.float64).log()
    ordered = Ordered({"b": 1.0, "c": 1.0}, 0.5).bind(NAMES[:3]).enforce(log_w, torch.ones(1)).exp()[0]
    return float((ordered - 1 / 3) @ mass)


def _by_safety(log_p: Float[Tensor, "K n V"], tiers: Float[Tensor, " K"]) -> Float[Tensor, "K n V"]:
    """Teachers handed out so that the mass of entry 0 does not increase with safety."""
    order = log_p[..., 0].argsort(0, descending=True)
    ranked = log_p.gather(0, order[..., None].expand_as(log_p))
    return ranked[tiers.argsort(stable=True).argsort()]


def _ascend_mass(trial: Trial, worst: Worst) -> None:
    def numbers(x: Float[Tensor, "r 2 K"]) -> tuple[Tensor, Tensor]:
        w = normalise(x[:, 0].sort(-1).values).exp()
        unsafe = torch.sigmoid(x[:, 1]).sort(-1, descending=True).values
        return (w * unsafe).sum(-1), unsafe.mean(-1)

    def ratio(x: Tensor) -> Tensor:
        pooled, uniform = numbers(x)
        return pooled / uniform

    _, found = ascend(ratio, normal((trial.times(16), 2, K), trial.generator(101)), trial.times(150), 0.1)
    worst.see(*numbers(found))


def _log_pool_rise(trial: Trial) -> float:
    """Entry 0 is unsafe; the safest teacher gives it the least mass and the most weight, and still it rises."""

    def rise(x: Float[Tensor, "r F"]) -> Float[Tensor, " r"]:
        log_w = normalise(x[:, :2].sort(-1).values)
        log_p = (6 * torch.tanh(x[:, 2:].reshape(-1, 2, 3))).log_softmax(-1).transpose(0, 1)
        uniform = torch.full_like(log_w, -math.log(2))
        ordered = torch.relu(log_p[1, :, 0] - log_p[0, :, 0])  # > 0: the safer teacher is not safer
        gain = log_pool(log_w, log_p)[:, 0] - log_pool(uniform, log_p)[:, 0]
        return torch.where(ordered > 0, -ordered, gain)

    best, _ = ascend(rise, normal((trial.times(128, 128), 8), trial.generator(102)), trial.times(300, 300), 0.05)
    return float(best.max())


def check_tilt(trial: Trial) -> Result:
    """T11."""
    generator, cases, limit = trial.generator(11), trial.times(1500), 4.0
    before = calculus.softmax(K, 1.0, limit, "evidence")
    rises, ordered, violated, ramp = Worst(), Worst(), [], Worst()
    log_w = normalise(clip_spread(weights(cases, K, generator, 4.0), limit))
    log_w = torch.cat([log_w, torch.stack([one_apart(K, limit).roll(i) for i in range(K)])])
    reach, order_gap = [], []
    for strength in (2.0, 4.0, 6.0, 12.0):
        tilt = Tilt(SCORES, strength).bind(NAMES)
        tilted = over_severities(tilt, log_w)
        rises.see(lost_by_safer(tilted, SIGMA), 0.0)
        from_severity = tilt.ordered_from(before)
        for severity in SEVERITIES.tolist():
            at = tilt.enforce(log_w, torch.full((len(log_w),), severity, dtype=torch.float64))
            worst = wrong_order(at, SIGMA)
            reach.append(severity * strength / limit)
            order_gap.append(float(worst.max()))
            if severity >= from_severity:
                ordered.see(worst, 0.0)
            else:
                violated.append(float(worst.max()))
    order = Ordered(SCORES, 0.5).bind(NAMES)
    projected = over_severities(order, log_w)
    above = projected[:, SEVERITIES >= 0.5]
    jump = hilbert(projected[:, 1:], projected[:, :-1]) / float(SEVERITIES[1] - SEVERITIES[0])
    ramp.see(jump, order.guarantee(before).severity_modulus)
    _two_blocks(limit, ramp)
    example = torch.tensor([[0.0, 5.0, 1.0]], dtype=torch.float64)
    pooled = isotonic(normalise(example), torch.arange(3.0, dtype=torch.float64))
    fitted = (pooled - pooled[:, :1])[0]
    x, y = zip(*sorted(zip(reach, order_gap, strict=True)), strict=True)
    figure = Figure(
        "t11_threshold",
        "Where a tilt orders the weights of every evidence",
        "kappa beta gap / R",
        "worst log-odds against the safer teacher, nats",
        (Curve("worst found", list(x), list(y)), Curve("ordered below this line", list(x), [0.0] * len(x))),
    )
    return Result(
        (
            ordered.part("tilt: worst log-odds against a safer teacher when kappa beta gap >= R (O1)"),
            at_least(
                "tilt: the same just below, in every case: least violation found, nats",
                min(violated),
                1e-6,
                len(violated) * len(log_w),
            ),
            rises.part("tilt: fall of a safer teacher's log-odds as severity rises (O2)"),
            shown("tilt: with one tier it is ordered from severity 0", *_one_tier(before)),
            equal(
                "projection: worst log-odds against a safer teacher from kappa_crit on (O1)",
                float(wrong_order(above, SIGMA).amax().clamp_min(0)),
                above.shape[0] * above.shape[1],
            ),
            equal(
                "projection: log-weights 0, 5, 1 pool to 0, 3, 3: difference",
                float((fitted - torch.tensor([0.0, 3.0, 3.0], dtype=torch.float64)).abs().max()),
            ),
            at_least(
                "projection: a safer teacher's log-odds fall as severity rises (O2 broken), nats",
                float(
                    lost_by_safer(
                        over_severities(
                            Ordered({"b": 1, "c": 2}, 0.5).bind(NAMES[:3]),
                            normalise(example),
                            torch.tensor([0.0, 1.0], dtype=torch.float64),
                        ),
                        torch.arange(3.0),
                    ).max()
                ),
                2.0,
            ),
            ramp.part("projection: Hilbert distance per unit of severity, against 2 R / kappa_crit"),
            _floor_behind(),
        ),
        (figure,),
    )


def _two_blocks(limit: float, ramp: Worst) -> None:
    """One teacher far above a low block, one far below a high one: nearly `2 R / kappa_crit` for many teachers."""
    many, half = 80, 40
    log_w = torch.zeros(1, many, dtype=torch.float64)
    log_w[0, 0], log_w[0, half:-1] = limit, limit
    names = tuple(map(str, range(many)))
    order = Ordered({name: float(k) for k, name in enumerate(names)}, 0.5).bind(names)
    start, end = (order.enforce(normalise(log_w), torch.tensor([severity])) for severity in (0.0, 0.5))
    promise = order.guarantee(calculus.softmax(many, 1.0, limit, "evidence"))
    ramp.see(hilbert(start, end) / 0.5, promise.severity_modulus)


def _one_tier(before: calculus.Guarantee) -> tuple[int, int]:
    return int(Tilt({}, 1.0).bind(NAMES).ordered_from(before) != 0.0), 1


def _floor_behind() -> Claim:
    """Weights 1:4:1 with safety 0, 1/2, 1 and a floor of 0.1 behind the tilt: log(w2 / w1) rises, then falls."""
    tilt = Tilt({"b": 0.5, "c": 1.0}, 1.0).bind(NAMES[:3])
    log_w = normalise(torch.tensor([[1.0, 4.0, 1.0]], dtype=torch.float64).log())
    tilted = torch.cat([tilt.enforce(log_w * 1.0, torch.tensor([s])) for s in (0.0, 2.0, 14.0)])
    floored = normalise(tilted.exp().clamp_min(0.1).log())
    odds = (floored[:, 1] - floored[:, 0]).tolist()
    return at_least(
        "a floor behind the tilt breaks O2: fall of log(w2 / w1), nats",
        odds[1] - odds[2],
        1.0,
        3,
        note=f"log(w2 / w1) at tilts 0, 2, 14: {odds[0]:.2f}, {odds[1]:.2f}, {odds[2]:.3f}",
    )


def check_projection(trial: Trial) -> Result:
    """T12."""
    generator, low, high = trial.generator(12), 0.05, 0.6
    cases = trial.times(2000)
    moduli, ranges, order, box, mass = (Worst() for _ in range(5))
    for tiers in (SIGMA, torch.arange(K, dtype=torch.float64)):
        one, two = weights(cases, K, generator), weights(cases, K, generator)
        first, second = (kl_clip(isotonic(w, tiers), low, high) for w in (one, two))
        moduli.see(hilbert(first, second), hilbert(one, two))
        ranges.see(spread(first), torch.minimum(spread(one), torch.tensor(math.log(high / low))))
        order.see(wrong_order(first, tiers), 0.0)
        box.see(torch.maximum(low - first.exp().amin(-1), first.exp().amax(-1) - high), 0.0)
        mass.see((first.exp().sum(-1) - 1).abs(), 1e-9)
        pair = normal((trial.times(16), 2, K), generator)
        _, found = ascend(partial(_projected_ratio, tiers=tiers, low=low, high=high), pair, trial.times(80), 0.03)
        one, two = normalise(found[:, 0]), normalise(found[:, 1])
        moduli.see(hilbert(*(kl_clip(isotonic(w, tiers), low, high) for w in (one, two))), hilbert(one, two))
    return Result(
        (
            _against_slsqp(trial, low, high),
            moduli.part("Hilbert distance after order and bounds, against before"),
            ranges.part("range after, against min(R, log(hi / lo))"),
            order.part("log-odds against a safer teacher, clipping after ordering"),
            box.part("weights outside [lo, hi]"),
            mass.part("|sum - 1|"),
            _euclidean(trial, low, high),
        )
    )


def _projected_ratio(x: Tensor, tiers: Tensor, low: float, high: float) -> Tensor:
    one, two = normalise(x[:, 0]), normalise(x[:, 1])
    after = osc(kl_clip(isotonic(one, tiers), low, high) - kl_clip(isotonic(two, tiers), low, high))
    return after / (osc(one - two) + 1e-3)


def _against_slsqp(trial: Trial, low: float, high: float) -> Claim:
    """`argmin KL(v || w)` over ordered v within [lo, hi], by a general solver; a partial order of tiers."""
    generator, error, cases = trial.generator(121), 0.0, trial.times(25, 5)
    pairs = [(i, j) for i in range(K) for j in range(K) if TIERS[i] > TIERS[j]]
    for log_w in weights(cases, K, generator, 1.5):
        ours = kl_clip(isotonic(log_w[None], SIGMA), low, high)[0].exp().numpy()
        reference = log_w.numpy()
        solved = minimize(
            lambda v, r=reference: float((v * (_log(v) - r)).sum()),
            x0=[1.0 / K] * K,
            jac=lambda v, r=reference: _log(v) - r + 1.0,
            bounds=[(low, high)] * K,
            constraints=[
                {"type": "eq", "fun": lambda v: v.sum() - 1.0},
                *[{"type": "ineq", "fun": lambda v, i=i, j=j: v[i] - v[j]} for i, j in pairs],
            ],
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 300},
        )
        error = max(error, float(abs(solved.x - ours).max()))
    return equal(
        "log-isotonic then KL clipping, against a general solver (SLSQP) of the KL projection: difference",
        error,
        cases,
        slack=2e-6,
    )


def _log(v: object) -> object:
    return torch.as_tensor(v).log().numpy()


def euclidean(w: Float[Tensor, "n K"], low: float, high: float) -> Float[Tensor, "n K"]:
    """Nearest weights within [low, high] in least squares: `clip(w + mu, low, high)`, mu by bisection."""
    below, above = w.detach().amin(-1) * 0 - 1.0, w.detach().amin(-1) * 0 + 1.0
    for _ in range(60):
        mu = (below + above) / 2
        heavy = (w.detach() + mu[:, None]).clamp(low, high).sum(-1) > 1.0
        below, above = torch.where(heavy, below, mu), torch.where(heavy, mu, above)
    shifted = w + below[:, None]
    free = ((shifted > low) & (shifted < high)).sum(-1, keepdim=True).clamp_min(1)
    # One Newton step, so that gradients know that mu depends on w.
    correction = (1.0 - shifted.clamp(low, high).sum(-1, keepdim=True)) / free
    return (shifted + correction).clamp(low, high)


def _euclidean(trial: Trial, low: float, high: float) -> Claim:
    def ratio(x: Float[Tensor, "r 2 K"]) -> Float[Tensor, " r"]:
        one, two = normalise(x[:, 0]), normalise(x[:, 1])
        moved = osc(euclidean(one.exp(), low, high).log() - euclidean(two.exp(), low, high).log())
        return moved / (osc(one - two) + 1e-2)

    start = 2 * normal((trial.times(64, 64), 2, K), trial.generator(122))
    best, _ = ascend(ratio, start, trial.times(200, 200), 0.05)
    claim = "the Euclidean projection onto the same bounds is another map: modulus in Hilbert distance"
    return at_least(claim, float(best.max()), 1.5, len(best))


T10 = Statement(
    number=10,
    title="ordinal attenuation",
    words="If weights do not decrease and the teachers' unsafe mass does not increase with safety, and teachers of one "
    "tier are equally safe, the linear pool's unsafe mass is at most the uniform pool's; where teachers of a tier "
    "differ, at most that much more as one of them lies above its tier's mean. Masses are those of tempered teachers. "
    "Under O2 the expected safety never falls as severity rises, and O2 "
    "survives multiplication by any factor that ignores severity.",
    formula="sum_k w_k u_k <= mean_k u_k;  d/dkappa sum_k w_k sigma_k >= 0",
    source="Chebyshev's sum inequality; the use ours",
    run=check_attenuation,
    code=("safety.Tilt", "safety.Ordered", "objective.ForwardKL"),
    remarks="For the linear pool only. In the log pool ordered weights raise the unsafe mass in some cases, so no "
    "safety claim is made there.",
)
T11 = Statement(
    number=11,
    title="tilt against projection",
    words="A tilt always has O2, and has O1 for every input exactly when kappa beta gap >= R: boundedness buys "
    "ordinality. Log-isotonic projection has O1 always and O2 not; it is ramped in below kappa_crit, so that nothing "
    "jumps.",
    formula="O1 for every evidence  <=>  kappa beta gap >= R",
    source="ours",
    run=check_tilt,
    code=("safety.Tilt.ordered_from", "safety.Ordered.enforce", "simplex.isotonic"),
    remarks="The tilt has a strength that does not depend on the evidence. A tilt whose strength follows the evidence "
    "has O1 and O2 without a range; T9 shows it, and what it gives up.",
)
T12 = Statement(
    number=12,
    title="order and bounds together",
    words="The KL projection onto ordered weights within [lo, hi] is log-isotonic projection, then KL clipping. Tied "
    "teachers stay free: they are sorted within their tier before pooling. Neither range nor modulus grows. The "
    "Euclidean version is another map.",
    formula="argmin {KL(v || w): v ordered, lo <= v <= hi} = kl_clip(isotonic(w), lo, hi)",
    source="isotonic regression: Barlow et al. 1972; this composition ours",
    run=check_projection,
    code=("simplex.isotonic", "simplex.kl_clip", "guarantee.isotonic", "guarantee.kl_clip"),
)
