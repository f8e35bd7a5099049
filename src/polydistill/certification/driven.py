"""A pipeline as a rule: evidence `[n, C, K]` in, log-weights `[n, K]` out.

Every row becomes a document of its own: `prefix` tokens whose label likelihoods are the first channels, then the
position that is weighed, whose statistics are the other channels. Evidence is given in the sense of its signal
(larger = more trust), so the entropy channel holds `-H`.
"""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polydistill.logprobs import UNKNOWN, Positions, Statistics
from polydistill.pipeline import Pipeline
from polydistill.weighting import Operator

LABEL = "label_log_prob"


@dataclass(frozen=True)
class Driven:
    """A bound pipeline as a plain function.

    Attributes:
        pipeline: bound.
        prefix: tokens of evidence before the position that is weighed; 0 for stacks that do not read the prefix.
        task: task index of every row, or `UNKNOWN`.
        teacher: teacher that a route names, or `UNKNOWN`.
        severity: when none is given.
    """

    pipeline: Pipeline
    prefix: int = 0
    task: int = UNKNOWN
    teacher: int = UNKNOWN
    severity: float = 0.0

    @property
    def statistics_read(self) -> tuple[str, ...]:
        """Statistics of the position itself that the stack reads, in the order of the channels."""
        stack = self.pipeline.stack
        own = {LABEL} if stack.reads_label else set()
        return tuple(sorted(stack.needs | own))

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the evidences, one per channel."""
        prefix = tuple(f"prefix likelihood, {self.prefix - t} tokens back" for t in range(self.prefix))
        return prefix + tuple(self.evidence_name(name) for name in self.statistics_read)

    def evidence_name(self, statistic: str) -> str:
        """Name of the signal that reads a statistic, else the statistic's own."""
        names = [
            s.name
            for s in self.pipeline.stack.signals
            if statistic in s.needs or (s.reads_label and statistic == LABEL)
        ]
        return names[0] if names else statistic.replace("_", " ")

    def __call__(
        self, evidence: Float[Tensor, "n C K"], severity: Float[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n K"]:
        """Log-weights of the last position of every row's document."""
        log_w, _ = self.pipeline.decide(self.statistics(evidence, severity), None)
        return log_w.unflatten(0, (len(evidence), self.prefix + 1))[:, -1]

    def statistics(self, evidence: Float[Tensor, "n C K"], severity: Float[Tensor, " n"] | None = None) -> Statistics:
        """The statistics that give the rows their evidence."""
        n, _, teachers = evidence.shape
        length = self.prefix + 1
        level = evidence.new_full((n,), self.severity) if severity is None else severity.to(evidence)
        last = torch.zeros(n, length, dtype=torch.bool)
        last[:, -1] = True
        first = torch.zeros(n, length, dtype=torch.bool)
        first[:, 0] = True
        label = evidence.new_zeros(n, length, teachers)
        label = torch.cat([evidence[:, : self.prefix], label[:, self.prefix :]], 1)
        own: dict[str, Tensor] = {}
        for channel, name in enumerate(self.statistics_read, start=self.prefix):
            reading = evidence[:, channel] * self.sense(name)
            if name == LABEL:
                label = torch.cat([label[:, :-1], reading[:, None]], 1)
            else:
                rows = torch.cat([evidence.new_zeros(n, self.prefix, teachers), reading[:, None]], 1)
                own[name] = rows.flatten(0, 1)
        positions = Positions.of(
            torch.zeros(n * length, dtype=torch.int64),
            last.flatten(),
            has_target=torch.ones(n * length, dtype=torch.bool),
            document_start=first.flatten(),
            task=torch.full((n * length,), self.task),
            teacher=torch.full((n * length,), self.teacher),
            severity=level[:, None].expand(n, length).flatten(),
        )
        return Statistics(positions, label.flatten(0, 1), **own)

    def sense(self, statistic: str) -> float:
        """+1 when more of a statistic is more evidence, -1 when it is less; +1 where no signal reads it alone."""
        factor = self.factors[statistic]
        return 1.0 if factor is None else factor

    @cached_property
    def factors(self) -> dict[str, float | None]:
        """`linear_in` of every statistic that is read."""
        return {name: self.linear_in(name) for name in self.statistics_read}

    def linear_in(self, statistic: str) -> float | None:
        """The factor, 1 or -1, by which every signal that reads a statistic multiplies it; None where there is none."""
        factors = set()
        for signal in self.pipeline.stack.signals:
            reads = signal.needs | ({LABEL} if signal.reads_label else set())
            if statistic not in reads:
                continue
            if len(reads) > 1:
                return None
            probe = torch.tensor([[0.25, -0.5, 1.0]], dtype=torch.float64)
            positions = Positions.of(torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool))
            blank = Statistics(positions, torch.zeros_like(probe))
            reading: dict[str, Any] = {statistic: probe}
            read = signal.evidence(replace(blank, **reading))
            matches = [sign for sign in (1.0, -1.0) if torch.equal(read, sign * probe)]
            factors.update(matches or [0.0])
        return factors.pop() if len(factors) == 1 and 0.0 not in factors else None


@dataclass(frozen=True)
class DrivenSequence:
    """A pipeline on the positions of one document: evidence `[T, C, K]` in, log-weights `[T, K]` out.

    Channels are the label likelihood of each position, then the other statistics.

    Attributes:
        driven: pipeline and context.
        task: task of each position, or None for the context's.
    """

    driven: Driven
    task: tuple[int, ...] | None = None

    @property
    def channels(self) -> int:
        """Number of evidences per position."""
        return 1 + len(set(self.driven.statistics_read) - {LABEL})

    def __call__(self, evidence: Float[Tensor, "T C K"]) -> Float[Tensor, "T K"]:
        """Log-weights of every position."""
        others = [name for name in self.driven.statistics_read if name != LABEL]
        here = torch.ones(len(evidence), dtype=torch.bool)
        task = [self.driven.task] * len(evidence) if self.task is None else list(self.task)[: len(evidence)]
        positions = Positions.of(
            torch.zeros(len(evidence), dtype=torch.int64),
            here,
            task=torch.tensor(task),
            teacher=torch.full((len(evidence),), self.driven.teacher),
            severity=torch.full((len(evidence),), self.driven.severity, dtype=evidence.dtype),
        )
        own = {name: evidence[:, i] * self.driven.sense(name) for i, name in enumerate(others, start=1)}
        return self.driven.pipeline.decide(Statistics(positions, evidence[:, 0], **own), None)[0]


def as_pipeline(operator: Operator | Pipeline, teachers: tuple[str, ...], tasks: tuple[str, ...]) -> Pipeline:
    """A bound operator or an unbound one with names as a pipeline without floor and safety; a pipeline as it is."""
    if isinstance(operator, Pipeline):
        return operator
    if operator.names is None:
        operator = operator.bind(teachers, tasks)
    return Pipeline(operator)


def renamed(pipeline: Pipeline, teachers: tuple[str, ...]) -> Pipeline | None:
    """The pipeline bound to its teachers in another order; None when it has learned what cannot be moved."""
    same = pipeline.stack.bind(pipeline.teachers, pipeline.tasks)
    before, after = pipeline.stack.state_dict(), same.state_dict()
    if any(not torch.equal(before[name], after[name]) for name in before):
        return None
    stack = pipeline.stack.bind(teachers, pipeline.tasks)
    return Pipeline(stack, pipeline.floor, None if pipeline.safety is None else pipeline.safety.bind(teachers))


def source_of(driven: Driven) -> str:
    """Lines that define `rule` in a Python prompt, where the stack's `repr` says everything about it."""
    pipeline = driven.pipeline
    stack = pipeline.stack
    context = ", ".join(
        f"{field.name}={getattr(driven, field.name)!r}"
        for field in fields(driven)
        if field.name != "pipeline" and getattr(driven, field.name) != field.default
    )
    build = (
        f"Pipeline.of({stack!r}, {pipeline.teachers}, {pipeline.tasks}, floor={pipeline.floor}, "
        f"safety={pipeline.safety!r})"
    )
    imports = [
        "from polydistill.certification import Driven",
        "from polydistill.pipeline import Pipeline",
        "from polydistill.safety import *",
        "from polydistill.weighting.signals import *",
        "from polydistill.weighting import *",
    ]
    parts = [part for part in stack.modules() if isinstance(part, Operator)]
    foreign = sorted({(type(p).__module__, type(p).__qualname__) for p in parts} | _foreign_functions(parts))
    for module, name in foreign:
        if not module.startswith("polydistill.weighting"):
            imports.append(f"from {module} import {name}" if "<" not in name else f"# {name} = as certified")
    if any(buffer.numel() for buffer in stack.state_dict().values()):
        imports.append("# the stack below has to be given its learned state: stack.load_state_dict(...)")
    return "\n".join([*imports, f"rule = Driven({build}{', ' + context if context else ''})"])


def _foreign_functions(parts: list[Operator]) -> set[tuple[str, str]]:
    functions = [vars(vars(part)["weighting"]).get("function") for part in parts if "weighting" in vars(part)]
    return {(f.__module__, f.__qualname__) for f in functions if f is not None and hasattr(f, "__qualname__")}
