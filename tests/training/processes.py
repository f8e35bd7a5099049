"""A run in a process of its own, to be killed: `python processes.py '{"folder": ..., "kill": [...]}'`.

It keeps one checkpoint, and dies by a real SIGKILL when its job says so.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import models
import torch
from runs import LEARNING, trainer
from transformers import TrainerCallback

from polydistill.training import checkpoint

torch.set_num_threads(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class DieAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            die()


def arm(place: str, step: int) -> dict:
    """Set the trap: what the trainer is to be given for it."""
    if place == "after step":
        return {"callbacks": [DieAfter(step)]}
    if place == "inside step":

        def observer(done, trainer):
            if trainer.state.global_step + 1 == step:
                die()
            return {}

        return {"observers": [observer]}
    if place == "before manifest":
        plain = checkpoint.write_manifest
        checkpoint.write_manifest = lambda f, run: die() if f.name == f"checkpoint-{step}" else plain(f, run)
    if place == "inside rotation":

        def half(folder):
            if (Path(folder).parent / f"checkpoint-{step}").exists():
                next(p for p in Path(folder).iterdir() if p.name == "model.safetensors").unlink()
                die()
            remove(folder)

        remove, checkpoint.shutil.rmtree = shutil.rmtree, half
    return {}


def run(job: dict) -> None:
    made = trainer(
        Path(job["folder"]),
        student=models.llama(0, dropout=0.2),
        weighting=LEARNING,
        data=models.texts(20),
        max_steps=5,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        made=arm(*job["kill"]) if job.get("kill") else {},
    )
    made.train(resume_from_checkpoint=job.get("resume", False))


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
