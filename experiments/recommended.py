"""What `polydistill recommend` says of a planted problem, from texts that no student learns from or is judged by."""

import torch
from experiments.learn import Data
from experiments.methods import FLOOR, names
from pydantic import TypeAdapter

from polydistill.config.weighting import AnyFactor, build_stack
from polydistill.objective import ForwardKL, distil
from polydistill.pipeline import Pipeline
from polydistill.run.recommend import Comparison, Heard, Recommendation
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training.hearing import listen_to
from polydistill.weighting import Uniform

TEXTS = 128


@torch.no_grad()
def recommendation(data: Data, seed: int) -> Recommendation:
    """The estimator of the command, asked about texts drawn for it alone."""
    problem, seen = data.problem, 0
    averaging = Pipeline.of(Uniform(), names(problem), problem.tasks).decide
    heard: list[Heard] = []
    for _ in range(TEXTS // 32):
        batch = problem.draw(32, torch.Generator().manual_seed(9000 + seed + seen)).batch()
        rows, positions = batch.positions(reads_prefix=True)
        hidden = last_hidden_state(data.start, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        outputs = listen_to(problem.teachers, batch, rows)
        found = distil(
            hidden.flatten(0, 1)[rows],
            head_of(data.start),
            outputs,
            positions,
            averaging,
            ForwardKL(),
            needs=frozenset({"entropy"}),
        )
        heard.append(Heard(found.statistics, found.cross_entropy, seen + rows // batch.input_ids.shape[1]))
        seen += len(batch.input_ids)
    return Comparison(heard, names(problem), problem.tasks, floor=FLOOR).recommendation()


def pipeline(found: Recommendation, data: Data) -> Pipeline:
    """The stack that it names, ready to train with."""
    factors = TypeAdapter(list[AnyFactor]).validate_python(found.best.weighting)
    return Pipeline.of(build_stack(factors), names(data.problem), data.problem.tasks, floor=FLOOR)
