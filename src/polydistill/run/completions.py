"""What the student writes: the same prompts every so many steps and at the end, and what its teachers make of it."""

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from polydistill.cache import CachedForeignTeacher, CachedTeacher
from polydistill.config.run import CompletionsConfig
from polydistill.data.pieces import pieces
from polydistill.logprobs import UNKNOWN
from polydistill.objective import ForwardKL, distil
from polydistill.records import COMPLETIONS, CompletionRecord, RecordWriter
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.teachers.served import ServedTeacher
from polydistill.teachers.writing import Sampling, write_many
from polydistill.training.batch import IGNORED, Batch
from polydistill.training.hearing import deciding, listen_to
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.training.placement import ShardedTeacher
from polydistill.training.taught import Taught, parts
from polydistill.training.watch import unwrapped, whole_elsewhere

logger = logging.get_logger(__name__)

TRACKERS = ("wandb", "trackio")
"""Where completions go as a table under the key that trl uses."""


@dataclass(frozen=True)
class Prompt:
    """Where the student begins to write.

    Attributes:
        ids: at least one.
        task: index, or `UNKNOWN`.
        teacher: likewise.
        severity: of the row.
    """

    ids: list[int]
    task: int = UNKNOWN
    teacher: int = UNKNOWN
    severity: float = 0.0


class Completions(TrainerCallback):
    """A trainer's callback; only the main process writes, and a student that is sharded over ranks only at the end."""

    def __init__(self, folder: Path, section: CompletionsConfig, trainer: Taught) -> None:
        self.path, self.section, self.trainer = folder / COMPLETIONS, section, trainer
        self.done = -1
        if section.every is not None and whole_elsewhere(trainer):
            logger.warning("training.completions.every: the student is sharded, so that it writes at the end only")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A run that starts anew has written nothing."""
        if state.is_world_process_zero and state.global_step == 0:
            self.path.unlink(missing_ok=True)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Every so many steps, and after the last one, while trackers still listen."""
        step, every = state.global_step, self.section.every
        if (step >= state.max_steps or (every and step % every == 0)) and not whole_elsewhere(self.trainer):
            self.write(self.trainer.accelerator.unwrap_model(self.trainer.model), step)

    def write(self, student: Any, step: int) -> None:
        """Let a whole student write, unless it has after this step; one that learns virtual tokens does not."""
        trainer = self.trainer
        virtual = isinstance(student, PeftModel) and student.active_peft_config.is_prompt_learning
        if not trainer.is_world_process_zero() or not self.section.prompts or step == self.done or virtual:
            return
        self.done = step
        records = completions(trainer, student, self.section, step)
        with RecordWriter(self.path) as writer:
            for record in records:
                writer.write(record)
        to_trackers(records, [str(name) for name in trainer.args.report_to or ()])


