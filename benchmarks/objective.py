"""The pooled objective beside its rivals and its floor, in one run, as ratios.

    python benchmarks/objective.py [--device cpu|cuda] [--full] [--dtype bfloat16] [--threads 2] [--json FILE]

Prints Markdown tables and writes them as JSON. Seconds are the fastest of several rounds in which every contestant
takes its turn; ratios are medians over rounds. `--clock cpu --threads 1` counts seconds of processor instead of the
wall's, for a machine that is busy with something else. Peak memory is measured in a process of its own.
"""

import argparse
import json
import os
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from measure import (
    CLOCKS,
    Clock,
    hardware,
    in_a_process,
    peak_extra_bytes,
    ratio,
    side_by_side,
    table,
    timing_options,
    typical,
)
from rivals import RIVALS, Case, floor, has_liger, naive, one_projection, ours, trl_times_k, workload

from polydistill.objective.distil import chunk_bytes
from polydistill.objective.kernels.tiled import SWITCH

TEACHERS, TEACHERS_FULL = (1, 2, 4, 8, 16), (1, 4)
FULL = {"cpu": (512, 151_936, 256), "cuda": (4096, 151_936, 1024)}
"""N, V, D of `--full`."""
RIVALS_AT = (1, 4)
NAIVE_COPIES = 4
"""Matrices `[N, V]` that the definition holds per distribution at its peak, roughly."""


def fits(case: Case) -> bool:
    """Whether the definition has room on this machine."""
    if case.device == "cuda":
        room = torch.cuda.mem_get_info()[0]
    else:
        room = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return NAIVE_COPIES * (case.k + 1) * case.n * case.v * 4 < room


def time_against_k(case: Case, repeats: int, budget_s: float, clock: Clock, teachers: tuple[int, ...]) -> list[dict]:
    rows, device = [], case.device
    for k in teachers:
        work = workload(replace(case, k=k))
        calls = {"ours": ours(work), "floor": floor(work), "one projection": one_projection(work)}
        seconds = side_by_side(calls, repeats, device, budget_s / len(teachers), clock)
        if k in RIVALS_AT:
            calls |= ({"naive": naive(work)} if fits(work.case) else {}) | {"trl x K": trl_times_k(work)}
            if has_liger():
                calls["liger x K"] = RIVALS["liger x K"](work)
            beside = side_by_side(
                {n: c for n, c in calls.items() if n not in ("floor", "one projection")}, 1, device, clock=clock
            )
            over = {name: ratio(beside, "ours", name) for name in beside if name != "ours"}
            seconds |= {name: values for name, values in beside.items() if name != "ours"}
        else:
            over = {}
        best = typical(seconds)
        print(f"K={k}:", {name: round(value, 3) for name, value in best.items()}, file=sys.stderr)
        rows.append(
            {
                "case": work.case.label,
                "k": k,
                "seconds": best,
                "rounds": len(seconds["ours"]),
                "load": os.getloadavg()[0],
                "over": {name: ratio(seconds, "ours", name) for name in ("floor", "one projection")} | over,
            }
        )
    return rows


def slope(rows: list[dict]) -> float:
    """Seconds that one more teacher costs, in units of one teacher projection (least squares over K)."""
    k = [row["k"] for row in rows]
    t = [row["seconds"]["ours"] for row in rows]
    unit = statistics.median(row["seconds"]["one projection"] for row in rows)
    middle = statistics.mean(k)
    rise = sum((a - middle) * b for a, b in zip(k, t, strict=True)) / sum((a - middle) ** 2 for a in k)
    return rise / unit


def added_error(dtype: torch.dtype, k: int = 4, n: int = 128, v: int = 8000, d: int = 64) -> dict[str, float]:
    """Largest error of the hidden states' gradient and of the loss against float64, ours and naive."""
    work = workload(Case(n, v, d, k, dtype))
    found = {}
    for name, make in (("ours", ours), ("naive", naive)):
        loss = make(work)()
        found[name] = (loss, work.hidden.grad.double().clone())
    exact = workload(Case(n, v, d, k, torch.float64))
    exact.hidden.copy_(work.hidden.double().detach())
    exact.weight.copy_(work.weight.double().detach())
    for mine, theirs in zip(exact.outputs, work.outputs, strict=True):
        mine.hidden.copy_(theirs.hidden)
        mine.head.weight.copy_(theirs.head.weight)
    loss = ours(exact)()
    truth = exact.hidden.grad
    return {
        f"{name} {what}": value
        for name, (own, gradient) in found.items()
        for what, value in (
            ("loss, relative", abs(own - loss) / abs(loss)),
            ("gradient, relative to its largest", float((gradient - truth).abs().max() / truth.abs().max())),
        )
    }


def shares(case: Case) -> dict[str, float]:
    """Share of deciding the weights in the time of the loss, with the full stack."""
    work = workload(case)
    call = ours(work)
    call()
    from polydistill import ForwardKL
    from polydistill.logprobs import Head
    from polydistill.objective import distil

    deciding = 0.0

    def decide(statistics: Any, carry: Any) -> Any:
        nonlocal deciding
        clock = time.perf_counter()
        decided = work.pipeline.decide(statistics, carry)
        deciding += time.perf_counter() - clock
        return decided

    clock = time.perf_counter()
    distil(
        work.hidden, Head(work.weight), work.outputs, work.positions, decide, ForwardKL(),
        needs=work.pipeline.stack.needs,
    )  # fmt: skip
    return {"deciding the weights": deciding / (time.perf_counter() - clock)}


