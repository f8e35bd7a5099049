import itertools
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polydistill import Entropy, Pipeline, PrefixPosterior, Softmax, TaskPrior, Tilt, Uniform
from polydistill.diagnostics import (
    EVERYTHING,
    NO_TASK,
    Drift,
    conflict,
    mean_weights,
    realised_modulus,
    sampled_conflict,
    summarise,
)
from polydistill.logprobs import UNKNOWN, Head, HiddenStates, Positions, Statistics
from polydistill.objective import ForwardKL, Outcome, distil

TEACHERS = ("a", "b", "c")


def statistics_of(n: int, teachers: int = 3, seed: int = 0, severity: torch.Tensor | None = None) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    has_loss = torch.rand(n, generator=generator) < 0.7
    has_loss[0] = True
    positions = Positions.of(
        torch.zeros(n, dtype=torch.long),
        has_loss,
        has_target=torch.ones(n, dtype=torch.bool),
        task=torch.randint(-1, 2, (n,), generator=generator),
        severity=severity,
    )
    return Statistics(
        positions=positions,
        label_log_prob=-5 * torch.rand(n, teachers, generator=generator),
        entropy=4 * torch.rand(n, teachers, generator=generator),
        distance_to_pool=torch.rand(n, teachers, generator=generator),
    )


def outcome_of(statistics: Statistics, log_w: torch.Tensor) -> Outcome:
    zero = torch.zeros(len(log_w))
    return Outcome(torch.zeros(()), int(statistics.positions.has_loss.sum()), log_w, zero, zero, statistics)


def decided(pipeline: Pipeline, statistics: Statistics) -> Outcome:
    return outcome_of(statistics, pipeline.decide(statistics, None)[0])


@pytest.fixture
def stack() -> Pipeline:
    weighting = PrefixPosterior(0.02) * Softmax(2.0)(Entropy(spread=4))
    return Pipeline.of(weighting, TEACHERS, ("t0", "t1"), floor=0.03, safety=Tilt({"c": 1.0}, strength=3.0))


def test_the_summary_equals_loops_over_positions(stack):
    statistics = statistics_of(97, severity=torch.linspace(0, 1, 97))
    outcome = decided(stack, statistics)
    found = summarise(outcome, stack)
    rows = [i for i in range(97) if statistics.positions.has_loss[i]]
    w = [[math.exp(x) for x in outcome.log_w[i].double().tolist()] for i in rows]
    osc = [math.log(max(row) / min(row)) for row in w]
    assert found["effective_teachers"] == pytest.approx(
        sum(math.exp(-sum(x * math.log(x) for x in row)) for row in w) / len(w), rel=1e-5
    )
    assert found["largest_weight"] == pytest.approx(sum(map(max, w)) / len(w), rel=1e-5)
    assert found["least_mean_weight"] == pytest.approx(
        min(sum(row[k] for row in w) / len(w) for k in range(3)), rel=1e-5
    )
    assert found["range_realised"] == pytest.approx(max(osc), rel=1e-5)
    assert found["range_used"] == pytest.approx(max(osc) / stack.guarantee().range, rel=1e-5)
    assert found["disagreement"] == pytest.approx(statistics.distance_to_pool[rows].mean().item(), rel=1e-5)
    labels = statistics.label_log_prob[rows]
    assert found["likelihood_spread"] == pytest.approx(
        sum((row.max() - row.min()).item() for row in labels) / len(rows), rel=1e-5
    )
    severe = [(row, s) for row, s in zip(w, statistics.positions.severity[rows].tolist(), strict=True) if s > 0]
    inverted = sum(row[2] < max(row[:2]) * (1 - 1e-5) for row, _ in severe) / len(severe)
    assert found["order_inverted"] == pytest.approx(inverted, abs=1e-6)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found.values())


def test_conforming_weights_have_no_residuals(stack):
    found = summarise(decided(stack, statistics_of(200, severity=torch.ones(200))), stack)
    assert found["normalisation_error"] < 1e-5
    assert found["range_used"] <= 1 + 1e-6
    assert found["modulus_used"] <= 1 + 1e-5


def test_weights_that_break_axioms_are_seen():
    pipeline = Pipeline.of(Softmax(2.0)(Entropy(spread=4)), TEACHERS, safety=Tilt({"c": 1.0}, strength=3.0))
    statistics = statistics_of(50, severity=torch.ones(50))
    log_w = torch.tensor([8.0, 0.0, -1.0]).log_softmax(-1).expand(50, 3) + 1e-2
    found = summarise(outcome_of(statistics, log_w), pipeline)
    assert found["normalisation_error"] == pytest.approx(math.expm1(1e-2), rel=1e-3)
    assert found["range_used"] == pytest.approx(9.0 / 5.0)
    assert found["order_inverted"] == 1.0
    assert found["order_residual"] == pytest.approx(9.0, rel=1e-5)


