"""Statements about what may stand in a stack: T8 existence and non-uniqueness, T20 when a composition is defined."""

import itertools
import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill import guarantee as calculus
from polydistill.logprobs import Positions, Statistics
from polydistill.pipeline import Pipeline
from polydistill.safety import Tilt
from polydistill.simplex import NoActiveTeacherError, compose, mask, normalise, power, spread, total_variation
from polydistill.theory.scene import say, with_likelihood
from polydistill.theory.search import distributions, osc, weights
from polydistill.theory.statement import (
    Claim,
    Result,
    Statement,
    Trial,
    Worst,
    at_least,
    equal,
    normal,
    shown,
)
from polydistill.weighting import (
    Hedge,
    Operator,
    PrefixPosterior,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
)
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, Signal, StudentGap

NAMES, TASKS = ("a", "b", "c"), ("s", "t")
LENGTH = 12


class EarlierEntropy(Signal):
    """`-H(p_k)` of the position before, 0 at the start of a document: evidence at the context scale."""

    name: ClassVar[str] = "entropy of the position before"
    needs: ClassVar[frozenset[str]] = frozenset({"entropy"})

    def evidence(self, statistics: Statistics) -> Float[Tensor, "n K"]:
        """The entropies, one position later."""
        assert statistics.entropy is not None
        before = -torch.cat([torch.zeros_like(statistics.entropy[:1]), statistics.entropy[:-1]])
        return before.masked_fill(statistics.positions.document_start[:, None], 0.0)


def _hedge() -> Operator:
    operator = Hedge(1.0, 0.05)(LabelLikelihood(spread=4)).bind(NAMES, TASKS)
    statistics = with_likelihood(torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64))
    statistics.positions.task.fill_(TASKS.index("t"))
    operator.observe(statistics)
    operator.commit()
    return operator


OPERATORS: dict[str, dict[str, Operator]] = {
    "token": {
        "entropy": Softmax(1.0)(Entropy(spread=4)),
        "margin": Softmax(1.0)(Margin(spread=4)),
        "label likelihood": Softmax(1.0)(LabelLikelihood(spread=4)),
        "consensus": Softmax(1.0)(Consensus(spread=4)),
        "student gap": Softmax(1.0)(StudentGap(spread=4)),
    },
    "context": {
        "prefix likelihood": PrefixPosterior(0.05),
        "named teacher": TeacherRouter(4.0),
        "entropy of the position before": Softmax(1.0)(EarlierEntropy(spread=4)),
    },
    "task": {
        "held-out losses": TaskPrior.from_losses({"t": {"a": 2.0, "b": 1.0, "c": 3.0}}),
        "a table of routes": TaskRouter({"t": "c"}, 4.0),
        "likelihood in earlier steps": _hedge(),
    },
}
"""Three and more operators per scale that read different evidence."""


def _scene(generator: torch.Generator) -> Statistics:
    """One document with a task, named teachers, and a student."""
    log_p = distributions((len(NAMES), LENGTH, 6), generator, 1.5)
    target = torch.randint(6, (LENGTH,), generator=generator)
    every = torch.ones(LENGTH, dtype=torch.bool)
    positions = Positions.of(
        target,
        every,
        task=torch.full((LENGTH,), TASKS.index("t")),
        teacher=torch.randint(len(NAMES), (LENGTH,), generator=generator),
    )
    return say(log_p, target, student=normal((LENGTH, 6), generator), positions=positions).statistics


def _bound(operator: Operator) -> Operator:
    return operator if operator.names is not None else operator.bind(NAMES, TASKS)


def _opposite(one: Float[Tensor, "n K"], two: Float[Tensor, "n K"]) -> int:
    """Positions where some pair of teachers is ranked in opposite order, by 0.05 nats and more on both sides."""
    first, second = (x[:, :, None] - x[:, None, :] for x in (one, two))
    return int(((first > 0.05) & (second < -0.05)).any(-1).any(-1).sum())


