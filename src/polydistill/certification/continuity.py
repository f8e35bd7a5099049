"""Law C: the largest modulus, lines scanned for jumps near and far, and severity."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from polydistill.axioms import AXIOMS, Witness, evidence_distance
from polydistill.certification import sampling
from polydistill.certification.attack import (
    REACH,
    STEP,
    Attack,
    Means,
    confirmed,
    evidence_of,
    lines_of,
    missed,
    sharpen,
    stated,
)
from polydistill.certification.bench import Bench
from polydistill.certification.search import Objective, jumps, worth
from polydistill.certification.simplify import jump_at
from polydistill.simplex import hilbert

STEEP = 1e3
"""Nats of weights per nat of evidence from which a rule that declares no modulus is said to have none."""
STEEP_IN_SEVERITY = 1e6
"""The same per unit of severity."""
JUMP = 1e-4
"""Nats of weights that a jump has at least, beyond rounding."""
ALONE = 16
"""Pairs that are looked at one by one at the end."""
NEAR = torch.arange(-REACH, REACH + STEP / 2, STEP, dtype=torch.float64)
COARSE = NEAR[len(NEAR) // 4 : -len(NEAR) // 4 : 2]
FAR = 0.5 * torch.linspace(-10.6, 10.6, 2401, dtype=torch.float64).sinh()
"""Nats along a line, up to 1e4 to both sides."""
LEVELS = torch.linspace(-0.5, 0.5, 401, dtype=torch.float64)


def continuous(bench: Bench, means: Means, shift_invariant: bool) -> Attack:
    """All of it where a bench is looked at closely, lines only elsewhere."""
    declared = bool(bench.open_channels)
    channels = bench.open_channels or tuple(range(len(bench.moduli)))
    moduli = bench.moduli if declared else tuple(m if math.isfinite(m) else STEEP for m in bench.moduli)
    claim: dict[str, Any] = {
        "modulus": moduli if bench.channels else moduli[0],
        "shift_invariant": shift_invariant,
        "prefix": bench.prefix,
        "sustained": bench.sustained,
    }
    worst, trials, steep = _steepest(bench, means, channels, claim) if bench.close else (0.0, 0, None)
    jump, scanned = _jumping(bench, means, channels, claim)
    # A jump is the clearer failure of the two: no modulus at all, over next to no distance.
    witness = jump or steep
    worst = math.inf if jump else worst
    if bench.graded and witness is None:
        witness, tried = _in_severity(bench, means, claim)
        trials += tried
    scale = 1.0 if bench.channels and len(set(moduli)) > 1 else float(moduli[0])
    unit = "of what the moduli allow" if scale == 1.0 and bench.channels else "nats per nat"
    note = unit if declared else f"{unit}; no modulus is declared, above {STEEP:g} counts as none"
    return Attack(AXIOMS["C"], worst * scale, trials + scanned, witness, note)


def _steepest(
    bench: Bench, means: Means, channels: Sequence[int], claim: dict[str, Any]
) -> tuple[float, int, Witness | None]:
    """Pairs of inputs, the worst of them made worse."""
    free = torch.zeros(2, *bench.shape, dtype=torch.float64)
    free[0] = 1.0
    if bench.channels:
        free[1, list(channels)] = 1.0
    else:
        free[1] = 1.0

    def share(x: Tensor) -> Tensor:
        first, second = bench.inside(x[:, 0]), bench.inside(x[:, 0] + x[:, 1])
        allowed = evidence_distance(first, second, **claim)
        moved = hilbert(bench.rule(first), bench.rule(second))
        rounding = max(1e-11, 64 * bench.epsilon) * (1.0 + first.abs().flatten(1).amax(-1))
        ratio = (moved - rounding) / allowed.clamp_min(1e-300)
        return torch.where(allowed > 100 * rounding, ratio, 0.0)

    n = means.rows(8192, bench)
    x = torch.stack([evidence_of(bench, means, n), sampling.steps(n, bench.shape, tuple(channels), means.generator)], 1)
    # Slopes without end stand at round places: ties, corners, zeros.
    corners = bench.inside(evidence_of(bench, means, n // 4).clamp(-2, 2).round())
    tiny = sampling.steps(len(corners), bench.shape, tuple(channels), means.generator) * 1e-3
    x = torch.cat([x, torch.stack([corners, tiny], 1)])
    objective: Objective = share
    sharp, spent = sharpen(objective, x, means, bench, free)
    pairs = torch.cat([sharp, x])
    # Scans over many documents round a little differently than over one: the last word is that of each pair alone.
    leading = worth(share, pairs).topk(min(ALONE, len(pairs))).indices
    value = torch.cat([worth(share, pairs[i : i + 1]) for i in leading.tolist()])
    best = pairs[leading[value.argmax()]][None]
    ends = {"first": bench.inside(best[:, 0]), "second": bench.inside(best[:, 0] + best[:, 1])}
    witness = confirmed("C", bench, means, ends, **claim) if float(value.max()) > 1.0 else None
    return float(value.max()), len(x) + spent + len(leading), witness


def _jumping(bench: Bench, means: Means, channels: Sequence[int], claim: dict[str, Any]) -> tuple[Witness | None, int]:
    """Lines of every direction, close to the middle in small steps and far away in growing ones."""
    many = 120 if bench.teachers <= 5 else 48 if bench.teachers <= 7 else 16
    number = means.lines(many, bench) if bench.close else 2 if bench.cost == 1 else 0
    scanned = 0
    far = 0 if bench.channels else max(min(number, 2), number // 4)  # a declared modulus fails in the middle as well
    for times, lines in ((NEAR if bench.close else COARSE, number), (FAR, far)):
        if not lines:
            continue
        base, direction = lines_of(bench, means, lines, channels)
        keep = 64 if bench.cost == 1 else 16
        left, right, way, spent = jumps(lambda x: bench.rule(bench.inside(x)), base, direction, times, keep)
        scanned += spent
        witness = _shown(bench, means, bench.inside(left), bench.inside(right), way, claim)
        if witness is not None:
            return witness, scanned
    return None, scanned


def _shown(
    bench: Bench, means: Means, left: Tensor, right: Tensor, way: Tensor, claim: dict[str, Any]
) -> Witness | None:
    axiom = AXIOMS["C"]

    def excess_of(first: Tensor, second: Tensor) -> Tensor:
        with torch.no_grad():
            gap = missed(axiom, bench.rule, first=first, second=second, **claim)
        return gap - JUMP - bench.slack({"first": first, "second": second}, "C")

    excess = excess_of(left, right)
    if not len(excess) or not excess.max() > 0:
        return None
    worst = int(excess.argmax())
    first, second, direction = left[worst][None], right[worst][None], way[worst][None]
    alone = float(excess_of(first, second)[0])
    if not alone > 0:
        means.unreturned.append(("C", float(excess[worst]), first))
        return None

    def fails(one: Tensor, other: Tensor) -> bool:
        inside = bool(bench.allows({"first": one, "second": other})[0])
        return inside and float(excess_of(one, other)[0]) > 0.25 * min(alone, 1.0)

    middle = (first + second) / 2
    starts = (middle - middle.amin(-1, keepdim=True), middle - middle.amax(-1, keepdim=True), middle)
    ways = _plain_ways(bench, first, second, fails)
    tries = ((start, way) for way in (*ways, direction) for start in starts)
    first, second = next(filter(None, (jump_at(*start_way, fails) for start_way in tries)), (first, second))
    return stated(axiom, bench, bench.rule, {"first": first, "second": second}, JUMP, claim)


def _plain_ways(
    bench: Bench, first: Tensor, second: Tensor, fails: Callable[[Tensor, Tensor], bool]
) -> Sequence[Tensor]:
    """Directions that have a name: two teachers' difference where a common shift leaves the jump, else one teacher."""
    if bench.channels or bench.teachers > 7:
        return ()
    eye = torch.eye(bench.teachers, dtype=torch.float64)[:, None]
    pairs = torch.triu_indices(bench.teachers, bench.teachers, 1).T.tolist()
    return [eye[i] - eye[j] for i, j in pairs] if fails(first + 1.0, second + 1.0) else list(eye)