def test_order_is_not_judged_where_it_is_not_promised(stack):
    statistics = statistics_of(50, severity=torch.ones(50))
    assert stack.ordered_from() > 1
    found = summarise(decided(stack, statistics), stack)
    assert "order_residual" not in found
    without = Pipeline.of(Uniform(), TEACHERS)
    assert "order_inverted" not in summarise(decided(without, statistics), without)


def test_teachers_of_one_tier_are_never_inverted():
    pipeline = Pipeline.of(Softmax(1.0)(Entropy()), TEACHERS, safety=Tilt({"b": 1.0, "c": 1.0}, strength=50.0))
    statistics = statistics_of(100, severity=torch.ones(100))
    found = summarise(decided(pipeline, statistics), pipeline)
    assert found["order_inverted"] == 0.0
    assert found["order_residual"] == 0.0


def test_saturation_is_seen_at_the_floor_and_at_the_ceiling():
    pipeline = Pipeline.of(Softmax(1.0)(Entropy(spread=2)), ("a", "b"))
    statistics = statistics_of(4, teachers=2)
    statistics.positions.has_loss.fill_(True)
    promised = pipeline.guarantee()
    ends = torch.tensor([promised.ceiling, promised.floor]).log()
    middle = torch.tensor([0.5, 0.5]).log()
    found = summarise(outcome_of(statistics, torch.stack([ends, middle, middle, middle])), pipeline)
    assert (found["at_floor"], found["at_ceiling"]) == (0.25, 0.25)


def test_constant_weights_are_not_called_saturated():
    pipeline = Pipeline.of(Uniform(), TEACHERS)
    found = summarise(decided(pipeline, statistics_of(20)), pipeline)
    assert (found["at_floor"], found["at_ceiling"]) == (0.0, 0.0)
    assert found["effective_teachers"] == pytest.approx(3.0)
    assert "range_used" not in found
    assert "modulus_used" not in found


def test_a_teacher_that_is_hardly_ever_trusted_is_starved():
    pipeline = Pipeline.of(Softmax(1.0)(Entropy()), TEACHERS)
    statistics = statistics_of(300)
    log_w = torch.tensor([0.6, 0.39, 0.01]).log().expand(300, 3)
    assert summarise(outcome_of(statistics, log_w), pipeline)["starved_teachers"] == 1.0


def test_one_teacher_alone_has_nothing_to_diagnose():
    pipeline = Pipeline.of(PrefixPosterior() * Softmax(2.0)(Entropy()), ("a",))
    found = summarise(decided(pipeline, statistics_of(20, teachers=1)), pipeline)
    assert found["effective_teachers"] == pytest.approx(1.0)
    assert found["at_floor"] == found["at_ceiling"] == found["range_realised"] == 0.0


def test_a_batch_without_loss_gives_nothing(stack):
    statistics = statistics_of(10)
    statistics.positions.has_loss.fill_(False)
    outcome = decided(stack, statistics)
    assert summarise(outcome, stack) == {}
    assert mean_weights(outcome, stack) == {}


def test_mean_weights_are_means_over_the_tasks_positions(stack):
    statistics = statistics_of(120)
    outcome = decided(stack, statistics)
    found = mean_weights(outcome, stack)
    assert list(found) == ["t0", "t1", NO_TASK]
    for index, task in ((0, "t0"), (1, "t1"), (UNKNOWN, NO_TASK)):
        rows = statistics.positions.has_loss & (statistics.positions.task == index)
        for k, teacher in enumerate(TEACHERS):
            assert found[task][teacher] == pytest.approx(outcome.log_w[rows].exp()[:, k].mean().item(), rel=1e-5)


def test_a_softmax_realises_all_of_its_modulus_where_nothing_clips():
    pipeline = Pipeline.of(Softmax(0.5)(Entropy(spread=100)), TEACHERS)
    statistics = statistics_of(64)
    assert realised_modulus(statistics, pipeline, pipeline.guarantee()).item() == pytest.approx(1.0, rel=1e-3)


def test_looking_at_the_modulus_leaves_random_numbers_as_they_were(stack):
    state = torch.get_rng_state()
    summarise(decided(stack, statistics_of(64)), stack)
    assert torch.equal(state, torch.get_rng_state())


