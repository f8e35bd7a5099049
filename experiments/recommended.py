"""What `polydistill recommend` says of a planted problem, from texts that no student learns from or is judged by."""

import torch
from experiments.learn import Data
from experiments.methods import FLOOR, names
from pydantic import TypeAdapter

from polydistill.config.weighting import AnyFactor, build_stack
from polydistill.judging.recommend import Comparison, Heard, Recommendation
from polydistill.pipeline import Pipeline

TEXTS = 128


def comparison(data: Data, seed: int) -> Comparison:
    """The estimator of the command, asked about texts drawn for it alone."""
    problem, heard = data.problem, list[Heard]()
    for first in range(0, TEXTS, 32):
        batch = problem.draw(32, torch.Generator().manual_seed(9000 + seed + first)).batch()
        heard += filter(None, [Heard.of(data.start, batch, problem.teachers, first=first)])
    return Comparison(heard, names(problem), problem.tasks, floor=FLOOR)


def recommendation(data: Data, seed: int) -> Recommendation:
    """What it says."""
    return comparison(data, seed).recommendation()


def pipeline(found: Recommendation, data: Data) -> Pipeline | None:
    """The stack that it names, ready to train with; None where it says that labels are better."""
    if found.labels_are_better:
        return None
    factors = TypeAdapter(list[AnyFactor]).validate_python(found.best.weighting)
    return Pipeline.of(build_stack(factors), names(data.problem), data.problem.tasks, floor=FLOOR)
