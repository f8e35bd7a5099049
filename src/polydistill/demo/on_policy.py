"""On-policy, small: the student writes answers, an arithmetic and a code teacher correct it, exact match judges.

A student that has seen some solved exercises of both tasks is trained twice from the same start, on the same prompts
and about as many tokens: once on its own answers (reverse KL to the log pool), once on the right answers of the data
(forward KL to the linear pool, with a share of cross-entropy). Nobody tells it which task a prompt belongs to.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import tokenizers
import torch
import transformers
import xxhash
from rich.console import Console
from rich.table import Table
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback
from transformers.trainer_callback import ProgressCallback as TqdmCallback
from trl import DistillationConfig, SFTConfig

from polydistill.demo.on_policy_tasks import TASKS, Exercise, as_dataset, as_ids, byte_tokenizer, exercises
from polydistill.demo.teachers import (
    ModelSize,
    adamw,
    cache_folder,
    cosine,
    finished_folder,
    small_llama,
    token_losses,
    update,
)
from polydistill.objective import Divergence, ForwardKL, ReverseKL
from polydistill.run.progress import ProgressCallback, Steps
from polydistill.teachers import LocalTeacher, Teacher
from polydistill.training.checkpoint import verify
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.weighting import Operator, PrefixPosterior, Softmax
from polydistill.weighting.signals import Entropy

LENGTH = 40
"""Tokens of the longest exercise, rounded up."""

SMALL = ModelSize(hidden=64, layers=2, heads=4, intermediate=192)


@dataclass(frozen=True)
class Settings:
    """Everything that the result follows from, beside the seed.

    Attributes:
        teacher, student: sizes.
        teacher_exercises, teacher_steps, teacher_batch, teacher_rate: of supervised training on one task.
        solved: exercises of both tasks that the student has seen solved before it is distilled.
        warm_steps: steps on them.
        steps, batch: of on-policy distillation.
        prompts: different prompts for it.
        judged: held-out exercises.
    """

    teacher: ModelSize = SMALL
    student: ModelSize = SMALL
    teacher_exercises: int = 20_000
    teacher_steps: int = 1600
    teacher_batch: int = 64
    teacher_rate: float = 6e-3
    solved: int = 4000
    warm_steps: int = 1000
    steps: int = 1000
    batch: int = 64
    rate: float = 1e-3
    prompts: int = 16_000
    judged: int = 400


def weighting() -> Operator:
    """Context times token: who predicted the text so far, and who is sure."""
    return PrefixPosterior(share=0.02) * Softmax(2.0)(Entropy(spread=4.0))


def main(folder: Path, seed: int, json_path: Path | None, console: Console) -> None:
    """Run the demo, print a table, and write what was measured.

    Args:
        folder: of the two runs.
        seed: of the student, its exercises and its sampling.
        json_path: also write the result there.
        console: where to print.
    """
    found = run_demo(folder, seed, console)
    table = Table("exact match, held-out", *TASKS, "mean")
    rows = {f"teacher {task}": found["teachers"][task] for task in TASKS}
    rows |= {
        "student before": found["before"],
        "off-policy (told the right answers)": found["off_policy"],
        "on-policy (told prompts only)": found["on_policy"],
    }
    for name, scores in rows.items():
        style = "bold" if name.startswith("on-policy") else None
        table.add_row(name, *(f"{scores[task]:.1%}" for task in TASKS), f"{mean(scores):.1%}", style=style)
    console.print(table)
    console.print(
        f"student tokens: {found['tokens']['on_policy']:,} on-policy, {found['tokens']['off_policy']:,} off-policy; "
        f"{found['seconds']['total']:.0f} s, of which teachers {found['seconds']['teachers']:.0f} s",
        highlight=False,
    )
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def mean(scores: dict[str, float]) -> float:
    """Of the tasks."""
    return sum(scores.values()) / len(scores)


def run_demo(
    folder: Path,
    seed: int,
    console: Console,
    settings: Settings | None = None,
    further: Mapping[str, Callable[[LlamaForCausalLM, Sequence[Exercise], Path, int], Any]] | None = None,
) -> dict[str, Any]:
    """Scores by contestant (`before`, `on_policy`, `off_policy`, `teachers`), tokens and seconds.

    Args:
        folder: of the runs.
        seed: of the student, its exercises and its sampling.
        console: for progress.
        settings: the demo's when None.
        further: contestant -> student, exercises, folder of the teachers, tokens on-policy -> its trainer.
    """
    further = further or {}
    s, clock = Settings() if settings is None else settings, perf_counter()
    tokenizer = byte_tokenizer()
    kept = train_teachers(s, tokenizer, console)
    seconds = {"teachers": perf_counter() - clock}
    judged = exercises(TASKS, s.judged, 1, judged=True)
    models = {task: LlamaForCausalLM.from_pretrained(kept / task) for task in TASKS}
    found: dict[str, Any] = {"seed": seed, "settings": asdict(s)}
    found["teachers"] = {task: judge(model, tokenizer, judged) for task, model in models.items()}
    student = small_llama(s.student, tokenizer, LENGTH, 100 + seed)
    learn(student, tokenizer, exercises(TASKS, s.solved, 1000 + seed), s.warm_steps, s.batch, s.teacher_rate, seed)
    start = {name: value.clone() for name, value in student.state_dict().items()}
    found["before"] = judge(student, tokenizer, judged)
    rows = exercises(TASKS, s.prompts, 2000 + seed)
    tokens: dict[str, int] = {}
    for name in ("on_policy", "off_policy", *further):
        clock, asked = perf_counter(), tokens.get("on_policy", 0)
        student.load_state_dict(start)
        if name in further:
            trainer = further[name](student, rows, kept, asked)
        else:
            trainer = _trainer(name, folder / name, student, models, rows, s, seed, asked)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(TqdmCallback)
        console.print(f"{name.replace('_', '-')}: {trainer.args.max_steps} steps", highlight=False)
        trainer.add_callback(ProgressCallback(console))
        trainer.train()
        tokens[name] = trainer._total_train_tokens
        found[name] = judge(student, tokenizer, judged)
        seconds[name] = perf_counter() - clock
    seconds["total"] = sum(seconds.values())
    return {**found, "gain": mean(found["on_policy"]) - mean(found["before"]), "tokens": tokens, "seconds": seconds}


def train_teachers(s: Settings, tokenizer: PreTrainedTokenizerFast, console: Console) -> Path:
    """Folder of one specialist per task; trained once and kept in the cache folder."""
    parts = (
        asdict(s.teacher),
        s.teacher_exercises,
        s.teacher_steps,
        s.teacher_batch,
        s.teacher_rate,
        torch.__version__,
    )
    text = json.dumps([*parts, transformers.__version__, tokenizers.__version__])
    key = xxhash.xxh3_64(text.encode()).hexdigest()
    kept = cache_folder() / f"demo-on-policy-{key}"
    if verify(kept) is None:
        return kept
    with finished_folder(kept) as unfinished:
        for index, task in enumerate(TASKS):
            model = small_llama(s.teacher, tokenizer, LENGTH, index)
            rows = exercises([task], s.teacher_exercises, index)
            with Steps(console, f"teacher {task}", s.teacher_steps) as steps:
                learn(model, tokenizer, rows, s.teacher_steps, s.teacher_batch, s.teacher_rate, index, steps.update)
            model.save_pretrained(unfinished / task)
            tokenizer.save_pretrained(unfinished / task)
    return kept


def learn(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[Exercise],
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Supervised training on prompts and answers: a teacher has to know its prompts to be recognised by them."""
    ids, generator, optimizer = as_ids(rows, tokenizer), torch.Generator().manual_seed(seed), adamw(model)
    model.train()
    for step in range(steps):
        chosen = ids[torch.randint(len(ids), (batch,), generator=generator)]
        real = chosen[:, 1:] != tokenizer.pad_token_id
        losses = token_losses(model, chosen)
        ((losses * real).sum() / real.sum()).backward()
        update(model, optimizer, cosine(step, steps, rate))
        if progress is not None:
            progress(step + 1)
    model.eval()


