"""A student's own answers to the prompts of its data, written once, as data to be labelled and learned from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from trl.data_utils import is_conversational

from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig
from polydistill.data.prompts import with_prompts
from polydistill.records.files import write_whole
from polydistill.run.build import training_data
from polydistill.run.student import build_student
from polydistill.teachers.writing import Sampling, write_many
from polydistill.training.text import Text

TOGETHER = 32
"""Prompts that are answered at once."""
BY = "answered_by"
"""Column that says how an answer came about, so that the answers of another student are not taken for it."""


def write_answers(config: RunConfig, path: Path, progress: Callable[[int, int], None] = lambda *_: None) -> str:
    """The student answers every training prompt as `training.completion_length` and `sampling_temperature` say.

    Args:
        config: of the run.
        path: JSON lines: the data's rows, whose `completion` is the answer; rows with an empty one are left out.
        progress: told how many prompts of how many are answered.

    Returns:
        What was done, in words; a file of just these answers is left as it is.

    Raises:
        ConfigError: the data is a stream, the file holds other answers, or all are empty.
    """
    if config.data.streamed:
        raise ConfigError("data.streaming: every prompt is answered once, and a stream may have no end")
    t, rows = config.training, list(with_prompts(training_data(config), "training data"))
    how = f"{t.completion_length} tokens, temperature {t.sampling_temperature:g}, seed {t.seed}"
    by = f"{config.student.model}, {len(rows)} prompts, {how}"
    if path.exists():
        _refuse_others(path, rows, by)
        return f"{path}: answered before, and left as it is"
    model, tokenizer = build_student(config.student)
    model.eval().to("cuda" if torch.cuda.is_available() and not t.cpu else "cpu")
    text, sampling = Text(tokenizer, tokenizer, None, None, {}), Sampling(t.completion_length, t.sampling_temperature)
    lines: list[str] = []
    torch.manual_seed(t.seed)
    for first in range(0, len(rows), TOGETHER):
        some = rows[first : first + TOGETHER]
        ids = write_many(model, tokenizer, [text.prompt(row) for row in some], sampling)
        both = zip(some, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True)
        lines += [json.dumps({**row, "completion": _turn(row, answer), BY: by}) for row, answer in both if answer]
        progress(first + len(some), len(rows))
    if not lines:
        raise ConfigError(f"the student's answers to all {len(rows)} prompts are empty; teach it to write first")
    write_whole(path, "\n".join([*lines, ""]))
    left = len(rows) - len(lines)
    return f"{path}: {len(lines):,} answers" + (f"; {left:,} more were empty and are left out" if left else "")


def _turn(row: dict[str, Any], answer: str) -> Any:
    return [{"role": "assistant", "content": answer}] if is_conversational(row) else answer


def _refuse_others(path: Path, rows: list[dict[str, Any]], by: str) -> None:
    """Answers to other prompts, or by another student, are not these."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        prompts = iter([row["prompt"] for row in rows])
        same = all(row["prompt"] in prompts and row[BY] == by for row in found)  # in their order, some left out
    except (ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise ConfigError(
            f"{path} is there already and holds something else than the answers of {by} to these prompts; "
            "move it away, or name another file"
        )
