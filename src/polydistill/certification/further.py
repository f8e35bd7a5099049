"""Laws that are reported: U, X, S, D."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from polydistill.certification import sampling
from polydistill.certification.attack import Attack, Means, evidence_of, plain
from polydistill.certification.bench import Bench

LONG = 256
"""Positions of the one document whose later positions are looked at."""


def neutral(bench: Bench, means: Means) -> Attack:
    """Law U at equal evidence."""
    return plain("U", bench, means, {"evidence": evidence_of(bench, means, means.rows(512, bench))})


def shift_invariant(bench: Bench, means: Means) -> Attack:
    """Law X under shifts of up to 1e3 nats."""
    n = means.rows(2048 if bench.close else 128, bench)
    x = evidence_of(bench, means, n)
    shift = 10.0 ** (5.0 * torch.rand(x.shape[:-1], dtype=x.dtype, generator=means.generator) - 2.0)
    # Evidence of 1e4 nats loses digits to the shift itself.
    x = torch.minimum(x.clamp(-1e3, 1e3), torch.full_like(x, bench.domain[1]) - shift[..., None])
    return plain("X", bench, means, {"evidence": x, "shift": shift})


def measurable(bench: Bench, means: Means) -> Attack | None:
    """Law S on short documents."""
    if bench.sequence is None:
        return None
    shape = bench.sequence_shape

    def drawn(documents: int, length: int) -> dict[str, Tensor]:
        parts = (sampling.evidence(documents * length, shape, means.generator).clamp(-30, 30) for _ in range(2))
        x, other = (bench.drawn(part).reshape(documents, length, *shape) for part in parts)
        return {"evidence": x, "other": other}

    aware = replace(bench, source=f"{bench.source}\n{bench.sequence_source}")
    fixed = {"scale": bench.scale, "task": bench.task}
    few = plain("S", aware, means, drawn(max(2, int(4 * math.sqrt(means.effort))), 6), rule=bench.sequence, **fixed)
    if few.witness is not None or bench.task is not None:
        return few
    at = (0, 7, 8, 64, LONG // 2, LONG - 1)
    many = plain("S", aware, means, drawn(1, LONG), rule=bench.sequence, at=at, **fixed)
    worse = max(few, many, key=lambda attack: attack.worst)
    return replace(worse, witness=many.witness, trials=few.trials + many.trials)


def clone_robust(bench: Bench, means: Means) -> Attack | None:
    """Law D for functions of any number of teachers."""
    if not bench.clones or bench.teachers > 6:
        return None
    x = evidence_of(bench, means, means.rows(1024, bench))
    with torch.no_grad():
        if torch.isnan(bench.rule(torch.cat([x, x[:, :1]], -1)[:1])).any():
            return None
    return plain("D", bench, means, {"evidence": x}, clone=0)
