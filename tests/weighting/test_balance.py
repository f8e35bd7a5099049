"""Tasks whose log-ratios vary too much are calmed, those that vary too little sharpened, within a factor of four."""

import cases
import pytest
import torch

from polydistill.certification import certify
from polydistill.logprobs import Positions, Statistics
from polydistill.simplex import power
from polydistill.weighting import Balanced, Softmax
from polydistill.weighting.signals import Entropy

NAMES, TASKS = ("a", "b", "c"), ("loud", "quiet", "unseen")


def heard(scales=(2.0, 0.5), n=400):
    g = torch.Generator().manual_seed(0)
    task = torch.arange(n) % 2
    entropy = (
        torch.randn(n, 3, generator=g, dtype=torch.float64) * torch.tensor(scales, dtype=torch.float64)[task, None]
    )
    positions = Positions.of(torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool), task=task)
    return Statistics(positions, torch.zeros_like(entropy), entropy=entropy)


def taught(scales=(2.0, 0.5)):
    operator = Balanced(Softmax(1.0)(Entropy(spread=100))).bind(NAMES, TASKS)
    operator.observe(heard(scales))
    operator.commit()
    return operator


def test_the_power_is_the_ratio_of_the_spreads():
    overall = ((2.0**2 + 0.5**2) / 2) ** 0.5
    expected = torch.tensor([overall / 2.0, overall / 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(taught().powers(), expected, rtol=0.1, atol=0.0)


def test_the_power_stays_between_a_quarter_and_four():
    powers = taught((1000.0, 1e-3)).powers()
    assert powers.min() >= 0.25
    assert powers[1] == 4.0


def test_afterwards_the_tasks_vary_alike():
    statistics = heard()
    log_w = taught()(statistics)[0]
    ratios = log_w - log_w.mean(-1, keepdim=True)
    loud, quiet = (ratios[statistics.positions.task == j].std() for j in range(2))
    assert (loud / quiet).item() == pytest.approx(1.0, rel=0.05)


def test_positions_without_a_task_and_unseen_tasks_are_left_alone():
    operator, statistics = taught(), heard()
    statistics.positions.task[:] = torch.tensor([-1, 2]).repeat(200)
    torch.testing.assert_close(operator(statistics)[0], operator.base(statistics)[0])


def test_nothing_moves_before_the_end_of_the_step_or_in_evaluation():
    operator = Balanced(Softmax(1.0)(Entropy())).bind(NAMES, TASKS)
    before = operator(heard())[0]
    operator.observe(heard())
    torch.testing.assert_close(operator(heard())[0], before)
    operator.commit()
    moved = operator(heard())[0]
    assert not torch.allclose(moved, before)
    torch.testing.assert_close(operator(heard())[0], moved)


def test_state_is_in_the_state_dict_and_reset_forgets():
    operator = taught()
    other = Balanced(Softmax(1.0)(Entropy(spread=100))).bind(NAMES, TASKS)
    other.load_state_dict(operator.state_dict())
    torch.testing.assert_close(other.powers(), operator.powers())
    other.reset()
    assert other.powers().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.slow
def test_the_guarantee_is_the_bases_to_the_power_four_and_holds_after_learning():
    operator = taught((1000.0, 1e-3))
    base = operator.base.guarantee()
    assert operator.guarantee().range == 4 * base.range
    certificate = certify(operator, effort=0.03)
    assert certificate.exit_ok, str(certificate)
    assert certificate.finding("B").tightness == pytest.approx(1.0)
    statistics = cases.statistics(4, 3)
    statistics.positions.task[:] = 1
    torch.testing.assert_close(operator(statistics)[0], power(operator.base(statistics)[0], 4.0))
