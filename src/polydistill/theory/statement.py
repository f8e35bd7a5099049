"""The nouns of the theory room: a statement, what a check of it found, and the trial that a check runs in.

A check is a function from a `Trial` to a `Result`: parts, each a measured number beside the bound that the theory
puts on it, and figures where a picture tells more. Whether the statement survives is read off the parts, so that a
wrong bound shows as `fails`, never as an exception.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

HOLDS = "holds"
CONFIRMED = "counterexample confirmed"
FAILS = "fails"

ROUNDING = 1e-9
"""What float64 may add to a bound of order 1."""


@dataclass(frozen=True)
class Claim:
    """One claim with what was measured.

    Attributes:
        claim: in words.
        relation: `<=`, `>=`, or `reported` for a number that nothing is claimed about.
        measured: the worst number found.
        bound: what the theory says about it; NaN for `reported`.
        tried: number of cases behind the measured number.
        holds: the relation is true up to rounding.
        note: where the worst case is, or what to make of it.
    """

    claim: str
    relation: str
    measured: float
    bound: float
    tried: int
    holds: bool
    note: str = ""

    @property
    def tightness(self) -> float:
        """`measured / bound`: 1 when an upper bound is attained; NaN where it says nothing, and for `>=`."""
        known = self.relation == "<=" and math.isfinite(self.measured) and math.isfinite(self.bound)
        return self.measured / self.bound if known and self.bound > 1e-5 else math.nan


def at_most(
    claim: str, measured: float, bound: float, tried: int = 1, *, slack: float = ROUNDING, note: str = ""
) -> Claim:
    """`measured <= bound`, with `slack (1 + |bound|)` for rounding."""
    return Claim(claim, "<=", measured, bound, tried, measured <= bound + slack * (1.0 + abs(bound)), note)


def at_least(
    claim: str, measured: float, bound: float, tried: int = 1, *, slack: float = ROUNDING, note: str = ""
) -> Claim:
    """`measured >= bound`, with `slack (1 + |bound|)` for rounding."""
    return Claim(claim, ">=", measured, bound, tried, measured >= bound - slack * (1.0 + abs(bound)), note)


def equal(claim: str, error: float, tried: int = 1, *, slack: float = ROUNDING) -> Claim:
    """Two computations agree: their greatest difference is `error <= slack`."""
    return Claim(claim, "<=", error, slack, tried, error <= slack)


def shown(claim: str, number_of_failures: int, tried: int = 1, *, note: str = "") -> Claim:
    """A claim that is true or false in each case: no failures."""
    return Claim(claim, "<=", float(number_of_failures), 0.0, tried, number_of_failures == 0, note)


def reported(claim: str, measured: float, tried: int = 1, *, note: str = "") -> Claim:
    """A number worth knowing that nothing is claimed about."""
    return Claim(claim, "reported", measured, math.nan, tried, True, note)


@dataclass(frozen=True)
class Curve:
    """A named line of a figure."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Figure:
    """A picture of a finding.

    Attributes:
        name: of the file, without a suffix.
        title: what is seen.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        curves: lines.
        log_x: logarithmic horizontal axis.
        log_y: logarithmic vertical axis.
    """

    name: str
    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Result:
    """What a check returns; the first part is the headline."""

    parts: tuple[Claim, ...]
    figures: tuple[Figure, ...] = ()
    details: str = ""


@dataclass(frozen=True)
class Trial:
    """Where a check draws its cases from: seeded, in float64, scaled by effort.

    Attributes:
        seed: of everything random.
        effort: multiplies the number of cases and of ascent steps.
    """

    seed: int = 0
    effort: float = 1.0

    def generator(self, salt: int = 0) -> torch.Generator:
        """A fresh stream; equal for equal seed and salt."""
        return torch.Generator().manual_seed(1_000_003 * self.seed + salt)

    def times(self, number: int, least: int = 1) -> int:
        """`number` scaled by the effort."""
        return max(least, round(number * self.effort))


@dataclass(frozen=True)
class Statement:
    """One of T1 to T21.

    Attributes:
        number: 1 to 21.
        title: a few words.
        words: the statement.
        formula: the statement, as short as it gets.
        source: whose it is.
        run: the check.
        code: qualified names of what it is about.
        remarks: where it stops, and what was corrected.
        counterexample: the statement is that something is false.
    """

    number: int
    title: str
    words: str
    formula: str
    source: str
    run: Callable[[Trial], Result]
    code: tuple[str, ...] = ()
    remarks: str = ""
    counterexample: bool = False

    @property
    def name(self) -> str:
        """`T7`."""
        return f"T{self.number}"


@dataclass(frozen=True)
class StatementResult:
    """What running a statement's check found.

    Attributes:
        statement: which.
        tried: number of cases over all parts.
        worst: headline number.
        bound: what the theory says about it.
        tightness: `worst / bound`; NaN where it says nothing.
        verdict: `holds`, `counterexample confirmed` or `fails`.
        details: in words, where there is more to say.
        parts: every claim with its numbers.
        figures: pictures.
        seconds: wall-clock time of the check.
    """

    statement: Statement
    tried: int
    worst: float
    bound: float
    tightness: float
    verdict: str
    details: str
    parts: tuple[Claim, ...]
    figures: tuple[Figure, ...]
    seconds: float

    @classmethod
    def of(cls, statement: Statement, result: Result, seconds: float) -> "StatementResult":
        """The verdict: every part holds, or the statement fails."""
        head = result.parts[0]
        good = CONFIRMED if statement.counterexample else HOLDS
        return cls(
            statement=statement,
            tried=sum(part.tried for part in result.parts),
            worst=head.measured,
            bound=head.bound,
            tightness=head.tightness,
            verdict=good if all(part.holds for part in result.parts) else FAILS,
            details=result.details,
            parts=result.parts,
            figures=result.figures,
            seconds=seconds,
        )


class Worst:
    """The case that comes nearest to its bound, or goes furthest beyond it, among all that were seen."""

    def __init__(self, slack: float = ROUNDING) -> None:
        self.slack, self.tried, self.violated = slack, 0, False
        self.measured, self.bound, self._score = -math.inf, math.nan, -math.inf

    def see(self, measured: Tensor, bound: Tensor | float) -> None:
        """Take in a batch of measured numbers, each with its own bound (or one bound for all)."""
        measured = measured.detach().double().flatten()
        limit = torch.as_tensor(bound, dtype=torch.float64).detach().expand_as(measured).flatten()
        beyond = ~(measured <= limit + self.slack * (1.0 + limit.abs()))
        self.violated = self.violated or bool(beyond.any())
        excess = (measured - limit).nan_to_num(math.inf) / (1.0 + limit.abs())
        # The softening keeps a near-tie at 1e-6 from hiding one at size 1; violations always come first.
        score = torch.where(beyond, 1e6 + excess, measured / (limit + 1e-3))
        best = int(score.argmax())
        self.tried += measured.numel()
        if float(score[best]) > self._score:
            self._score, self.measured, self.bound = float(score[best]), float(measured[best]), float(limit[best])

    def part(self, claim: str) -> Claim:
        """`measured <= bound` in every case that was seen."""
        return Claim(claim, "<=", self.measured, self.bound, self.tried, not self.violated)


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Float[Tensor, "..."]:
    """Standard normal numbers, float64."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)
