"""The demo from beginning to end: teachers, a run that `polydistill train` could do, controls beside it, judgement."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaForCausalLM

from polydistill.config.file import load_config
from polydistill.demo import cross as four
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.passages import Passages, draw
from polydistill.demo.screen import LABELS, last_screen
from polydistill.demo.students import STACK, Controls, Scores, StudentSettings, controls, judge
from polydistill.demo.teachers import Remembered, Specialists, TeacherSettings, small_llama, specialists
from polydistill.objective import ForwardKL
from polydistill.pipeline import Pipeline
from polydistill.promises import Terms, promises, says
from polydistill.records import (
    CONFIG,
    METRICS,
    RIBBONS,
    SUMMARY,
    EvaluationRecord,
    RecordWriter,
    RunSummary,
    Score,
    StepRecord,
    read_lines,
    read_ribbons,
    write_ribbons,
    write_summary,
)
from polydistill.records.seal import seal
from polydistill.report import write_report
from polydistill.run.identity import STUDENT
from polydistill.run.train import locked, train_run
from polydistill.target import Pool

COMMAND = "polydistill demo"

RUN = "run.yaml"
"""The configuration that a demo leaves in its folder."""

YAML = """\
# The adaptive student of `{command}`: three specialists teach it, and nobody tells it what a text is about.
#   polydistill check {path}
#   polydistill train {path} output=runs/again    # the same student, bit by bit

output: "{folder}"
student: "{folder}/models/start"
teachers:
{teachers}

data:                                  # texts as tokens; some change domain in the middle
  train: "{folder}/data/train.jsonl"
  evaluation: "{folder}/data/held-out.jsonl"
  max_length: {length}

weighting:                             # factors, multiplied
  - {{kind: hedge, signal: label_likelihood, rate: 0.2, share: 0.2, power: 0.25}}  # task: who was right so far
  - {{kind: prefix_posterior, share: 0.02}}  # context: who predicted the text so far
  - {{kind: softmax, signal: entropy, temperature: 2.0}}  # token: who is sure here
floor: 0.02                            # share of plain averaging that is mixed in

objective: {{kind: forward_kl, ce: {ce}}}
training:
  max_steps: {steps}
  batch_size: {batch}
  learning_rate: {rate}
  schedule: cosine_with_min_lr
  warmup_steps: {warm}
  weight_decay: 0.1
  seed: {seed}
  cpu: true
  save_steps: {steps}
  extra: {{adam_beta2: 0.95, lr_scheduler_kwargs: {{min_lr_rate: 0.05}}, dataloader_drop_last: true}}
"""


@dataclass(frozen=True)
class Result:
    """What the demo measured.

    Attributes:
        students: scores by name; `adaptive` is the run's own.
        teachers: scores by teacher.
        seconds: by part, and `total`.
        promises: of the adaptive stack, in words.
        report: the page.
        bounds: of teachers with tokenizers of their own, by teacher and term: median and 99th percentile.
    """

    students: dict[str, Scores]
    teachers: dict[str, Scores]
    seconds: dict[str, float]
    promises: list[str]
    report: Path
    bounds: dict[str, dict[str, list[float]]] | None = None

    @property
    def gap_closed(self) -> float:
        """Share of the way from uniform weights to being told every position's domain, over all held-out texts."""
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
            **({} if self.bounds is None else {"bounds": self.bounds}),
        }


@dataclass(frozen=True)
class Setup:
    """Teachers and texts, and the student as it starts.

    Attributes:
        experts: the teachers.
        start: the weights that every student starts from.
        training: to learn from.
        held_out: to judge on; four mixed texts, then the whole ones, then the other mixed ones.
        cross: every teacher has a tokenizer of its own.
    """

    experts: Specialists
    start: LlamaForCausalLM
    training: Passages
    held_out: Passages
    cross: bool = False

    def remembered(self) -> list[Remembered]:
        """The teachers, asked once about all that is learned from."""
        ids, models = self.training.ids, self.experts.models
        return [Remembered(name, models[name].eval(), ids, torch.ones_like(ids)) for name in DOMAINS]


