"""The demo from beginning to end: teachers, students, judgement, run folder, and the last screen."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console

from polydistill import __version__
from polydistill.data.pieces import pieces
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.passages import Passages, draw, generation_config
from polydistill.demo.screen import TeacherProgress, last_screen
from polydistill.demo.students import (
    Scores,
    Student,
    StudentSettings,
    batch_of,
    contestants,
    judge,
    learn,
)
from polydistill.demo.teachers import Specialists, TeacherSettings, specialists
from polydistill.objective import ForwardKL, distil
from polydistill.pipeline import Pipeline
from polydistill.records import (
    CONFIG,
    METRICS,
    RIBBONS,
    SUMMARY,
    EvaluationRecord,
    RecordWriter,
    Ribbon,
    RunSummary,
    Score,
    StepRecord,
    write_ribbons,
    write_summary,
)
from polydistill.report import write_report
from polydistill.run.card import write_card
from polydistill.run.progress import Steps
from polydistill.run.train import STUDENT, hardware, locked, write_certificate
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.training.hearing import listen_to

LABELS = {
    "labels_only": "labels only",
    "uniform": "uniform teachers",
    "entropy_alone": "entropy weights alone",
    "router": "document router (told the first domain)",
    "adaptive": "adaptive: task x context x token (told nothing)",
    "oracle": "oracle (told every position's domain)",
}
EVERY = 10
"""Steps between two records."""


@dataclass(frozen=True)
class Result:
    """What the demo measured.

    Attributes:
        students: scores by contestant.
        teachers: scores by teacher.
        seconds: by part, and `total`.
        promises: of the adaptive stack, in words.
        report: the page.
    """

    students: dict[str, Scores]
    teachers: dict[str, Scores]
    seconds: dict[str, float]
    promises: list[str]
    report: Path

    @property
    def gap_closed(self) -> float:
        """Share of the way from uniform weights to the oracle, over all held-out texts."""
        uniform, best = self.students["uniform"].mean, self.students["oracle"].mean
        return (uniform - self.students["adaptive"].mean) / (uniform - best)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: means at the top, the same on mixed and whole texts and by domain below."""
        return {
            "gap_closed": self.gap_closed,
            **{name: score.mean for name, score in self.students.items()},
            "mixed": {name: score.mixed for name, score in self.students.items()},
            "whole": {name: score.whole for name, score in self.students.items()},
            "domains": {name: score.domains for name, score in self.students.items()},
            "teachers": {name: asdict(score) for name, score in self.teachers.items()},
            "seconds": self.seconds,
            "promises": self.promises,
            "report": str(self.report),
        }


def main(folder: Path, seed: int, json_file: Path | None, console: Console) -> None:
    """Run the demo and print its last screen."""
    result = run_demo(folder, seed, console)
    last_screen(console, result.students, result.teachers, LABELS, result.gap_closed, result.promises)
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items() if seconds >= 0.5)
    console.print(f"where the time went: {parts}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"student: {folder / STUDENT}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"report:  {result.report}", highlight=False, markup=False, soft_wrap=True)
    console.print("next:    polydistill init run.yaml   (the same with your own models)", highlight=False, markup=False)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")


def run_demo(
    folder: Path,
    seed: int,
    console: Console,
    *,
    teacher_settings: TeacherSettings | None = None,
    student_settings: StudentSettings | None = None,
    pipelines: Mapping[str, Pipeline | None] | None = None,
) -> Result:
    """Everything but the last screen.

    Args:
        folder: of the run; what an earlier demo left there is replaced.
        seed: of the students and their passages; the teachers do not depend on it.
        console: for progress.
        teacher_settings, student_settings: sizes and steps.
        pipelines: the contestants; must have `uniform`, `adaptive` and `oracle`.
    """
    with suppress(RuntimeError):
        torch.set_flush_denormal(True)
    s = student_settings or StudentSettings()
    t = teacher_settings or TeacherSettings()
    started, clock = datetime.now(UTC), perf_counter()
    with locked(folder):
        for name in (METRICS, RIBBONS, SUMMARY):
            (folder / name).unlink(missing_ok=True)
        console.print("reading the text of this machine's Python", highlight=False)
        corpus = read_corpus()
        with TeacherProgress(console) as progress:
            experts = specialists(t, corpus, progress)
        training = draw(corpus.documents["student"], experts.tokenizer, t.length, s.whole, s.mixed, seed)
        held_out = draw(corpus.documents["held_out"], experts.tokenizer, t.length, s.held_whole, s.held_mixed, 0)
        teachers = [LocalTeacher(name, experts.models[name]) for name in DOMAINS]
        chosen = dict(contestants() if pipelines is None else pipelines)
        config = {"seed": seed, "teachers": asdict(t), "students": asdict(s), "contestants": _described(chosen)}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")  # JSON is YAML 1.2
        with RecordWriter(folder / METRICS) as writer, Steps(console, "students", s.steps) as steps:

            def after_step(done: int, students: Mapping[str, Student]) -> None:
                steps.update(done, f"adaptive {students['adaptive'].cross_entropy:.2f} nats per token")
                if done % EVERY == 0 or done == s.steps:
                    _record(writer, done, students, s.batch * (t.length - 1))

            students, seconds = learn(s, chosen, teachers, experts.tokenizer, training, seed, after_step)
            console.print("judging on held-out text", highlight=False)
            scores = {name: judge(student.model, held_out) for name, student in students.items()}
            judged = {name: judge(experts.models[name], held_out) for name in DOMAINS}
            for name, score in scores.items():
                writer.write(_evaluation(s.steps, name, score, judged))
        main_student = students["adaptive"]
        pipeline = main_student.pipeline
        assert pipeline is not None
        write_ribbons(folder / RIBBONS, _ribbons(main_student, teachers, experts, held_out))
        write_certificate(folder, pipeline)
        _save(main_student, experts, folder / STUDENT)
        seconds = {"training the teachers": experts.seconds, **seconds}
        seconds["total"] = perf_counter() - clock
        result = Result(scores, judged, seconds, pipeline.promises(), folder / "report.html")
        summary = _summary(result, pipeline, s, t, seed, started)
        write_summary(folder / SUMMARY, summary)
        sources = {name: f"trained by the demo on {name}, {experts.folder.name}" for name in DOMAINS}
        write_card(folder / STUDENT, summary, result.promises, sources, f"{s.size.hidden} wide Llama")
        write_report(folder)
    return result


