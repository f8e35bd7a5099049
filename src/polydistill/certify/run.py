"""`certify`: derive what can be derived, then try to break it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from polydistill import __version__
from polydistill.axioms import AXIOMS
from polydistill.certify import attack, sampling
from polydistill.certify.attack import Attack, Means
from polydistill.certify.bench import Bench, function_benches, pipeline_benches
from polydistill.certify.certificate import Basis, Certificate, Finding
from polydistill.certify.driven import as_pipeline
from polydistill.certify.proofs import Proofs
from polydistill.certify.rule import rule_of, title
from polydistill.pipeline import Pipeline
from polydistill.promises import promises, says
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.signals import Signal
from polydistill.weighting import Operator

CLOSE = (2, 3, 4, 5)
"""Numbers of teachers at which a function is searched adversarially, not only at random; with the largest it takes."""


def certify(
    operator: Any,
    *,
    teachers: Sequence[str] | Sequence[int] | int | None = None,
    tasks: Sequence[str] = (),
    safety: Sequence[float] | None = None,
    critical: float | None = None,
    range_at_most: float | None = None,
    modulus_at_most: float | None = None,
    scale: str = "token",
    domain: tuple[float, float] = (-math.inf, math.inf),
    laws: Iterable[str] = (),
    seed: int = 0,
    effort: float = 1.0,
    proofs: Proofs | None = None,
) -> Certificate:
    """Derive the guarantees of an operator, search for inputs that break them, and write down both.

    Args:
        operator: one of ours, a stack, a `Pipeline`, a `torch.nn.Module`, an object with a method `log_weights`, or a
            function from evidence `[n, K]` to weights or log-weights `[n, K]`. A function whose parameters are called
            `severity` and `safety` is given the severities `[n]` and the safety scores `[K]`. Learned state is
            certified as it is.
        teachers: names for an unbound stack (or how many); for a function the numbers of teachers to try, all those
            from 1 to 64 that it takes when left out.
        tasks: names for an unbound stack.
        safety: safety scores of a function's teachers; rising with the index when left out.
        critical: severity from which the safety order (O1) is asked for; by default from where a pipeline claims it,
            and 1 for functions.
        range_at_most: a function's declared range, nats.
        modulus_at_most: a function's declared modulus.
        scale: a function's scale, for law S: `token`, `context` or `task`.
        domain: least and largest evidence that a function is for.
        laws: names of further laws that a function claims.
        seed: of the search.
        effort: multiplies the number of trials.
        proofs: index of theorems; the one shipped with the package when left out.

    Raises:
        TypeError: the operator is none of these.
        ValueError: a function takes no evidence that was tried, or an unbound stack comes without teachers.
    """
    if not effort > 0:
        raise ValueError(f"effort must be > 0, got {effort}")
    unknown = sorted(set(laws) - set(AXIOMS))
    if unknown:
        raise ValueError(f"there are no laws {', '.join(unknown)}; the laws are {', '.join(AXIOMS)}")
    means = Means(effort, torch.Generator().manual_seed(seed))
    if isinstance(operator, Operator | Pipeline):
        found = _of_pipeline(
            operator, teachers, tasks, critical, set(laws), means, Proofs.shipped() if proofs is None else proofs
        )
    else:
        rule = rule_of(operator, sigma=safety, domain=domain)
        sizes = [teachers] if isinstance(teachers, int) else None if teachers is None else [int(k) for k in teachers]
        claims: dict[str, Any] = {"scale": scale, "critical": 1.0 if critical is None else critical, "domain": domain}
        if range_at_most is not None:
            claims["range"] = float(range_at_most)
        if modulus_at_most is not None:
            claims["moduli"] = (float(modulus_at_most),)
        benches = function_benches(rule, sizes, claims)
        found = _of_function(title(rule.function), benches, set(laws), means)
    shared: dict[str, Any] = {
        "version": __version__,
        "seed": seed,
        "effort": float(effort),
        "sampler": sampling.NAME,
        "dtype": "float64",
        "tolerance": attack.SLIGHT,
    }
    return Certificate(**found, **shared)


def _of_function(name: str, benches: Sequence[Bench], laws: set[str], means: Means) -> dict[str, Any]:
    sizes = sorted({bench.teachers for bench in benches})
    close = [k for k in sizes if k in CLOSE or k == sizes[-1]]
    attacks = _attacks(benches, [b for b in benches if b.teachers in close], means)
    declared = benches[0]
    findings = []
    for axiom in AXIOMS:
        bound = {"B": declared.range, "C": declared.moduli[0]}.get(axiom)
        bound = bound if bound is not None and bound < math.inf else None
        basis = Basis.DECLARED if bound is not None or axiom in laws else Basis.NONE
        if not AXIOMS[axiom].required and axiom not in laws:
            basis = Basis.NOT_CLAIMED
        findings.append(_finding(axiom, attacks[axiom], basis, bound))
    return {
        "subject": name,
        "kind": "function",
        "teachers": tuple(map(str, sizes)),
        "findings": tuple(findings),
        "derivation": (),
        "consequences": _as_far_as_tried(findings),
        "proofs_sha256": None,
    }


def _of_pipeline(
    operator: Operator | Pipeline,
    teachers: Any,
    tasks: Sequence[str],
    critical: float | None,
    laws: set[str],
    means: Means,
    proofs: Proofs,
) -> dict[str, Any]:
    if isinstance(operator, Operator) and operator.names is None and teachers is None:
        raise ValueError(f"{operator!r} is not bound; say teachers=['a', 'b', 'c'] (or how many), or bind it first")
    names = tuple(f"t{k}" for k in range(teachers)) if isinstance(teachers, int) else tuple(map(str, teachers or ()))
    pipeline = as_pipeline(operator, names, tuple(tasks))
    promise = pipeline.guarantee()
    benches = pipeline_benches(pipeline, max(4, int(6 * means.effort**0.5)), critical)
    attacks = _attacks(benches, benches[: max(2, int(3 * means.effort**0.5))], means)
    rules, ours = promise.step.rules(), _of_this_package(pipeline)
    claims = _claims(pipeline, laws)
    findings = []
    for axiom in AXIOMS:
        theorems: tuple[str, ...] = ()
        bound: float | None = None
        basis = Basis.DECLARED if axiom in claims else Basis.NOT_CLAIMED
        if axiom in ("B", "C"):
            bounded = promise.range < math.inf if axiom == "B" else bool(benches[0].open_channels)
            theorems = proofs.check(rules) if ours else ()
            known = Basis.PROVED if theorems else Basis.DERIVED if ours else Basis.DECLARED
            basis = known if bounded else Basis.NONE
            bound = None if not bounded else promise.range if axiom == "B" else _modulus_bound(benches[0])
        elif axiom in ("O1", "O2") and axiom in claims:
            theorems = _safety_theorems(axiom, pipeline, proofs) if ours else ()
            basis = Basis.PROVED if theorems else Basis.DERIVED if ours else Basis.DECLARED
        finding = _finding(axiom, attacks[axiom], basis, bound, theorems)
        findings.append(replace(finding, note=finding.note or _safety_note(axiom, pipeline, benches[0])))
    safety = "" if pipeline.safety is None else f", then {pipeline.safety!r}"
    floor = f", floor {pipeline.floor:g}" if pipeline.floor else ""
    return {
        "subject": f"{pipeline.stack!r}{floor}{safety}",
        "kind": "pipeline" if isinstance(operator, Pipeline) else "stack",
        "teachers": pipeline.teachers,
        "findings": tuple(findings),
        "derivation": tuple(promise.lines()),
        "consequences": tuple(says(promises(pipeline))),
        "proofs_sha256": proofs.sha256,
    }


def _of_this_package(pipeline: Pipeline) -> bool:
    """Whether the calculus speaks about this very code: a foreign operator's guarantee is a declaration, whatever rules
    it names, and a foreign signal may not be clipped to the spread that it states."""
    parts = [part for part in pipeline.stack.modules() if isinstance(part, Operator)]
    clipped = all(type(signal).__call__ is Signal.__call__ for signal in pipeline.stack.signals)
    return clipped and all(type(part).__module__.split(".")[0] == "polydistill" for part in parts)


def _safety_theorems(axiom: str, pipeline: Pipeline, proofs: Proofs) -> tuple[str, ...]:
    """O2 of the tilt and O1 of the projection hold of any weights; O1 of the tilt rests on the range before it. What a
    veto has is derived on paper."""
    if isinstance(pipeline.safety, Veto):
        return ()
    if isinstance(pipeline.safety, Tilt):
        if axiom == "O2":
            return proofs.check((), ("T11_tilt_O2",))
        return proofs.check(pipeline.before_safety().step.rules(), ("T11_tilt_O1", "T11_tilt_threshold"))
    return proofs.check((), ("T12_isotonic_ordered", "T12_ramp_full", "T12_tiers_sorted"))


def _safety_note(axiom: str, pipeline: Pipeline, bench: Bench) -> str:
    """Where the safety order applies, and what bounds it has."""
    safety = pipeline.safety
    if axiom == "O1" and safety is not None:
        return f"from severity {bench.critical:.3g} on"
    if axiom == "B" and isinstance(safety, Ordered) and safety.low is not None:
        return f"every weight within [{safety.low:g}, {safety.high:g}]"
    if axiom == "B" and isinstance(safety, Veto):
        return "among active teachers; a vetoed one weighs 0 by design"
    return ""


def _claims(pipeline: Pipeline, laws: set[str]) -> set[str]:
    """Laws that a refutation of would be a failure: normalisation, scale, those of the stack, and the safety order.

    A floor and a tilt keep E, M and X; a tilt is there to break U. A projection keeps E and X: a teacher that is pooled
    with others gains less than it gains on those below the pool, and where these are at the clip they gain as well.
    """
    own = set(pipeline.stack.laws)
    kept = {"E", "M", "X"} if isinstance(pipeline.safety, Tilt) else {"E", "X"}
    claims = {"N", "S"} | laws | (own if pipeline.safety is None else own & kept)
    if pipeline.floor:
        claims -= {"D"}
    if pipeline.safety is not None:
        reached = pipeline.ordered_from()
        claims |= {"O1"} if reached is not None and reached <= 1.0 else set()
        claims |= {"O2"} if isinstance(pipeline.safety, Tilt | Veto) else set()
    return claims


def _modulus_bound(bench: Bench) -> float:
    """The modulus where all channels share one, else 1: the share of what the moduli allow together."""
    return bench.moduli[0] if len(set(bench.moduli)) == 1 and not bench.prefix else 1.0


Attacks = dict[str, list[Attack]]


def _attacks(every: Sequence[Bench], close: Sequence[Bench], means: Means) -> Attacks:
    """Random trials on every bench for the laws where that is cheap, searches on those that are looked at closely."""
    found: Attacks = {name: [] for name in AXIOMS}

    def add(result: Attack | None) -> None:
        if result is not None:
            found[result.axiom.name].append(result)

    shifts = {}
    for bench in every:
        add(attack.normalised(bench, means))
        add(attack.ordered(bench, means))
        add(attack.rising(bench, means))
        shifts[id(bench)] = attack.shift_invariant(bench, means)
        add(shifts[id(bench)])
    for bench in close:
        add(attack.bounded(bench, means))
        invariant = shifts[id(bench)].witness is None
        add(attack.continuous(bench, means, invariant))
        for further in attack.FURTHER:
            if further is not attack.shift_invariant:
                add(further(bench, means))
    return found


def _finding(
    axiom: str, attacks: Sequence[Attack], basis: Basis, bound: float | None, theorems: tuple[str, ...] = ()
) -> Finding:
    if not attacks:
        return Finding(axiom, basis, 0, bound)
    witnesses = [a for a in attacks if a.witness is not None]
    worst = max(attacks, key=lambda a: a.worst)
    # Numbers of teachers rise along the attacks, so the first witness is the shortest to read.
    shown = witnesses[0] if witnesses else worst
    trials = sum(a.trials for a in attacks)
    return Finding(axiom, basis, trials, bound, worst.worst, theorems, shown.witness, shown.note)


def _as_far_as_tried(findings: Sequence[Finding]) -> tuple[str, ...]:
    """A function promises nothing, so its consequences are what the search saw."""
    by_name = {finding.axiom: finding for finding in findings}
    lines = []
    b, c = by_name["B"], by_name["C"]
    if not b.refuted and b.worst is not None:
        lines.append(f"in {b.trials:,} trials no teacher weighed more than exp({b.worst:.3g}) times another")
    if not c.refuted and c.worst is not None:
        lines.append(
            f"in {c.trials:,} trials 0.1 nat of error in every teacher's evidence moved the weights by at most "
            f"{torch.tensor(0.2 * c.worst / 4).tanh():.1%} (total variation), as a steepest slope of {c.worst:.3g} says"
        )
    return tuple(lines)
