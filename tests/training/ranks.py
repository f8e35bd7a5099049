"""One rank of a run in several processes (`ranks.py FOLDER ROWS` under torchrun), or the whole run in one (`learn`)."""

import json
import sys
from pathlib import Path

import models
import torch
import torch.distributed
from runs import LEARNING, losses, trainer
from safetensors.torch import save_file

from polydistill.run.devices import leave


def learn(folder: Path, rows: int) -> None:
    """Train and write down what was said, learned and remembered on this rank."""
    made = trainer(
        folder / "run",
        weighting=LEARNING,
        data=models.texts(20),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=2,
        optim="sgd",
        learning_rate=0.3,
        save_strategy="steps",
        save_steps=3,
        made={"eval_dataset": models.texts(8)},
        per_device_eval_batch_size=rows,
        ddp_find_unused_parameters=False,
    )
    made.train()
    said = {
        "ranks": made.accelerator.num_processes,
        "loss": losses(made),
        "norm": losses(made, "grad_norm"),
        "divergence": losses(made, "divergence"),
        "tokens": losses(made, "num_tokens"),
    }
    leave_behind(made, folder, said)


def leave_behind(made, folder: Path, said) -> None:
    """What this rank says, and what its operators and its student are."""
    rank, student = made.accelerator.process_index, made.accelerator.unwrap_model(made.model)
    (folder / f"said{rank}.json").write_text(json.dumps(said))
    for name, module in (("state", made.pipeline.stack), ("weights", student)):
        values = {key: value.contiguous() for key, value in module.state_dict().items()}
        save_file(values, folder / f"{name}{rank}.safetensors")


def go_back(folder: Path, rows: int) -> None:
    """A student that is thrown far away after step 4, and what it is after it went back."""
    made = trainer(
        folder,
        weighting=LEARNING,
        data=models.texts(20),
        per_device_train_batch_size=rows,
        max_steps=9,
        save_strategy="steps",
        save_steps=3,
        save_total_limit=9,
        ddp_find_unused_parameters=False,
    )
    made.spikes.losses = [5.0] * 100  # as after a hundred steps
    plain = made._maybe_log_save_evaluate

    def then(*args, **kwargs):
        plain(*args, **kwargs)
        if made.state.global_step == 4:
            with torch.no_grad():
                made.accelerator.unwrap_model(made.model).lm_head.weight.mul_(300.0)

    made._maybe_log_save_evaluate = then
    made.train()
    leave_behind(made, folder, [made.spikes.total, made.spikes.said])


if __name__ == "__main__":
    torch.set_num_threads(1)
    learn(Path(sys.argv[1]), int(sys.argv[2]))
    go_back(Path(sys.argv[1]) / "back", int(sys.argv[2]))
    torch.distributed.barrier()
    leave()
