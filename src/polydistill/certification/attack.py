"""One attack per law: random structured inputs first, then the worst of them made worse."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from polydistill.axioms import AXIOMS, Axiom, Witness, evidence_distance
from polydistill.axioms.law import Rule
from polydistill.certification import sampling
from polydistill.certification.bench import Bench
from polydistill.certification.search import Objective, ascend, climb, jumps, worth
from polydistill.simplex import hilbert

STEEP = 1e3
"""Nats of weights per nat of evidence from which a rule that declares no modulus is said to have none."""
SLIGHT = 1e-7
"""Nats that float64 may miss a bound by."""
ALONE = 16
"""Pairs that are looked at one by one at the end."""
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
    """

    effort: float
    generator: Generator

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


def _evidence(bench: Bench, means: Means, n: int) -> Tensor:
    return bench.drawn(sampling.evidence(n, bench.shape, means.generator))


def _sharpen(
    objective: Objective, x: Tensor, means: Means, bench: Bench, free: Tensor | None = None
) -> tuple[Tensor, int]:
    """The most promising candidates after ascent and climb, and the evaluations spent."""
    value = worth(objective, x)
    size = min(means.candidates(96, bench), len(x))
    x = x[value.topk(size).indices]
    rounds = means.rounds(40, bench)
    climbed = climb(objective, ascend(objective, x, rounds), rounds, means.generator, free)
    return torch.cat([climbed, x]), 2 * rounds * size


def _law(name: str, bench: Bench, tolerance: float, rule: Rule | None = None, **inputs: Any) -> Witness | None:
    with torch.no_grad():
        return AXIOMS[name](rule or bench.rule, tolerance=tolerance, source=bench.source, **inputs)


def _largest(values: Tensor) -> float:
    return float(values.nan_to_num(nan=math.inf, posinf=math.inf).max()) if values.numel() else 0.0


def normalised(bench: Bench, means: Means) -> Attack:
    """Law N on structured rows, and along lines, where it may fail in a slab only."""
    x = _evidence(bench, means, means.rows(4096, bench))
    base, direction = _lines(bench, means, means.lines(64 if bench.teachers <= 5 else 16, bench))
    times = torch.arange(-REACH, REACH, 2 * STEP, dtype=x.dtype)
    shape = (1, len(times)) + (1,) * (base.ndim - 1)
    if bench.cost == 1:
        x = torch.cat([x, (base[:, None] + times.reshape(shape) * direction[:, None]).flatten(0, 1)])
    x = bench.inside(x)
    with torch.no_grad():
        gaps = AXIOMS["N"].gap(bench.rule, evidence=x)
    worst = int(gaps.argmax())
    return Attack(AXIOMS["N"], float(gaps[worst]), len(x), _law("N", bench, 1e-6, evidence=x[worst : worst + 1]))


def bounded(bench: Bench, means: Means) -> Attack:
    """Law B: the largest osc(log w); without a declared range, whether it keeps growing with the evidence."""
    axiom = AXIOMS["B"]

    who: dict[str, Any] = {} if bench.active is None else {"active": bench.active}

    def osc(x: Tensor) -> Tensor:
        return axiom.measure(bench.rule, evidence=bench.inside(x), range=math.inf, **who)["osc"]

    x = _evidence(bench, means, means.rows(4096, bench))
    sharp, spent = _sharpen(osc, x, means, bench)
    everything = torch.cat([sharp.clamp(-1e4, 1e4), x])
    value = worth(osc, everything)
    best, worst = bench.inside(everything[value.argmax()][None]), float(value.max())
    trials = len(x) + spent
    if math.isfinite(bench.range):
        return Attack(axiom, worst, trials, _law("B", bench, SLIGHT, evidence=best, range=bench.range, **who))
    raw = bench.folded(sampling.evidence(means.rows(1024, bench), bench.shape, means.generator))
    grows, at = _grows(osc, raw)
    if not grows:
        return Attack(axiom, worst, trials, note="no range is declared; the search found it bounded")
    far = at if float(osc(at)) >= worst else best
    far, reached = bench.inside(far), float(osc(far))
    # Any range is refuted by going far enough; the witness shows one.
    claimed = reached / 2 if math.isfinite(reached) else 1e4
    witness = _law("B", bench, SLIGHT, evidence=far, range=claimed, **who)
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


