"""Holding a user's own aggregator to the fifteen laws of pools, and first of all to being one.

>>> from polydistill.axioms.pools import log_pool
>>> certificate = certify_pool(log_pool, laws=["factor"], effort=0.1)
>>> certificate.exit_ok, "hull" in certificate.kept
(True, False)
"""

import copy
import functools
import json
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from polydistill import __version__
from polydistill.axioms.pools import POOL_LAWS, TOLERANCE, Aggregator, Scene
from polydistill.certification.certificate import FORMAT, RefutedError
from polydistill.certification.rule import defined, title
from polydistill.certification.simplify import rounded_scene, smaller_scenes

SIZES = ((2, 2), (2, 3), (3, 5), (5, 30), (4, 3), (1, 4), (6, 8), (7, 3), (8, 16), (3, 300), (16, 5))
"""Numbers of teachers and of symbols that are tried."""
CASES = 600
"""At each size."""
NEAREST, ROUNDS = 48, 16
"""Cases that are moved towards a failure where none was drawn, and how often."""
FLAT = ("F", "N", "hull", "positivity", "zero")
"""Laws that a case is not moved for: they fail at once, or asking is long."""
ROUGH = 0.01
"""By how much a mass may differ in float32."""
ALWAYS = ("F", "N", "unanimity", "zero", "rank")
"""What is claimed of a pool that says nothing else: every pool of ours has it."""


def _called_again(agg: Aggregator, s: Scene) -> Tensor:
    """The same question gives the same pool: asked twice, row by row, in float32; what it is given is left alone."""
    w, log_p = s.w.clone(), s.log_p.clone()
    first = agg(w, log_p).exp()
    written = (w != s.w).any(-1) | (log_p != s.log_p).flatten(1).any(-1)
    twice = (first - agg(s.w.clone(), s.log_p.clone()).exp()).abs().amax(-1)
    alone = torch.cat([agg(s.w[i : i + 1].clone(), s.log_p[i : i + 1].clone()) for i in range(min(len(first), 8))])
    apart = (first[: len(alone)] - alone.exp()).abs().amax(-1)
    single = agg(s.w.float(), s.log_p.float()).double().exp()
    rough = ((first - single).abs().amax(-1) - ROUGH).clamp_min(0.0)
    gap = torch.maximum(torch.maximum(twice, rough), written.to(first))
    gap[: len(alone)] = torch.maximum(gap[: len(alone)], apart)
    # What is no number at first is a question of law N; what is none only when asked again, of this one.
    return gap.nan_to_num(torch.inf).masked_fill(first.isnan().any(-1), 0.0)


def _distribution(agg: Aggregator, s: Scene) -> Tensor:
    """The pool is a distribution, also where a teacher weighs exactly 0."""
    only = torch.nn.functional.one_hot(s.w.argmax(-1), s.w.shape[1]).to(s.w)
    gaps = [(agg(w, s.log_p).exp().sum(-1) - 1.0).abs().nan_to_num(torch.inf) for w in (s.w, only)]
    return (torch.maximum(*gaps) - 1e-6).clamp_min(0.0)


LAWS: dict[str, Callable[[Aggregator, Scene], Tensor]] = {"F": _called_again, "N": _distribution, **POOL_LAWS}
"""Law -> how far an aggregator misses it, case by case."""


def words(law: str) -> str:
    """A law in one sentence."""
    return " ".join((LAWS[law].__doc__ or "").split("\n\n")[0].split()).rstrip(".")


@dataclass(frozen=True)
class PoolFinding:
    """One law of one aggregator.

    Attributes:
        law: its name.
        words: its sentence.
        claimed: a refutation is a failure.
        cases: tried.
        missed: the furthest that it was missed by.
        says: what happened in the simplest case that was found; empty where the law was not refuted.
        case: that case.
    """

    law: str
    words: str
    claimed: bool
    cases: int
    missed: float
    says: str = ""
    case: dict[str, Any] | None = None

    @property
    def refuted(self) -> bool:
        """A case was found."""
        return self.case is not None

    @property
    def verdict(self) -> str:
        """In words."""
        return "refuted" if self.refuted else f"not refuted in {self.cases:,} cases"


