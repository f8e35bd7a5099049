"""Whether a rule is a function of its evidence at all: asked again, otherwise, and after all the other questions.

What `F` says is no law about a map from evidence to weights, like those of `axioms`, but that there is such a map.
"""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from polydistill.axioms import AXIOMS, Axiom, Rule, Witness
from polydistill.axioms.further import OURS
from polydistill.certification.rule import FunctionRule, guarded

SIZES = (2, 3, 5, 8, 9, 16, 33, 64, 128, 256, 300, 1024, 4096)
"""Batches that the same evidence is asked in; a slow rule gets those up to 300."""
BATCH = "in a batch"
"""How a sentence begins about rows that depend on each other; the other laws can still be asked of each row alone."""
MANY = 1 << 16
"""Rows of the two questions that are the same."""
LATER = 600
"""Calls after which a replay asks again."""
ROUGH = 0.01
"""By how much a weight may differ in float32, beyond what rounding the evidence does."""


def _same(rule: Rule, evidence: Tensor, again: Rule, way: str, times: int = 1) -> dict[str, Tensor]:
    asked = evidence.repeat(times, *(1,) * (evidence.ndim - 1))
    first, second = rule(asked).exp(), again(asked).exp()
    apart = _gaps(first, second)
    # Rows that are repeated have to agree with each other as well.
    among = (first - first[:1]).abs() if times > 1 and len(evidence) == 1 else torch.zeros_like(first)
    return {"gap": torch.maximum(apart, among).amax()[None] if len(asked) else torch.zeros(1)}


F = Axiom(
    name="F",
    title="a function of its evidence",
    words="The same evidence gives the same weights: asked twice, in one batch or in several and in any order, "
    "however it lies in memory, in float32 as in float64, with gradients and without, in training as in evaluation "
    "mode, at the start and at the end; and what it is given is left as it was.",
    formula="W(e) is determined by e",
    source=OURS,
    required=True,
    measure=_same,
    sentence="{way}",
    rows=(),
)

LAWS: dict[str, Axiom] = {"F": F, **AXIOMS}
"""Everything that is asked: whether there is a function at all, then the laws about it."""


def alone(rule: Rule) -> Rule:
    """The rows one by one."""

    def ask(evidence: Tensor) -> Tensor:
        return torch.cat([rule(evidence[i : i + 1]) for i in range(len(evidence))])

    return ask


def in_float32(rule: FunctionRule, raw: bool = False) -> Rule:
    """As training asks; `raw` with weights as they are, however small."""
    function = copy.deepcopy(rule.given).float().eval() if isinstance(rule.given, nn.Module) else rule.function
    single = replace(rule, function=function, dtype=torch.float32)
    return guarded(single.raw if raw else single)


def batched(rule: FunctionRule) -> Rule:
    """All rows at once, whatever the function makes of that; severities differ between rows where it reads them."""
    whole = guarded(replace(rule, row_by_row=False))
    return (lambda evidence: whole(evidence, (1.0 + (7.3 * evidence[:, 0]).sin()) / 2)) if rule.graded else whole


def with_gradients(rule: Rule) -> Rule:
    """Where gradients are recorded, as for a gate that learns."""

    def ask(evidence: Tensor) -> Tensor:
        with torch.enable_grad():
            return rule(evidence.detach().requires_grad_()).detach()

    return ask


def in_training(rule: FunctionRule) -> Rule:
    """A module that is told that it is trained; its second answer, since what it learns from may come after it."""
    trained = guarded(replace(rule, function=copy.deepcopy(rule.given).double().train()))

    def ask(evidence: Tensor) -> Tensor:
        trained(evidence)
        return trained(evidence)

    return ask


def reversed_order(rule: Rule) -> Rule:
    """The rows of a batch in reverse order."""
    return lambda evidence: rule(evidence.flip(0)).flip(0)


def doubled(rule: Rule) -> Rule:
    """Every row twice in one batch."""
    return lambda evidence: rule(torch.cat([evidence, evidence]))[: len(evidence)]


def transposed(rule: Rule) -> Rule:
    """Evidence whose rows do not lie one after another in memory."""
    return lambda evidence: rule(evidence.T.contiguous().T)


