"""What teaching from 1e9 to 1e12 tokens takes: bytes, hours and money, from measured figures and named assumptions.

    python benchmarks/scale.py --cache benchmarks/results/cache.json --serve benchmarks/results/serve.json

Measured: bytes per position of a cache, and how much a second teacher adds (`benchmarks/cache.py`); bytes on the line
of a served teacher (`benchmarks/serve.py`). Assumed: everything in `Assumed`.
"""

import argparse
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from measure import table

TOKENS = [1e9, 1e10, 1e11, 1e12]


@dataclass(frozen=True)
class Assumed:
    """Nothing here was measured by us."""

    teachers: int = 3
    teacher_parameters: float = 8e9
    student_parameters: float = 1e9
    gpu_flops: float = 989e12  # bfloat16, dense, of the H100's data sheet
    labelling_use: float = 0.40  # of that, in a forward pass over whole texts
    training_use: float = 0.35
    usd_per_gpu_hour: float = 2.50
    usd_per_tb_month: float = 23.0  # object storage
    gpus: int = 64


@dataclass(frozen=True)
class Measured:
    """Of our benchmarks.

    Attributes:
        first: bytes per position of the first teacher, at no more divergence than k = 50 entries stored otherwise; the
            largest, where several were measured.
        further: of every further one, as a share of that.
        served: bytes per position on the line of one served teacher.
        reading: microseconds of one core to check and pack an answer, per position.
        k: entries per position of the served teacher.
    """

    first: float
    further: float
    served: float
    reading: float
    k: int

    @classmethod
    def read(cls, cache: Path, serve: Path, k: int) -> "Measured":
        stored, line = json.loads(cache.read_text())["gemma"], json.loads(serve.read_text())
        theirs = [row for rows in stored["beside_theirs"].values() for row in rows if "k=50" in row["theirs"]]
        best = max(row["our_bytes"] for row in theirs)
        further = [row["of_the_first"] for row in stored["more_teachers"][1:]]
        one = line[f"served, k = {k}"]
        return cls(best, sum(further) / len(further), one["bytes_per_position"], one["reading_us_per_position"], k)


def size(count: float) -> str:
    for unit in ("GB", "TB", "PB"):
        count /= 1e9 if unit == "GB" else 1e3
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count:,.0f} PB"


def arithmetic(m: Measured, a: Assumed) -> list[list[str]]:
    """A row per quantity, a column per number of tokens."""
    per_position = m.first * (1 + m.further * (a.teachers - 1))
    label = 2 * a.teacher_parameters * a.teachers / (a.gpu_flops * a.labelling_use)  # GPU seconds per token
    train = 6 * a.student_parameters / (a.gpu_flops * a.training_use)

    def hours(seconds: float) -> str:
        return f"{seconds / 3600:,.3g}" if seconds < 3.6e6 else f"{seconds / 3600:,.0f}"

    def money(usd: float) -> str:
        return f"{usd:,.0f}" if usd >= 10 else f"{usd:.2f}"

    columns = {
        f"cache of {a.teachers} teachers ({per_position:.0f} B per position)": lambda n: size(n * per_position),
        "keeping it a month, USD": lambda n: money(n * per_position / 1e12 * a.usd_per_tb_month),
        f"labelling, GPU hours ({1 / label:,.0f} tokens/s per GPU)": lambda n: hours(n * label),
        f"labelling on {a.gpus} GPUs, days": lambda n: f"{n * label / a.gpus / 86400:,.3g}",
        "labelling, USD": lambda n: money(n * label / 3600 * a.usd_per_gpu_hour),
        f"one student, GPU hours ({1 / train:,.0f} tokens/s per GPU)": lambda n: hours(n * train),
        "one student from the cache, USD": lambda n: money(n * train / 3600 * a.usd_per_gpu_hour),
        "one student with live teachers, USD": lambda n: money(n * (train + label) / 3600 * a.usd_per_gpu_hour),
        f"on the line, served with k = {m.k}": lambda n: size(n * m.served * a.teachers),
        "reading what was served, core hours": lambda n: hours(n * m.reading * 1e-6 * a.teachers),
    }
    return [[name, *(column(n) for n in TOKENS)] for name, column in columns.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--serve", type=Path, required=True)
    parser.add_argument("--k", type=int, default=50)
    for field in fields(Assumed):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = vars(parser.parse_args())
    measured = Measured.read(options.pop("cache"), options.pop("serve"), options.pop("k"))
    assumed = Assumed(**options)
    print(table(["measured", "value"], [[k, f"{v:.4g}"] for k, v in asdict(measured).items()]), end="\n\n")
    print(table(["assumed", "value"], [[k, f"{v:.4g}"] for k, v in asdict(assumed).items()]), end="\n\n")
    print(table(["tokens", *(f"{n:.0e}" for n in TOKENS)], arithmetic(measured, assumed)))


if __name__ == "__main__":
    main()
