"""A certificate as a table."""

import io

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from polydistill.axioms import AXIOMS
from polydistill.certification.certificate import Basis, Certificate, Finding

STYLE = {Basis.PROVED: "bold green", Basis.DERIVED: "green", Basis.DECLARED: "default", Basis.NONE: "default"}


def table(certificate: Certificate) -> Group:
    """Laws with verdict, bound, worst value and tightness; then witnesses, derivation and consequences."""
    laws = Table(title=Text(certificate.subject), title_justify="left", expand=False)
    for name in ("law", "verdict", "bound", "worst found", "tightness", "trials", "note"):
        laws.add_column(name, justify="right" if name in ("bound", "worst found", "tightness", "trials") else "left")
    for finding in certificate.findings:
        if not finding.trials:
            continue
        tightness = finding.tightness
        laws.add_row(
            f"{finding.axiom} {AXIOMS[finding.axiom].title}",
            Text(_verdict(finding), style=_style(finding)),
            _number(finding.bound),
            _number(finding.worst),
            "" if tightness is None else f"{tightness:.0%}",
            f"{finding.trials:,}",
            finding.note,
        )
    parts: list[Table | Text] = [laws]
    for finding in certificate.findings:
        if finding.witness is not None:
            style = "red" if finding.basis is not Basis.NOT_CLAIMED else "yellow"
            parts.append(Text(f"{finding.witness}", style=style))
            if finding.basis is not Basis.NOT_CLAIMED:
                parts.append(Text(_indented(finding.witness.reproduce), style="dim"))
    if certificate.derivation:
        parts.append(Text("\nderivation\n" + _indented("\n".join(certificate.derivation))))
    if certificate.consequences:
        parts.append(Text("\nwhat follows\n" + _indented("\n".join(certificate.consequences))))
    index = certificate.proofs_sha256
    parts.append(
        Text(
            f"\npolydistill {certificate.version}, seed {certificate.seed}, effort {certificate.effort:g}, sampler "
            f"{certificate.sampler}, {certificate.dtype}, "
            f"{f'proofs index {index[:12]}' if index else 'no proofs index: nothing is called proved'}",
            style="dim",
        )
    )
    return Group(*parts)


def rendered(certificate: Certificate, width: int = 140) -> str:
    """The table as plain text."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(table(certificate))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _verdict(finding: Finding) -> str:
    if finding.basis is Basis.NOT_CLAIMED and finding.refuted:
        return "does not hold (not claimed)"
    return finding.verdict


def _style(finding: Finding) -> str:
    if finding.refuted:
        return "bold red" if finding.basis is not Basis.NOT_CLAIMED else "yellow"
    return STYLE.get(finding.basis, "default")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
