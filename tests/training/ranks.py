"""One rank of a run in several processes (`ranks.py FOLDER ROWS` under torchrun), whose student goes back."""

import json
import sys
from pathlib import Path

import models
import torch
import torch.distributed
from runs import LEARNING, trainer
from safetensors.torch import save_file

from polydistill.run.devices import leave


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
    rank, student = made.accelerator.process_index, made.accelerator.unwrap_model(made.model)
    (folder / f"said{rank}.json").write_text(json.dumps([made.spikes.total, made.spikes.said]))
    weights = {key: value.contiguous() for key, value in student.state_dict().items()}
    save_file(weights, folder / f"weights{rank}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    go_back(Path(sys.argv[1]), int(sys.argv[2]))
    torch.distributed.barrier()
    leave()