def unprotected(rule: FunctionRule) -> Rule:
    """Without the copies: weights where what is given stays as it was, NaN where it is written into."""

    def ask(evidence: Tensor) -> Tensor:
        handed = evidence.to(rule.dtype).clone()
        before = handed.clone()
        rows, kept = handed if rule.vector else handed[None], True
        safety = rule.safety(evidence.shape[-1], rule.dtype)
        scores = safety.clone()
        for row in rows:
            level = row.new_full(row.shape[:-1], rule.severity)
            guarded(lambda e, s: rule.ask(e, s, safety))(row, level)
            kept &= bool((level == rule.severity).all())
        kept &= torch.equal(safety, scores)
        same = kept and bool(((handed == before) | (handed.isnan() & before.isnan())).all())
        return guarded(rule)(before) if same else torch.full_like(evidence, math.nan)

    return ask


def later(rule: Rule, calls: int = LATER) -> Rule:
    """After other questions."""

    def ask(evidence: Tensor) -> Tensor:
        for call in range(calls):
            rule(evidence + call / 7)
        return rule(evidence)

    return ask


def asked_again(rule: FunctionRule, rows: Tensor, tolerance: float, cost: int, dependent: bool) -> Iterator[Witness]:
    """Every way of asking in which the rule contradicts itself.

    Args:
        rule: probed.
        rows: evidence, structured, in the domain.
        tolerance: by which a weight may differ.
        cost: of one row, relative to a softmax.
        dependent: the rows of a batch may depend on each other.
    """
    safe = guarded(rule)
    way = "it writes into what it is given"
    for few in (8, 64) if len(rows) >= 4096 else (64,):  # a short witness if there is one
        yield from _found(safe, unprotected(rule), rows[:few], 1.0, way, "unprotected(function_rule)")
    yield from _twice(safe, rows, tolerance)
    if not dependent and not rule.vector:
        few = 24 if len(rows) >= 4096 else 6
        asked, source = batched(rule), "rule = batched(function_rule)"
        yield from _in_batches(asked, rows[: 4096 if cost == 1 else 300], tolerance, source, few)
        yield from _otherwise(asked, rows[: 4096 if cost == 1 else 300], tolerance, source)
    yield from _in_single(rule, rows[:256], tolerance)
    way = "where gradients are recorded teacher {teacher}'s weight is {there:.4g}, and {here:.4g} without"
    yield from _found(safe, with_gradients(safe), rows[:256], tolerance, way, "with_gradients(rule)")
    if isinstance(rule.given, nn.Module):
        way = "in training mode teacher {teacher}'s weight is {there:.4g}, and in evaluation mode it is {here:.4g}"
        yield from _found(safe, in_training(rule), rows[:256], tolerance, way, "in_training(function_rule)")


def _found(
    rule: Rule, again: Rule, evidence: Tensor, tolerance: float, way: str, define: str, source: str = ""
) -> Iterator[Witness]:
    with torch.no_grad():
        here, there = rule(evidence).exp(), again(evidence).exp()
    if (worst := _furthest(here, there, tolerance, way)) is not None:
        yield witness_of(evidence, *worst[1:], define, source=source)


def _furthest(here: Tensor, there: Tensor, tolerance: float, way: str) -> tuple[slice, float, str] | None:
    """Row, gap and words of where two answers differ most, `way` filled in; None where they agree."""
    gaps = _gaps(here, there)
    if not float(gaps.max()) > tolerance:
        return None
    row, teacher = divmod(int(gaps.argmax()), gaps.shape[-1])
    numbers = {"here": float(here[row, teacher]), "there": float(there[row, teacher])}
    return slice(row, row + 1), float(gaps.max()), way.format(rows=len(here), row=row, teacher=teacher, **numbers)


def witness_of(evidence: Tensor, gap: float, way: str, define: str, times: int = 1, source: str = "") -> Witness:
    """A finding that need not come back by itself, so that it is written down as it was seen."""
    inputs = {"evidence": evidence.tolist(), "way": way, "times": times}
    names = sorted({line.split("(")[0].split()[-1] for line in (define, source) if "(" in line} | {"F"})
    lines = [
        f"from polydistill.certification.asking import {', '.join(names)}",
        source,
        f"evidence = torch.tensor({evidence.tolist()}, dtype=torch.float64)",
        f"print(F(rule, evidence=evidence, again={define}, way={way!r}, times={times}))",
    ]
    return Witness("F", way, inputs, {"gap": gap}, "\n".join(filter(None, lines)))


