"""The main rank works alone for longer than the group waits in a collective."""

import time
from datetime import timedelta

from torch import distributed

from polydistill.run.devices import leave, main_alone


def main() -> None:
    distributed.init_process_group("gloo", timeout=timedelta(seconds=2))
    for _ in range(2):  # a second run of the same process waits anew
        with main_alone(distributed.get_rank() == 0):
            started = time.monotonic()
            if distributed.get_rank() == 0:
                time.sleep(2.6)
        assert time.monotonic() - started > 2.3
    leave()
    print("left")


if __name__ == "__main__":
    main()
