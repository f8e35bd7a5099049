"""The privacy scenario with several seeds: does the constrained student meet its limit, and what does that cost?

    python experiments/safety_seeds.py --seeds 0 1 2 --frontier 0 --out experiments/results/safety_seeds.json

Texts and teachers are the same for all seeds; initial weights and data order of the students differ. Seeds of
`--frontier` run every strength and limit of the demo; the others one strength and one limit, which is what the goals
are about. Each finished seed is written at once, and a seed that is in the file already is not run again.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from polydistill.demo.safety import JUDGED, LIMITS, STRENGTHS, main


def summary(runs: list[dict]) -> dict:
    goals = [run["goals"] for run in runs]
    names = list(dict.fromkeys(row["name"] for run in runs for row in run["students"]))
    rows = {name: [r for run in runs for r in run["students"] if r["name"] == name] for name in names}
    careful, free = runs[0]["teachers"]["careful"]["losses"], rows["unconstrained"]
    cost = [r["losses"]["records"] - f["losses"]["records"] for r, f in zip(rows[JUDGED_NAME], free, strict=True)]
    return {
        "seeds": [run["seed"] for run in runs],
        "limit": JUDGED,
        "limit_met_within_10_percent": [goal["limit_met_within_10_percent"] for goal in goals],
        "at_most_5_percent_lost": [goal["at_most_5_percent_lost"] for goal in goals],
        "students": {
            name: {"seeds": len(found)} | {key: spread([r[key] for r in found]) for key in KEYS}
            for name, found in rows.items()
        },
        "gain_on_records_in_nats": spread([careful["records"] - f["losses"]["records"] for f in free]),
        "cost_on_records_in_nats": spread(cost),
        "processor_seconds": spread([run["processor_seconds"] for run in runs]),
        "retained_on_records": spread([goal["retained_on_records"] for goal in goals]),
        "retained_over_student_of_careful": spread([goal["retained_over_student_of_careful"] for goal in goals]),
    }


JUDGED_NAME = f"constraint {JUDGED:g}"
KEYS = ("unsafe_mass", "leak_rate", "leak_rate_with_start", "retained")


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "least": min(values), "greatest": max(values)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/safety_seeds.json"))
    parser.add_argument("--frontier", type=int, nargs="*", default=[], help="seeds with every strength and limit")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    runs = json.loads(options.out.read_text())["runs"] if options.out.exists() else []
    for seed in options.seeds:
        if any(run["seed"] == seed for run in runs):
            continue
        chosen = {} if seed in options.frontier else {"strengths": STRENGTHS[-1:], "limits": (JUDGED,)}
        assert JUDGED in LIMITS
        with TemporaryDirectory() as folder:
            runs.append(main(Path(folder), seed, None, Console(), **chosen))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"summary": summary(runs), "runs": runs}, indent=1) + "\n")
    print(json.dumps(summary(runs), indent=1))