@dataclass(frozen=True)
class PoolCertificate:
    """What was found about one aggregator.

    Attributes:
        subject: its name.
        findings: by law.
        define: lines that define `aggregator`.
        seed, effort: of the search.
    """

    subject: str
    findings: tuple[PoolFinding, ...]
    define: str
    seed: int
    effort: float

    @property
    def refuted(self) -> tuple[PoolFinding, ...]:
        """Refuted laws that are claimed."""
        return tuple(finding for finding in self.findings if finding.refuted and finding.claimed)

    @property
    def exit_ok(self) -> bool:
        """Nothing that is claimed was refuted."""
        return not self.refuted

    @property
    def cases(self) -> int:
        """In which the least tried of the laws that were not refuted was not."""
        return min((finding.cases for finding in self.findings if not finding.refuted), default=0)

    @property
    def kept(self) -> frozenset[str]:
        """Laws that were not refuted."""
        return frozenset(finding.law for finding in self.findings if not finding.refuted)

    def finding(self, law: str) -> PoolFinding:
        """What was found about one law."""
        return next(finding for finding in self.findings if finding.law == law)

    def raise_on_refuted(self) -> "PoolCertificate":
        """This certificate, so that a test can say `certify_pool(aggregator).raise_on_refuted()`.

        Raises:
            RefutedError: a law that is claimed was refuted.
        """
        if self.refuted:
            raise RefutedError("\n".join([f"{self.subject}:", *(finding.says for finding in self.refuted)]))
        return self

    def to_json(self) -> str:
        """JSON."""
        whole = {"format": FORMAT, "kind": "pool", "version": __version__, **asdict(self), "exit_ok": self.exit_ok}
        for entry, finding in zip(whole["findings"], self.findings, strict=True):
            entry["verdict"] = finding.verdict
            entry["missed"] = str(finding.missed) if math.isinf(finding.missed) else finding.missed
        return json.dumps(whole, indent=1)

    def replay(self) -> str:
        """A Python file that shows again what was refuted of what is claimed; it exits with 3 while it still fails."""
        cases = "".join(f"    ({finding.law!r}, {finding.case}),\n" for finding in self.refuted)
        return (
            f'"""What {self.subject} breaks, found by polydistill {__version__} with seed {self.seed}."""\n\n'
            f"{self.define}\nfrom polydistill.certification.pools import shown\n\ncases = [\n{cases}]\n"
            "found = [shown(aggregator, law, case) for law, case in cases]\n"
            "print('\\n'.join(filter(None, found)) or 'everything holds here')\n"
            "raise SystemExit(3 if any(found) else 0)\n"
        )


@torch.no_grad()
def certify_pool(
    aggregator: Aggregator,
    *,
    laws: Iterable[str] = (),
    without: Iterable[str] = (),
    seed: int = 0,
    effort: float = 1.0,
    origin: str = "",
    progress: Callable[[str], None] | None = None,
) -> PoolCertificate:
    """Search for cases in which an aggregator breaks a law of pools.

    Args:
        aggregator: `(weights [n, K], log_p [n, K, V]) -> log_p [n, V]`, a function or a module.
        laws: further laws that are claimed; of every pool `ALWAYS` is.
        without: laws that are not claimed.
        seed: of the cases.
        effort: multiplies their number.
        origin: where it was taken from, `module:name` or `file.py:name`.
        progress: is told what is being looked at.

    Raises:
        TypeError: it cannot be called.
        ValueError: it is no function from weights and log-probabilities to log-probabilities, or there is no such law.

    >>> from polydistill import certify_pool
    >>> def geometric(weights, log_p):
    ...     return (weights[..., None] * log_p).sum(1).log_softmax(-1)
    >>> certify_pool(geometric, laws=["factor"], effort=0.1).exit_ok
    True
    """
    if not effort > 0:
        raise ValueError(f"effort must be > 0, got {effort}")
    if unknown := sorted({*laws, *without} - set(LAWS)):
        raise ValueError(f"there are no laws {', '.join(unknown)} of pools; the laws are {', '.join(LAWS)}")
    if not callable(aggregator):
        raise TypeError(f"{aggregator!r} is no aggregator: it cannot be called with weights [n, K] and log_p [n, K, V]")
    asked = copy.deepcopy(aggregator).double().eval() if isinstance(aggregator, nn.Module) else aggregator
    tolerance = _refuse_what_is_none(asked, title(aggregator))
    claimed = {*ALWAYS, *laws} - set(without)
    generator = torch.Generator().manual_seed(seed)
    scenes = [Scene.drawn(max(8, int(CASES * effort)), k, v, generator) for k, v in SIZES]
    findings, rounds = [], round(ROUNDS * effort**0.5)
    for law in LAWS:
        if progress is not None:
            progress(f"law {law}")
        findings.append(_finding(_guarded(asked), law, law in claimed, scenes, tolerance, 0 if law in FLAT else rounds))
    define, name = (
        ("from polydistill.certification import load", f"load({origin!r})") if origin else defined(aggregator)
    )
    return PoolCertificate(title(aggregator), tuple(findings), f"{define}\naggregator = {name}", seed, float(effort))


