"""Leave a group whose last sum is still under way; gloo's thread, which drops it, needs the interpreter for that."""

import time

import torch
from torch import distributed

from polydistill.run.devices import leave


def main() -> None:
    distributed.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
    model.itself = model  # a cycle, as trainers make them: only a collection ends it
    values = torch.ones(4)
    if distributed.get_rank():
        time.sleep(1)
    distributed.all_reduce(values, async_op=distributed.get_rank() == 0)
    del model, values
    leave()
    print("left")


if __name__ == "__main__":
    main()
