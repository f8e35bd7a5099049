"""The pooled objective on a GPU beside its rivals and its floor, in one go and one file.

    make bench-gpu [PYTHON=...] [NAME=h100]
    python benchmarks/gpu.py [--device cuda] [--name NAME] [--budget 240]

Writes benchmarks/results/gpu-NAME.json. Objective and floor need torch and Triton; a contestant that is not installed
or does not fit is named, with the reason, and left out. `--device cpu` runs the same on small shapes, to try the
script.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import hardware, ratio, side_by_side, table, typical
from rivals import RIVALS, Case, Workload, one_projection, ours, workload

from polydistill.logprobs import Statistics
from polydistill.objective import JSD, DivideThenPool, ReverseKL, deciding
from polydistill.objective.kernels import fused
from polydistill.simplex import nothing_is_asked

CASES = {
    "cuda": ((8192, 128_256, 4096, 4), (8192, 128_256, 4096, 1), (8192, 151_936, 1024, 4)),
    "cpu": ((256, 2048, 64, 4), (256, 2048, 64, 1)),
}
"""N, V, D, K."""
CONTESTANTS = RIVALS | {
    "ours, 1 GiB": partial(ours, loss_bytes=2**30),
    "ours, 2 GiB": partial(ours, loss_bytes=2**31),
    "ours, reverse KL": partial(ours, divergence=ReverseKL()),
    "ours, JSD": partial(ours, divergence=DivideThenPool(pair=JSD())),
    "one projection": one_projection,
}
"""Also at two budgets of a chunk, and of divergences one with passes of its own and one without."""
DECIDED = 2048
"""Positions of the chunk whose weights are timed."""
RESULTS = Path(__file__).parent / "results"


def made(work: Workload, missing: dict[str, str]) -> dict[str, Callable[[], Any]]:
    """Contestants that have run once; of the others, why not."""
    calls = {}
    for name, make in CONTESTANTS.items():
        try:
            calls[name] = make(work)
            calls[name]()
        except Exception as error:  # whatever an optional package or a full card says
            calls.pop(name, None)
            why = next(iter(str(error).strip().splitlines()), "")
            missing[f"{name}, {work.case.label}"] = f"{type(error).__name__}: {why}"[:200]
            if work.case.device == "cuda":
                torch.cuda.empty_cache()
    return calls


def peak(call: Callable[[], Any], device: str) -> int | None:
    """Bytes beyond what was there; None on a CPU, where `benchmarks/objective.py` measures it."""
    if device != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


def compared(case: Case, budget_s: float, missing: dict[str, str]) -> dict[str, Any]:
    """Milliseconds, ratios and peak memory of one case."""
    work = workload(case)
    calls = made(work, missing)
    seconds = side_by_side(calls, 5, case.device, budget_s)
    return {
        "case": case.label,
        "milliseconds": {name: 1e3 * best for name, best in typical(seconds).items()},
        "ours over": {name: ratio(seconds, "ours", name) for name in calls if name != "ours"},
        "floors": {name: ratio(seconds, name, "floor") for name in calls},
        "peak bytes": {name: peak(call, case.device) for name, call in calls.items()},
    }


def decided(device: str) -> dict[str, float]:
    """Milliseconds of deciding one chunk's weights of four teachers: as they are, and in one graph."""
    work = workload(Case(DECIDED, 64, 8, 4, device=device))
    generator = torch.Generator().manual_seed(0)
    number = torch.rand(DECIDED, 4, generator=generator).to(device)
    chunk = Statistics(work.positions, number - 3.0, entropy=number, rows=slice(0, DECIDED))
    found = {}
    with torch.no_grad(), nothing_is_asked():
        for name, decide in (("as it is", work.pipeline.decide), ("one graph", deciding.whole(work.pipeline.decide))):
            carry = decide(chunk, None)[1]
            calls = {name: lambda decide=decide, carry=carry: decide(chunk, carry)}
            found[name] = 1e3 * statistics.median(side_by_side(calls, 20, device)[name])
    return found


def slope(cases: list[dict[str, Any]]) -> float | None:
    """What one more teacher costs, in projections, from the first two cases, which differ in K alone."""
    (many, few), keys = [case["milliseconds"] for case in cases[:2]], {"ours", "one projection"}
    if not keys <= many.keys() & few.keys():
        return None
    return (many["ours"] - few["ours"]) / 3 / many["one projection"]


def main() -> None:
    """Every case in turn, within the budget."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=list(CASES))
    parser.add_argument("--name", help="of the result; the card's by itself")
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for all cases together")
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("benchmarks/gpu.py: torch sees no GPU here; --device cpu tries the script on small shapes")
    missing: dict[str, str] = {}
    report: dict[str, Any] = {
        "hardware": hardware(device),
        "passes": fused.missing(torch.device(device)) or "fused",
        "decide, ms": decided(device),
        "cases": [],
        "missing": missing,
    }
    began = time.perf_counter()
    for number, shape in enumerate(CASES[device]):
        left = arguments.budget - (time.perf_counter() - began)
        row = compared(
            Case(*shape, dtype=torch.bfloat16, device=device), left / (len(CASES[device]) - number) / 2, missing
        )
        report["cases"].append(row)
        floors = ((name, f"{row['milliseconds'][name]:.1f}", f"{x:.2f}") for name, x in row["floors"].items())
        print(f"\n{row['case']}\n\n{table(['', 'ms', 'floors'], [list(cells) for cells in floors])}", flush=True)
    report["one more teacher, in projections"] = slope(report["cases"])
    for name, why in missing.items():
        print(f"left out: {name}: {why}")
    name = arguments.name or re.sub(r"[^a-z0-9]+", "-", str(report["hardware"]["gpu"] or "cpu").lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"gpu-{name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    main()