def check_existence(trial: Trial) -> Result:
    """T8."""
    generator, scenes = trial.generator(8), trial.times(20, 4)
    seen = [_scene(generator) for _ in range(scenes)]
    mass, ranges, ordered = Worst(1e-6), Worst(1e-6), Worst(1e-6)
    parts: list[Claim] = []
    for scale, operators in OPERATORS.items():
        answers = {}
        for name, operator in operators.items():
            bound = _bound(operator)
            guarantee = bound.guarantee()
            tilt = Tilt({"b": 1.0, "c": 2.0}, guarantee.range + 0.1).bind(NAMES)
            pipeline = Pipeline(bound, 0.0, tilt)
            log_w = torch.cat([bound(statistics, None)[0] for statistics in seen])
            answers[name] = log_w
            mass.see((log_w.exp().sum(-1) - 1).abs() + (~torch.isfinite(log_w)).sum(-1), 1e-6)
            ranges.see(spread(log_w), guarantee.range)
            for statistics in seen:
                statistics.positions.severity.fill_(1.0)
                enforced, _ = pipeline.decide(statistics, None)
                ordered.see(enforced[:, :-1] - enforced[:, 1:], 0.0)
        opposite = [_opposite(answers[i], answers[j]) for i, j in itertools.combinations(answers, 2)]
        claim = f"{scale} scale: {len(operators)} operators; fewest positions where a pair of them disagrees"
        parts.append(at_least(claim, min(opposite), 1, scenes * LENGTH * len(opposite)))
    return Result(
        (
            *parts,
            mass.part("all of them: |sum of weights - 1| and infinities (N)"),
            ranges.part("all of them: range against their own certificate (B)"),
            ordered.part("all of them under a tilt of their range: log-odds against the safer teacher (O1)"),
            *_compositions(trial),
        )
    )


def convex_sum(one: Float[Tensor, "*n K"], two: Float[Tensor, "*n K"], share: float = 0.5) -> Float[Tensor, "*n K"]:
    """`share w + (1 - share) v`: the range is at most the larger one, the modulus at most twice the larger one."""
    return normalise(torch.logaddexp(one + math.log(share), two + math.log1p(-share)))


def _compositions(trial: Trial) -> list[Claim]:
    """Product, tempered product and convex sum of the same two factors."""
    generator, cases = trial.generator(81), trial.times(2000)
    one, two = weights(cases, 3, generator), weights(cases, 3, generator)
    rules = {
        "product": compose(one, two),
        "tempered product": compose(power(one, 0.3), power(two, 1.7)),
        "convex sum": convex_sum(one, two),
    }
    fewest = min(_opposite(rules[i], rules[j]) for i, j in itertools.combinations(rules, 2))
    ranges, moduli = Worst(), Worst()
    ranges.see(spread(rules["convex sum"]), torch.maximum(spread(one), spread(two)))
    moved_one, moved_two = (normalise(w + 0.3 * normal((cases, 3), generator)) for w in (one, two))
    moved = osc(convex_sum(moved_one, moved_two) - rules["convex sum"])
    moduli.see(moved, 2 * torch.maximum(osc(moved_one - one), osc(moved_two - two)))
    return [
        at_least("product, tempered product, convex sum: fewest inputs where a pair disagrees", fewest, 1, cases),
        ranges.part("convex sum: range, against the larger of the two (B)"),
        moduli.part("convex sum: Hilbert distance moved, against twice the larger of its factors' (C)"),
    ]


