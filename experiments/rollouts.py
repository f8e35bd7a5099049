"""E10: the student's own text, written and labelled once, against text written as it learns and against the data's.

The exercises of `polydistill demo --on-policy`. Every contestant starts from the same student and learns from about as
many tokens of the same prompts. `own answers, once` goes through `cache build --answers`: the student that has learned
nothing yet answers all prompts, the teachers are heard once, and no teacher runs while it learns.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.measured import Measured, Rows
from rich.console import Console
from transformers import LlamaForCausalLM, PrinterCallback

from polydistill.config.run import RunConfig
from polydistill.demo.on_policy import LENGTH, Settings, mean, run_demo
from polydistill.demo.on_policy_tasks import TASKS, Exercise, byte_tokenizer
from polydistill.demo.teachers import ModelSize
from polydistill.run.answers import write_answers
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache

TINY = ModelSize(hidden=16, layers=1, heads=2, intermediate=32)
LOOK = Settings(
    teacher=TINY,
    student=TINY,
    teacher_exercises=256,
    teacher_steps=20,
    solved=64,
    warm_steps=10,
    steps=4,
    batch=8,
    prompts=64,
    judged=20,
)
NAMES = {
    "before": "student before",
    "off_policy": "the data's right answers",
    "on_policy": "own answers, as it learns",
    "once": "own answers, once",
}


def answered(
    folder: Path,
    settings: Settings,
    seed: int,
    student: LlamaForCausalLM,
    rows: Sequence[Exercise],
    teachers: Path,
    tokens: int,
) -> Any:
    """A trainer on the answers that the student writes now, labelled by the teachers in a cache."""
    tokenizer, cache = byte_tokenizer(), str(folder / "cache")
    student.save_pretrained(folder / "student")
    tokenizer.save_pretrained(folder / "student")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": row.prompt}) + "\n" for row in rows))

    def config(data: Path, steps: int = 1, cached: bool = False) -> RunConfig:
        training = {"max_steps": steps, "batch_size": settings.batch, "learning_rate": settings.rate, "seed": seed}
        training |= {"schedule": "cosine", "completion_length": 10, "cpu": True, "log_steps": 20}
        return RunConfig.model_validate(
            {
                "output": str(folder / "run"),
                "student": str(folder / "student"),
                "teachers": {task: {"cache": cache} if cached else str(teachers / task) for task in TASKS},
                "data": {"train": str(data), "max_length": LENGTH},
                "weighting": [
                    {"kind": "prefix_posterior", "share": 0.02},
                    {"kind": "softmax", "signal": "entropy", "temperature": 2.0, "spread": 4.0},
                ],
                "floor": 0.0,
                "objective": {"kind": "reverse_kl"},
                "training": training,
            }
        )

    answers = folder / "answers.jsonl"
    write_answers(config(prompts), answers)
    build_cache(config(answers), cache)
    rows = map(json.loads, answers.read_text().splitlines())
    ids = [tokenizer(row["prompt"] + row["completion"])["input_ids"] for row in rows]
    steps = math.ceil(tokens / (settings.batch * (1 + sum(map(len, ids)) / len(ids))))
    trainer = build_trainer(config(answers, steps, cached=True))
    return _of(trainer, student)


def _of(trainer: Any, student: LlamaForCausalLM) -> Any:
    """The demo judges its own student, so what is learned goes back into it."""
    train = trainer.train

    def learn() -> None:
        train()
        student.load_state_dict(trainer.model.state_dict())

    trainer.train = learn
    trainer.remove_callback(PrinterCallback)
    return trainer


def exercises(steps: int, seed: int, quick: bool) -> Rows:
    """Exact match on held-out exercises, %, and wall-clock seconds, by contestant."""
    settings = LOOK if quick else replace(Settings(), steps=steps, prompts=16 * steps)
    with TemporaryDirectory() as place:
        once = partial(answered, Path(place), settings, seed)
        found = run_demo(Path(place), seed, Console(quiet=True), settings, {"once": once})
    return rows_of(found, NAMES)


def rows_of(found: dict[str, Any], names: Mapping[str, str]) -> Rows:
    """By contestant."""
    return {
        said: {f"exact match, {task}": 100 * found[name][task] for task in TASKS}
        | {"exact match": 100 * mean(found[name])}
        | ({"better than before": 100 * (mean(found[name]) - mean(found["before"]))} if name != "before" else {})
        | ({"tokens": found["tokens"][name], "seconds": found["seconds"][name]} if name in found["tokens"] else {})
        for name, said in names.items()
        if name in found
    }


E10 = Measured(
    "The student's own text, once or as it learns",
    {"400 steps": partial(exercises, 400), "1,000 steps": partial(exercises, 1000)},
    "Exact match on held-out exercises in percent; tokens that the student learned from; seconds with everything, the "
    "cache as well. Of 1,000 steps there are records without `own answers, once`, which was not there then.",
)
