"""One attack per law: random structured inputs first, then the worst of them made worse. Here mass and range."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from polydistill.axioms import AXIOMS, Axiom, Witness
from polydistill.axioms.law import Rule
from polydistill.certification import sampling
from polydistill.certification.bench import MASS, Bench
from polydistill.certification.search import Objective, ascend, climb, worth
from polydistill.certification.simplify import simplified
from polydistill.certification.words import told

SLIGHT = 1e-7
"""Nats that float64 may miss a bound by."""
REACH, STEP = 48.0, 0.016
"""Lines are scanned this far to both sides in steps of this many nats; a difference of two moves twice that."""


@dataclass(frozen=True)
class Attack:
    """What an attack on one law found on one bench.

    Attributes:
        axiom: the law.
        worst: largest value reached: osc(log w) for B, the modulus (or the share of it) for C, the gap for the others.
        trials: inputs evaluated.
        witness: or None.
        note: what the numbers do not say.
    """

    axiom: Axiom
    worst: float
    trials: int
    witness: Witness | None = None
    note: str = ""


@dataclass(frozen=True)
class Means:
    """How hard to look.

    Attributes:
        effort: multiplies the numbers of trials.
        generator: of the randomness.
        unreturned: what a batch showed and a row alone did not: law, by how much, and the row's evidence.
    """

    effort: float
    generator: Generator
    unreturned: list[tuple[str, float, Tensor]] = field(default_factory=list)

    def rows(self, number: int, bench: Bench, least: int = 16) -> int:
        """Random trials, fewer for rules that are slow."""
        return max(least, int(number * self.effort / math.sqrt(bench.cost)))

    def lines(self, number: int, bench: Bench) -> int:
        """Lines to scan; a slow rule gets one at least."""
        return max(1 if bench.cost > 1 else 3, int(number * self.effort / bench.cost))

    def rounds(self, number: int, bench: Bench) -> int:
        """Rounds of a search; they grow with the square root of the effort, as the candidates do."""
        slow = 0.5 if bench.cost > 1 else 1.0
        return max(4, int(number * slow * math.sqrt(self.effort)))

    def candidates(self, number: int, bench: Bench) -> int:
        """Candidates of a search."""
        return max(8, int(number * math.sqrt(self.effort) / math.sqrt(bench.cost)))


def evidence_of(bench: Bench, means: Means, n: int) -> Tensor:
    """Structured evidence in the domain."""
    return bench.drawn(sampling.evidence(n, bench.shape, means.generator))


def sharpen(
    objective: Objective, x: Tensor, means: Means, bench: Bench, free: Tensor | None = None
) -> tuple[Tensor, int]:
    """The most promising candidates after ascent and climb, and the evaluations spent."""
    value = worth(objective, x)
    size = min(means.candidates(96, bench), len(x))
    x = x[value.topk(size).indices]
    rounds = means.rounds(40, bench)
    climbed = climb(objective, ascend(objective, x, rounds), rounds, means.generator, free)
    return torch.cat([climbed, x]), 2 * rounds * size


def missed(axiom: Axiom, rule: Rule, **inputs: Any) -> Tensor:
    """By how much each row misses a law. Weights that are no number are a question of law N and of no other."""
    if axiom.name == "N":
        return axiom.gap(rule, **inputs)
    return axiom.measure(rule, **inputs)["gap"].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def confirmed(
    name: str, bench: Bench, means: Means, rows: dict[str, Tensor], tolerance: float = SLIGHT, **fixed: Any
) -> Witness | None:
    """None when no row misses the law, else the worst that misses it by itself too, in the roundest numbers.

    Args:
        name: of the law.
        bench: rule and rounding.
        means: where a gap that does not come back is noted.
        rows: inputs with one entry per row.
        tolerance: beyond what rounding may do.
        fixed: inputs that hold for all rows.
    """
    axiom, rule = AXIOMS[name], fixed.pop("rule", None) or (bench.raw if name in RAW else bench.rule)
    with torch.no_grad():
        gaps = missed(axiom, rule, **rows, **fixed)
        excess = gaps - tolerance - bench.slack(rows, name)
        if not len(excess) or not excess.max() > 0:
            return None

        def gap(some: dict[str, Tensor]) -> Tensor:
            return missed(axiom, rule, **some, **fixed) - tolerance - bench.slack(some, name)

        for worst in excess.sort(descending=True, stable=True).indices[:3].tolist():
            row = {key: value[worst : worst + 1].detach() for key, value in rows.items()}
            alone = float(gap(row)[0])
            if excess[worst] > 0 and alone > 0:
                break
            if excess[worst] > 0:
                evidence = row.get("evidence", row.get("first"))
                means.unreturned.append((name, float(gaps[worst]), evidence if evidence is not None else gaps))
        else:
            return None
        least = 0.25 * min(alone, 1.0)
        row = simplified(row, lambda some: bench.allows(some) & (gap(some) > least))
        return stated(axiom, bench, rule, row, tolerance, fixed)


RAW = frozenset({"N", "B"})
"""Laws that look at weights as they are, however small."""


def stated(
    axiom: Axiom, bench: Bench, rule: Rule, row: dict[str, Tensor], tolerance: float, fixed: dict[str, Any]
) -> Witness | None:
    """The witness in words, with lines that show it again."""
    limit = tolerance + float(bench.slack(row, axiom.name)[0])
    source = bench.source + (f"\n{bench.raw_source}" if axiom.name in RAW and bench.raw_source else "")
    witness = told(axiom(rule, tolerance=limit, source=source, **row, **fixed), rule)
    if witness is None:
        return None
    *define, last = witness.reproduce.splitlines()
    again = f"print(told({last[len('print(') : -2]}, tolerance={limit!r}), rule))"
    lines = [*define[:2], "from polydistill.certification.words import told", *define[2:], again]
    return Witness(witness.axiom, witness.says, witness.inputs, witness.numbers, "\n".join(lines))


def largest(values: Tensor) -> float:
    """The largest; what is no number counts as inf."""
    return float(values.nan_to_num(nan=math.inf, posinf=math.inf).max()) if values.numel() else 0.0


def plain(name: str, bench: Bench, means: Means, rows: dict[str, Tensor], **fixed: Any) -> Attack:
    """One look at many rows."""
    axiom = AXIOMS[name]
    witness = confirmed(name, bench, means, rows, **fixed)
    rule = fixed.pop("rule", None) or bench.rule
    with torch.no_grad():
        gaps = missed(axiom, rule, **rows, **fixed)
    return Attack(axiom, largest(gaps), len(gaps), witness)


def normalised(bench: Bench, means: Means) -> Attack:
    """Law N on structured rows, far away, and along lines, where it may fail in a slab only."""
    x = evidence_of(bench, means, means.rows(4096 if bench.close else 384, bench))
    x = torch.cat([x, bench.inside(x[:64] * 100.0)])
    if bench.cost == 1:
        number = 64 if bench.close and bench.teachers <= 5 else 16 if bench.close else 2
        base, direction = lines_of(bench, means, means.lines(number, bench))
        times = torch.arange(-REACH, REACH, (2 if bench.close else 8) * STEP, dtype=x.dtype)
        shape = (1, len(times)) + (1,) * (base.ndim - 1)
        x = torch.cat([x, (base[:, None] + times.reshape(shape) * direction[:, None]).flatten(0, 1)])
    x = bench.inside(x)
    rules = [bench.raw] if bench.single is None else [bench.raw, bench.single]
    attacks = []
    for rule in rules:
        with torch.no_grad():
            gaps = AXIOMS["N"].gap(rule, evidence=x)
        single = rule is not bench.raw
        here = bench.in_float32() if single else bench
        mass = MASS[1] if single else bench.mass
        witness = confirmed("N", here, means, {"evidence": x[int(gaps.argmax())][None]}, mass)
        note = "in float32, as in training" if single and witness else ""
        if witness is not None and float((gaps > 0.01).double().mean()) > 0.5:
            note = "so for most evidence: did you forget the softmax?"
        attacks.append(Attack(AXIOMS["N"], float(gaps.max()), len(x) * len(rules), witness, note))
        if witness is not None:
            break
    return attacks[-1] if attacks[-1].witness else attacks[0]


def bounded(bench: Bench, means: Means) -> Attack:
    """Law B: the largest osc(log w); without a declared range, whether it keeps growing with the evidence."""
    axiom = AXIOMS["B"]

    who: dict[str, Any] = {} if bench.active is None else {"active": bench.active}

    def osc(x: Tensor) -> Tensor:
        return axiom.measure(bench.raw, evidence=bench.inside(x), range=math.inf, **who)["osc"]

    x = evidence_of(bench, means, means.rows(4096 if bench.close else 128, bench))
    sharp, spent = sharpen(osc, x, means, bench) if bench.close else (x[:0], 0)
    everything = torch.cat([sharp.clamp(-1e4, 1e4), x])
    value = worth(osc, everything)
    best, worst = bench.inside(everything[value.argmax()][None]), float(value.max())
    trials = len(x) + spent
    if math.isfinite(bench.range):
        return Attack(axiom, worst, trials, confirmed("B", bench, means, {"evidence": best}, range=bench.range, **who))
    number = means.rows(1024 if bench.close else 64, bench)
    raw = bench.folded(sampling.evidence(number, bench.shape, means.generator))
    grows, at = _grows(osc, raw)
    if not (grows or math.isinf(worst)):
        return Attack(axiom, worst, trials, note="no range is declared; the search found it bounded")
    far = at if float(osc(at)) >= worst else best
    far, reached = bench.inside(far), float(osc(far))
    # Any range is refuted by going far enough; the witness shows one.
    claimed = 20.0 if reached > 40.0 else reached / 2
    witness = confirmed("B", bench, means, {"evidence": far}, range=claimed, **who)
    return Attack(axiom, reached, trials, witness, "no range: the larger the evidence, the larger the odds")


def _grows(osc: Objective, x: Tensor) -> tuple[bool, Tensor]:
    """Whether osc(log w) rises with every decade of evidence up to 1e6 nats."""
    rows = tuple(range(1, x.ndim))
    unit = x / x.abs().amax(rows, keepdim=True).clamp_min(1e-300)
    heights = []
    far = x[:1]
    for decade in range(2, 7):
        value = worth(osc, unit * 10.0**decade)
        far = (unit * 10.0**decade)[value.argmax()][None] if decade <= 4 else far
        heights.append(float(value.max()))
    rises = [math.isinf(b) or b > a + 0.25 for a, b in pairwise(heights)]
    return all(rises[1:]), far


def lines_of(bench: Bench, means: Means, number: int, channels: Sequence[int] = (0,)) -> tuple[Tensor, Tensor]:
    """Lines along every axis, every difference of two teachers (a choice of them for many), and at random."""
    teachers = bench.teachers
    eye = torch.eye(teachers, dtype=torch.float64)
    first, second = torch.triu_indices(teachers, teachers, 1)
    ways = torch.cat([eye, eye[first] - eye[second]])
    if len(ways) > 12:
        ways = ways[torch.randperm(len(ways), generator=means.generator)[:12]]
    random = torch.randn(2, teachers, dtype=torch.float64, generator=means.generator)
    ways = torch.cat([ways, random / random.abs().amax(-1, keepdim=True).clamp_min(1e-9)])
    ways = ways.repeat(-(-number // len(ways)), 1)[:number]
    size = torch.tensor([0.0, 1.0, 1.0, 3.0, 3.0, 10.0], dtype=torch.float64)
    size = size[torch.randint(len(size), (len(ways),), generator=means.generator)]
    base = torch.randn(len(ways), *bench.shape, dtype=torch.float64, generator=means.generator)
    base = bench.folded(base * size.reshape(-1, *(1,) * len(bench.shape)))
    if not bench.channels:
        return base, ways
    direction = torch.zeros_like(base)
    which = torch.tensor(list(channels))[torch.arange(len(ways)) % len(channels)]
    direction[torch.arange(len(ways)), which] = ways
    return base, direction
