"""The on-policy demo over seeds: gain in exact match, its spread, and the difference to off-policy.

python experiments/on_policy_seeds.py --seeds 3 --json runs/on_policy_seeds.json
"""

import argparse
import json
import statistics
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table

from polydistill.demo.on_policy import mean, run_demo


def spread(values: list[float]) -> dict[str, float]:
    """Mean, standard deviation over seeds, least and greatest."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "sd": deviation, "min": min(values), "max": max(values)}


def main() -> None:
    """Run the seeds one after the other; teachers are trained once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--json", type=Path, default=None, help="write the result here")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(options.threads)
    console, runs = Console(), []
    for seed in range(options.seeds):
        with TemporaryDirectory() as folder:
            runs.append(run_demo(Path(folder), seed, console))
    contestants = ("before", "off_policy", "on_policy")
    scores = {name: spread([mean(run[name]) for run in runs]) for name in contestants}
    scores["gain"] = spread([run["gain"] for run in runs])
    scores["on_minus_off"] = spread([mean(run["on_policy"]) - mean(run["off_policy"]) for run in runs])
    table = Table("exact match", "mean", "sd", "min", "max", title=f"{options.seeds} seeds")
    for name, row in scores.items():
        table.add_row(name.replace("_", " "), *(f"{row[key]:+.3f}" for key in ("mean", "sd", "min", "max")))
    console.print(table)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"scores": scores, "runs": runs}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
