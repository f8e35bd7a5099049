"""What enforcement costs: each order of the teachers beside one distillation step, K = 8.

    python benchmarks/safety.py [--threads 1] [--out FILE]

Both are timed round by round in one run, in seconds of processor (a machine that others use does not lengthen these);
the ratio is what counts. The step is that of the objective alone (teachers' heads, pool, loss and gradient), without
any model's forward pass, so the share of a whole training step is smaller. It is smallest, and the share greatest,
where the vocabulary is: 1,024 entries are fewer than any model in use has.
"""

import argparse
import json
from pathlib import Path
from time import process_time

import torch
from measure import hardware, ratio, side_by_side, table, typical

from polydistill import ForwardKL, Pipeline, PrefixPosterior, Tilt, Veto
from polydistill.logprobs import Head, HiddenStates, Positions
from polydistill.objective import distil
from polydistill.safety import Ordered

NAMES = tuple(f"teacher {k}" for k in range(8))
SCORES = {name: float(k // 2) for k, name in enumerate(NAMES)}
ORDERS = {
    "tilt": Tilt(SCORES, 3),
    "projection": Ordered(SCORES),
    "projection with bounds": Ordered(SCORES, low=0.01, high=0.6),
    "veto": Veto(SCORES),
}


def measured(n: int, vocabulary: int, width: int, rounds: int) -> dict:
    """Seconds of a step and of every order, and the median share of the step."""
    torch.manual_seed(0)
    heads = [Head(torch.randn(vocabulary, width) / width**0.5) for _ in NAMES]
    outputs = [HiddenStates(torch.randn(n, width), head) for head in heads]
    student = Head(torch.randn(vocabulary, width, requires_grad=True))
    hidden = torch.randn(n, width, requires_grad=True)
    positions = Positions.of(torch.randint(vocabulary, (n,)), torch.ones(n, dtype=torch.bool), severity=torch.rand(n))
    pipeline = Pipeline.of(PrefixPosterior(0.02), NAMES, floor=0.02)
    log_w = torch.randn(n, len(NAMES)).log_softmax(-1)
    bound = {name: order.bind(NAMES) for name, order in ORDERS.items()}

    def step() -> None:
        distil(hidden, student, outputs, positions, pipeline.decide, ForwardKL()).loss.backward()

    calls = {"step": step, **{n: lambda o=o: o.enforce(log_w, positions.severity) for n, o in bound.items()}}
    seconds = side_by_side(calls, rounds, "cpu", clock=process_time)
    return {
        "positions": n,
        "vocabulary": vocabulary,
        "width": width,
        "seconds": typical(seconds),
        "share": {name: ratio(seconds, name, "step") for name in ORDERS},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cases = [measured(options.positions, v, options.width, options.rounds) for v in options.vocabularies]
    rows = [
        [f"{c['vocabulary']:,}", f"{1e3 * c['seconds']['step']:.0f} ms", *(f"{x:.3%}" for x in c["share"].values())]
        for c in cases
    ]
    print(f"{options.positions} positions, K = {len(NAMES)}, D = {options.width}, float32: share of the step")
    print(table(["vocabulary", "step", *ORDERS], rows))
    result = {"hardware": hardware("cpu"), "dtype": "float32", "teachers": len(NAMES), "cases": cases}
    print(json.dumps(result["hardware"]))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