@torch.no_grad()
def completions(trainer: Taught, student: Any, section: CompletionsConfig, step: int) -> list[CompletionRecord]:
    """The likeliest completions of a few prompts, those on which the teachers disagree most first.

    Args:
        trainer: with teachers and data.
        student: whole; with adapters or without.
        section: how many prompts, and how long.
        step: updates done, for the record.
    """
    base = unwrapped(student)
    models = [base, *(t.model for t in trainer.teachers if isinstance(t, LocalTeacher))]
    limits = [getattr(model.config.get_text_config(), "max_position_embeddings", None) for model in models]
    limit = min((limit for limit in limits if limit), default=1 << 20)
    length = max(1, min(section.tokens, limit // 2))
    prompts = [Prompt(p.ids[length - limit :], p.task, p.teacher, p.severity) for p in prompts_of(trainer, section)]
    if not prompts:
        return []
    was_training = student.training
    student.eval()
    try:
        answers = written(trainer, base, prompts, length)
        judged = _judged(trainer, base, prompts, answers, step)
    finally:
        student.train(was_training)
    return sorted(judged, key=lambda record: -(record.disagreement or 0.0))


def prompts_of(trainer: Taught, section: CompletionsConfig) -> list[Prompt]:
    """Evenly spaced rows of the held-out data, or of the training data without any; the same prompt once.

    A text without a prompt gives its first quarter.
    """
    data: Any = (parts(trainer.eval_dataset) or parts(trainer.train_dataset))[0]
    if hasattr(data, "__len__"):
        number = min(section.prompts, len(data))
        rows = [data[i * len(data) // number] for i in range(number)]
    else:
        rows = list(islice(data, section.prompts))
    return list({tuple(prompt.ids): prompt for prompt in (_prompt(trainer, row) for row in rows)}.values())


def _prompt(trainer: Taught, row: dict[str, Any]) -> Prompt:
    if isinstance(trainer, OnPolicyPolyDistillTrainer):
        known = trainer.context([row])
        ids = list(trainer.text.prompt(row))
        return Prompt(ids, int(known["task"][0]), int(known["teacher_id"][0]), float(known["severity"][0]))
    assert isinstance(trainer, PolyDistillTrainer)
    collate: Any = trainer.data_collator
    batch = trainer.batch_of(collate([row])).apart()
    ids = batch.input_ids[0].tolist()
    first = int((batch.labels[0] != IGNORED).nonzero()[0])
    cut = first if first > 1 else max(1, len(ids) // 4)

    def of(name: str, absent: float) -> Any:
        value = getattr(batch, name)
        return absent if value is None else value[0, cut - 1].item()

    return Prompt(ids[:cut], of("task", UNKNOWN), of("teacher", UNKNOWN), of("severity", 0.0))


def written(trainer: Taught, student: Any, prompts: Sequence[Prompt], length: int) -> list[list[int]]:
    """The likeliest token each time, to the end token or `length`."""
    return write_many(student, trainer.processing_class, [p.ids for p in prompts], Sampling(length))


def _judged(
    trainer: Taught, student: Any, prompts: Sequence[Prompt], answers: Sequence[list[int]], step: int
) -> list[CompletionRecord]:
    """What student and teachers make of what was written.

    The student alone where teachers are stored, which know only the data's text; served, which cost somebody
    something; or sharded, which answer to all ranks together.
    """
    tokenizer: Any = trainer.processing_class
    batch = _batch(prompts, answers, tokenizer.pad_token_id or 0, trainer.args.device)
    rows, positions = batch.positions(reads_prefix=True)
    hidden = last_hidden_state(student, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    flat, head = hidden.flatten(0, 1)[rows], head_of(student, trainer.visible)
    chosen = positions.has_loss
    where = torch.div(rows, batch.input_ids.shape[1], rounding_mode="floor")[chosen]
    own = head.logits(flat[chosen]).log_softmax(-1).gather(1, positions.target[chosen][:, None]).squeeze(1)
    asked = None
    elsewhere = (CachedTeacher, CachedForeignTeacher, ServedTeacher, ShardedTeacher)
    if not any(isinstance(teacher, elsewhere) for teacher in trainer.teachers):
        outputs, pipeline = listen_to(trainer.teachers, batch, rows), trainer.pipeline
        decide, needs = deciding(pipeline, outputs, rows)
        needs |= {"distance_to_pool"}
        asked = distil(flat, head, outputs, positions, decide, ForwardKL(), needs=needs)
    records = []
    for b, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mine = where == b
        more: dict[str, Any] = {}
        if asked is not None:
            statistics = asked.statistics
            apart = statistics.distance_to_pool
            more = {
                "teachers": list(trainer.pipeline.teachers),
                "weights": _rounded(asked.weights[chosen][mine]),
                "log_prob": _rounded(statistics.label_log_prob[chosen][mine]),
                "disagreement": None if apart is None else float(apart[chosen][mine].mean()),
            }
        records.append(
            CompletionRecord(
                step=step,
                prompt=tokenizer.decode(prompt.ids),
                task=trainer.pipeline.tasks[prompt.task] if 0 <= prompt.task < len(trainer.pipeline.tasks) else None,
                tokens=pieces(tokenizer, answer),
                student_log_prob=_rounded(own[mine]),
                **more,
            )
        )
    return records


def _batch(prompts: Sequence[Prompt], answers: Sequence[list[int]], pad: int, device: torch.device) -> Batch:
    """Prompts with what was written, to be judged there."""

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], True, value).to(device)

    whole = [[*prompt.ids, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    labels = [[IGNORED] * len(p.ids) + a for p, a in zip(prompts, answers, strict=True)]
    ids = padded(whole, pad)
    learned = padded(labels, IGNORED)

    def per_row(values: list[Any]) -> Tensor:
        return torch.tensor(values, device=device)[:, None].expand(ids.shape)

    return Batch(
        input_ids=ids,
        attention_mask=padded([[1] * len(row) for row in whole], 0),
        labels=learned,
        task=per_row([prompt.task for prompt in prompts]),
        teacher=per_row([prompt.teacher for prompt in prompts]),
        severity=per_row([prompt.severity for prompt in prompts]),
        sampled=(learned != IGNORED).long(),
    )


def _rounded(values: Tensor) -> Any:
    """Four decimals, as numbers of Python; a teacher of no weight at all has 0."""
    return torch.round(values.double(), decimals=4).tolist()


def to_trackers(records: Sequence[CompletionRecord], report_to: Sequence[str]) -> None:
    """A table under the key `completions`, as trl's trainers log theirs."""
    if not records:
        return
    table = pandas.DataFrame([_row(record) for record in records])
    for name in TRACKERS:
        if name not in report_to:
            continue
        tracker = importlib.import_module(name)
        if name != "wandb" or tracker.run is not None:
            tracker.log({"completions": tracker.Table(dataframe=table)})


def _row(record: CompletionRecord) -> dict[str, Any]:
    row: dict[str, Any] = {
        "step": record.step,
        "prompt": record.prompt,
        "completion": "".join(record.tokens),
        "disagreement": record.disagreement,
        "log_prob/student": _mean(record.student_log_prob),
    }
    for k, name in enumerate(record.teachers):
        row[f"log_prob/{name}"] = _mean([values[k] for values in record.log_prob])
        row[f"teacher_weight/{name}"] = _mean([values[k] for values in record.weights])
    return row


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
