"""`certify`: derive what can be derived, then try to break it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from polydistill import __version__
from polydistill.axioms import AXIOMS
from polydistill.certification import attack, continuity, further, order, sampling
from polydistill.certification.again import at_the_end, repeated
from polydistill.certification.asking import BATCH, LAWS
from polydistill.certification.attack import Attack, Means
from polydistill.certification.bench import Bench, function_benches, pipeline_benches
from polydistill.certification.certificate import Basis, Certificate, Finding
from polydistill.certification.driven import as_pipeline
from polydistill.certification.proofs import Proofs
from polydistill.certification.rule import rule_of, title
from polydistill.pipeline import Pipeline
from polydistill.promises import promises, says
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.weighting import Operator
from polydistill.weighting.signals import Signal

OF_FUNCTIONS = frozenset({"F", "N", "B", "C", "O1", "O2", "M"})
"""What is asked of a function that says nothing else: more evidence for a teacher is no reason to trust it less."""


def certify(  # noqa: PLR0913
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
    without: Iterable[str] = (),
    seed: int = 0,
    effort: float = 1.0,
    proofs: Proofs | None = None,
    origin: str = "",
    progress: Callable[[str], None] | None = None,
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
        scale: a function's scale: `token` (the rows of a batch have nothing to do with each other), or `context`,
            `causal` or `task` (they are one document's positions, and law S is claimed).
        domain: least and largest evidence that a function is for.
        laws: names of further laws that are claimed. Of a function F, N, B, C, O1, O2 and M are.
        without: names of laws that are not claimed.
        seed: of the search.
        effort: multiplies the number of trials.
        proofs: index of theorems; the one shipped with the package when left out.
        origin: where a function was taken from, `module:name` or `file.py:name`, so that a witness can take it there.
        progress: is told what is being looked at.

    Raises:
        TypeError: the operator is none of these.
        ValueError: a function takes no evidence that was tried, or an unbound stack comes without teachers.

    >>> from polydistill import Entropy, Softmax, certify
    >>> certificate = certify(Softmax(2.0)(Entropy(spread=4)), teachers=["a", "b"], effort=0.1)
    >>> certificate.exit_ok
    True
    """
    if not effort > 0:
        raise ValueError(f"effort must be > 0, got {effort}")
    unknown = sorted({*laws, *without} - set(LAWS))
    if unknown:
        raise ValueError(f"there are no laws {', '.join(unknown)}; the laws are {', '.join(LAWS)}")
    means = Means(effort, torch.Generator().manual_seed(seed))
    tell = progress or (lambda _: None)
    if isinstance(operator, Operator | Pipeline):
        index = Proofs.shipped() if proofs is None else proofs
        found = _of_pipeline(operator, teachers, tasks, critical, set(laws), means, index, tell)
    else:
        rule = rule_of(operator, sigma=safety, domain=domain, dependent=scale != "token")
        sizes = [teachers] if isinstance(teachers, int) else None if teachers is None else [int(k) for k in teachers]
        claims: dict[str, Any] = {"scale": scale, "critical": 1.0 if critical is None else critical, "domain": domain}
        if range_at_most is not None:
            claims["range"] = float(range_at_most)
        if modulus_at_most is not None:
            claims["moduli"] = (float(modulus_at_most),)
        benches = function_benches(rule, sizes, claims, origin)
        claimed = (set(OF_FUNCTIONS) | set(laws) | ({"S"} if scale != "token" else set())) - set(without)
        found = _of_function(title(operator), benches, claimed, means, tell)
    shared: dict[str, Any] = {
        "version": __version__,
        "seed": seed,
        "effort": float(effort),
        "sampler": sampling.NAME,
        "dtype": "float64",
        "tolerance": attack.SLIGHT,
    }
    return Certificate(**found, **shared)


