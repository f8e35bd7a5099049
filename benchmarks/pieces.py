"""What single operations on a matrix of logits cost, beside the projection that makes it.

    python benchmarks/pieces.py [--threads 1] [--clock cpu|wall] [--json FILE]

One `[1024, 32000]` matrix of float32, D = 256, all in turn in every round.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
from measure import CLOCKS, hardware, side_by_side, table, timing_options, typical

from polydistill.objective.divergence import less_at
from polydistill.objective.kernels.passes import read_rows
from polydistill.objective.kernels.tiled import run
from polydistill.objective.kernels.tiles import Tiles

N, V, D = 1024, 32_000, 256


def pieces() -> dict[str, Callable[[], Any]]:
    """By name, each on storage that is there."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D), torch.randn(V, D)
    logits, kept = torch.empty(N, V), torch.empty(N, V)
    torch.mm(hidden, weight.T, out=logits)
    logits.mul_(0.2)
    label = torch.randint(V, (N,))
    plain, compiled = Tiles(16), Tiles(16, (32,))

    def statistics(tiles: Tiles) -> Callable[[], Any]:
        return lambda: tiles.over(
            N,
            lambda t: run(read_rows, t.compiled, logits[t.rows], label[t.rows], 1.0, False, kept[t.rows]),
        )

    def gradient(by: Callable[..., torch.Tensor]) -> Callable[[], Any]:
        def tile(rows: torch.Tensor, at: torch.Tensor, out: torch.Tensor) -> None:
            out.copy_(by(at, 0.1, rows.exp()))

        made = torch.compile(tile, dynamic=False)
        return lambda: [made(logits[i : i + 32], label[i : i + 32], kept[i : i + 32]) for i in range(0, N, 32)]

    def scattered(at: torch.Tensor, share: float, rows: torch.Tensor) -> torch.Tensor:
        return rows.scatter_add_(1, at[:, None], torch.full_like(rows[:, :1], -share))

    return {
        "projection": lambda: torch.mm(hidden, weight.T, out=logits),
        "logsumexp": lambda: torch.logsumexp(logits, -1),
        "row-wise dot product, vecdot": lambda: torch.linalg.vecdot(logits, logits),
        "row-wise dot product, einsum": lambda: torch.einsum("nv,nv->n", logits, logits),
        "softmax": lambda: torch.softmax(logits, -1),
        "a teacher's statistics, whole matrix": statistics(Tiles(N)),
        "a teacher's statistics, tiles of 16 rows": statistics(plain),
        "a teacher's statistics, compiled, tiles of 32 rows": statistics(compiled),
        "label's share by a scatter, compiled": gradient(scattered),
        "label's share by comparing, compiled": gradient(less_at),
    }


def main() -> None:
    """Time all of them in turn."""
    arguments = timing_options(__doc__, threads=1, clock="cpu", repeats=9).parse_args()
    torch.set_num_threads(arguments.threads)
    best = typical(side_by_side(pieces(), arguments.repeats, "cpu", clock=CLOCKS[arguments.clock]))
    report = {"hardware": hardware("cpu"), "clock": arguments.clock, "seconds": best}
    print(report["hardware"], "\n")
    print(table(["operation", "ms"], [[name, f"{1e3 * seconds:.1f}"] for name, seconds in best.items()]))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