def _described(pipelines: Mapping[str, Pipeline | None]) -> dict[str, str]:
    return {
        name: "cross-entropy on labels" if p is None else f"{p.stack!r}, floor {p.floor:g}"
        for name, p in pipelines.items()
    }


def _record(writer: RecordWriter, done: int, students: Mapping[str, Student], tokens: int) -> None:
    for student in students.values():
        writer.write(
            StepRecord(
                step=done,
                student=student.name,
                tokens=done * tokens,
                loss=student.loss,
                divergence=None if student.pipeline is None else student.divergence,
                cross_entropy=student.cross_entropy,
                weights=student.weights if student.name == "adaptive" else {},
            )
        )


def _by_kind(score: Scores) -> dict[str, float]:
    return {**score.domains, "mixed texts": score.mixed}


def _evaluation(step: int, name: str, score: Scores, teachers: Mapping[str, Scores]) -> EvaluationRecord:
    losses = {teacher: _by_kind(judged) for teacher, judged in teachers.items()}
    return EvaluationRecord(step=step, student=name, losses=_by_kind(score), teacher_losses=losses)


@torch.no_grad()
def _ribbons(
    student: Student, teachers: Sequence[LocalTeacher], experts: Specialists, held_out: Passages, number: int = 6
) -> list[Ribbon]:
    """Held-out texts, those that change domain first, with the weights that the adaptive stack gave."""
    assert student.pipeline is not None
    order = torch.cat([held_out.mixed.nonzero().squeeze(1)[: number - 2], (~held_out.mixed).nonzero().squeeze(1)[:2]])
    shown = held_out.take(order)
    batch = batch_of(shown)
    rows, positions = batch.positions(reads_prefix=True)
    spoken = listen_to(teachers, batch, rows)
    student.model.eval()
    hidden = last_hidden_state(student.model, input_ids=shown.ids).flatten(0, 1)[rows]
    out = distil(
        hidden,
        head_of(student.model),
        spoken,
        positions,
        student.pipeline.decide,
        ForwardKL(),
        needs=student.pipeline.stack.needs,
    )
    length = shown.ids.shape[1] - 1
    weights, losses = out.log_w.exp().reshape(len(shown), length, -1), out.cross_entropy.reshape(len(shown), length)
    ribbons = []
    for b, (ids, domain) in enumerate(zip(shown.ids.tolist(), shown.domain.tolist(), strict=True)):
        parts = list(dict.fromkeys(DOMAINS[d] for d in domain))
        ribbons.append(
            Ribbon(
                name=f"held-out text {b + 1}: {', then '.join(parts)}",
                teachers=list(DOMAINS),
                tokens=pieces(experts.tokenizer, ids),
                weights=[None, *[[round(w, 4) for w in row] for row in weights[b].tolist()]],
                loss=[None, *[round(x, 3) for x in losses[b].tolist()]],
                expected=[None, *[DOMAINS[d] for d in domain[1:]]],
                student=student.name,
            )
        )
    return ribbons


def _save(student: Student, experts: Specialists, folder: Path) -> None:
    student.model.generation_config = generation_config(experts.tokenizer)
    student.model.save_pretrained(folder)
    experts.tokenizer.save_pretrained(folder)


def _summary(
    result: Result, pipeline: Pipeline, s: StudentSettings, t: TeacherSettings, seed: int, started: datetime
) -> RunSummary:
    columns = [*DOMAINS, "mixed texts"]
    scores = [
        Score(name=name, role="student", label=LABELS.get(name, name), losses=_by_kind(score), mean=score.mean)
        for name, score in result.students.items()
    ]
    scores += [
        Score(name=name, role="teacher", losses=_by_kind(score), mean=score.mean)
        for name, score in result.teachers.items()
    ]
    return RunSummary(
        title="polydistill demo",
        command=f"polydistill demo --seed {seed}",
        package_version=__version__,
        hardware=hardware(),
        started=started.isoformat(timespec="seconds"),
        steps=s.steps,
        tokens=s.steps * s.batch * (t.length - 1),
        teachers=list(DOMAINS),
        domains=columns,
        weighting=f"{pipeline.stack!r}, floor {pipeline.floor:g}",
        objective=repr(ForwardKL(ce=s.ce)),
        main_student="adaptive",
        scores=scores,
        gap_closed=result.gap_closed,
        says=result.promises,
        seconds={name: value for name, value in result.seconds.items() if name != "total"},
        wall_seconds=result.seconds["total"],
    )
