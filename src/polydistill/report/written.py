"""What the student wrote, as the page shows it: the last completions token by token, and what it wrote before."""

from collections.abc import Sequence
from dataclasses import dataclass

from polydistill.records import CompletionRecord, Ribbon
from polydistill.report.folder import Run
from polydistill.report.ribbon import RibbonView, view

SHOWN, EARLIER = 6, 6
"""Prompts shown, and earlier steps of each."""


@dataclass(frozen=True)
class Written:
    """A prompt and what became of it.

    Attributes:
        prompt: as the student read it.
        ribbon: the completion of the last step, token by token.
        surprise: teacher -> mean of its negative log-probability of the completion, nats per token.
        disagreement: of the teachers along the completion, nats; None where they were not asked.
        earlier: step -> completion.
    """

    prompt: str
    ribbon: RibbonView
    surprise: dict[str, float]
    disagreement: float | None
    earlier: dict[int, str]


def written(run: Run) -> list[Written]:
    """Completions of the main student's last step, those where the teachers disagree most first."""
    mine = [record for record in run.completions if record.student == run.main_student]
    last = mine[-1].step if mine else 0
    final = [record for record in mine if record.step == last and record.tokens]
    final.sort(key=lambda record: -(record.disagreement or 0.0))
    return [_of(record, [r for r in mine if r.prompt == record.prompt and r.step < last]) for record in final[:SHOWN]]


def _of(record: CompletionRecord, before: Sequence[CompletionRecord]) -> Written:
    ribbon = Ribbon(
        name=f"step {record.step}",
        teachers=record.teachers or ["nobody"],
        tokens=record.tokens,
        weights=list(record.weights) or [None] * len(record.tokens),
        loss=[-value for value in record.student_log_prob],
    )
    chosen = before[:: max(1, -(-len(before) // EARLIER))]
    surprise = {
        name: -sum(row[k] for row in record.log_prob) / len(record.log_prob)
        for k, name in enumerate(record.teachers if record.log_prob else ())
    }
    earlier = {one.step: "".join(one.tokens) for one in chosen}
    return Written(record.prompt, view(ribbon, record.log_prob), surprise, record.disagreement, earlier)
