"""Runs of the command in forks of this process, killed from outside: `python dying.py CONFIG[:STEP] ...`.

Everything is imported once. With a step, the run is killed by SIGKILL as soon as it has written that step down;
without, it is waited for. Each run's exit status is printed as a line of JSON.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from polydistill.cli import main
from polydistill.config.file import load_config
from polydistill.report import write_report as write_report  # imported here once, for every fork
from polydistill.run.train import train_run as train_run

torch.set_num_threads(1)


def run(path: Path) -> None:
    """The command, in this process."""
    sys.argv = ["polydistill", "train", str(path), "--json", str(path.with_suffix(".json"))]
    os.dup2(os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    main()


def written(metrics: Path) -> int:
    """Last whole step in the metrics."""
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True) if metrics.exists() else []
    steps = [json.loads(line) for line in lines if line.endswith("\n")]
    return max((step["step"] for step in steps if step["kind"] == "step"), default=0)


def main_of_all() -> None:
    for word in sys.argv[1:]:
        name, _, step = word.partition(":")
        path = Path(name)
        metrics = Path(load_config(path).output) / "metrics.jsonl"
        child = os.fork()
        if not child:
            try:
                run(path)
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        status = 0
        while step:
            if written(metrics) >= int(step):
                os.kill(child, signal.SIGKILL)
            gone, status = os.waitpid(child, os.WNOHANG)
            if gone:
                break
            time.sleep(0.002)
        if not step:
            status = os.waitpid(child, 0)[1]
        print(json.dumps({"status": os.waitstatus_to_exitcode(status), "written": written(metrics)}), flush=True)


if __name__ == "__main__":
    main_of_all()
