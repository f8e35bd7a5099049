"""What stands above the floor: the products on a chunk's rows and the point-wise passes, each in both layouts.

    python benchmarks/excess.py [--case N V D K] [--rows ROWS] [--threads 2] [--clock wall|cpu] [--json FILE]

K = 4, N = 1024, V = 32,000, D = 256, as in `benchmarks/objective.py`, unless told otherwise. A chunk's logits can stand
row by row, `[n, V]`, which is how the objective keeps them, or entry by entry, `[V, n]`, which suits the products
better on a few hundred rows. The passes are run on ready storage, the products without any pass.
"""

import json

import torch
from measure import CLOCKS, hardware, side_by_side, table, timing_options, typical
from rivals import Call, Case, Workload, floor, ours, products, workload

from polydistill import ForwardKL
from polydistill.objective.distil import GOOD_ROWS
from polydistill.objective.kernels import Call as Asked
from polydistill.objective.kernels.passes import Kept, pull, read_rows
from polydistill.objective.kernels.tiled import Tiled, run
from polydistill.objective.kernels.tiles import Tiles


def passes(work: Workload, rows: int, transposed: bool) -> Call:
    """Statistics of K teachers, pool, loss and gradient of every chunk, from logits that are there."""
    case = work.case

    def matrix(*lead: int) -> torch.Tensor:
        made = torch.randn(*lead, case.v, rows) if transposed else torch.randn(*lead, rows, case.v)
        return made.transpose(-1, -2) if transposed else made

    logits, kept, gradient = matrix().mul_(3.0), matrix(case.k).exp_(), matrix()
    asked = Asked(torch.device("cpu"), torch.float32, rows, case.v, case.k, case.n, ForwardKL(), frozenset(), True)
    tiles = Tiles(rows, (rows, case.n % rows or rows)) if transposed else Tiled.cut(asked)
    label, log_w = work.positions.target[:rows], torch.zeros(rows, case.k).log_softmax(-1)
    some, one = torch.ones(rows, case.k), ForwardKL()

    def call() -> float:
        for start in range(0, case.n, rows):
            here = min(rows, case.n - start)
            for k in range(case.k):
                tiles.over(here, lambda t, k=k: run(
                    read_rows, t.compiled, logits[t.rows], label[t.rows], 1.0, False, kept[k, t.rows]
                ))  # fmt: skip
            tiles.over(here, lambda t: run(
                pull, t.compiled, one, (1.0, None), logits[t.rows], None,
                Kept(kept[:, t.rows], some[t.rows], some[t.rows]), log_w[t.rows], label[t.rows], gradient[t.rows],
            ))  # fmt: skip
        return 0.0

    return call


def main() -> None:
    """Time all of them in turn; what counts is the fastest round of each."""
    parser = timing_options(__doc__, threads=2, clock="wall", repeats=9)
    parser.add_argument("--case", type=int, nargs=4, default=[1024, 32_000, 256, 4], metavar=("N", "V", "D", "K"))
    parser.add_argument("--rows", type=int, default=GOOD_ROWS, help="rows of a chunk")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    work, rows = workload(Case(*arguments.case)), arguments.rows
    whole = 4 * work.case.n * work.case.v * (work.case.k + 4)
    calls = {"floor": floor(work), "ours": ours(work), "ours, one chunk": ours(work, loss_bytes=whole)}
    calls |= {
        f"products on {some} rows, {'[V, n]' if turned else '[n, V]'}": products(work, some, turned)
        for some in dict.fromkeys((rows, 512, 1024))
        for turned in (False, True)
    }
    calls |= {f"passes, {'[V, n]' if turned else '[n, V]'}": passes(work, rows, turned) for turned in (False, True)}
    seconds = side_by_side(calls, arguments.repeats, "cpu", clock=CLOCKS[arguments.clock])
    best = typical(seconds)
    report = {
        "hardware": hardware("cpu"),
        "clock": arguments.clock,
        "rows": {name: {"seconds": best[name], "floors": best[name] / best["floor"]} for name in best},
    }
    print(report["hardware"], "\n")
    lines = [[name, f"{1e3 * row['seconds']:.1f}", f"{row['floors']:.2f}"] for name, row in report["rows"].items()]
    print(table(["part", "ms", "floors"], lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