def memory(rival: str, case: Case, loss_bytes: int | None) -> int:
    """Peak bytes beyond the inputs, after a small call that loads what is loaded once."""

    def prepare():
        chosen = os.environ.get(SWITCH, "")
        os.environ[SWITCH] = chosen or "1"  # the compiler is loaded once, too
        RIVALS[rival](workload(Case(64, 64, 8, case.k, case.dtype, case.device)))()
        os.environ[SWITCH] = chosen
        work = workload(case)
        return ours(work, loss_bytes) if rival == "ours" else RIVALS[rival](work)

    return peak_extra_bytes(prepare, case.device)


def remembered(rival: str, case: Case, loss_bytes: int | None = None) -> int | None:
    arguments = ["--memory", rival, *(str(x) for x in (case.n, case.v, case.d, case.k)), "--device", case.device]
    arguments += ["--dtype", str(case.dtype).removeprefix("torch.")]
    found = in_a_process(__file__, arguments + (["--loss-bytes", str(loss_bytes)] if loss_bytes else []))
    return None if found is None else found["bytes"]


def time_table(rows: list[dict]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"]))
    header = ["K", *(f"{name}, s" for name in names), *(f"ours / {name}" for name in names if name != "ours")]

    def cell(values: dict[str, float], name: str) -> str:
        return f"{values[name]:.3f}" if name in values else ""

    return table(
        header,
        [
            [str(r["k"]), *(cell(r["seconds"], n) for n in names), *(cell(r["over"], n) for n in names if n != "ours")]
            for r in rows
        ],
    )


def memory_table(case: Case, full: bool) -> dict[str, int | None]:
    """Print peak memory of ours and of the rivals, and return it."""

    def of(rival: str, k: int, loss_bytes: int | None = None) -> int | None:
        return remembered(rival, replace(case, k=k), loss_bytes)

    found = {"ours K=4": of("ours", 4)}
    if fits(replace(case, k=4)):
        found["naive K=4"] = of("naive", 4)
    if not full:
        wide = chunk_bytes(torch.device(case.device)) * 2  # room for 128 rows of 16 teachers
        found |= {"trl x K=4": of("trl x K", 4), "ours K=2": of("ours", 2, wide), "ours K=16": of("ours", 16, wide)}
    print(f"\nPeak memory beyond the inputs, N={case.n}, V={case.v}, D={case.d}\n")
    print(table(["", "MiB"], [[k, "did not fit" if b is None else f"{b / 2**20:.0f}"] for k, b in found.items()]))
    for one, other in (("ours K=4", "naive K=4"), ("ours K=16", "ours K=2")):
        if found.get(one) and found.get(other):
            print(f"{one} / {other}: {found[one] / found[other]:.3f}")
    return found


def main() -> None:
    parser = timing_options(__doc__, threads=2, clock="wall", repeats=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--full", action="store_true", help="V = 151,936, K = 1 and 4, instead of V = 32,000")
    parser.add_argument("--budget", type=float, default=90.0, help="seconds for the timings of one set of shapes")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory", nargs=5, metavar=("RIVAL", "N", "V", "D", "K"), help=argparse.SUPPRESS)
    parser.add_argument("--loss-bytes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device, dtype = arguments.device, getattr(torch, arguments.dtype)
    if arguments.memory:
        rival, *numbers = arguments.memory
        case = Case(*(int(x) for x in numbers), dtype, device)
        print(json.dumps({"bytes": memory(rival, case, arguments.loss_bytes)}))
        return
    report: dict = {
        "hardware": hardware(device),
        "clock": arguments.clock,
        "compile": os.environ.get("POLYDISTILL_COMPILE", "by size"),
    }
    print(report["hardware"])
    shape, teachers = (FULL[device], TEACHERS_FULL) if arguments.full else ((1024, 32_000, 256), TEACHERS)
    n, v, d = shape
    case = Case(n, v, d, 4, dtype, device)
    rows = time_against_k(case, arguments.repeats, arguments.budget, CLOCKS[arguments.clock], teachers)
    heading = f"{arguments.clock} clock, {arguments.threads} threads, N={n}, V={v}, D={d}, {arguments.dtype}"
    print(f"\nForward and backward, full stack, {heading}\n\n{time_table(rows)}")
    report[f"N={n} V={v} D={d}"] = {"rows": rows, "slope": slope(rows)}
    print(f"\none more teacher costs {slope(rows):.2f} teacher projections")
    report["parts"] = shares(case)
    print("\nshares of the loss:", {name: round(x, 3) for name, x in report["parts"].items()})
    report["error"] = added_error(dtype)
    print("errors against float64:", {name: f"{x:.1e}" for name, x in report["error"].items()})
    if not arguments.no_memory:
        many = replace(case, n=n if arguments.full else 4 * n)
        report["memory"] = memory_table(many, arguments.full)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
