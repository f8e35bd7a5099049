"""Thousands of tiny steps: resident memory and checkpoints stay as they are."""

import os
from pathlib import Path

import models
import pytest
from datasets import Dataset
from runs import LEARNING, trainer
from system import EVERYTHING
from transformers import TrainerCallback

from polydistill.run.recorder import Recorder

STEPS, WARM, EVERY = (20_000, 4_000, 1_000) if EVERYTHING else (5_000, 1_500, 500)


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Level(TrainerCallback):
    """Resident bytes, at regular steps."""

    def __init__(self) -> None:
        self.found: dict[int, int] = {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step % EVERY == 0:
            self.found[state.global_step] = resident()
            print(state.global_step, self.found[state.global_step] >> 10, "KiB", flush=True)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_memory_and_checkpoints_do_not_grow_with_the_steps(tmp_path: Path) -> None:
    recorder, level = Recorder(tmp_path), Level()
    made = trainer(
        tmp_path,
        student=models.llama(0, width=16),
        teachers={"a": models.llama(1, width=16), "b": models.llama(2, width=16)},
        weighting=LEARNING,
        data=Dataset.from_dict({"text": ["a b c d"] * 64, "task": ["code"] * 64}),
        made={"observers": [recorder], "callbacks": [recorder, level]},
        max_steps=STEPS,
        per_device_train_batch_size=1,
        logging_steps=1,
        save_strategy="steps",
        save_steps=max(1_000, STEPS // 10),  # a checkpoint has the last thousand rows of the log
        save_total_limit=10,
    )
    made.train()
    warm = max(found for step, found in level.found.items() if step <= WARM)
    assert level.found[STEPS] < 1.01 * warm
    sizes = [sum(f.stat().st_size for f in c.rglob("*") if f.is_file()) for c in sorted(tmp_path.glob("checkpoint-*"))]
    assert max(sizes) < 1.02 * min(sizes)