def test_a_rule_that_promises_nothing_has_no_share_of_a_promise():
    pipeline = Pipeline.of(lambda evidence: evidence.softmax(-1), TEACHERS)
    found = summarise(decided(pipeline, statistics_of(64)), pipeline)
    assert "modulus_used" not in found
    assert "range_used" not in found


def test_vetoed_teachers_do_not_count_as_range():
    pipeline = Pipeline.of(TaskPrior({"t0": {"a": 1.0, "b": 1.0, "c": 0.0}}), TEACHERS, ("t0",))
    statistics = statistics_of(40)
    statistics.positions.task.fill_(0)
    found = summarise(decided(pipeline, statistics), pipeline)
    assert found["range_realised"] == pytest.approx(0.0, abs=1e-6)
    assert found["effective_teachers"] == pytest.approx(2.0)


def test_conflict_is_a_negative_inner_product_of_logit_gradients():
    q = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1]])
    p = torch.tensor([[[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]], [[0.1, 0.8, 0.1], [0.1, 0.7, 0.2]]])
    assert conflict(p, q).tolist() == [1.0, 0.0]
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(200, 3, 6, generator=generator).softmax(-1)
    q = torch.randn(200, 6, generator=generator).softmax(-1)
    for row, found in enumerate(conflict(p, q).tolist()):
        pulls = [q[row] - p[row, k] for k in range(3)]
        assert found == float(any(torch.dot(pulls[i], pulls[j]) < 0 for i in range(3) for j in range(i)))


def test_sampled_conflict_is_that_of_the_models_on_evenly_spaced_positions():
    generator = torch.Generator().manual_seed(1)
    head = Head(torch.randn(11, 4, generator=generator))
    hidden = torch.randn(50, 4, generator=generator)
    outputs = [HiddenStates(torch.randn(50, 4, generator=generator), head) for _ in range(3)]
    has_loss = torch.arange(50) % 5 != 0
    rows = has_loss.nonzero().squeeze(1)[::4]
    p = torch.stack([head.logits(s.hidden[rows]).softmax(-1) for s in outputs], 1)
    expected = conflict(p, head.logits(hidden[rows]).softmax(-1)).mean()
    assert sampled_conflict(hidden, head, outputs, has_loss, sample=10) == pytest.approx(expected.item())
    assert sampled_conflict(hidden, head, outputs, torch.zeros(50, dtype=torch.bool)).isnan()


def test_drift_adds_up_the_l1_distances_and_survives_a_checkpoint():
    generator = torch.Generator().manual_seed(2)
    path = [torch.randn(7, 3, generator=generator).log_softmax(-1) for _ in range(4)]
    drift = Drift(7, 3)
    assert drift.update(path[0]).item() == 0.0
    drift.update(path[1])
    resumed = Drift(7, 3)
    resumed.load_state_dict(drift.state_dict())
    for log_w in path[2:]:
        resumed.update(log_w)
    expected = sum((a.exp() - b.exp()).abs().sum(-1).mean().item() for a, b in itertools.pairwise(path))
    assert resumed.total.item() == pytest.approx(expected, rel=1e-5)
    resumed.reset()
    assert resumed.update(path[0]).item() == 0.0
    assert resumed.total.item() == 0.0


class _CountTransfers(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.scalars = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.scalars += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_number_of_transfers_does_not_grow_with_the_positions(stack):
    counts = []
    for n in (300, 3000):
        outcome = decided(stack, statistics_of(n, severity=torch.ones(n)))
        with _CountTransfers() as counter:
            summarise(outcome, stack)
            mean_weights(outcome, stack)
        counts.append(counter.scalars)
    assert counts[0] == counts[1]


def test_an_outcome_of_the_objective_can_be_summarised(stack):
    generator = torch.Generator().manual_seed(3)
    head = Head(torch.randn(17, 6, generator=generator))
    hidden = torch.randn(40, 6, generator=generator)
    outputs = [HiddenStates(torch.randn(40, 6, generator=generator), head) for _ in TEACHERS]
    positions = Positions.of(torch.randint(17, (40,), generator=generator), torch.ones(40, dtype=torch.bool))
    outcome = distil(hidden, head, outputs, positions, stack.decide, ForwardKL(), needs=stack.stack.needs)
    found = summarise(outcome, stack, stack.guarantee())
    assert 1 <= found["effective_teachers"] <= 3
    assert set(mean_weights(outcome, stack)) == {NO_TASK}
    without_tasks = Pipeline.of(Uniform(), TEACHERS)
    assert set(mean_weights(outcome, without_tasks)) == {EVERYTHING}