def prepare(
    t: TeacherSettings, s: StudentSettings, seed: int, console: Console | None = None, *, cross: bool = False
) -> Setup:
    """Everything that there is before a student learns; the teachers are trained once and kept.

    Args:
        t: of the teachers.
        s: of the students.
        seed: of the students and their passages; the teachers do not depend on it.
        console: for progress.
        cross: every teacher has a tokenizer of its own.
    """
    corpus = read_corpus()
    experts = specialists(t, corpus, console, own=cross)
    training = draw(corpus.documents["student"], experts.tokenizer, t.length, s.whole, s.mixed, seed)
    held_out = draw(corpus.documents["held_out"], experts.tokenizer, t.length, s.held_whole, s.held_mixed, 0)
    mixed, whole = held_out.mixed.nonzero().squeeze(1), (~held_out.mixed).nonzero().squeeze(1)
    order = torch.cat([mixed[:4], whole, mixed[4:]])
    start = small_llama(s.size, experts.tokenizer, t.length, 1000 + seed)
    return Setup(experts, start, training, held_out.take(order), cross)


def main(folder: Path, seed: int, json_file: Path | None, console: Console, *, cross: bool = False) -> None:
    """Run the demo and print its last screen."""
    result = run_demo(folder, seed, console, cross=cross)
    last_screen(console, result.students, result.teachers, result.gap_closed, result.promises)
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result.seconds.items() if seconds >= 0.5)
    for line in (
        f"where the time went: {parts}",
        f"student: {folder / STUDENT}",
        f"report:  {result.report}",
        f"again:   polydistill train {folder / RUN} output=runs/again   (the adaptive student, from its configuration)",
        "next:    polydistill init run.yaml   (the same with your own models)",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
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
    others: Mapping[str, Pipeline | None] | None = None,
    cross: bool = False,
) -> Result:
    """Everything but the last screen.

    Args:
        folder: of the run; what an earlier demo left there is replaced.
        seed: of the students and their passages; the teachers do not depend on it.
        console: for progress.
        teacher_settings, student_settings: sizes and steps.
        others: whom the adaptive student is compared with; `uniform` and `oracle` among them.
        cross: every teacher has a tokenizer of its own.
    """
    t, clock = teacher_settings or (four.teacher_settings() if cross else TeacherSettings()), perf_counter()
    s = student_settings or (four.settings() if cross else StudentSettings())
    console.print("reading the text of this machine's Python", highlight=False)
    setup = prepare(t, s, seed, console, cross=cross)
    looked_at = setup.held_out.take(torch.arange(min(four.LOOKED_AT, len(setup.held_out)))) if cross else setup.held_out
    with locked(folder):
        path = leave_run(folder, setup, looked_at, s, t, seed)
    others = others or (four.beside() if cross else controls())
    asked = four.overheard if cross else setup.remembered()
    beside = Controls(others, setup.start, asked, setup.training, ForwardKL(ce=s.ce))
    summary = train_run(load_config(path), f"polydistill train {path}", console, [beside])
    console.print("judging on held-out text", highlight=False)
    models = {"adaptive": LlamaForCausalLM.from_pretrained(folder / STUDENT)}
    models |= {name: student.model for name, student in beside.students.items()}
    scores = {name: judge(model, setup.held_out) for name, model in models.items()}
    own = [teacher for teacher in beside.teachers if isinstance(teacher, four.Overheard)]
    bounds = four.bounds(own, looked_at) if own else None
    teachers = {teacher.name: four.judge_teacher(teacher.teacher, looked_at) for teacher in own}
    teachers = teachers or {name: judge(setup.experts.models[name], setup.held_out) for name in DOMAINS}
    seconds = {"training the teachers": setup.experts.seconds, "controls": beside.seconds, **summary.seconds}
    seconds["total"] = perf_counter() - clock
    promised = says(promises(STACK, Terms(Pool.LINEAR)))
    result = Result(scores, teachers, seconds, promised, folder / "report.html", bounds)
    with locked(folder):
        _record(folder, beside, result, setup.held_out, s.steps)
        command = f"{COMMAND}{' --cross-tokenizer' * cross} --seed {seed}"
        write_summary(folder / SUMMARY, _summary(summary, result, command))
        seal(folder, STUDENT)
        write_report(folder)
    return result


