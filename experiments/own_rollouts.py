"""E14: on-policy with teachers that have tokenizers of their own, against the same teachers with the student's.

The exercises and the student of `polydistill demo --on-policy`, whose tokens are bytes. Its teachers are trained once
more with tokenizers of their own: byte-level BPE for code, SentencePiece BPE for arithmetic. All contestants start from
the same student and write on the same prompts; the objective is forward KL, as translation asks for.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.measured import Measured, Rows
from experiments.rollouts import LOOK, rows_of
from rich.console import Console
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polydistill.demo.on_policy import LENGTH, Settings, judge, learn, on_policy_trainer, run_demo
from polydistill.demo.on_policy_tasks import TASKS, Exercise, byte_tokenizer, exercises
from polydistill.demo.teachers import small_llama
from polydistill.demo.tokenizers import byte_level, sentencepiece_bpe
from polydistill.objective import ForwardKL
from polydistill.teachers import ForeignTeacher, LocalTeacher

SIZE = 320
"""Entries of a teacher's own tokenizer: bytes, and what comes most often in its exercises."""

NAMES = {
    "before": "student before",
    "off_policy": "the data's right answers",
    "on_policy": "own answers, reverse_kl",
    "shared": "own answers, forward_kl",
    "own": "own answers, forward_kl, teachers with tokenizers of their own",
}


def own_teachers(settings: Settings) -> dict[str, tuple[LlamaForCausalLM, PreTrainedTokenizerFast]]:
    """One per task, trained as the demo's in tokens of its own."""
    found, s = {}, settings
    solved = {task: exercises([task], s.teacher_exercises, index) for index, task in enumerate(TASKS)}
    texts = {task: [row.prompt + row.answer for row in rows] for task, rows in solved.items()}
    for index, (task, rows) in enumerate(solved.items()):
        train = {"arithmetic": sentencepiece_bpe, "code": byte_level}[task]
        tokenizer = train([*chain.from_iterable(texts.values()), *texts[task]], SIZE)
        tokenizer.pad_token = tokenizer.bos_token  # what is padding is not learned, and the end of an answer is
        model = small_llama(s.teacher, tokenizer, LENGTH, index)
        learn(model, tokenizer, rows, s.teacher_steps, s.teacher_batch, s.teacher_rate, index)
        found[task] = model, tokenizer
    return found


def taught(steps: int, seed: int, quick: bool) -> Rows:
    """Exact match on held-out exercises, %, and seconds, by contestant; bounds of the translated teachers."""
    settings = LOOK if quick else replace(Settings(), steps=steps, prompts=16 * steps)
    own = own_teachers(settings)
    translated = {task: ForeignTeacher(task, *pair) for task, pair in own.items()}

    def shared(student: LlamaForCausalLM, rows: Sequence[Exercise], kept: Path, tokens: int) -> Any:
        models = {task: LlamaForCausalLM.from_pretrained(kept / task) for task in TASKS}
        teachers = {task: LocalTeacher(task, model, byte_tokenizer()) for task, model in models.items()}
        return on_policy_trainer(Path(place), student, teachers, rows, settings, seed, ForwardKL())

    def owned(student: LlamaForCausalLM, rows: Sequence[Exercise], kept: Path, tokens: int) -> Any:
        return on_policy_trainer(Path(place), student, translated, rows, settings, seed, ForwardKL())

    with TemporaryDirectory() as place:
        made = {"shared": shared, "own": owned}
        found = run_demo(Path(place), seed, Console(quiet=True), settings, made)
    rows = dict(rows_of(found, NAMES))
    judged = exercises(TASKS, settings.judged, 1, judged=True)
    for task, teacher in translated.items():
        bound, alone = teacher.errors()["all"], judge(*own[task], judged)
        rows[f"the teacher of {task}, in its own tokens"] = {
            f"exact match, {task}": 100 * alone[task],
            "bound, median": float(bound.median()),
            "bound, 99%": float(bound.quantile(0.99)),
            "says nothing, %": 100 * teacher.silent / (teacher.silent + len(bound)),
        }
    for task in TASKS:
        rows[f"the teacher of {task}, in bytes"] = {f"exact match, {task}": 100 * found["teachers"][task][task]}
    return rows


E14 = Measured(
    "On-policy, when the teachers' tokenizers are not the student's",
    {"400 steps": partial(taught, 400)},
    "Exact match on held-out exercises in percent, of students from the same start and on the same prompts; seconds of "
    "each. Teachers are judged alone in tokens of their own, with a prompt and its answer read apart. Bounds: of "
    "what is taught at positions of prompt and answer, in total variation.",
)