def continuous(bench: Bench, means: Means, shift_invariant: bool) -> Attack:
    """Law C: the largest modulus, lines scanned for jumps, and severity."""
    axiom = AXIOMS["C"]
    declared = bool(bench.open_channels)
    channels = bench.open_channels or tuple(range(len(bench.moduli)))
    moduli = tuple(m if math.isfinite(m) else STEEP for m in bench.moduli) if not declared else bench.moduli
    modulus = moduli if bench.channels else moduli[0]
    same: dict[str, Any] = {"shift_invariant": shift_invariant, "prefix": bench.prefix, "sustained": bench.sustained}
    free = torch.zeros(2, *bench.shape, dtype=torch.float64)
    free[0] = 1.0
    if bench.channels:
        free[1, list(channels)] = 1.0
    else:
        free[1] = 1.0

    def share(x: Tensor) -> Tensor:
        first, second = bench.inside(x[:, 0]), bench.inside(x[:, 0] + x[:, 1])
        allowed = evidence_distance(first, second, modulus, **same)
        moved = hilbert(bench.rule(first), bench.rule(second))
        size = 1.0 + first.abs().flatten(1).amax(-1)
        ratio = (moved - 1e-11 * size) / allowed.clamp_min(1e-300)
        return torch.where(allowed > 1e-9 * size, ratio, 0.0)

    n = means.rows(8192, bench)
    x = torch.stack(
        [
            _evidence(bench, means, n),
            sampling.steps(n, bench.shape, channels, means.generator),
        ],
        1,
    )
    sharp, spent = _sharpen(share, x, means, bench, free)
    pairs = torch.cat([sharp, x])
    # Scans over many documents round a little differently than over one: the last word is that of each pair alone.
    leading = worth(share, pairs).topk(min(ALONE, len(pairs))).indices
    value = torch.cat([worth(share, pairs[i : i + 1]) for i in leading.tolist()])
    best = pairs[leading[value.argmax()]][None]
    worst, trials = float(value.max()), n + spent + len(leading)
    claim: dict[str, Any] = {"modulus": modulus, **same}
    ends: dict[str, Any] = {"first": bench.inside(best[:, 0]), "second": bench.inside(best[:, 0] + best[:, 1])}
    witness = _law("C", bench, SLIGHT, **ends, **claim)
    left, right, scanned = _scan(bench, means, channels)
    jump = _law("C", bench, 1e-4, first=bench.inside(left), second=bench.inside(right), **claim)
    # A jump is the clearer failure of the two: no modulus at all, over next to no distance.
    witness = jump or witness
    worst = math.inf if jump else worst
    if bench.graded and math.isfinite(bench.severity_modulus) and witness is None:
        witness, tried = _in_severity(bench, means, claim)
        trials += tried
    scale = 1.0 if bench.channels and len(set(moduli)) > 1 else float(moduli[0])
    unit = "of what the moduli allow" if scale == 1.0 and bench.channels else "nats per nat"
    note = unit if declared else f"{unit}; no modulus is declared, above {STEEP:g} counts as none"
    return Attack(axiom, worst * scale, trials + scanned, witness, note)


def _in_severity(bench: Bench, means: Means, claim: dict[str, Any]) -> tuple[Witness | None, int]:
    n = means.rows(2048, bench)
    x = _evidence(bench, means, n)
    low = torch.rand(n, dtype=x.dtype, generator=means.generator)
    step = 10.0 ** (-6.0 * torch.rand(n, dtype=x.dtype, generator=means.generator))
    high = (low + step).clamp(max=1.0)
    severity: dict[str, Any] = {"severity": low, "severity_then": high, "severity_modulus": bench.severity_modulus}
    return _law("C", bench, SLIGHT, first=x, second=x, **severity, **claim), n


