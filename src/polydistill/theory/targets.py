"""Statements about the pooled target: T4 perturbation of the weights, T5 a teacher goes wrong, T6 collapse."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.objective import ForwardKL
from polydistill.simplex import mask, normalise, total_variation
from polydistill.theory.collapse import check_collapse
from polydistill.theory.scene import divergence_of, linear_pool, log_pool, say, tv
from polydistill.theory.search import ascend, distributions, osc, weights
from polydistill.theory.statement import Result, Statement, Trial, Worst, at_least, normal
from polydistill.weighting import Softmax
from polydistill.weighting.signals import Entropy

TEACHERS, VOCABULARY = 4, 6
SMALL = 0.01
Pair = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A number per case from two weight vectors and the teachers."""


def _farthest(log_p: Float[Tensor, "K n V"]) -> Float[Tensor, " n"]:
    """`max_jk TV(p_j, p_k)`."""
    p = log_p.exp()
    return tv(p[:, None], p[None, :]).amax((0, 1))


def check_perturbed_targets(trial: Trial) -> Result:
    """T4."""
    generator = trial.generator(4)
    linear, gradient, log = Worst(), Worst(), Worst()
    cases = trial.times(2000)
    for temperature in (1.0, 2.0, 0.5):
        log_p = distributions((TEACHERS, cases, VOCABULARY), generator)
        one, two = weights(cases, TEACHERS, generator), weights(cases, TEACHERS, generator)
        tempered = (log_p / temperature).log_softmax(-1)
        moved = tv(linear_pool(one, tempered), linear_pool(two, tempered))
        linear.see(moved, total_variation(one, two) * _farthest(tempered))
        logits, rule = normal((cases, VOCABULARY), generator), ForwardKL(temperature=temperature)
        first, second = (divergence_of(rule, logits, log_p, w).gradient for w in (one, two))
        assert first is not None
        assert second is not None
        limit = 2 * total_variation(one, two) * _farthest(tempered) / temperature
        gradient.see((first - second).abs().sum(-1), limit)
        log.see(tv(log_pool(one, log_p), log_pool(two, log_p)), _log_pool_limit(one, two, log_p))
    corners = (torch.eye(TEACHERS, dtype=torch.float64) + 1e-300).log()[:, None].expand(-1, cases, -1)
    one, two = weights(cases, TEACHERS, generator), weights(cases, TEACHERS, generator)
    linear.see(tv(linear_pool(one, corners), linear_pool(two, corners)), total_variation(one, two))
    start = normal((trial.times(16), 2 * TEACHERS + TEACHERS * VOCABULARY), generator)
    for pooled, worst, limit_of in ((_linear_pair, linear, _linear_limit), (_log_pair, log, _log_pool_limit)):
        _, found = ascend(partial(_ratio, measured=pooled, limit=limit_of), start, trial.times(150), 0.05)
        one, two, log_p = _unpack(found)
        worst.see(pooled(one, two, log_p), limit_of(one, two, log_p))
    return Result(
        (
            linear.part("linear pool: TV of the targets, against TV(w, w') max TV(p_j, p_k)"),
            gradient.part("forward KL: l1 move of the logit gradient, against 2 TV(w, w') max TV(p_j, p_k) / T"),
            log.part("log pool: TV of the targets, against tanh(osc_v(sum_k dw_k log p_k) / 4)"),
            at_least(
                "the linear pool's bound without TV(p_j, p_k) does not hold for the log pool: ratio to TV(w, w')",
                _log_pool_excess(trial),
                1.0,
                trial.times(16),
            ),
        ),
        details="one-hot teachers attain the linear pool's bound.",
    )


def _unpack(x: Float[Tensor, "r F"]) -> tuple[Tensor, Tensor, Tensor]:
    one, two = normalise(x[:, :TEACHERS]), normalise(x[:, TEACHERS : 2 * TEACHERS])
    logits = 3.0 * x[:, 2 * TEACHERS :].reshape(-1, TEACHERS, VOCABULARY)
    return one, two, logits.log_softmax(-1).transpose(0, 1)


