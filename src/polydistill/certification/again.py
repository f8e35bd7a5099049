"""Law F as a search: asked again with the other laws, and once more after all of them."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from polydistill.axioms import Witness
from polydistill.certification import asking, sampling
from polydistill.certification.asking import F
from polydistill.certification.attack import Attack, Means
from polydistill.certification.bench import Bench


def repeated(bench: Bench, means: Means) -> Attack | None:
    """Whether a function says the same when it is asked again."""
    if bench.asked is None:
        return None
    many = 2 * asking.MANY if bench.close and bench.teachers <= 3 else 4096 if bench.close else 300
    rows = bench.drawn(sampling.vectors(many if bench.cost == 1 else 300, bench.teachers, means.generator))
    if bench.cost > 1 and not bench.close:
        return None
    witnesses = asking.asked_again(bench.asked, rows, _tolerance(bench), bench.cost, bench.scale != "token")
    witness = next(iter(witnesses), None)
    gap = 0.0 if witness is None else witness.gap
    found = None if witness is None else _located(witness, bench)
    return Attack(
        F, gap, 2 * len(rows), found, "" if found is None else "the other laws speak of functions: mend this first"
    )


def _tolerance(bench: Bench) -> float:
    return max(1e-6, min(256 * bench.epsilon, 0.02))


def _located(witness: Witness, bench: Bench) -> Witness:
    lines = ["import torch", bench.source, witness.reproduce]
    return replace(witness, reproduce="\n".join(lines))


def at_the_end(benches: Sequence[Bench], first: Tensor, rows: Tensor, means: Means) -> Attack | None:
    """What changed since the first question, or was seen in a batch once and not again."""
    bench = benches[0]
    rule = bench.rule
    for witness in asking.at_the_end(rule, rows, first, _tolerance(bench)):
        return Attack(F, witness.gap, 2 * len(rows), _located(witness, bench))
    for law, gap, evidence in means.unreturned:
        way = f"law {law} was missed by {gap:.4g} in a batch, and not when the same row was asked again"
        witness = asking.witness_of(evidence, gap, way, "rule", asking.MANY)
        here = next((b for b in benches if b.teachers == evidence.shape[-1]), bench)
        return Attack(F, gap, 1, _located(witness, here))
    return None
