"""Laws of order and of names: O1, O2, E, M."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polydistill.axioms import AXIOMS
from polydistill.certification import sampling
from polydistill.certification.attack import Attack, Means, confirmed, evidence_of, missed
from polydistill.certification.bench import Bench
from polydistill.certification.search import worth

MANY = 16
"""Teachers from which a row is dear."""


def ordered(bench: Bench, means: Means) -> Attack | None:
    """Law O1 from the critical severity on."""
    if bench.sigma is None or bench.critical > 1.0 or bench.teachers < 2:
        return None
    n = means.rows(_drawn(bench), bench)
    x = evidence_of(bench, means, n)
    level = bench.critical + (1.0 - bench.critical) * torch.rand(n, dtype=x.dtype, generator=means.generator)
    level[::3], level[1::3] = bench.critical, 1.0
    return _climbed("O1", bench, means, x, {"severity": level}, sigma=bench.sigma, critical=bench.critical)


def _dear(bench: Bench) -> bool:
    return bench.order_only or bench.teachers > MANY


def _drawn(bench: Bench) -> int:
    """Rows of a law that is asked in several orders of safety: the larger the number of teachers, the dearer a row."""
    return 256 if not bench.close else 1024 if _dear(bench) else 4096


def rising(bench: Bench, means: Means) -> Attack | None:
    """Law O2 between two severities."""
    if bench.sigma is None or not bench.graded or bench.teachers < 2:
        return None
    n = means.rows(_drawn(bench), bench)
    x = evidence_of(bench, means, n)
    ends = torch.rand(n, 2, dtype=x.dtype, generator=means.generator).sort(-1).values
    low, high = ends[:, 0].clone(), ends[:, 1].clone()
    low[::3], high[1::3] = 0.0, 1.0
    low[::7], high[::7] = 0.0, 1.0
    return _climbed("O2", bench, means, x, {"low": low, "high": high}, sigma=bench.sigma, least=bench.floor)


def _climbed(
    name: str, bench: Bench, means: Means, x: Tensor, fixed: dict[str, Tensor], rounds: int = 40, **constants: Any
) -> Attack:
    """Random rows, then the worst of them climbed in place; what is `fixed` to a row, such as severities, stays."""
    axiom = AXIOMS[name]

    def gap(evidence: Tensor, kept: dict[str, Tensor]) -> Tensor:
        return worth(lambda e: missed(axiom, bench.rule, evidence=e, **kept, **constants), evidence)

    value = gap(x, fixed)
    top = value.topk(min(means.candidates(128 if bench.close else 32, bench), len(x))).indices
    rounds = means.rounds(8 if not bench.close else 16 if _dear(bench) else rounds, bench)
    best, best_value = x[top], value[top]
    kept: dict[str, Any] = {key: row[top] for key, row in fixed.items()}
    for _ in range(rounds):
        length = 10.0 ** (5.0 * torch.rand(best.shape[:1], dtype=x.dtype, generator=means.generator) - 3.0)
        step = torch.randn(best.shape, dtype=x.dtype, generator=means.generator)
        trial = bench.inside(best + step * length.reshape(-1, *(1,) * (best.ndim - 1)))
        now = gap(trial, kept)
        better = now > best_value
        best[better], best_value[better] = trial[better], now[better]
    witness = confirmed(name, bench, means, {"evidence": best, **kept}, **constants)
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
        x = evidence_of(bench, means, means.rows(512, bench))
        aware = replace(bench, source=f"{bench.source}\n{define}")
        attacks.append(_climbed("E", aware, means, x, {}, 10, order=order, permuted=permuted))
    worst = max(attacks, key=lambda a: a.worst)
    return replace(worst, trials=sum(a.trials for a in attacks))


def monotone(bench: Bench, means: Means) -> Attack | None:
    """Law M in every channel of which larger means more trust."""
    if not bench.monotone:
        return None
    n = means.rows(4096 if bench.close else 256, bench)
    x = evidence_of(bench, means, n)
    rise = sampling.steps(n, (bench.teachers,), (), means.generator).abs().amax(-1)
    far = rise[::16]  # what falls in the end may do so beyond any small step
    far.copy_(10.0 ** (4.0 * torch.rand(len(far), dtype=x.dtype, generator=means.generator)))
    if bench.channels:
        channel = torch.tensor(bench.monotone)[torch.randint(len(bench.monotone), (n,), generator=means.generator)]
        rise = torch.nn.functional.one_hot(channel, len(bench.channels)) * rise[:, None]
    teacher = torch.randint(bench.teachers, (n,), generator=means.generator)
    if math.isfinite(bench.domain[1]) and not bench.channels:
        # Evidence has to stay in the domain when it rises.
        x = torch.minimum(x, bench.domain[1] - rise[:, None])
    found = _climbed("M", bench, means, x, {"teacher": teacher, "rise": rise})
    if found.witness is None or bench.channels:
        return found
    gaps = worth(lambda e: missed(AXIOMS["M"], bench.rule, evidence=e, teacher=teacher, rise=rise), x)
    moved = gaps.abs() > 1e-6
    share = float((gaps[moved] > 0).double().mean()) if bool(moved.any()) else 0.0
    return replace(found, note=f"so in {share:.0%} of the cases: is the sign right?" if share > 0.6 else "")