def _linear_pair(one: Tensor, two: Tensor, log_p: Tensor) -> Tensor:
    return tv(linear_pool(one, log_p), linear_pool(two, log_p))


def _linear_limit(one: Tensor, two: Tensor, log_p: Tensor) -> Tensor:
    return total_variation(one, two) * _farthest(log_p)


def _log_pair(one: Tensor, two: Tensor, log_p: Tensor) -> Tensor:
    return tv(log_pool(one, log_p), log_pool(two, log_p))


def _log_pool_limit(one: Tensor, two: Tensor, log_p: Tensor) -> Tensor:
    return torch.tanh(osc(torch.einsum("nk,knv->nv", one.exp() - two.exp(), log_p)) / 4)


def _ratio(x: Tensor, measured: Pair, limit: Pair) -> Tensor:
    one, two, log_p = _unpack(x)
    return measured(one, two, log_p) / (limit(one, two, log_p) + 1e-6)


def _log_pool_excess(trial: Trial) -> float:
    start = normal((trial.times(16, 16), 2 * TEACHERS + TEACHERS * VOCABULARY), trial.generator(41))
    best, _ = ascend(
        lambda x: _log_pair(*_unpack(x)) / (total_variation(*_unpack(x)[:2]) + 1e-3), start, trial.times(150), 0.1
    )
    return float(best.max())


def check_failures(trial: Trial) -> Result:
    """T5."""
    generator = trial.generator(5)
    fixed, chain, lost, skipped = (Worst() for _ in range(4))
    cases, rule = trial.times(1000), Softmax(2.0)
    promise = calculus.softmax(TEACHERS, 2.0, 4.0, "entropy")
    for sharp in (1.0, 3.0, 20.0):
        log_p = distributions((TEACHERS, cases, VOCABULARY), generator, sharp)
        wrong = log_p.clone()
        wrong[0] = distributions((cases, VOCABULARY), generator, 20.0)
        if sharp == 20.0:
            log_p[0], wrong[0] = _corner(cases, 0), _corner(cases, 1)
        target = torch.zeros(cases, dtype=torch.long)
        before, after = say(log_p, target).statistics, say(wrong, target).statistics
        signal = Entropy(spread=4.0)
        w, w_wrong = rule.log_weights(signal(before)), rule.log_weights(signal(after))
        replaced = tv(log_p[0].exp(), wrong[0].exp())
        fixed.see(tv(linear_pool(w, log_p), linear_pool(w, wrong)), promise.ceiling * replaced)
        error = osc(signal(before) - signal(after))
        limit = promise.ceiling * replaced + torch.tanh(promise.moduli[0].once * error / 4) * _farthest(log_p)
        chain.see(tv(linear_pool(w, log_p), linear_pool(w_wrong, wrong)), limit)
        for keep, worst in (([False, True, True, True], lost), ([False, False, True, True], skipped)):
            kept = torch.tensor(keep)
            rest = mask(w, kept.expand_as(w))
            out = w.exp()[:, ~kept].sum(-1)
            worst.see(tv(linear_pool(w, log_p), linear_pool(rest, log_p)), out)
    extreme = torch.stack([_corner(1, 0), *[_corner(1, 1)] * (TEACHERS - 1)])
    top = rule.log_weights(torch.tensor([[4.0, 0.0, 0.0, 0.0]], dtype=torch.float64))
    wrong = torch.stack([_corner(1, 1)] * TEACHERS)
    fixed.see(tv(linear_pool(top, extreme), linear_pool(top, wrong)), promise.ceiling)
    lost.see(tv(linear_pool(top, extreme), linear_pool(mask(top, kept[None, [0, 2, 3, 3]]), extreme)), top.exp()[:, 0])
    return Result(
        (
            fixed.part("replacing a teacher, weights unchanged: TV of the targets, against M TV(p_j, p'_j)"),
            chain.part("replacing a teacher whose entropy the weights read: the same plus T2 to T4"),
            lost.part("losing a teacher and renormalising: TV of the targets, against w_j"),
            skipped.part("skipping teachers of total weight m: TV of the targets, against m"),
            at_least(
                f"log pool: a teacher of weight {SMALL} that goes wrong moves the target by more than its weight",
                _log_pool_failure(trial),
                0.215,
                trial.times(16),
                note="0.215 is what a clipped pair of teachers gave; with clipping at 700 nats it is nearly 1",
            ),
        )
    )


