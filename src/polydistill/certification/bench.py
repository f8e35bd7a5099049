"""What is put to the test: one rule at one number of teachers, in one context, with everything that is declared."""

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polydistill.axioms import Rule
from polydistill.certification import asking
from polydistill.certification import driven as drive
from polydistill.certification.driven import Driven, DrivenSequence
from polydistill.certification.rule import SAFETY_NAMES, FunctionRule, guarded, source_of
from polydistill.certification.rule import title as function_title
from polydistill.guarantee import Guarantee, Modulus
from polydistill.logprobs import UNKNOWN
from polydistill.pipeline import Pipeline

SIZES = tuple(range(1, 65))
"""Numbers of teachers that a function is tried with."""
CLOSE = (2, 3, 4, 5, 6, 7)
"""Numbers of teachers at which it is searched adversarially as well, with the largest that it takes."""
FEW = 3
"""Numbers of teachers at which every law is asked at both ends of severity."""
SLOW = ((2e-6, 50), (1e-4, 1000))
"""Seconds a row from which a rule is slow, and what a row of it then counts for."""
MASS = 1e-6, 1e-3
"""By how much weights may miss a sum of 1 in float64, and what training accepts of any dtype."""
Permuted = tuple[Rule, str]
"""A rule, and lines that define it as `permuted_rule` once `rule` is defined."""
PREFIX = 12
"""Tokens of the prefix that an attack on a prefix posterior controls."""