def leave_run(
    folder: Path, setup: Setup, held_out: Passages, s: StudentSettings, t: TeacherSettings, seed: int
) -> Path:
    """Models, data and configuration of the adaptive student's run; an earlier demo's run is removed.

    Returns:
        The configuration.
    """
    path = folder / RUN
    if path.is_file():  # without it the folder is somebody else's, and `train_run` will say so
        for name in (CONFIG, METRICS, RIBBONS, SUMMARY):
            (folder / name).unlink(missing_ok=True)
        for left in folder.glob("checkpoint-*"):
            shutil.rmtree(left)
    for name in DOMAINS:
        shutil.copytree(setup.experts.folder / name, folder / "models" / name, dirs_exist_ok=True)
    for part in (setup.start, setup.experts.tokenizer):
        part.save_pretrained(folder / "models" / "start")
    (folder / "data").mkdir(exist_ok=True)
    for name, passages in (("train", setup.training), ("held-out", held_out)):
        texts = setup.experts.tokenizer.batch_decode(passages.ids)
        rows = zip(passages.ids.tolist(), texts, passages.names, strict=True)
        lines = [json.dumps({"input_ids": ids, "text": text, "domain": domain}) + "\n" for ids, text, domain in rows]
        (folder / "data" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    settings: dict[str, Any] = {"path": path, "folder": folder.as_posix(), "seed": seed, "length": t.length, "ce": s.ce}
    settings["command"] = COMMAND + " --cross-tokenizer" * setup.cross
    sources = {name: json.dumps(f"{folder.as_posix()}/models/{name}") for name in DOMAINS}
    if setup.cross:
        further = {name: f", expand: {most}" for name, most in four.EXPAND.items()}
        sources = {n: f"{{model: {source}, tokenizer: own{further.get(n, '')}}}" for n, source in sources.items()}
    settings["teachers"] = "\n".join(f"  {name}: {source}" for name, source in sources.items())
    settings |= {"steps": s.steps, "batch": s.batch, "rate": s.learning_rate, "warm": round(0.05 * s.steps)}
    path.write_text(YAML.format(**settings), encoding="utf-8")
    return path


def _record(folder: Path, beside: Controls, result: Result, held_out: Passages, steps: int) -> None:
    """Beside what the run wrote down: its weights by true domain, its controls, and what texts are about."""
    lines = read_lines(folder / METRICS)
    (folder / METRICS).unlink()
    losses = {name: _by_kind(score) for name, score in result.teachers.items()}
    with RecordWriter(folder / METRICS) as writer:
        for line in lines:
            known = beside.weights.get(line.step) if isinstance(line, StepRecord) else None
            writer.write(line if known is None else line.model_copy(update={"weights": known}))
        for record in beside.records:
            writer.write(record)
        for name, score in result.students.items():
            student = STUDENT if name == "adaptive" else name
            writer.write(EvaluationRecord(step=steps, student=student, losses=_by_kind(score), teacher_losses=losses))
    ribbons = [
        ribbon.model_copy(update={"name": f"{ribbon.name}: {name}", "expected": [None, *(DOMAINS[d] for d in row[1:])]})
        for ribbon, name, row in zip(
            read_ribbons(folder / RIBBONS), held_out.names, held_out.domain.tolist(), strict=False
        )
    ]
    write_ribbons(folder / RIBBONS, ribbons)


def _by_kind(score: Scores) -> dict[str, float]:
    return {**score.domains, "mixed texts": score.mixed}


def _summary(summary: RunSummary, result: Result, command: str) -> RunSummary:
    """The run's own, with everybody's scores."""
    scores = [
        Score(
            name=STUDENT if name == "adaptive" else name,
            role="student",
            label=LABELS.get(name, name),
            losses=_by_kind(score),
            mean=score.mean,
        )
        for name, score in result.students.items()
    ]
    scores += [
        Score(name=name, role="teacher", losses=_by_kind(score), mean=score.mean)
        for name, score in result.teachers.items()
    ]
    return summary.model_copy(
        update={
            "title": "polydistill demo",
            "command": command,
            "domains": [*DOMAINS, "mixed texts"],
            "scores": scores,
            "gap_closed": result.gap_closed,
            "seconds": {name: value for name, value in result.seconds.items() if name != "total"},
            "wall_seconds": result.seconds["total"],
        }
    )
