"""The demo with four tokenizers: every teacher has one of its own kind and size, and the students a fourth."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from polydistill.demo.passages import Passages
from polydistill.demo.students import Scores, StudentSettings, controls, scores_of
from polydistill.demo.teachers import TeacherSettings
from polydistill.logprobs import Dense, Informed, KnownStatistics, logits_of
from polydistill.pipeline import Pipeline
from polydistill.teachers import ForeignTeacher

LOOKED_AT = 24
"""Held-out passages that the run itself and its teachers are judged on; students are judged on all."""

EXPAND = {"prose": 4}
"""Tokens per position behind which a teacher is run further: a lone space says nothing of the word after it."""

CLOSELY = 25
"""Held-out positions at which every teacher is run behind all that is open."""


def settings() -> StudentSettings:
    """Fewer passages and steps than with one tokenizer: text that a teacher meets for the first time is translated."""
    return StudentSettings(whole=16, mixed=6, steps=80, batch=8)


def teacher_settings() -> TeacherSettings:
    """Fewer steps, as the time goes into translation."""
    return TeacherSettings(steps=800)


def beside() -> dict[str, Pipeline | None]:
    """The controls that the gap is measured with, and labels only."""
    return {name: pipeline for name, pipeline in controls().items() if name in ("labels_only", "uniform", "oracle")}


class Overheard:
    """A translated teacher of the run, asked once about a text for all the students that learn beside it.

    Args:
        teacher: of the run.
    """

    def __init__(self, teacher: ForeignTeacher) -> None:
        self.name, self.teacher = teacher.name, teacher
        self.said: dict[tuple[int, ...], tuple[Tensor, ...]] = {}

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Informed:
        """Distributions at the flattened positions `rows`, none of them a text's last, remembered for later epochs."""
        texts, length = list(map(tuple, input_ids.tolist())), input_ids.shape[1]
        if any(text not in self.said for text in texts):
            asked = torch.arange(input_ids.numel()).view_as(input_ids)[:, :-1].flatten()
            said = self.teacher.speak(input_ids, attention_mask, asked)
            logits, known = logits_of(said, torch.arange(len(asked))), said.known
            assert known.label_log_prob is not None
            assert known.fidelity is not None
            parts = [part.split(length - 1) for part in (logits, known.label_log_prob, known.fidelity)]
            self.said |= zip(texts, zip(*parts, strict=True), strict=True)
        at = rows - rows // length
        logits, label, fidelity = (torch.cat(of)[at] for of in zip(*(self.said[text] for text in texts), strict=True))
        return Informed(Dense(logits), KnownStatistics(label_log_prob=label, fidelity=fidelity))


def overheard(teachers: Sequence[object]) -> list[Overheard]:
    """Those of a run."""
    return [Overheard(teacher) for teacher in teachers if isinstance(teacher, ForeignTeacher)]


def judge_teacher(teacher: ForeignTeacher, passages: Passages) -> Scores:
    """A teacher's evidence of held-out passages, in nats per token of the student: of the same bytes for everybody."""
    losses = []
    for part in passages.batches(16):
        rows = torch.arange(part.ids.numel()).view_as(part.ids)[:, :-1].flatten()
        known = teacher.speak(part.ids, torch.ones_like(part.ids), rows).known
        assert known.label_log_prob is not None
        losses.append(-known.label_log_prob.view(len(part), -1))
    return scores_of(torch.cat(losses).double(), passages)


def bounds(teachers: Sequence[Overheard], passages: Passages) -> dict[str, dict[str, list[float]]]:
    """Teacher -> term -> median and 99th percentile of what its distributions may be off by, total variation; in all
    that was taught, and `closely` at a few positions of held-out passages.
    """
    rows = torch.arange(CLOSELY) * (passages.ids.numel() // CLOSELY)
    rows = rows[(rows + 1) % passages.ids.shape[1] != 0]
    found = {}
    for teacher in (one.teacher for one in teachers):
        terms = teacher.errors()
        terms["closely"] = teacher.look_closer(passages.ids, torch.ones_like(passages.ids), rows)
        found[teacher.name] = {term: [float(v.quantile(share)) for share in (0.5, 0.99)] for term, v in terms.items()}
    return found
