"""A certificate as a table."""

import io

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from polydistill.certification.asking import LAWS
from polydistill.certification.certificate import Basis, Certificate, Finding

STYLE = {Basis.PROVED: "bold green", Basis.DERIVED: "green", Basis.DECLARED: "default", Basis.NONE: "default"}


def table(certificate: Certificate) -> Group:
    """Laws with verdict, bound, worst value and tightness; then witnesses, derivation and consequences."""
    laws = Table(title=Text(certificate.subject), title_justify="left", expand=False)
    for name in ("law", "verdict", "bound", "worst found", "tightness"):
        laws.add_column(name, justify="right" if name not in ("law", "verdict") else "left")
    for finding in certificate.findings:
        if not finding.trials:
            continue
        tightness = finding.tightness
        laws.add_row(
            f"{finding.axiom} {LAWS[finding.axiom].title}",
            Text(_verdict(finding), style=_style(finding)),
            _number(finding.bound),
            _number(finding.worst),
            "" if tightness is None else f"{tightness:.0%}",
        )
    parts: list[Table | Text] = [laws]
    parts.extend(Text(f"{f.axiom} {LAWS[f.axiom].title}: {f.note}") for f in certificate.findings if f.note)
    for finding in certificate.refuted:
        parts.append(Text(f"\n{finding.witness}", style="red"))
        parts.append(Text(f"  the law: {LAWS[finding.axiom].words}", style="dim"))
    if certificate.derivation:
        parts.append(Text("\nderivation\n" + _indented("\n".join(certificate.derivation))))
    if certificate.consequences:
        parts.append(Text("\nwhat follows\n" + _indented("\n".join(certificate.consequences))))
    parts.append(
        Text(
            f"\npolydistill {certificate.version}, seed {certificate.seed}, effort {certificate.effort:g}, sampler "
            f"{certificate.sampler}, {certificate.dtype}, "
            f"{_index(certificate)}",
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


def _index(certificate: Certificate) -> str:
    if certificate.proofs_sha256:
        return f"proofs index {certificate.proofs_sha256[:12]}"
    return "nothing is proved of a function" if certificate.kind == "function" else "no proofs index: nothing is proved"


def _style(finding: Finding) -> str:
    if finding.refuted:
        return "bold red" if finding.basis is not Basis.NOT_CLAIMED else "dim"
    return STYLE.get(finding.basis, "default")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
