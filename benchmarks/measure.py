"""Time side by side, memory in a process of its own, and what hardware it was."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": perf_counter, "cpu": process_time}


def timing_options(doc: str, *, threads: int, clock: str, repeats: int) -> argparse.ArgumentParser:
    """What every script that times something may be told."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--clock", choices=list(CLOCKS), default=clock)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--json", type=Path)
    return parser


def hardware(device: str) -> dict[str, Any]:
    """What a figure means nothing without."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "vector": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def side_by_side(
    calls: dict[str, Callable[[], Any]],
    repeats: int,
    device: str,
    budget_s: float = 1e9,
    clock: Clock = perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every call, round after round, so that a busy spell of the machine hits all of them.

    The clock is the wall's, or `process_time` on a machine that others use too: seconds of processor, which waiting
    for a turn does not lengthen (cold caches do). The first round warms up and is not counted. Beyond one round, none
    is begun that would pass the budget.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    begun = perf_counter()
    for turn in range(repeats + 1):
        round_began = perf_counter()
        for name, call in calls.items():
            started = clock()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(clock() - started)
        if turn and perf_counter() - begun + (perf_counter() - round_began) > budget_s:
            break
    return seconds


def typical(seconds: dict[str, list[float]]) -> dict[str, float]:
    """The fastest round of each call: what remains when nothing else runs."""
    return {name: min(values) for name, values in seconds.items()}


def ratio(seconds: dict[str, list[float]], one: str, other: str) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def peak_extra_bytes(prepare: Callable[[], Callable[[], Any]], device: str) -> int:
    """Highest memory of a call beyond what was held before it; call it in a fresh process.

    On a CPU this is the high-water mark of the resident set, which knows of every allocation of every library.
    """
    call = prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    before = _resident()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        call()
        return _status("VmHWM") - before
    except OSError:
        call()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def _resident() -> int:
    return _status("VmRSS")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def in_a_process(script: str, arguments: list[str]) -> dict[str, Any] | None:
    """JSON that a fresh process of a script prints last; None if it ran out of memory or died."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---" for _ in header) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])