def _refuse_what_is_none(agg: Aggregator, name: str) -> float:
    """Whether what comes back can be a pool at all; returns the tolerance of its arithmetic."""
    scene = Scene.drawn(8, 3, 5, torch.Generator().manual_seed(0))
    try:
        made = agg(scene.w.clone(), scene.log_p.clone())
    except Exception as error:
        said = " ".join(str(error).split())
        raise ValueError(
            f"{name} is no aggregator: for weights [8, 3] and log_p [8, 3, 5] it says {type(error).__name__}: {said}"
        ) from error
    shape = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
    if shape != [8, 5]:
        raise ValueError(f"{name} is no aggregator: it returns [n, V], here [8, 5]; got {shape}")
    mass = made.double().exp().sum(-1)
    if not bool(((mass - 1.0).abs() < 0.5).all()):  # a smaller gap is a finding
        worst = float(mass[(mass - 1).abs().nan_to_num(torch.inf).argmax()])
        raise ValueError(f"{name} is no aggregator: it returns log-probabilities; those of a case have mass {worst:g}")
    coarse = made.dtype != torch.float64 or bool((made == made.float().to(made)).all())
    return 1e-4 if coarse else TOLERANCE


def table(certificate: PoolCertificate) -> Table:
    """For a terminal; what is not claimed is dim."""
    most = max(finding.cases for finding in certificate.findings)
    made = Table(title=f"{certificate.subject}, a pool: up to {most:,} cases for a law")
    for column, fixed in (("law", True), ("verdict", True), ("in words, or what happened", False)):
        made.add_column(column, no_wrap=fixed)
    for finding in certificate.findings:
        style = ("bold red" if finding.refuted else "") if finding.claimed else "dim"
        verdict = "refuted" if finding.refuted else "not refuted"
        claimed = "" if finding.claimed else ", not claimed"
        made.add_row(finding.law, verdict + claimed, Text(finding.says or finding.words), style=style)
    return made


def _guarded(agg: Aggregator) -> Aggregator:
    """It is given copies, answers in float64, and in NaN where it raises."""

    def ask(w: Tensor, log_p: Tensor) -> Tensor:
        try:
            return agg(w, log_p).double()
        except Exception:
            return torch.full((len(w), log_p.shape[-1]), torch.nan, dtype=torch.float64)

    return ask


def _copied(agg: Aggregator) -> Aggregator:
    return lambda w, log_p: agg(w.clone(), log_p.clone())


def _missed(agg: Aggregator, law: str, scene: Scene) -> Tensor:
    asked = agg if law == "F" else _copied(agg)
    return LAWS[law](asked, scene).nan_to_num(torch.inf)