def _twice(rule: Rule, rows: Tensor, tolerance: float) -> Iterator[Witness]:
    with torch.no_grad():
        first, second = rule(rows).exp(), rule(rows).exp()
    often = int((_apart(first, second) > tolerance).sum())
    way = "asked twice about the same evidence, teacher {teacher}'s weight is {here:.4g} and then {there:.4g}"
    if (worst := _furthest(first, second, tolerance, f"{way} (in {often} of {len(rows)} rows)")) is not None:
        row, gap, way = worst
        yield witness_of(rows[row], gap, way, "rule", 1 if often > len(rows) // 50 else MANY * 4)


def _in_batches(rule: Rule, rows: Tensor, tolerance: float, source: str, head: int) -> Iterator[Witness]:
    with torch.no_grad():
        ends = {size for size in SIZES if size <= len(rows)}
        looked_at = {*range(min(head, len(rows)))} | {size - 1 for size in ends}
        one_by_one = {i: rule(rows[i : i + 1])[0] for i in sorted(looked_at)}
        for size in sorted(ends):
            together = rule(rows[:size]).exp()
            places = [*range(min(head, size)), size - 1]
            apart = _apart(together[places], torch.stack([one_by_one[i] for i in places]).exp())
            if float(apart.max()) > tolerance:
                row = places[int(apart.argmax())]
                teacher = int(_gaps(together[row], one_by_one[row].exp()).argmax())
                way = (
                    f"{BATCH} of {size} rows teacher {teacher}'s weight in row {row} is "
                    f"{float(together[row, teacher]):.4g}, and alone it is {float(one_by_one[row][teacher].exp()):.4g}"
                )
                yield witness_of(rows[:size], float(apart.max()), way, "alone(rule)", source=source)
                return


def _otherwise(rule: Rule, rows: Tensor, tolerance: float, source: str) -> Iterator[Witness]:
    """The same batch, put differently; small ones first, which are short to read."""
    said = " teacher {teacher}'s weight in row {row} is {there:.4g}, and "
    ways = {
        BATCH + " of {rows} rows in reverse order" + said + "in this order it is {here:.4g}": reversed_order,
        BATCH + " of {rows} rows that are there twice" + said + "once it is {here:.4g}": doubled,
        "of evidence transposed in memory" + said + "of the same numbers in a row it is {here:.4g}": transposed,
    }
    for size in sorted({8, 300, len(rows)}) if len(rows) >= 4096 else (len(rows),):
        for way, put in ways.items():
            yield from _found(rule, put(rule), rows[:size], tolerance, way, f"{put.__name__}(rule)", source)


def _in_single(rule: FunctionRule, rows: Tensor, tolerance: float) -> Iterator[Witness]:
    if rule.dtype == torch.float32:
        return
    rows = torch.cat([rows.clamp(-30, 30), rows.clamp(-1000, 1000)]).float().double()
    safe, single = guarded(rule), in_float32(rule)
    with torch.no_grad():
        fine, rough = safe(rows).exp(), single(rows).exp()
        nearby = [safe(rows * (1 + sign * 5e-7)).exp() for sign in (1.0, -1.0)]
        rounding = torch.stack([_apart(fine, near) for near in nearby]).amax(0)
    # What is no number in float32 is a question of law N, which asks there as well.
    apart = torch.where(rough.isfinite().all(-1), _apart(fine, rough), 0.0)
    excess = torch.where(rounding.isinf(), 0.0, apart - 8 * rounding)  # too near the end of its numbers to tell
    if float(excess.max()) > max(tolerance, ROUGH):
        row = int(excess.argmax())
        teacher = int(_gaps(fine[row], rough[row]).argmax())
        way = (
            f"in float32, as in training, teacher {teacher}'s weight is {float(rough[row, teacher]):.4g}, in float64 "
            f"it is {float(fine[row, teacher]):.4g}"
        )
        yield witness_of(rows[row : row + 1], float(apart[row]), way, "in_float32(function_rule)")


def at_the_end(rule: Rule, rows: Tensor, at_first: Tensor, tolerance: float) -> Iterator[Witness]:
    """Whether the first answers still hold after the whole search."""
    with torch.no_grad():
        now = rule(rows).exp()
    way = "teacher {teacher}'s weight was {here:.4g} when it was asked first and is {there:.4g} after the search"
    if (worst := _furthest(at_first.exp(), now, tolerance, f"{way}: it keeps a state")) is not None:
        row, gap, way = worst
        yield witness_of(rows[row], gap, way, "later(rule)")


def _gaps(first: Tensor, second: Tensor) -> Tensor:
    """How far answers are apart, weight by weight: infinitely where only one is a number, not at all where none is.

    An answer that is no number whenever it is asked is a question of law N.
    """
    same = (first == second) | (first.isnan() & second.isnan())  # inf is what it was, too
    gap = torch.where(first.isnan() | second.isnan(), math.inf, (first - second).abs())
    return torch.where(same, 0.0, gap)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Largest difference of each row."""
    return _gaps(first, second).amax(-1)