def _lines(bench: Bench, means: Means, number: int, channels: Sequence[int] = (0,)) -> tuple[Tensor, Tensor]:
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
    base = base * size.reshape(-1, *(1,) * len(bench.shape))
    if not bench.channels:
        return base, ways
    direction = torch.zeros_like(base)
    which = torch.tensor(list(channels))[torch.arange(len(ways)) % len(channels)]
    direction[torch.arange(len(ways)), which] = ways
    return base, direction


def _scan(bench: Bench, means: Means, channels: Sequence[int]) -> tuple[Tensor, Tensor, int]:
    number = means.lines(192 if bench.teachers <= 5 else 32, bench)
    base, direction = _lines(bench, means, number, channels)
    return jumps(
        lambda x: bench.rule(bench.inside(x)), base, direction, REACH, STEP, keep=64 if bench.cost == 1 else 16
    )


def ordered(bench: Bench, means: Means) -> Attack | None:
    """Law O1 from the critical severity on."""
    if bench.sigma is None or bench.critical > 1.0 or bench.teachers < 2:
        return None
    n = means.rows(4096, bench)
    x = _evidence(bench, means, n)
    level = bench.critical + (1.0 - bench.critical) * torch.rand(n, dtype=x.dtype, generator=means.generator)
    level[::3], level[1::3] = bench.critical, 1.0
    return _climbed("O1", bench, means, x, {"severity": level}, sigma=bench.sigma, critical=bench.critical)


def rising(bench: Bench, means: Means) -> Attack | None:
    """Law O2 between two severities."""
    if bench.sigma is None or not bench.graded or bench.teachers < 2:
        return None
    n = means.rows(4096, bench)
    x = _evidence(bench, means, n)
    ends = torch.rand(n, 2, dtype=x.dtype, generator=means.generator).sort(-1).values
    low, high = ends[:, 0].clone(), ends[:, 1].clone()
    low[::3], high[1::3] = 0.0, 1.0
    low[::7], high[::7] = 0.0, 1.0
    return _climbed("O2", bench, means, x, {"low": low, "high": high}, sigma=bench.sigma)


def _climbed(name: str, bench: Bench, means: Means, x: Tensor, fixed: dict[str, Tensor], **constants: Any) -> Attack:
    """Random rows, then the worst of them climbed in place; what is `fixed` to a row, such as severities, stays."""
    axiom = AXIOMS[name]

    def gap(evidence: Tensor, kept: dict[str, Tensor]) -> Tensor:
        return worth(lambda e: axiom.gap(bench.rule, evidence=e, **kept, **constants), evidence)

    value = gap(x, fixed)
    top = value.topk(min(means.candidates(128, bench), len(x))).indices
    rounds = means.rounds(40, bench)
    best, best_value = x[top], value[top]
    kept: dict[str, Any] = {key: row[top] for key, row in fixed.items()}
    for _ in range(rounds):
        length = 10.0 ** (5.0 * torch.rand(best.shape[:1], dtype=x.dtype, generator=means.generator) - 3.0)
        step = torch.randn(best.shape, dtype=x.dtype, generator=means.generator)
        trial = bench.inside(best + step * length.reshape(-1, *(1,) * (best.ndim - 1)))
        now = gap(trial, kept)
        better = now > best_value
        best[better], best_value[better] = trial[better], now[better]
    witness = _law(name, bench, SLIGHT, evidence=best, **kept, **constants)
    return Attack(axiom, float(best_value.max()), len(x) + rounds * len(top), witness)