def _of_function(
    name: str, benches: Sequence[Bench], laws: set[str], means: Means, tell: Callable[[str], None]
) -> dict[str, Any]:
    rows = benches[0].drawn(sampling.vectors(64, benches[0].teachers, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        first = benches[0].rule(rows)
    attacks = _attacks(benches, means, tell)
    if not any(found.witness for found in attacks["F"]):
        last = at_the_end(benches, first, rows, means)
        attacks["F"] += [] if last is None else [last]
    declared = benches[0]
    findings = []
    for axiom in LAWS:
        bound = {"B": declared.range, "C": declared.moduli[0]}.get(axiom)
        bound = bound if bound is not None and bound < math.inf else None
        basis = Basis.NOT_CLAIMED if axiom not in laws else Basis.NONE if bound is None else Basis.DECLARED
        findings.append(_finding(axiom, attacks[axiom], basis, bound))
    sizes = sorted({bench.teachers for bench in benches})
    return {
        "subject": name,
        "kind": "function",
        "teachers": tuple(map(str, sizes)),
        "findings": tuple(findings),
        "derivation": (),
        "consequences": (*_as_far_as_tried(findings), _numbers(benches), *_exact_zeros(benches)),
        "proofs_sha256": None,
    }


def _numbers(benches: Sequence[Bench]) -> str:
    sizes = sorted({bench.teachers for bench in benches})
    close = sorted({bench.teachers for bench in benches if bench.close})
    several = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 2 else " and ".join(map(str, sizes))
    whole = several if len(sizes) == sizes[-1] - sizes[0] + 1 else ", ".join(map(str, sizes))
    return f"tried with {whole} teachers, closely with {', '.join(map(str, close))}"


def _exact_zeros(benches: Sequence[Bench]) -> tuple[str, ...]:
    """What a teacher does to the weights that gives a label exactly 0; no law speaks of it."""
    bench = benches[min(1, len(benches) - 1)]
    if bench.domain[0] > -math.inf:
        return ()
    rows = bench.drawn(sampling.vectors(64, bench.teachers, torch.Generator().manual_seed(1)))
    rows[:, 0] = -math.inf
    with torch.no_grad():
        log_w = bench.raw(rows)
    sums = log_w.exp().sum(-1)
    if bool(((sums - 1.0).abs() <= bench.mass).all()):
        return ("evidence of -inf, from a teacher that gives a label exactly 0, was tried: the weights still sum to 1",)
    return (
        "evidence of -inf, from a teacher that gives a label exactly 0, gives weights that are not a number or do "
        "not sum to 1; the laws speak of finite evidence",
    )


def _of_pipeline(
    operator: Operator | Pipeline,
    teachers: Any,
    tasks: Sequence[str],
    critical: float | None,
    laws: set[str],
    means: Means,
    proofs: Proofs,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    if isinstance(operator, Operator) and operator.names is None and teachers is None:
        raise ValueError(f"{operator!r} is not bound; say teachers=['a', 'b', 'c'] (or how many), or bind it first")
    names = tuple(f"t{k}" for k in range(teachers)) if isinstance(teachers, int) else tuple(map(str, teachers or ()))
    pipeline = as_pipeline(operator, names, tuple(tasks))
    promise = pipeline.guarantee()
    benches = pipeline_benches(pipeline, max(4, int(6 * means.effort**0.5)), critical)
    close = max(2, int(3 * means.effort**0.5))
    benches = [bench if i < close else replace(bench, close=False) for i, bench in enumerate(benches)]
    attacks = _attacks(benches, means, tell)
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
        elif axiom == "N" and ours and promise.range < math.inf:
            theorems = (
                () if any("T12_clip_range" in r.theorems for r in rules) else proofs.check(rules, ("T1_calculus",))
            )
            basis = Basis.PROVED if theorems else basis
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
Law = Callable[[Bench, Means], Attack | None]
EVERYWHERE: dict[str, Law] = {"N": attack.normalised, "O1": order.ordered, "O2": order.rising}
CLOSELY: dict[str, Law] = {
    "B": attack.bounded,
    "E": order.equivariant,
    "M": order.monotone,
    "U": further.neutral,
    "S": further.measurable,
    "D": further.clone_robust,
}
"""Attacks by law; X comes before C, which asks it."""


def _attacks(benches: Sequence[Bench], means: Means, tell: Callable[[str], None]) -> Attacks:
    """Every law on benches that are looked at closely, on the others those that are cheap; until it is refuted.

    Of what is no function nothing else is asked: a law about it could be refuted or not at every call.
    """
    found: Attacks = {name: [] for name in LAWS}
    less = replace(means, effort=means.effort / 4)  # of the same number of teachers at another severity

    def refuted(name: str) -> bool:
        return any(result.witness is not None for result in found[name])

    def add(name: str, law: Law, bench: Bench) -> Attack | None:
        if refuted(name):
            return None
        tell(f"{bench.teachers} teachers, {LAWS[name].title}")
        result = law(bench, less if bench.again else means)
        if result is not None:
            found[name].append(result)
        return result

    every = max(1, round(0.5 / means.effort**0.5))
    for place, bench in enumerate(benches):
        if (bench.close or place % every == 0) and not bench.order_only:
            asked = add("F", repeated, bench)
            # Where rows depend on each other the other laws are asked of each row alone.
            if asked is not None and asked.witness is not None and not asked.witness.says.startswith(BATCH):
                return {**{name: [] for name in LAWS}, "F": found["F"], "N": found["N"]}
        for name, law in EVERYWHERE.items():
            if not (bench.order_only if name == "N" else bench.again):
                add(name, law, bench)
        if bench.order_only or not (bench.close or place % every == 0):
            continue
        add("X", further.shift_invariant, bench)
        add("C", partial(continuity.continuous, shift_invariant=not refuted("X")), bench)
        for name, law in CLOSELY.items():
            if bench.close or name in ("B", "M"):
                add(name, law, bench)
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
    if by_name["F"].refuted:
        return ()
    if not b.refuted and b.worst is not None:
        lines.append(f"in {b.trials:,} trials no teacher weighed more than exp({b.worst:.3g}) times another")
    if not c.refuted and c.worst is not None:
        lines.append(
            f"in {c.trials:,} trials 0.1 nat of error in every teacher's evidence moved the weights by at most "
            f"{torch.tensor(0.2 * c.worst / 4).tanh():.1%} (total variation), as a steepest slope of {c.worst:.3g} says"
        )
    return tuple(lines)