@torch.no_grad()
def judge(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: Sequence[Exercise], size: int = 100
) -> dict[str, float]:
    """Task -> share of exercises whose greedy answer is exactly the right one."""
    was_training = model.training
    model.eval()
    right = dict.fromkeys(TASKS, 0)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        given = tokenizer([row.prompt for row in part], return_tensors="pt", padding=True, padding_side="left")
        written = model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=10,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(written[:, given["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, answer in zip(part, answers, strict=True):
            right[row.task] += answer == row.answer
    model.train(was_training)
    return {task: right[task] / max(1, sum(row.task == task for row in rows)) for task in TASKS}


def on_policy_trainer(
    folder: Path,
    student: LlamaForCausalLM,
    teachers: Mapping[str, Teacher],
    rows: Sequence[Exercise],
    s: Settings,
    seed: int,
    objective: Divergence,
) -> OnPolicyPolyDistillTrainer:
    """A trainer on the student's own answers."""
    return OnPolicyPolyDistillTrainer(
        student,
        dict(teachers),
        weighting(),
        args=DistillationConfig(**_loop(folder, s, seed), max_steps=s.steps, max_completion_length=10),
        objective=objective,
        train_dataset=as_dataset(rows),
        processing_class=byte_tokenizer(),
        floor=0.0,
    )


def _loop(folder: Path, s: Settings, seed: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": s.batch,
        "learning_rate": s.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "logging_steps": 20,
        "save_strategy": "no",
        "report_to": [],
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "seed": seed,
        "disable_tqdm": True,
    }


def _trainer(
    name: str,
    folder: Path,
    student: LlamaForCausalLM,
    models: dict[str, LlamaForCausalLM],
    rows: Sequence[Exercise],
    s: Settings,
    seed: int,
    tokens: int,
) -> Any:
    tokenizer = byte_tokenizer()
    teachers = {task: LocalTeacher(task, model, tokenizer) for task, model in models.items()}
    if name == "on_policy":
        return on_policy_trainer(folder, student, teachers, rows, s, seed, ReverseKL())
    common: dict[str, Any] = {"train_dataset": as_dataset(rows), "processing_class": tokenizer, "floor": 0.0}
    ids = as_ids(rows[:1000], tokenizer)
    per_step = s.batch * float((ids != tokenizer.pad_token_id).sum()) / len(ids)
    arguments = SFTConfig(**_loop(folder, s, seed), max_steps=math.ceil(tokens / per_step), max_length=LENGTH)
    return PolyDistillTrainer(student, teachers, weighting(), args=arguments, objective=ForwardKL(ce=0.1), **common)


__all__ = ["Settings", "main", "run_demo"]
