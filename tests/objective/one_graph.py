"""Decide chunks of several lengths by way of a graph and as they are; prints by case how many graphs were made.

In a process of its own: the checks of annotations that tests have are no part of a graph.

python one_graph.py [everything]
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import stacks
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from polydistill.logprobs import STATISTICS, Positions, Statistics
from polydistill.objective import deciding
from polydistill.simplex import nothing_is_asked

POSITIONS, COMPILED = 301, deciding._compiled.__wrapped__


def chunk(start, stop):
    """Statistics of some rows of a call."""
    n, generator = stop - start, torch.Generator().manual_seed(start)
    positions = Positions.of(
        torch.randint(stacks.VOCABULARY, (n,), generator=generator),
        torch.rand(n, generator=generator) < 0.8,
        has_target=torch.ones(n, dtype=torch.bool),
        document_start=torch.rand(n, generator=generator) < 0.05,
        task=torch.randint(-1, len(stacks.TASKS), (n,), generator=generator),
        teacher=torch.randint(-1, len(stacks.TEACHERS), (n,), generator=generator),
        severity=torch.rand(n, generator=generator),
    )
    measured = {name: torch.rand(n, len(stacks.TEACHERS), generator=generator) for name in sorted(STATISTICS)}
    return Statistics(positions, rows=slice(start, stop), **measured)


def graphs(decide):
    """Graphs that were made for a call; None where it was decided as it is."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = COMPILED(counter)
    deciding._compiled, deciding._Graph.works = lambda: compiled, True
    whole, carry = deciding.whole(decide), None
    with torch.no_grad(), nothing_is_asked():
        for start, stop in ((0, 128), (128, 224), (224, POSITIONS)):
            statistics = chunk(start, stop)
            found, _ = whole(statistics, carry)
            expected, carry = decide(statistics, carry)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert torch.isfinite(found.logsumexp(-1)).all()
    return counter.frame_count if deciding._Graph.works else None


def looks(evidence):
    """A rule that asks."""
    return evidence.softmax(-1) if float(evidence.max()) < 1e9 else evidence


if __name__ == "__main__":
    if sys.argv[1:] == ["everything"]:
        cases = {"everything": stacks.missing(stacks.everything(stacks.ORDERS[0]).decide, POSITIONS)}
    else:
        cases = {"full": stacks.missing(stacks.full().decide, POSITIONS)}
        for safety in stacks.ORDERS:
            decide = stacks.Pipeline.of(stacks.Uniform(), stacks.TEACHERS, safety=safety).decide
            cases[f"{type(safety).__name__} {getattr(safety, 'low', None)}"] = decide
        cases["looks"] = stacks.Pipeline.of(stacks.Custom(looks)(stacks.Entropy()), stacks.TEACHERS).decide
    print(json.dumps({name: graphs(decide) for name, decide in cases.items()}))
