"""A run with every kind of limit, on one rank or as one of several: `limited.py FOLDER` under torchrun."""

import json
import sys
from pathlib import Path

import models
import torch
import torch.distributed as dist
from transformers import TrainerCallback
from trl import SFTConfig

from polydistill import PrefixPosterior, Tilt
from polydistill.run.devices import leave
from polydistill.safety import Controller, Forbidden, GeneratedRate, KLToTeacher, TaskLoss, UnsafeMass
from polydistill.safety.constrained import Constrained
from polydistill.training import PolyDistillTrainer

STEPS, BATCH = 8, 8


def limits() -> Constrained:
    """Four limits; of the first and the last, one is broken at first and one always."""
    forbidden = Forbidden(frozenset({10, 11, 12}), ((20, 21), (5, 6, 7)))
    return Constrained(
        [
            UnsafeMass("tokens", forbidden, 0.005, severity=0.5),
            KLToTeacher("near b", "b", 2.0, severity=0.25),
            TaskLoss("maths", "maths", 5.0, step=4.0),
            GeneratedRate("even", lambda texts: [len(t) % 2 == 0 for t in texts], ("the sum",) * 4, "near b", 0.1, 3),
        ],
        Controller(integral=0.3, proportional=0.5, window=4),
    )


class Multipliers(TrainerCallback):
    """Multipliers after every step."""

    def __init__(self, constraints: Constrained) -> None:
        self.constraints, self.seen = constraints, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.constraints.dual.mu.tolist())


def learn(folder: Path, world: int) -> dict:
    """Train on batches that are the same whatever the number of ranks; what this rank ends with."""
    constraints = limits()
    path = Multipliers(constraints)
    options = {"max_steps": STEPS, "per_device_train_batch_size": BATCH // world, "max_length": 64, "logging_steps": 1}
    options |= {"optim": "sgd", "lr_scheduler_type": "constant", "save_strategy": "no"}
    trainer = PolyDistillTrainer(
        models.llama(7),
        {"a": models.llama(0), "b": models.llama(1)},
        PrefixPosterior(0.05),
        args=SFTConfig(str(folder), **models.SMALL | options),
        safety=Tilt({"b": 1}),
        constraints=constraints,
        train_dataset=models.texts(32),
        processing_class=models.tokenizer(),
        callbacks=[path],
    )
    trainer.train()
    state = {name: value.tolist() for name, value in constraints.dual.state_dict().items()}
    return {
        "ranks": trainer.accelerator.num_processes,
        "path": path.seen,
        "state": state,
        "losses": [line["loss"] for line in trainer.state.log_history if "loss" in line],
    }


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = learn(folder / "run", 2)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    leave()


if __name__ == "__main__":
    main()
