"""T9, second half: what each theorem uses, and how it fails without."""

import math

import torch
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.safety import Ordered, Tilt
from polydistill.simplex import NoActiveTeacherError, compose, mask, mix, normalise, spread, total_variation
from polydistill.theory.collapse import kl
from polydistill.theory.descent import constant, opposed, sgd
from polydistill.theory.onpolicy import log_reward, policy_gradient
from polydistill.theory.scene import linear_pool, tv, with_likelihood
from polydistill.theory.search import one_apart
from polydistill.theory.statement import Claim, Trial, at_least
from polydistill.weighting import ClippedPosterior, Softmax, TaskPrior

USES = {
    "T1": "B (range), C (modulus), E (equivariance); N of the factors is not used, composition restores it",
    "T2": "N",
    "T3": "N; B for the range with finite R (without it the row for R = infinity holds)",
    "T4": "N; C for the move per nat of evidence error",
    "T5": "B (the ceiling M); N and C through T4",
    "T6": "none for forward KL: a mass m gives m times a pool of mass m; N for reverse KL, Bregman losses and Jeffreys",
    "T7": "a prior without zeros, of any mass; B for the regret against a changing teacher",
    "T8": "none: it says that the axioms do not fix the operator",
    "T10": "N and O1 for the unsafe mass, N and O2 for the expected safety",
    "T11": "B",
    "T12": "none for range, modulus and order; N for a floor through the projection and for what the clip keeps",
    "T13": "N and C: drift is bounded by how far weights move, and only mass that is kept can be bounded by osc L",
    "T14": "none",
    "T15": "N, per position",
    "T16": "S",
    "T17": "none of them; strict feasibility",
    "T18": "none",
    "T19": "none",
    "T20": "a common support; B is enough",
    "T21": "a prior without zeros; B is enough",
}
"""Theorem -> the axioms among the hypotheses of its theorems in Coq; of T13, T17 and T19 those that the check needs."""


def needed(trial: Trial) -> list[Claim]:
    """Each used axiom dropped: what is measured then, against what the theorem promises with it."""
    return [*_weights(), *_targets(), *_order(), *_learning(trial), *_support()]


def _hard(e: Tensor) -> Tensor:
    """All but e^-20 of the weight on the leader: N, B, no modulus."""
    return normalise(20.0 * torch.nn.functional.one_hot(e.argmax(-1), e.shape[-1]).to(e))


def _weights() -> list[Claim]:
    e = torch.tensor([[30.0, 0.0, 0.0], [0.0, 1e-9, 0.0], [1e-9, 0.0, 0.0]], dtype=torch.float64)
    free, other = Softmax(2.0).log_weights(e), Softmax(0.5).log_weights(0.1 * e)
    product = compose(free, other)
    promise = calculus.product(calculus.softmax(3, 2.0, 4.0, "a"), calculus.softmax(3, 0.5, 1.0, "b")).range
    jump = compose(_hard(e), other)
    jumped = float((jump[1] - jump[2]).max() - (jump[1] - jump[2]).min())
    placed = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    twisted = compose(free + placed, other)[:1] - compose(free.flip(-1) + placed, other.flip(-1)).flip(-1)[:1]
    log_w = one_apart(3, 2.0)[None]
    doubled = torch.logaddexp(log_w + math.log(2 * 0.9), torch.full_like(log_w, math.log(0.1 / 3)))
    return [
        at_least("T1 without B (evidence not clipped): range of the product", float(spread(product).max()), promise),
        at_least("T1 without C (a leader takes all): Hilbert move for 2e-9 nats of evidence", jumped, 2e-9 * 2.5),
        at_least(
            "T1 without E (a prior that stays in place): permuted product minus product", float(spread(twisted)), 0.1
        ),
        at_least(
            "T2 without N (twice the weights, Hilbert distance 0): total variation",
            float(total_variation(log_w, log_w + math.log(2.0))),
            0.1,
        ),
        at_least(
            "T3 without N (mass 2 mixed with uniform): range", float(spread(doubled)), calculus.mix_range(2.0, 3, 0.1)
        ),
        at_least(
            "T3 without B (R = 700 instead of 2): range",
            float(spread(mix(one_apart(3, 700.0)[None], 0.1))),
            calculus.mix_range(2.0, 3, 0.1),
        ),
    ]