@dataclass(frozen=True)
class Bench:
    """A rule, and what it claims.

    Attributes:
        teachers: K.
        rule: evidence to log-weights; with severity as a second argument when `graded`.
        channels: names of the evidences, `[n, C, K]`; empty for a plain function of `[n, K]`.
        prefix: how many leading channels are tokens of one prefix.
        range: declared bound, inf without one.
        moduli: declared modulus of each channel (a single one for a plain function), inf without one.
        sustained: declared modulus for errors at every token of the prefix.
        severity_modulus: declared modulus in severity, inf without one.
        graded: the rule reads severity.
        sigma: safety scores, or None where no order is claimed.
        critical: severity from which O1 is claimed.
        scale: `token`, `task`, `context` or `causal`.
        sequence: one document's positions together, for law S.
        sequence_shape: of one position of it.
        sequence_source: lines that define it as `rule` once the rule is defined.
        task: task of each of the document's positions.
        monotone: channels in which more evidence means more trust.
        source: lines that define the rule in a prompt.
        context: what is fixed: task, route, severity.
        permuted: the rule of the teachers in another order with lines that define it, or None where there is none.
        clones: the rule takes one teacher more.
        domain: least and largest evidence that there is.
        cost: of one row, relative to a softmax.
        active: whom the context leaves in, and `range` is about; None is everybody.
        close: it is searched adversarially, not only looked at.
        raw: the rule as it is, however small a weight.
        raw_source: lines that define that as `rule` once the rule is defined.
        single: the same in float32, where it has to be looked at as well.
        floor: the log-weight that smaller ones are counted as.
        epsilon: of the arithmetic.
        asked: the function behind it; None for pipelines.
        order_only: only the laws of severity are asked.
        again: another bench differs in its severity only, so that they are asked there.
    """

    teachers: int
    rule: Rule = field(repr=False)
    channels: tuple[str, ...] = ()
    prefix: int = 0
    range: float = math.inf
    moduli: tuple[float, ...] = (math.inf,)
    sustained: float = math.inf
    severity_modulus: float = math.inf
    graded: bool = False
    sigma: tuple[float, ...] | None = None
    critical: float = 1.0
    scale: str = "token"
    sequence: Rule | None = field(default=None, repr=False)
    sequence_shape: tuple[int, ...] = ()
    sequence_source: str = field(default="", repr=False)
    task: tuple[int, ...] | None = None
    monotone: tuple[int, ...] = (0,)
    source: str = field(default="", repr=False)
    context: str = ""
    permuted: Callable[[Sequence[int]], Permuted | None] = field(default=lambda order: None, repr=False)
    clones: bool = False
    domain: tuple[float, float] = (-math.inf, math.inf)
    cost: int = 1
    active: tuple[bool, ...] | None = None
    close: bool = True
    raw: Rule = field(default=lambda evidence: evidence, repr=False)
    raw_source: str = ""
    single: Rule | None = field(default=None, repr=False)
    floor: float = -math.inf
    epsilon: float = torch.finfo(torch.float64).eps
    asked: FunctionRule | None = field(default=None, repr=False)
    order_only: bool = False
    again: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row of evidence."""
        return (len(self.channels), self.teachers) if self.channels else (self.teachers,)

    def inside(self, evidence: Tensor) -> Tensor:
        """The nearest evidence in the domain."""
        return evidence if self.domain == (-math.inf, math.inf) else evidence.clamp(*self.domain)

    def folded(self, evidence: Tensor) -> Tensor:
        """Evidence of the sign that the domain has, if it has one."""
        low, high = self.domain
        return -evidence.abs() if high <= 0.0 else evidence.abs() if low >= 0.0 else evidence

    def drawn(self, evidence: Tensor) -> Tensor:
        """Random evidence moved into the domain: folded first, so that little of it ends up on the border."""
        return self.inside(self.folded(evidence))

    @property
    def mass(self) -> float:
        """By how much the weights may miss a sum of 1."""
        return max(MASS[0], min(64 * self.epsilon, MASS[1]))

    def slack(self, rows: Mapping[str, Tensor], law: str = "") -> Tensor:
        """By how much rounding alone may make each row miss a law, nats; `mass` has what it does to law N."""
        evidence = rows.get("evidence", rows.get("first"))
        if evidence is None:
            raise ValueError(f"rows without evidence: {', '.join(rows)}")
        if law == "N" or self.asked is None:
            return torch.zeros(len(evidence), dtype=torch.float64)
        size = evidence.abs().nan_to_num(posinf=0.0).flatten(1).amax(-1)
        for name in ("shift", "rise"):
            size = size + rows[name].abs().reshape(len(size), -1).amax(-1) if name in rows else size
        return 64 * self.epsilon * (1.0 + size)

    def allows(self, rows: Mapping[str, Tensor]) -> Tensor:
        """Of each row, whether its inputs are in the domain, its severities in [0, 1] and its rises above 0."""
        low, high = self.domain
        evidence = [rows[name] for name in ("evidence", "first", "second") if name in rows]
        evidence += [rows["evidence"] + rows[name][..., None] for name in ("shift", "rise") if name in rows][
            : not self.channels
        ]
        fine = [(e >= low) & (e <= high) for e in evidence]
        fine += [(rows[n] >= 0) & (rows[n] <= 1) for n in ("severity", "severity_then", "low", "high") if n in rows]
        if "low" in rows:
            fine.append(rows["low"] <= rows["high"])
        if "rise" in rows:
            up = rows["rise"].reshape(len(rows["rise"]), -1)
            fine += [up >= 0, (up > 0).any(-1)]
        return torch.stack([part.reshape(len(part), -1).all(-1) for part in fine]).all(0)

    def in_float32(self) -> "Bench":
        """The same, asked in float32."""
        if self.single is None or self.asked is None:
            return self
        epsilon = max(self.epsilon, torch.finfo(torch.float32).eps)
        source = "from polydistill.certification.asking import in_float32\nrule = in_float32(function_rule, raw=True)"
        return replace(self, raw=self.single, epsilon=epsilon, raw_source=source)

    @property
    def open_channels(self) -> tuple[int, ...]:
        """Channels with a finite modulus, the ones that an attack on it may move."""
        return tuple(c for c, modulus in enumerate(self.moduli) if math.isfinite(modulus))


def function_benches(
    rule: FunctionRule, sizes: Sequence[int] | None, claims: dict[str, Any], origin: str = ""
) -> list[Bench]:
    """One bench per number of teachers that the function takes, severity and order of safety that it reads.

    Args:
        rule: the probed function.
        sizes: numbers of teachers; None tries `SIZES`.
        claims: fields of `Bench` that the user declares.
        origin: where the function was taken from.
    """
    fixed = (len(rule.sigma),) if rule.sigma is not None else SIZES
    taken = []
    for teachers in fixed if sizes is None else sizes:
        try:
            with torch.no_grad():
                rule(torch.full((2, teachers), min(0.0, claims["domain"][1]), dtype=torch.float64))
        except Exception as error:
            if sizes is not None:
                said = " ".join(str(error).split())
                raise ValueError(
                    f"{function_title(rule.given)}: for evidence [2, {teachers}] it says {type(error).__name__}: {said}"
                ) from error
            continue
        taken.append(teachers)
    cost = _cost(rule, taken[0]) if taken else 1
    benches = []
    for teachers in taken:
        close = teachers in CLOSE or teachers == taken[-1]
        for here, order_only in _contexts(rule, teachers, close):
            benches.append(_function_bench(here, teachers, claims, origin, cost, close, order_only))
    return benches


def _contexts(rule: FunctionRule, teachers: int, close: bool) -> list[tuple[FunctionRule, bool]]:
    """Severities, and safety scores in another order and with ties where the function reads them."""
    levels = (1.0, 0.0) if rule.graded and teachers <= FEW else (1.0,) if rule.graded else (0.0,)
    every = [(replace(rule, severity=severity), False) for severity in levels]
    if rule.sigma is None and teachers > 1 and SAFETY_NAMES.intersection(rule.takes):
        last = max(teachers - 1, 1)
        falling = tuple(2.0 - 2.0 * k / last for k in range(teachers))  # scores need not end at 1
        tiers = max((teachers + 1) // 2 - 1, 1)
        tied = tuple(2.0 * ((k * 5 + 3) % ((teachers + 1) // 2)) / tiers for k in range(teachers))
        # Of large numbers every fourth is tried in another order, falling and tied in turn.
        few = close or teachers <= max(CLOSE) + 9 or teachers % 4 == 0
        others = (falling, tied) if close else (falling, tied)[teachers // 4 % 2 :][: int(few)]
        every += [(replace(rule, severity=levels[0], sigma=sigma), True) for sigma in others]
    return every


def _function_bench(
    here: FunctionRule, teachers: int, claims: dict[str, Any], origin: str, cost: int, close: bool, order_only: bool
) -> Bench:
    orders = here.graded or here.sigma is not None
    single = None if here.dtype == torch.float32 else asking.in_float32(here, raw=True)
    return Bench(
        teachers,
        guarded(here),
        graded=here.graded,
        sigma=here.scores(teachers) if orders else None,
        sequence=None if here.vector else guarded(here.whole),
        sequence_shape=(teachers,),
        sequence_source="rule = function_rule.whole",
        source=source_of(here, claims["domain"], here.row_by_row, origin),
        context=f"severity {here.severity:g}" if here.graded else "",
        permuted=partial(_permuted_function, here),
        clones=True,
        cost=cost,
        close=close,
        raw=guarded(here.raw),
        raw_source="rule = guarded(function_rule.raw)",
        single=single,
        floor=here.floor,
        epsilon=here.epsilon,
        asked=here,
        order_only=order_only,
        again=here.graded and here.severity < 1.0,
        **claims,
    )


def _cost(rule: FunctionRule, teachers: int) -> int:
    """Of one row, from the fastest of three calls."""
    if rule.vector or rule.row_by_row:
        return 50
    rows = torch.zeros(1024, teachers, dtype=torch.float64)
    seconds = math.inf
    safe = guarded(rule)
    for _ in range(3):
        start = time.process_time()
        with torch.no_grad():
            safe(rows)
        seconds = min(seconds, (time.process_time() - start) / len(rows))
    return max([cost for least, cost in SLOW if seconds > least], default=1)


def _permuted_function(rule: FunctionRule, order: Sequence[int]) -> Permuted:
    scores = rule.scores(len(order))
    sigma = tuple(scores[k] for k in order) if rule.graded or rule.sigma is not None else None
    define = f"from dataclasses import replace\npermuted_rule = guarded(replace(function_rule, sigma={sigma}))"
    return guarded(replace(rule, sigma=sigma)), define


def pipeline_benches(pipeline: Pipeline, contexts: int, critical: float | None) -> list[Bench]:
    """One bench per context: tasks, routes and severities, all of them or an even choice of `contexts`.

    Args:
        pipeline: bound.
        contexts: how many at most.
        critical: severity from which O1 is asked for; None asks from where the pipeline claims it.
    """
    stack, promise = pipeline.stack, pipeline.guarantee()
    prefix = PREFIX if stack.reads_prefix_labels else 0
    tasks = [*range(len(pipeline.tasks)), UNKNOWN]
    teachers = range(len(pipeline.teachers))
    routes = [*teachers, UNKNOWN] if "TeacherRouter" in {type(part).__name__ for part in stack.modules()} else [UNKNOWN]
    levels = [1.0, 0.0, 0.5] if pipeline.safety is not None else [0.0]
    every = list(itertools.product(levels, routes, tasks))
    chosen = [every[i * len(every) // min(contexts, len(every))] for i in range(min(contexts, len(every)))]
    return [_pipeline_bench(Driven(pipeline, prefix, t, r, s), promise, critical) for s, r, t in chosen]


def _pipeline_bench(driven: Driven, promise: Guarantee, critical: float | None) -> Bench:
    pipeline = driven.pipeline
    channels = driven.channels or ("none",)
    moduli, sustained = _moduli(driven, promise)
    names = pipeline.teachers
    scale = "causal" if pipeline.stack.scale == "token" and pipeline.stack.reads_prefix_labels else pipeline.stack.scale
    task = tuple(i % max(len(pipeline.tasks), 1) for i in range(6)) if scale == "task" and pipeline.tasks else None
    sequence = DrivenSequence(driven, task)
    from_severity = pipeline.ordered_from()
    reach = 1 + 4 * driven.prefix
    oriented = tuple(
        driven.prefix + i for i, name in enumerate(driven.statistics_read) if driven.linear_in(name) is not None
    )

    def permuted(order: Sequence[int]) -> Permuted | None:
        others = tuple(names[k] for k in order)
        other = drive.renamed(pipeline, others)
        if other is None:
            return None
        route = UNKNOWN if driven.teacher == UNKNOWN else list(order).index(driven.teacher)
        define = (
            "from dataclasses import replace\nfrom polydistill.certification.driven import renamed\n"
            f"permuted_rule = replace(rule, pipeline=renamed(rule.pipeline, {others}), teacher={route})"
        )
        return guarded(replace(driven, pipeline=other, teacher=route)), define

    return Bench(
        len(names),
        guarded(driven),
        channels,
        driven.prefix,
        promise.range,
        moduli,
        sustained,
        promise.severity_modulus,
        pipeline.safety is not None,
        None if pipeline.safety is None else pipeline.safety.sigma,
        (from_severity if from_severity is not None else 1.0) if critical is None else critical,
        scale,
        guarded(sequence),
        (sequence.channels, len(names)),
        f"from polydistill.certification.driven import DrivenSequence\nrule = DrivenSequence(rule, {task})",
        task,
        (*range(driven.prefix), *oriented),
        drive.source_of(driven),
        _words(driven),
        permuted,
        cost=reach,
        active=_active(driven),
        raw=guarded(driven),
    )


def _active(driven: Driven) -> tuple[bool, ...] | None:
    """Whom the bench's severity leaves in, where not everybody."""
    if driven.pipeline.safety is None:
        return None
    active = driven.pipeline.safety.active(torch.tensor([driven.severity]))[0]
    return None if bool(active.all()) else tuple(active.tolist())