def _climbed(agg: Aggregator, law: str, scene: Scene, missed: Tensor, rounds: int) -> tuple[Scene, Tensor, int]:
    """The cases nearest to a failure, moved at random where that brings them nearer; and how many were tried."""
    top = missed.topk(min(NEAREST, len(missed))).indices
    scene, missed = scene.of(operator.itemgetter(top)), missed[top]
    generator = torch.Generator().manual_seed(0)

    def moved(x: Tensor) -> Tensor:
        size = torch.exp(2.0 * torch.randn(len(x), *(1,) * (x.ndim - 1), generator=generator, dtype=x.dtype) - 2.0)
        return x + size * torch.randn(x.shape, generator=generator, dtype=x.dtype)

    for _ in range(rounds):
        trial = scene.of(lambda x: moved(x.log()).softmax(-1), "w", "other_w")
        trial = trial.of(lambda x: moved(x).log_softmax(-1), "log_p", "other_p")
        now = _missed(agg, law, trial)
        better = now > missed
        scene, missed = scene.blended(trial, better), torch.where(better, now, missed)
    return scene, missed, rounds * len(missed)


def _case(scene: Scene, i: int) -> Scene:
    return scene.of(lambda x: x[i : i + 1])


def _finding(
    agg: Aggregator, law: str, claimed: bool, scenes: list[Scene], tolerance: float, rounds: int
) -> PoolFinding:
    cases, worst, where = 0, -torch.inf, None
    for scene in scenes:
        if law == "hull" and scene.log_p.shape[-1] > 100:  # its search for the nearest mixture is long there
            continue
        missed = _missed(agg, law, scene)
        if rounds and scene.log_p.shape[1:].numel() <= 15 and float(missed.max()) <= tolerance:
            scene, missed, more = _climbed(agg, law, scene, missed, rounds)
            cases += more
        cases, most = cases + len(missed), float(missed.max())
        if where is None or most > worst:
            worst, where = most, scene if law == "F" else _case(scene, int(missed.argmax()))
        if worst > tolerance:
            break
    if where is None or not worst > tolerance:
        return PoolFinding(law, words(law), claimed, cases, worst)
    simple = _simplest(agg, law, where, max(tolerance, min(0.3 * worst, 0.01)))
    case = simple.lists()
    return PoolFinding(law, words(law), claimed, cases, worst, shown(agg, law, case), case)


def _simplest(agg: Aggregator, law: str, scene: Scene, enough: float) -> Scene:
    """Fewest cases, teachers and symbols, and the roundest numbers, with which the law is still missed clearly."""
    again = True
    while again:
        again = False
        for smaller in smaller_scenes(scene):
            if float(_missed(agg, law, smaller).max()) > enough:
                scene, again = smaller, True
                break
    for digits in (1, 2, 3):
        rounded = rounded_scene(scene, digits)
        if float(_missed(agg, law, rounded).max()) > enough:
            return rounded
    return scene


def shown(aggregator: Aggregator, law: str, case: dict[str, Any]) -> str:
    """What an aggregator does with a case, in a sentence; empty where the law holds there.

    Args:
        aggregator: as for `certify_pool`.
        law: its name.
        case: `PoolFinding.case`.
    """
    asked: list[tuple[Tensor, Tensor, Tensor]] = []
    agg = _guarded(aggregator)

    def noted(w: Tensor, log_p: Tensor) -> Tensor:
        given = w[0].clone(), log_p[0].exp()
        made = agg(w, log_p)
        asked.append((*given, made[0].exp()))
        return made

    with torch.no_grad():
        missed = float(_missed(noted, law, Scene.from_lists(case)).max())
    if not missed > TOLERANCE:
        return ""
    said = [f"weights {_numbers(w)} of {', '.join(map(_numbers, p))} give {_numbers(made)}" for w, p, made in asked]
    return f"{law} fails by {missed:.2g}: {'; '.join(dict.fromkeys(said))} ({words(law)})"


def _numbers(row: Tensor, most: int = 6) -> str:
    shown = ", ".join(f"{x:.3g}" for x in row[:most].tolist())
    return f"({shown}{', ...' if len(row) > most else ''})"


@functools.cache
def certified_pool(aggregator: Aggregator) -> PoolCertificate:
    """The certificate of a run's aggregator, from one search in a process.

    Raises:
        ValueError: it is no pool: no aggregator, no function of what it is given, or no distribution.
    """
    certificate = certify_pool(aggregator)
    for law in ("F", "N"):
        if (finding := certificate.finding(law)).refuted:
            raise ValueError(f"the aggregator {certificate.subject} is no pool: {finding.says}")
    return certificate