def check_composition(trial: Trial) -> Result:
    """T20."""
    generator, teachers = trial.generator(20), 3
    wrong, tried = 0, 0
    masks = [torch.tensor(m) for m in itertools.product([False, True], repeat=teachers) if any(m)]
    for factors in (2, 3):
        for keeps in itertools.product(masks, repeat=factors):
            parts = [mask(weights(1, teachers, generator), keep[None]) for keep in keeps]
            defined = bool(torch.stack(keeps).all(0).any())
            wrong += defined != _defined(parts)
            tried += 1
    cases = trial.times(2000)
    one, two = weights(cases, 5, generator), weights(cases, 5, generator)
    keep = torch.rand((cases, 5), generator=generator) < 0.6
    keep[:, 0] = True
    product = mask(compose(one, two), keep)
    orders = [compose(mask(one, keep), two), compose(one, mask(two, keep)), compose(mask(one, keep), mask(two, keep))]
    commute = max(float((order.exp() - product.exp()).abs().max()) for order in orders)
    powered = (power(mask(one, keep), -1.5).exp() - mask(power(one, -1.5), keep).exp()).abs().max()
    return Result(
        (
            shown(
                "defined exactly when some teacher is active in every factor; every pattern of 2 and 3 factors",
                wrong,
                tried,
            ),
            equal("masking before or after a product is the same", commute, 3 * cases),
            equal("and before or after a power", float(powered), cases),
            *_vetoes(trial),
        )
    )


def _defined(parts: list[Tensor]) -> bool:
    try:
        return bool(torch.isfinite(compose(*parts).exp()).all())
    except NoActiveTeacherError:
        return False


def _vetoes(trial: Trial) -> list[Claim]:
    """A weight that vanishes in one factor: the product goes to the masked one, and the real stack agrees."""
    generator, cases, limit = trial.generator(201), trial.times(500), Worst()
    one, two = weights(cases, 4, generator), weights(cases, 4, generator)
    keep = torch.tensor([False, True, True, True])
    vetoed = mask(compose(one, two), keep.expand_as(one))
    for fall in (1.0, 5.0, 20.0, 600.0):
        weak = normalise(one - fall * (~keep))
        weight = compose(weak, two).exp()[:, 0]
        limit.see(total_variation(compose(weak, two), vetoed), weight)
    table, other = TaskPrior({"t": {"a": 0, "b": 1, "c": 2}}), TaskPrior({"t": {"a": 1, "b": 0, "c": 0}})
    statistics = with_likelihood(torch.zeros(1, 3, dtype=torch.float64))
    statistics.positions.task.zero_()
    log_w, _ = (table * PrefixPosterior(0.1)).bind(NAMES, ("t",))(statistics, None)
    expected = torch.tensor([0.0, 1 / 3, 2 / 3], dtype=torch.float64)
    refused = 0
    try:
        (table * other).bind(NAMES, ("t",))(statistics, None)
    except NoActiveTeacherError as error:
        refused = "no active teacher" in str(error)
    veto_range = table.bind(NAMES, ("t",)).guarantee().range
    return [
        limit.part("a vanishing weight: total variation to the veto, against the weight that is left"),
        equal("a prior of 0 in a stack is a veto: difference", float((log_w.exp() - expected).abs().max()), slack=1e-6),
        shown("two priors that veto everybody between them are refused", int(not refused), 1),
        shown("a veto has no range, and its certificate says so", int(veto_range != calculus.INFINITY), 1),
    ]


T8 = Statement(
    number=8,
    title="existence and non-uniqueness",
    words="At each scale at least three conforming operators read different evidence, and each pair ranks the teachers "
    "in opposite order on some input; likewise for composition: product, tempered product and convex sum.",
    formula="for W, W' of one scale: some input with w_i > w_j and w'_i < w'_j",
    source="the paper states existence and non-uniqueness; the operators and the strict form are ours",
    run=check_existence,
    code=("weighting.Softmax", "weighting.PrefixPosterior", "weighting.TaskPrior", "weighting.Hedge"),
    remarks="O comes from the tilt that follows every one of them. Three temperatures of one operator would be one "
    "operator: they never disagree in rank.",
)
T20 = Statement(
    number=20,
    title="composition is well defined",
    words="A composition is defined exactly when some teacher is active in every factor. Vetoes and masks commute with "
    "the product; the limit of a vanishing weight is the veto.",
    formula="support(prod_i w_i) = intersection of supports; TV(product, vetoed) = the weight that is left",
    source="ours",
    run=check_composition,
    code=("simplex.compose", "simplex.mask", "simplex.NoActiveTeacherError", "weighting.TaskPrior"),
)