def _corner(cases: int, entry: int) -> Float[Tensor, "n V"]:
    logits = torch.full((cases, VOCABULARY), -800.0, dtype=torch.float64)
    logits[:, entry] = 0.0
    return logits.log_softmax(-1)


def _log_pool_failure(trial: Trial) -> float:
    """Greatest move of the log pool's target when the teacher of weight 0.01 changes, logits clipped to 100 nats."""
    log_w = torch.tensor([[math.log(1 - SMALL), math.log(SMALL)]], dtype=torch.float64)

    def moved(x: Float[Tensor, "r 3 V"]) -> Float[Tensor, " r"]:
        log_p = (100.0 * torch.tanh(x)).log_softmax(-1)
        kept, before, after = log_p[:, 0], log_p[:, 1], log_p[:, 2]
        w = log_w.expand(len(x), -1)
        return tv(log_pool(w, torch.stack([kept, before])), log_pool(w, torch.stack([kept, after])))

    start = 0.3 * normal((trial.times(16, 16), 3, VOCABULARY), trial.generator(51))
    best, _ = ascend(moved, start, trial.times(300, 300), 0.05)
    return float(best.max())


T4 = Statement(
    number=4,
    title="target perturbation",
    words="When the weights move, the linear pool moves by at most their total variation times the teachers' greatest "
    "disagreement, and the logit gradient of forward KL by at most twice that over the temperature. The log pool moves "
    "by at most tanh(osc / 4) of the change of its score, which is finite only with clipped logits.",
    formula="TV(p_w, p_w') <= TV(w, w') max_jk TV(p_j, p_k);  log pool: TV <= tanh(osc_v(sum_k dw_k log p_k) / 4)",
    source="ours",
    run=check_perturbed_targets,
    code=("objective.ForwardKL.evaluate", "guarantee.Guarantee.weight_shift"),
    remarks="The factor max TV(p_j, p_k) is what the log pool lacks: there a small change of the weights can move the "
    "target by more than the weights themselves.",
)
T5 = Statement(
    number=5,
    title="a teacher goes wrong",
    words="With ceiling M, replacing teacher j moves the linear pool by at most M TV(p_j, p'_j), plus the T2 to T4 "
    "chain if the evidence reads p_j. Losing teacher j, or skipping teachers of total weight m, moves it by at most "
    "w_j, or m.",
    formula="TV(p_w, p'_w) <= M TV(p_j, p'_j) + TV(w, w') max_ik TV(p_i, p_k)",
    source="ours",
    run=check_failures,
    code=("guarantee.Guarantee.target_shift_if_corrupted", "simplex.mask"),
    remarks="For the linear pool only. In the log pool one teacher of weight 0.01 can move the target almost anywhere, "
    "because a probability near 0 is a veto; there only T4 holds.",
)
T6 = Statement(
    number=6,
    title="pooling collapse",
    words="A weighted sum of divergences is one divergence to one pooled target plus a constant: forward KL to the "
    "linear pool, reverse KL to the log pool, every Amari alpha-divergence to a power-mean pool with the "
    "position-dependent factor Z^alpha kept, Bregman losses to the mean, Jeffreys to two targets. JSD, skew KL "
    "and total variation do not collapse: pool-then-divide and divide-then-pool are two objectives.",
    formula="sum_k w_k KL(p_k||q) = KL(sum_k w_k p_k||q) + JS_w;  sum_k w_k KL(q||p_k) = KL(q||log pool) - log Z",
    source="Bregman information: Banerjee et al. 2005; alpha-divergences: Amari 2007; non-collapse ours",
    run=check_collapse,
    code=("objective.ForwardKL", "objective.ReverseKL", "objective.distil"),
    remarks="Temper first, pool then; signals read temperature 1. Loss values are the sums on the left, JS_w included, "
    "so that they can be compared between weightings. The factor Z^alpha depends on weights and position: leaving it "
    "out changes the objective.",
)