def _targets() -> list[Claim]:
    same = torch.tensor([0.7, 0.3], dtype=torch.float64).log().expand(2, 1, 2)
    w = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    doubled = tv(linear_pool(w, same), linear_pool(w + math.log(2.0), same))
    corners = (torch.eye(2, dtype=torch.float64) + 1e-300).log()[:, None]
    e = torch.tensor([[1e-9, 0.0], [0.0, 1e-9]], dtype=torch.float64)
    flipped = tv(linear_pool(_hard(e[:1]), corners), linear_pool(_hard(e[1:]), corners))
    sure = Softmax(1.0).log_weights(torch.tensor([[50.0, 0.0]], dtype=torch.float64))
    wrong = torch.stack([corners[1], corners[1]])
    replaced = tv(linear_pool(sure, corners), linear_pool(sure, wrong))
    q = torch.tensor([0.88, 0.12], dtype=torch.float64)
    p = torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]], dtype=torch.float64)
    pool = (2 * w.exp()[:, :, None] * p.transpose(0, 1).log()).sum(1).softmax(-1)
    truth = (2 * w.exp().T * kl(q.expand_as(p), p)).sum(0)
    log_z = (2 * w.exp()[:, :, None] * p.transpose(0, 1).log()).sum(1).logsumexp(-1)
    collapsed = kl(q.expand_as(pool), pool) - log_z
    text = torch.full((200, 3), -8.0, dtype=torch.float64)
    text[:100, 0], text[100:, 1] = 0.0, 0.0
    log_w, _ = ClippedPosterior(math.inf).bind(("a", "b", "c"))(with_likelihood(text), None)
    loss = float(-(log_w + text).logsumexp(-1).sum())
    bound = math.log(3) + math.log(3 / 0.05) + 198 * math.log(1 / (1 - 0.05 + 0.05 / 3))
    ceiling = calculus.ceiling_of(4.0, 2)
    return [
        at_least("T4 without N (equal teachers, twice the weights): move of the target", float(doubled), 0.1),
        at_least("T4 without C (a leader takes all): move of the target for 1e-9 nats", float(flipped), 1e-3),
        at_least(
            "T5 without B (evidence 50 nats apart): move of the target, against M of 4 nats", float(replaced), ceiling
        ),
        at_least(
            "T6 without N (mass 2), reverse KL: sum of divergences against KL(q || log pool) - log Z, nats",
            float((truth - collapsed).abs()),
            0.1,
        ),
        at_least("T7 without B (no forgetting): regret against one switch, against fixed share's bound", loss, bound),
    ]


def _order() -> list[Claim]:
    unsafe = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    upside_down = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    heavy = torch.tensor([0.6, 0.6, 0.8], dtype=torch.float64)
    names = ("a", "b", "c")
    ordered = Ordered({"b": 1.0, "c": 1.01}, 1.0).bind(names)
    log_w = normalise(torch.tensor([[0.0, 5.0, -5.0]], dtype=torch.float64))
    safety = torch.tensor([0.0, 1.0, 1.01], dtype=torch.float64)
    expected = [float((ordered.enforce(log_w, torch.tensor([s])).exp() * safety).sum()) for s in (0.0, 1.0)]
    free = Softmax(1.0).log_weights(torch.tensor([[1e4, 0.0, 0.0]], dtype=torch.float64))
    tilted = Tilt({"b": 1.0, "c": 2.0}, 100.0).bind(names).enforce(free, torch.ones(1))
    return [
        at_least(
            "T10 without O1 (weights fall with safety): unsafe mass, against uniform",
            float(upside_down @ unsafe),
            float(unsafe.mean()),
        ),
        at_least(
            "T10 without N (ordered, of mass 2): unsafe mass, against uniform",
            float(heavy @ unsafe),
            float(unsafe.mean()),
        ),
        at_least(
            "T10 without O2 (projection): fall of the expected safety as severity rises", expected[0] - expected[1], 0.1
        ),
        at_least(
            "T11 without B (evidence 1e4 nats apart, tilt of 100 nats): lead of the least safe teacher",
            float(tilted[0, 0] - tilted[0, 1]),
            1.0,
        ),
    ]