def _moduli(driven: Driven, promise: Guarantee) -> tuple[tuple[float, ...], float]:
    """Modulus of every channel, and the sustained one of the prefix."""
    statistics = driven.statistics_read
    prefix_moduli = [m for m in promise.moduli if m.evidence == "prefix likelihood"]
    # A stack that declares all its moduli and none in the prefix's likelihoods declares not to read them.
    silent = 0.0 if all(math.isfinite(m.once) for m in promise.moduli) else math.inf
    once = sum(m.once for m in prefix_moduli) if prefix_moduli else silent
    sustained = sum(m.sustained for m in prefix_moduli) if prefix_moduli else silent
    read = {statistic: _modulus(driven, statistic, promise.moduli) for statistic in statistics}
    moduli = (once,) * driven.prefix + tuple(read[statistic] for statistic in statistics)
    return moduli or (0.0,), sustained


def _modulus(driven: Driven, statistic: str, moduli: Sequence[Modulus]) -> float:
    """Sum over the signals that read a statistic; inf where one is not the statistic itself, up to the sign."""
    if driven.linear_in(statistic) is None:
        return math.inf
    label = drive.LABEL
    names = {
        signal.name
        for signal in driven.pipeline.stack.signals
        if statistic in signal.needs or (signal.reads_label and statistic == label)
    }
    return sum(modulus.once for modulus in moduli if modulus.evidence in names)


def _words(driven: Driven) -> str:
    pipeline, parts = driven.pipeline, []
    if driven.task != UNKNOWN:
        parts.append(f"task {pipeline.tasks[driven.task]}")
    if driven.teacher != UNKNOWN:
        parts.append(f"route to {pipeline.teachers[driven.teacher]}")
    if pipeline.safety is not None:
        parts.append(f"severity {driven.severity:g}")
    return ", ".join(parts)
