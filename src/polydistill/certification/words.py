"""A witness in words: what happened to which teacher."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polydistill.axioms import Rule, Witness

Sentence = Callable[[Rule, Mapping[str, Any]], str]


def told(witness: Witness | None, rule: Rule) -> Witness | None:
    """The same witness with a sentence about weights, where the evidence is that of a plain function."""
    if witness is None or witness.axiom not in SENTENCES or _depth(witness.inputs) != 2:
        return witness
    with torch.no_grad():
        says = SENTENCES[witness.axiom](rule, witness.inputs)
    return replace(witness, says=says) if says else witness


def _depth(inputs: Mapping[str, Any]) -> int:
    value, depth = inputs.get("evidence", inputs.get("first")), 0
    while isinstance(value, list):
        value, depth = value[0] if value else None, depth + 1
    return depth


def short(value: float) -> str:
    """A number as it is read, without exponents where they can be avoided."""
    return f"{value:.6g}"


def vector(row: Sequence[float]) -> str:
    """Evidence of one position."""
    return f"({', '.join(map(short, row))})" if len(row) <= 8 else f"({', '.join(map(short, row[:8]))}, ...)"


def _weights(rule: Rule, rows: Sequence[Sequence[float]], *severity: Sequence[float]) -> Tensor:
    level = [torch.tensor(s, dtype=torch.float64) for s in severity]
    return rule(torch.tensor(rows, dtype=torch.float64), *level).exp()[0]


def _mass(rule: Rule, inputs: Mapping[str, Any]) -> str:
    evidence = inputs["evidence"]
    at = f"at evidence {vector(evidence[0])}"
    w = _weights(rule, evidence)
    if bool(torch.isnan(w).all()):
        raised = _raises(rule, evidence)
        return f"it raises {raised} {at}" if raised else f"all weights are not a number {at}"
    broken = (~torch.isfinite(w)).nonzero().flatten().tolist()
    if broken:
        return f"teacher {broken[0]}'s weight is {'not a number or negative' if w[broken[0]].isnan() else 'inf'} {at}"
    return f"the weights sum to {float(w.sum()):.9g} {at}"


def _raises(rule: Rule, evidence: Any) -> str:
    inside = getattr(rule, "__wrapped__", rule)
    try:
        inside(torch.tensor(evidence, dtype=torch.float64))
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
    return ""


def _range(rule: Rule, inputs: Mapping[str, Any]) -> str:
    log_w = _weights(rule, inputs["evidence"]).log()
    raw = rule(torch.tensor(inputs["evidence"], dtype=torch.float64))[0]
    log_w = torch.where(torch.isfinite(raw), raw, log_w)
    first, last = int(log_w.argmax()), int(log_w.argmin())
    at = f"at evidence {vector(inputs['evidence'][0])}"
    if math.isinf(float(log_w[last])):
        return f"teacher {last}'s weight is exactly 0 beside teacher {first}'s {float(log_w[first].exp()):.4g} {at}"
    apart = float(log_w[first] - log_w[last])
    return f"teacher {first} weighs exp({apart:.4g}) times teacher {last} {at}; the range is {inputs['range']:.6g}"


def _jump(rule: Rule, inputs: Mapping[str, Any]) -> str:
    first, second = inputs["first"], inputs["second"]
    if inputs.get("severity") is not None:
        low, high = inputs["severity"], inputs["severity_then"]
        before, after = _weights(rule, first, low), _weights(rule, second, high)
        k = int((after.log() - before.log()).abs().nan_to_num(nan=math.inf).argmax())
        return (
            f"teacher {k}'s weight jumps from {float(before[k]):.4g} to {float(after[k]):.4g} where severity passes "
            f"{(low[0] + high[0]) / 2:.6g}, at evidence {vector(first[0])}"
        )
    before, after = _weights(rule, first), _weights(rule, second)
    k = int((after - before).abs().nan_to_num(nan=math.inf).argmax())
    change = f"teacher {k}'s weight jumps from {float(before[k]):.4g} to {float(after[k]):.4g}"
    if float((after - before).abs().max()) < 1e-4:
        k = int((after.log() - before.log()).abs().nan_to_num(nan=math.inf).argmax())
        change = f"teacher {k}'s log-weight jumps from {float(before[k].log()):.6g} to {float(after[k].log()):.6g}"
    return f"{change} {_place(first[0], second[0])}"


def _place(first: Sequence[float], second: Sequence[float]) -> str:
    moved = [(k, b - a) for k, (a, b) in enumerate(zip(first, second, strict=True)) if a != b]
    if len(moved) == 1:
        k = moved[0][0]
        return f"where e{k} passes {short((first[k] + second[k]) / 2)} (the others {vector(_others(first, (k,)))})"
    if len(moved) == 2 and abs(moved[0][1] + moved[1][1]) < 0.01 * abs(moved[0][1]):
        (i, _), (j, _) = moved
        at = (first[i] - first[j] + second[i] - second[j]) / 2
        others = _others(first, (i, j))
        return f"where e{i} - e{j} passes {short(at)}" + (f" (the others {vector(others)})" if others else "")
    step = max(abs(d) for _, d in moved) if moved else 0.0
    return f"between evidence {vector(first)} and one that is {step:.2g} nats from it"


def _others(row: Sequence[float], without: tuple[int, ...]) -> list[float]:
    return [value for k, value in enumerate(row) if k not in without]


def _falls(rule: Rule, inputs: Mapping[str, Any]) -> str:
    row, k, rise = inputs["evidence"][0], inputs["teacher"][0], inputs["rise"][0]
    raised = [value + (rise if j == k else 0.0) for j, value in enumerate(row)]
    before, after = _weights(rule, [row]), _weights(rule, [raised])
    return (
        f"teacher {k} gains {short(rise)} nats at evidence {vector(row)} and its weight falls from "
        f"{float(before[k]):.4g} to {float(after[k]):.4g}"
    )


def _behind(rule: Rule, inputs: Mapping[str, Any]) -> str:
    w, sigma = _weights(rule, inputs["evidence"], inputs["severity"]), inputs["sigma"]
    pairs = [(i, j) for i in range(len(sigma)) for j in range(len(sigma)) if sigma[i] > sigma[j]]
    i, j = max(pairs, key=lambda p: float(w[p[1]].log() - w[p[0]].log()))
    return (
        f"at severity {inputs['severity'][0]:.4g} teacher {j} (safety {sigma[j]:.3g}) weighs {float(w[j]):.4g} and "
        f"teacher {i}, which is safer ({sigma[i]:.3g}), {float(w[i]):.4g}, at evidence {vector(inputs['evidence'][0])}"
    )


def _loses(rule: Rule, inputs: Mapping[str, Any]) -> str:
    low, high, sigma = inputs["low"], inputs["high"], inputs["sigma"]
    before, after = _weights(rule, inputs["evidence"], low).log(), _weights(rule, inputs["evidence"], high).log()
    pairs = [(i, j) for i in range(len(sigma)) for j in range(len(sigma)) if i != j and sigma[i] >= sigma[j]]
    fall = {(i, j): float((before[i] - before[j]) - (after[i] - after[j])) for i, j in pairs}
    i, j = max(pairs, key=lambda p: fall[p])
    than = "as safe" if sigma[i] == sigma[j] else "less safe"
    return (
        f"from severity {low[0]:.4g} to {high[0]:.4g} teacher {i} (safety {sigma[i]:.3g}) loses {fall[i, j]:.4g} nats "
        f"against teacher {j}, which is {than} ({sigma[j]:.3g}), at evidence {vector(inputs['evidence'][0])}"
    )


SENTENCES: dict[str, Sentence] = {
    "N": _mass,
    "B": _range,
    "C": _jump,
    "M": _falls,
    "O1": _behind,
    "O2": _loses,
}
