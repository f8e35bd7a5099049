"""Experiments whose truth is known (E0 to E4, E6), and measurements (E5, E7 to E14).

python -m experiments E1 --seeds 5
python -m experiments E1 --quick
python -m experiments tables
"""

import argparse
import time

import torch
from experiments.cases import EXPERIMENTS
from experiments.cells import RESULTS, run, shortened
from experiments.learn import Settings
from experiments.measured import measure
from experiments.measurements import MEASURED
from experiments.tables import write


def main() -> None:
    """One experiment, or the tables of all that is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*EXPERIMENTS, *MEASURED, "tables"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few methods, one seed, short training: does it run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = shortened(Settings()) if arguments.quick else Settings()
    started, seeds = time.monotonic(), 1 if arguments.quick else arguments.seeds
    if arguments.what in MEASURED:
        path = RESULTS / f"{arguments.what}{'-quick' if arguments.quick else ''}.jsonl"
        for record in measure(path, MEASURED[arguments.what], seeds, arguments.quick):
            print(f"{record.part}, seed {record.seed}: {len(record.rows)} rows", flush=True)
    elif arguments.what != "tables":
        for cell in run(arguments.what, EXPERIMENTS[arguments.what], settings, seeds, arguments.quick):
            print(f"{cell.case:20} {cell.method:20} seed {cell.seed}  {cell.excess:.4f} nats  {cell.stack}", flush=True)
    print(f"{time.monotonic() - started:.0f} s")
    if not arguments.quick:
        print(write(Settings()))


if __name__ == "__main__":
    main()
