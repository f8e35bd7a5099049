"""What `recommend` finds, and what it says of it in sentences."""

from dataclasses import dataclass
from typing import Any

from polydistill.records.paired import SAME, Interval
from polydistill.run.evaluate import ALL

Sections = list[dict[str, Any]]
"""A section `weighting:`."""
SURE = 1.0
"""Nats per token that a stack may be surprised by a text before the text counts as unknown to its teachers."""
MANY = 0.11
"""Share of unknown texts above which labels alone taught more than the best stack, on planted problems (E4)."""

UNTRIED = (
    "whether labels alone would teach more in the run's steps cannot be known from text: `--trial 50` trains a student "
    "of each for 50 steps and says who is ahead"
)


@dataclass(frozen=True)
class Tried:
    """A stack as a predictor of held-out text.

    Attributes:
        name: of the stack, in words.
        weighting: the section that describes it.
        loss: nats per token.
        gain: over averaging.
        weights: teacher -> mean weight.
    """

    name: str
    weighting: Sections
    loss: float
    gain: Interval
    weights: dict[str, float]


@dataclass(frozen=True)
class Trial:
    """Two students of few steps, on the same batches: one of a stack, one of the labels alone.

    Attributes:
        steps: of each.
        gain: of the stack's student over the other, on held-out text.
        seconds: that it took, the teachers included.
    """

    steps: int
    gain: Interval
    seconds: float

    @property
    def labels_lead(self) -> bool:
        """Whether the labels alone taught more, beyond the noise."""
        return -self.gain.mean > self.gain.half

    def __str__(self) -> str:
        took = f"on trial, {self.steps} steps each in {self.seconds:.0f} s"
        if self.labels_lead:
            behind = Interval(-self.gain.mean, self.gain.half)
            return f"{took}, labels alone (`objective.ce=1`) are {behind} nats per token ahead of the stack"
        if self.gain.mean > self.gain.half:
            return (
                f"{took}, the stack is {self.gain} nats per token ahead of labels alone; these catch up with time, so "
                "that a trial speaks against a stack rather than for it"
            )
        return f"{took}, stack and labels alone differ by no more than the noise: {self.gain} nats per token"


@dataclass(frozen=True)
class Recommendation:
    """What was found, and what to write.

    Attributes:
        texts: looked at.
        positions: of them that have a loss.
        teachers: teacher -> task -> loss, nats per token; the task `all` beside the others.
        surprise: teacher -> its loss less its own entropy: 0 is calibrated, above it is too sure of itself.
        unknown: share of the texts that no teacher knows: on them the chosen stack is more than `SURE` nats per token
            worse than it takes itself to be.
        disagreement: between what the likeliest and the least likely teacher give a token, nats, mean.
        clones: pairs of teachers that say the same.
        student: its loss as it stands, nats per token.
        teaching: by how much the chosen stack is better than that.
        headroom: name -> gain over averaging of what knows more than a stack can.
        tried: in order of simplicity.
        chosen: the name of one of them.
        says: the same in sentences.
        trial: of it against labels alone, where one was asked for.
    """

    texts: int
    positions: int
    teachers: dict[str, dict[str, Interval]]
    surprise: dict[str, float]
    unknown: float
    disagreement: float
    clones: list[tuple[str, str]]
    student: float
    teaching: Interval
    headroom: dict[str, Interval]
    tried: list[Tried]
    chosen: str
    says: list[str]
    trial: Trial | None = None

    @property
    def best(self) -> Tried:
        """The stack that is recommended."""
        return next(one for one in self.tried if one.name == self.chosen)

    @property
    def labels_are_better(self) -> bool:
        """Whether too many texts are known to no teacher, or a trial says that labels alone teach more."""
        return self.unknown > MANY or (self.trial is not None and self.trial.labels_lead)


def sentences(found: Recommendation) -> list[str]:
    """Which stack, what it gains, who is good at what, and when less is enough."""
    best, oracle = found.best, found.headroom["best teacher of each token"]
    said = [f"{a!r} and {b!r} say the same of nearly every token; one of them is enough" for a, b in found.clones]
    if best.name == "averaging":
        said.append(
            f"averaging is enough: no stack is more than {SAME} nats per token better on these texts"
            f" (best teacher of each token, after the fact: {oracle})"
        )
    else:
        said.append(f"use {best.name}: {best.loss:.3f} nats per token, {best.gain} better than averaging")
        routed, fixed = found.headroom["best teacher of each text"], found.headroom["fixed weights"]
        said.append(
            f"the best teacher of each text, known after the fact, would gain {routed} over averaging, that of "
            f"each token {oracle}, fixed weights {fixed}"
        )
    if found.unknown > MANY:
        said.append(
            f"no teacher knows {found.unknown:.0%} of the texts: there the stack is more than {SURE:g} nat per token "
            "worse than it takes itself to be. Labels alone (`objective.ce=1`) teach more, or find a teacher for them"
        )
    least = min(best.weights, key=lambda name: best.weights[name])
    if best.name != "averaging" and best.weights[least] < 0.05 and not best.name.endswith(" alone"):
        said.append(f"{least!r} gets {best.weights[least]:.1%} of the weight; it may be left out")
    if len(found.teachers) > 1:
        said += _specialists(found)
    if not found.teaching.is_gain:
        said.append(
            f"as it stands the student is at {found.student:.3f} nats on these texts, no worse than the teachers "
            "together: labels alone (`objective.ce=1`) may be enough"
        )
    return said if found.labels_are_better else [*said, UNTRIED]


def _specialists(found: Recommendation) -> list[str]:
    """Who leads on which task, and how far the teachers are apart."""
    tasks = [task for task in next(iter(found.teachers.values())) if task != ALL] or [ALL]
    leads = []
    for task in tasks:
        first, second = sorted(found.teachers, key=lambda name: found.teachers[name][task].mean)[:2]
        ahead = found.teachers[second][task].mean - found.teachers[first][task].mean
        if ahead > SAME:
            leads.append(f"{first!r} on {task}, {ahead:.2f} nats ahead of {second!r}")
    apart = f"of a token the likeliest and the least likely teacher are {found.disagreement:.2f} nats apart on average"
    return [f"best: {'; '.join(leads)}" if leads else "no teacher is better than another on any task", apart]