def _learning(trial: Trial) -> list[Claim]:
    problem, steps = opposed(), trial.times(200, 60)
    eta = 1.0 / problem.smoothness

    def worst_takes_all(t: int, losses: Tensor, before: Tensor | None) -> Tensor:
        return _hard(losses.mean(1, keepdim=True)).exp()

    def softly(t: int, losses: Tensor, before: Tensor | None) -> Tensor:
        return Softmax(2.0).log_weights(losses.mean(1, keepdim=True)).exp()

    jumping = sgd(problem, worst_takes_all, eta, steps, trial.generator(91), batch=None)
    smooth = sgd(problem, softly, eta, steps, trial.generator(91), batch=None)
    half = torch.full((1, 1, 2), 0.5, dtype=torch.float64)
    still = sgd(problem, constant(half), eta, steps, trial.generator(91), batch=None)
    losses = problem.losses(torch.zeros(1, *problem.shape, dtype=torch.float64))[0, 0]  # equal by symmetry
    rise = float((2 * half.flatten() - half.flatten()) @ losses)
    log_p = torch.tensor([[[0.8, 0.1, 0.1]], [[0.1, 0.1, 0.8]]], dtype=torch.float64).log()
    logits, log_w = torch.tensor([[0.0, 1.0, 0.5]], dtype=torch.float64), torch.zeros(1, 3, 2).double() - math.log(2)
    truth = policy_gradient(logits, log_reward(log_w, log_p, logits))
    read = policy_gradient(logits, log_reward(normalise(log_w + log_p.permute(1, 2, 0)), log_p, logits))
    tail = float(jumping.slope[steps // 2 :].mean())
    return [
        at_least(
            "T13 without C (the worst teacher takes all): |grad F_t|^2 in the second half",
            tail,
            0.01,
            note=f"with a softmax of temperature 2: {float(smooth.slope[steps // 2 :].mean()):.2g}, "
            f"constant weights: {float(still.slope[steps // 2 :].mean()):.2g}",
        ),
        at_least("T13 without N (equal losses, mass doubles): rise of F, against osc L |dw| / 2 = 0", rise, 0.1),
        at_least("T15 without N per position: mass of the target, against 1", _mass_by_symbol(), 1.0),
        at_least(
            "T16 without S (weights read the sampled token): relative error of the gradient",
            float((read - truth).norm() / truth.norm()),
            0.1,
        ),
    ]


def _mass_by_symbol() -> float:
    """Mass of the target when the weights differ from symbol to symbol, each of them weights."""
    p = torch.eye(2, dtype=torch.float64)
    w = torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64)
    return float((w * p).sum())


def _support() -> list[Claim]:
    out = torch.zeros(1, 2, dtype=torch.float64)
    refused = 0.0
    try:
        compose(*(mask(normalise(out), torch.tensor([keep])) for keep in ([True, False], [False, True])))
    except NoActiveTeacherError:
        refused = 1.0
    statistics = with_likelihood(torch.tensor([[-50.0, 0.0]] * 4, dtype=torch.float64))
    statistics.positions.task.zero_()
    stack = (TaskPrior({"t": {"a": 1, "b": 0}}) * ClippedPosterior(math.inf)).bind(("a", "b"), ("t",))
    log_w, _ = stack(statistics, None)
    loss = float(-(log_w + statistics.label_log_prob).logsumexp(-1).sum())
    return [
        at_least("T20 without a common support: compositions refused", refused, 1.0),
        at_least("T21 without a positive prior: regret against the excluded teacher, against ln K", loss, math.log(2)),
    ]