def _in_severity(bench: Bench, means: Means, claim: dict[str, Any]) -> tuple[Witness | None, int]:
    if not math.isfinite(bench.severity_modulus):
        return _jumps_in_severity(bench, means, claim)
    n = means.rows(2048, bench)
    x = evidence_of(bench, means, n)
    low = torch.rand(n, dtype=x.dtype, generator=means.generator)
    step = 10.0 ** (-6.0 * torch.rand(n, dtype=x.dtype, generator=means.generator))
    rows = {"first": x, "second": x, "severity": low, "severity_then": (low + step).clamp(max=1.0)}
    return confirmed("C", bench, means, rows, severity_modulus=bench.severity_modulus, **claim), n


def _jumps_in_severity(bench: Bench, means: Means, claim: dict[str, Any]) -> tuple[Witness | None, int]:
    """Severity as one more coordinate, along which lines are scanned."""
    if bench.channels:
        return None, 0
    x = evidence_of(bench, means, 24 if bench.close else 4).clamp(-30, 30)
    middle = torch.cat([x, torch.full_like(x[:, :1], 0.5)], -1)
    along = torch.zeros_like(middle)
    along[:, -1] = 1.0
    left, right, _, spent = jumps(lambda z: bench.rule(z[:, :-1], z[:, -1].clamp(0, 1)), middle, along, LEVELS, 16)
    low, high = left[:, -1].clamp(0, 1), right[:, -1].clamp(0, 1)
    rows = {"first": left[:, :-1], "second": left[:, :-1], "severity": low, "severity_then": high}
    steep = {**claim, "severity_modulus": STEEP_IN_SEVERITY}
    return confirmed("C", bench, means, rows, JUMP, **steep), spent
