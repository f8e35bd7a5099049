"""At each scale at least three operators that read different evidence, and for each two an input on which they rank
two teachers in opposite order (T8)."""

import itertools

import cases
import pytest
import torch

from polydistill.logprobs import Positions, Statistics
from polydistill.weighting import (
    CloneRobust,
    Gate,
    Hedge,
    PrefixPosterior,
    Similarity,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
)
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, StudentGap

NAMES, TASKS = ("a", "b", "c"), ("x", "y")
EMBEDDING = torch.randn(32, 5, generator=torch.Generator().manual_seed(1))
TOKEN = {
    "entropy": Softmax(1.0)(Entropy()),
    "label likelihood": Softmax(1.0)(LabelLikelihood()),
    "consensus": Softmax(1.0)(Consensus()),
    "easy first": Softmax(1.0)(StudentGap()),
    "hard first": Softmax(1.0)(StudentGap(hard_first=True)),
    "margin": Softmax(1.0)(Margin()),
    "clone-robust entropy": CloneRobust(1.0, {"a": {"b": 1.0}})(Entropy()),
    "gate": Gate([Entropy(), Margin()]),
}
CONTEXT = {
    "prefix likelihood": PrefixPosterior(),
    "route": TeacherRouter(),
    "domain similarity": Similarity(EMBEDDING, {n: EMBEDDING[i] for i, n in enumerate(NAMES)}),
}
TASK = {
    "prior": TaskPrior({"x": {"a": 2, "b": 1}}),
    "route": TaskRouter({"x": "b"}),
    "hedge": Hedge(rate=5.0)(StudentGap()),
}


def weights_of(operator, statistics):
    bound = operator.bind(NAMES, TASKS)
    if isinstance(bound, Gate):
        with torch.no_grad():
            bound.matrix[0], bound.matrix[1] = -torch.eye(3), torch.eye(3)
    if isinstance(operator, type(TASK["hedge"])):
        # What it learned: teacher c is nearest to the student in task x, b in y.
        for task, gap in ((0, [3.0, 2.0, 0.0]), (1, [3.0, 0.0, 2.0])):
            positions = Positions.of(
                torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool), task=torch.tensor([task])
            )
            bound.observe(Statistics(positions, torch.zeros(1, 3), student_gap=torch.tensor([gap])))
            bound.commit()
    return bound(statistics)[0].double()


@pytest.mark.parametrize("scale", ["token", "context", "task"])
def test_for_each_two_operators_of_a_scale_there_is_an_input_that_they_rank_in_opposite_order(scale):
    operators = {"token": TOKEN, "context": CONTEXT, "task": TASK}[scale]
    assert {operator.scale for operator in operators.values()} == {scale}
    statistics = cases.statistics(2000, 3, documents=50, tasks=2, teachers=3, size=6.0)
    log_w = {name: weights_of(operator, statistics) for name, operator in operators.items()}
    for one, two in itertools.combinations(operators, 2):
        differences = [x[:, :, None] - x[:, None, :] for x in (log_w[one], log_w[two])]
        assert ((differences[0] > 1e-3) & (differences[1] < -1e-3)).any(), (one, two)
