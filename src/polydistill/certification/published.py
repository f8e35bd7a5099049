"""The published rules against the laws: one table, made by one call."""

import math
from dataclasses import dataclass

import torch

from polydistill.certification.asking import LAWS
from polydistill.certification.certificate import Certificate
from polydistill.certification.published_rules import PUBLISHED, Published, vocabulary_gate
from polydistill.certification.run import certify

SIZES = (2, 3, 5, 1)
"""Numbers of teachers that the rules are tried with."""
COLUMNS = ("F", "N", "B", "C", "E", "M", "U", "X", "S", "D")


@dataclass(frozen=True)
class PublishedTable:
    """Rules and their certificates.

    Attributes:
        rows: in the order of `PUBLISHED`.
        vocabulary_mass: what the pooled target of a gate per vocabulary entry sums to (T15).
    """

    rows: tuple[tuple[Published, Certificate], ...]
    vocabulary_mass: float

    def to_markdown(self) -> str:
        """The table, then a witness for every failure, for `docs/theory.md`."""
        heads = [f"{name} {LAWS[name].title}" for name in COLUMNS]
        lines = [
            "| rule | reads | " + " | ".join(heads) + " |",
            "|---|---|" + "---|" * len(COLUMNS),
        ]
        for rule, certificate in self.rows:
            cells = [self._cell(certificate, name) for name in COLUMNS]
            lines.append(f"| {rule.name} | {rule.reads} | " + " | ".join(cells) + " |")
        lines.append("| gate per vocabulary entry | scores | | **fails** (of the target) |" + " |" * (len(COLUMNS) - 2))
        trials = sum(certificate.trials for _, certificate in self.rows)
        lines += ["", f"*ok*: not refuted; {trials:,} trials in all, K in {', '.join(map(str, sorted(SIZES)))}.", ""]
        for rule, certificate in self.rows:
            lines.append(f"**{rule.name}** ({rule.paper}): {rule.flaw}.")
            lines += [
                f"* {finding.witness} (at {_short(finding.witness.inputs)})"
                for finding in certificate.findings
                if finding.witness is not None
            ]
            lines.append("")
        lines.append(
            "**gate per vocabulary entry** (T15): weights per vocabulary entry do not give a distribution.\n"
            f"* N fails: two teachers sure of different entries, each gated 9 to 1 on its own entry, pool to a target "
            f"of mass {self.vocabulary_mass:.3g}"
        )
        return "\n".join(lines) + "\n"

    @staticmethod
    def _cell(certificate: Certificate, name: str) -> str:
        finding = certificate.finding(name)
        return "**fails**" if finding.refuted else "ok" if finding.trials else ""


def certify_published(*, seed: int = 0, effort: float = 0.25) -> PublishedTable:
    """Certify every published rule on the evidence that it is for.

    Args:
        seed: of the searches.
        effort: of each, see `certify`.
    """
    rows = tuple(
        (rule, certify(rule.function, teachers=SIZES, domain=(rule.low, rule.high), seed=seed, effort=effort))
        for rule in PUBLISHED
    )
    return PublishedTable(rows, _vocabulary_mass())


def _vocabulary_mass() -> float:
    gates = vocabulary_gate(torch.tensor([[[math.log(9.0), 0.0], [0.0, math.log(9.0)]]]))
    sure = torch.eye(2)  # teacher k puts everything on entry k
    return float((gates[0] * sure.T).sum())


def _short(inputs: object) -> str:
    if isinstance(inputs, dict):
        return ", ".join(
            f"{name} = {_short(value)}" for name, value in inputs.items() if isinstance(value, list) and name != "order"
        )
    if isinstance(inputs, list):
        return _short(inputs[0]) if len(inputs) == 1 else "(" + ", ".join(map(_short, inputs)) + ")"
    return f"{inputs:.6g}" if isinstance(inputs, float) else str(inputs)
