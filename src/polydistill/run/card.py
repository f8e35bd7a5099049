"""The model card of a distilled student: who taught it, under which weights, with which promises."""

from collections.abc import Sequence
from pathlib import Path

from polydistill.records import RunSummary, write_whole
from polydistill.visible import code, markdown, visible


def write_card(
    folder: Path, summary: RunSummary, promises: Sequence[str], teacher_sources: dict[str, str], base: str
) -> None:
    """Write `README.md` beside the student's weights."""
    domains = summary.domains
    table = ["| model | " + " | ".join(map(markdown, domains)) + " | mean |", "|---|" + "---|" * (len(domains) + 1)]
    for score in summary.scores:
        cells = [f"{score.losses[d]:.3f}" if d in score.losses else "" for d in domains]
        mean = "" if score.mean is None else f"{score.mean:.3f}"
        table.append(f"| {markdown(score.label or score.name)} | {' | '.join(cells)} | {mean} |")
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [knowledge-distillation, polydistill]",
        "---",
        "",
        f"# {markdown(summary.title)}",
        "",
        f"A student ({code(base)}) of {len(teacher_sources)} teachers, distilled with polydistill "
        f"{summary.package_version}.",
        "",
        "## Teachers",
        "",
        *[f"- {code(name)}: {code(source)}" for name, source in teacher_sources.items()],
        "",
        "## Weighting",
        "",
        code(summary.weighting),
        "",
        f"Objective: {code(summary.objective)}, {summary.steps} steps.",
        "",
        "## What the weights promise",
        "",
        *[f"- {markdown(promise)}" for promise in promises],
        "",
        "These are limits on the weights during training, not promises about what the student says.",
        "",
        *_said(summary, promises),
        *_constraints(summary),
        "## Held-out loss, nats per token",
        "",
        *table,
        "",
        "## Command",
        "",
        f"    {visible(summary.command)}",
        "",
    ]
    write_whole(folder / "README.md", "\n".join(lines))


def _said(summary: RunSummary, promises: Sequence[str]) -> list[str]:
    """What the run says of itself beside its promises: severity of the data, the safety order, the constraints."""
    said = [sentence for sentence in summary.says if sentence not in promises]
    return ["## What the run says of itself", "", *[f"- {markdown(sentence)}" for sentence in said], ""] if said else []


def _constraints(summary: RunSummary) -> list[str]:
    """Limits on the student with their final values and multipliers; nothing without any."""
    if not summary.constraints:
        return []
    rows = ["| constraint | limit | value | held out | multiplier | weight | met |", "|---|---|---|---|---|---|---|"]
    for name, c in summary.constraints.items():
        value = "not seen" if c.value is None else f"{c.value:.4g}"
        held_out = "not measured" if c.held_out is None else f"{c.held_out:.4g}"
        met = "yes" if c.met else "cannot be met" if c.infeasible else "no"
        rows.append(
            f"| {markdown(name)} | {c.limit:.4g} | {value} | {held_out} | {c.multiplier:.3g} | {c.weight:.1%} | {met} |"
        )
    return [
        "## Constraints on the student",
        "",
        *rows,
        "",
        "Values are means over the training distribution during the last steps, and over the held-out data at the end; "
        "neither is a promise about every prompt.",
        "",
    ]
