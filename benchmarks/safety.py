"""What enforcement costs: log-isotonic projection with KL clipping beside one distillation step, K = 8.

    python benchmarks/safety.py [--threads 1]

Both are timed in one run, best of several; the ratio is what counts. The step is that of the objective alone (teachers'
heads, pool, loss and gradient), without any model's forward pass, so the share of a whole training step is smaller.
"""

import argparse
import platform
from time import perf_counter

import torch

from polydistill import ForwardKL, Pipeline, PrefixPosterior, Tilt, Veto
from polydistill.logprobs import Head, Positions, Spoken
from polydistill.objective import distil
from polydistill.safety import Ordered

NAMES = tuple(f"teacher {k}" for k in range(8))
SCORES = {name: float(k // 2) for k, name in enumerate(NAMES)}


def best(function, times: int) -> float:
    function()
    seconds = []
    for _ in range(times):
        clock = perf_counter()
        function()
        seconds.append(perf_counter() - clock)
    return min(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    n, v, d = options.positions, options.vocabulary, options.width
    heads = [Head(torch.randn(v, d) / d**0.5) for _ in NAMES]
    spoken = [Spoken(torch.randn(n, d), head) for head in heads]
    student, hidden = Head(torch.randn(v, d, requires_grad=True)), torch.randn(n, d, requires_grad=True)
    positions = Positions.of(torch.randint(v, (n,)), torch.ones(n, dtype=torch.bool), severity=torch.rand(n))
    pipeline = Pipeline.of(PrefixPosterior(0.02), NAMES, floor=0.02)

    def step() -> None:
        distil(hidden, student, spoken, positions, pipeline.decide, ForwardKL()).loss.backward()

    log_w = torch.randn(n, len(NAMES)).log_softmax(-1)
    whole = best(step, 3)
    print(f"{platform.machine()}, {options.threads} thread(s), torch {torch.__version__}, float32")
    print(f"step: {n} positions, K = {len(NAMES)}, V = {v}, D = {d}: {1000 * whole:.0f} ms")
    for order in (Tilt(SCORES, 3), Ordered(SCORES), Ordered(SCORES, low=0.01, high=0.6), Veto(SCORES)):
        bound = order.bind(NAMES)
        seconds = best(lambda bound=bound: bound.enforce(log_w, positions.severity), 10)
        name = type(order).__name__ + (" with bounds" if getattr(order, "low", None) else "")
        print(f"{name}: {1000 * seconds:.2f} ms, {seconds / whole:.2%} of the step")
