"""A certificate: what is proved, what was tried, what was refuted, as data that a run keeps."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from polydistill.axioms import Witness
from polydistill.certification.asking import LAWS

FORMAT = 1
"""Version of the JSON."""


class RefutedError(AssertionError):
    """A law that is required or claimed does not hold."""


class Basis(StrEnum):
    """What a claim stands on, before anything was tried."""

    PROVED = "proved"
    DERIVED = "derived"
    DECLARED = "declared"
    NONE = "none"
    NOT_CLAIMED = "not claimed"


@dataclass(frozen=True)
class Finding:
    """One law, for one subject.

    Attributes:
        axiom: name of the law.
        basis: proved (every rule's theorems are in the proofs index), derived (by the calculus), declared (by the
            subject), none (nothing is promised, only tried), not claimed (reported; a refutation is no failure).
        trials: inputs that the search evaluated; 0 when it does not apply.
        bound: declared or derived bound, or None.
        worst: largest value that the search reached, or None.
        theorems: behind a proved claim.
        witness: against the law, or None.
        note: what the numbers do not say.
    """

    axiom: str
    basis: Basis
    trials: int
    bound: float | None = None
    worst: float | None = None
    theorems: tuple[str, ...] = ()
    witness: Witness | None = None
    note: str = ""

    @property
    def refuted(self) -> bool:
        """A witness was found."""
        return self.witness is not None

    @property
    def tightness(self) -> float | None:
        """Worst value found, as a share of the bound; None without a finite bound above 0."""
        if self.bound is None or self.worst is None or not 0 < self.bound < math.inf:
            return None
        return self.worst / self.bound

    @property
    def verdict(self) -> str:
        """In words. Proof and search are never mixed up: a search that found nothing says in how many trials."""
        if self.refuted:
            return "refuted"
        if not self.trials:
            return "not applicable"
        if self.basis is Basis.PROVED:
            numbers = sorted({name.split("_", 1)[0] for name in self.theorems}, key=lambda n: int(n[1:]))
            return f"proved ({', '.join(numbers)})"
        if self.basis is Basis.DERIVED:
            return "derived"
        return f"not refuted in {self.trials:,} trials"


@dataclass(frozen=True)
class Certificate:
    """What can be claimed about one subject.

    Attributes:
        subject: what was certified, in words.
        kind: `function`, `stack` or `pipeline`.
        teachers: names, or the numbers of teachers that a function was tried with.
        findings: one per law, the required ones first.
        derivation: of the guarantee, as the lines of a tree; empty for functions.
        consequences: in a user's words.
        version: of this package.
        seed: of the search.
        effort: of the search, 1 by default.
        sampler: of the random inputs.
        dtype: of the arithmetic.
        tolerance: nats by which a bound may be missed without being refuted.
        proofs_sha256: of the proofs index, or None without one.
        state: of a run's weights when they were certified, e.g. before training; empty outside runs.
    """

    subject: str
    kind: str
    teachers: tuple[str, ...]
    findings: tuple[Finding, ...]
    derivation: tuple[str, ...]
    consequences: tuple[str, ...]
    version: str
    seed: int
    effort: float
    sampler: str
    dtype: str
    tolerance: float
    proofs_sha256: str | None
    state: str = ""

    @property
    def trials(self) -> int:
        """Inputs evaluated, over all laws."""
        return sum(finding.trials for finding in self.findings)

    @property
    def refuted(self) -> tuple[Finding, ...]:
        """Refuted laws that are required or claimed."""
        return tuple(f for f in self.findings if f.refuted and f.basis is not Basis.NOT_CLAIMED)

    @property
    def exit_ok(self) -> bool:
        """Nothing that is required or claimed was refuted."""
        return not self.refuted

    def finding(self, axiom: str) -> Finding:
        """What was found about one law.

        Raises:
            KeyError: the law has another name.
        """
        for finding in self.findings:
            if finding.axiom == axiom:
                return finding
        raise KeyError(f"there is no law {axiom!r}; the laws are {', '.join(LAWS)}")

    def raise_on_refuted(self) -> "Certificate":
        """This certificate, so that a test can say `certify(rule).raise_on_refuted()`.

        Raises:
            RefutedError: a law that is required or claimed was refuted.
        """
        if self.refuted:
            raise RefutedError("\n".join([f"{self.subject}:", *(str(finding.witness) for finding in self.refuted)]))
        return self

    def replay(self) -> str:
        """A Python file that shows again what was refuted; it exits with 3 while it still fails."""
        parts = [f'"""What {self.subject} breaks, found by polydistill {self.version} with seed {self.seed}."""\n']
        for finding in self.refuted:
            if finding.witness is not None:
                *lines, last = finding.witness.reproduce.splitlines()
                parts += [f"# {finding.witness}", *lines, f"found_{finding.axiom} = {last[len('print(') : -1]}"]
                parts.append(f"print(found_{finding.axiom} or '{finding.axiom} holds here')\n")
        return "\n".join([*parts, f"raise SystemExit(3 if {self._any_found()} else 0)\n"])

    def _any_found(self) -> str:
        return " or ".join(f"found_{finding.axiom}" for finding in self.refuted) or "False"

    def to_json(self) -> str:
        """JSON that any reader takes: numbers that are not finite are strings, laws come with name and sentence."""
        whole: dict[str, Any] = {"format": FORMAT, **asdict(self), "exit_ok": self.exit_ok}
        for finding in whole["findings"]:
            finding.update(title=LAWS[finding["axiom"]].title, words=LAWS[finding["axiom"]].words)
        return json.dumps(_encode(whole), indent=1)

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Read what `to_json` wrote.

        Raises:
            ValueError: the file has another format.
        """
        data = json.loads(text)
        if data.get("format") != FORMAT:
            raise ValueError(f"this certificate has format {data.get('format')!r}; this version reads format {FORMAT}")
        findings = tuple(_finding(entry) for entry in data["findings"])
        keep = {name: data[name] for name in cls.__dataclass_fields__ if name in data or name != "state"}
        for name in ("teachers", "derivation", "consequences"):
            keep[name] = tuple(keep[name])
        return cls(**{**keep, "findings": findings})

    def __str__(self) -> str:
        from polydistill.certification.table import rendered

        return rendered(self)


def _finding(entry: Mapping[str, Any]) -> Finding:
    witness = entry["witness"]
    if witness is not None:
        numbers = {name: float(value) for name, value in witness["numbers"].items()}
        witness = Witness(**{**witness, "numbers": numbers, "inputs": _decode(witness["inputs"])})
    limits = {name: None if entry[name] is None else float(entry[name]) for name in ("bound", "worst")}
    return Finding(
        **{
            **{name: value for name, value in entry.items() if name in Finding.__dataclass_fields__},
            **limits,
            "basis": Basis(entry["basis"]),
            "theorems": tuple(entry["theorems"]),
            "witness": witness,
        }
    )


def _encode(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _encode(inner) for name, inner in value.items()}
    return [_encode(inner) for inner in value] if isinstance(value, list | tuple) else value


def _decode(value: Any) -> Any:
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if isinstance(value, Mapping):
        return {name: _decode(inner) for name, inner in value.items()}
    return [_decode(inner) for inner in value] if isinstance(value, list) else value