def equivariant(bench: Bench, means: Means) -> Attack | None:
    """Law E under random permutations."""
    if bench.teachers < 2:
        return None
    attacks = []
    for _ in range(max(2, int(4 * math.sqrt(means.effort)))):
        order = torch.randperm(bench.teachers, generator=means.generator).tolist()
        other = bench.permuted(order)
        if other is None:
            return None
        permuted, define = other
        x = _evidence(bench, means, means.rows(512, bench))
        aware = replace(bench, source=f"{bench.source}\n{define}")
        attacks.append(_climbed("E", aware, means, x, {}, order=order, permuted=permuted))
    worst = max(attacks, key=lambda a: a.worst)
    return replace(worst, trials=sum(a.trials for a in attacks))


def monotone(bench: Bench, means: Means) -> Attack | None:
    """Law M in every channel of which larger means more trust."""
    if not bench.monotone:
        return None
    n = means.rows(4096, bench)
    x = _evidence(bench, means, n)
    rise = sampling.steps(n, (bench.teachers,), (), means.generator).abs().amax(-1)
    if bench.channels:
        channel = torch.tensor(bench.monotone)[torch.randint(len(bench.monotone), (n,), generator=means.generator)]
        rise = torch.nn.functional.one_hot(channel, len(bench.channels)) * rise[:, None]
    teacher = torch.randint(bench.teachers, (n,), generator=means.generator)
    # Evidence has to stay in the domain when it rises, so the search stops short of its upper end.
    low, high = bench.domain
    below = replace(bench, domain=(low, high - float(rise.max())))
    return _climbed("M", below, means, below.inside(x), {"teacher": teacher, "rise": rise})


def neutral(bench: Bench, means: Means) -> Attack:
    """Law U at equal evidence."""
    return _plain("U", bench, evidence=_evidence(bench, means, means.rows(512, bench)))


def shift_invariant(bench: Bench, means: Means) -> Attack:
    """Law X under shifts of up to 1e3 nats."""
    n = means.rows(2048, bench)
    x = _evidence(bench, means, n)
    shift = 10.0 ** (5.0 * torch.rand(x.shape[:-1], dtype=x.dtype, generator=means.generator) - 2.0)
    # Evidence of 1e4 nats loses digits to the shift itself.
    x = torch.minimum(x.clamp(-1e3, 1e3), torch.full_like(x, bench.domain[1]) - shift[..., None])
    return _plain("X", bench, evidence=x, shift=shift)


def measurable(bench: Bench, means: Means) -> Attack | None:
    """Law S on short documents."""
    if bench.sequence is None:
        return None
    documents, length = max(2, int(4 * math.sqrt(means.effort))), 6
    shape = (documents, length, *bench.sequence_shape)
    rows = documents * length
    x, other = (
        bench.drawn(sampling.evidence(rows, bench.sequence_shape, means.generator).clamp(-30, 30)).reshape(shape)
        for _ in range(2)
    )
    aware = replace(bench, source=f"{bench.source}\n{bench.sequence_source}")
    return _plain("S", aware, bench.sequence, evidence=x, other=other, scale=bench.scale, task=bench.task)


def clone_robust(bench: Bench, means: Means) -> Attack | None:
    """Law D for functions of any number of teachers."""
    if not bench.clones or bench.teachers > 6:
        return None
    x = _evidence(bench, means, means.rows(1024, bench))
    with torch.no_grad():
        if torch.isnan(bench.rule(torch.cat([x, x[:, :1]], -1))).all():
            return None
    return _plain("D", bench, evidence=x, clone=0)


def _plain(name: str, bench: Bench, rule: Rule | None = None, **inputs: Any) -> Attack:
    axiom = AXIOMS[name]
    with torch.no_grad():
        gaps = axiom.gap(rule or bench.rule, **inputs)
    return Attack(axiom, _largest(gaps), len(gaps), _law(name, bench, SLIGHT, rule, **inputs))


FURTHER: tuple[Callable[[Bench, Means], Attack | None], ...] = (
    equivariant,
    monotone,
    neutral,
    shift_invariant,
    measurable,
    clone_robust,
)
"""Attacks on the laws that are reported, not required."""
