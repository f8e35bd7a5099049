"""Dual ascent: the same as cooper's on problems whose optimum is known, and honest about the others."""

import cooper
import pytest
import torch
from cooper.optim import nuPI
from cooper.optim.torch_optimizers.nupi_optimizer import nuPIInitType

from polydistill.safety import Controller, Dual

PLAIN = {"clip": 1e9, "most": 1e9, "window": 10}


def problem_losses(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`min (x0 - 2)^2 + 2 (x1 - 1)^2` subject to `x0 + x1 <= 1` and `x0 - x1 <= 0.5`.

    With both active x = (3/4, 1/4) and the multipliers solve `2 (x0 - 2) = -l1 - l2`, `4 (x1 - 1) = -l1 + l2`.
    """
    loss = (x[0] - 2.0) ** 2 + 2.0 * (x[1] - 1.0) ** 2
    return loss, torch.stack([x[0] + x[1] - 1.0, x[0] - x[1] - 0.5])


def solution() -> tuple[torch.Tensor, torch.Tensor]:
    """Multipliers must be >= 0, so the second constraint is slack: minimise on `x0 + x1 = 1`.

    `2 (x0 - 2) = 4 (x1 - 1)` with `x1 = 1 - x0` gives `x0 = 2/3`, `x1 = 1/3`, `l1 = 8/3`.
    """
    return torch.tensor([2.0, 1.0], dtype=torch.float64) / 3.0, torch.tensor([8.0 / 3.0, 0.0], dtype=torch.float64)


def ours(steps: int, controller: Controller, rate: float = 0.02) -> tuple[list[torch.Tensor], Dual, torch.Tensor]:
    x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    dual = Dual(["sum", "difference"], [0.0, 0.0], [1.0, 1.0], controller)
    path = []
    for _ in range(steps):
        loss, violation = problem_losses(x)
        total = loss + (dual.mu * violation).sum()
        (gradient,) = torch.autograd.grad(total, x)
        with torch.no_grad():
            x -= rate * gradient
        dual.observe(violation, torch.ones(2))
        dual.commit()
        path.append(torch.cat([x.detach().clone(), dual.mu.clone()]))
    return path, dual, x.detach()


def coopers(steps: int, kp: float, ki: float, nu: float, rate: float = 0.02) -> list[torch.Tensor]:
    x = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    multiplier = cooper.multipliers.DenseMultiplier(init=torch.zeros(2, dtype=torch.float64))
    multiplier.double()

    class Problem(cooper.ConstrainedMinimizationProblem):
        def __init__(self) -> None:
            super().__init__()
            self.both = cooper.Constraint(
                constraint_type=cooper.ConstraintType.INEQUALITY,
                formulation_type=cooper.formulations.Lagrangian,
                multiplier=multiplier,
            )

        def compute_cmp_state(self, x: torch.Tensor) -> cooper.CMPState:
            loss, violation = problem_losses(x)
            return cooper.CMPState(
                loss=loss, observed_constraints={self.both: cooper.ConstraintState(violation=violation)}
            )

    problem = Problem()
    optimizer = cooper.optim.SimultaneousOptimizer(
        cmp=problem,
        primal_optimizers=torch.optim.SGD([x], lr=rate),
        dual_optimizers=nuPI(
            multiplier.parameters(),
            lr=1.0,
            Kp=torch.tensor(kp, dtype=torch.float64),  # a number would be turned into single precision
            Ki=torch.tensor(ki, dtype=torch.float64),
            ema_nu=nu,
            init_type=nuPIInitType.ZEROS,
            maximize=True,
        ),
    )
    path = []
    for _ in range(steps):
        optimizer.roll(compute_cmp_state_kwargs={"x": x})
        path.append(torch.cat([x.detach().clone(), multiplier.weight.detach().clone()]))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kp", "ki", "nu"), [(0.0, 0.05, 0.0), (0.5, 0.05, 0.9), (1.0, 0.1, 0.0)])
@pytest.mark.filterwarnings("ignore")
def test_every_step_equals_coopers(kp, ki, nu):
    mine, _, _ = ours(400, Controller(integral=ki, proportional=kp, smoothing=nu, **PLAIN))
    theirs = coopers(400, kp, ki, nu)
    worst = max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))
    assert worst < 1e-10, worst


@pytest.mark.slow
def test_the_known_optimum_and_its_multipliers_are_found():
    x, multipliers = solution()
    _, dual, found = ours(1200, Controller(integral=0.1, proportional=0.5, **PLAIN), rate=0.1)
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)
    torch.testing.assert_close(dual.mu, multipliers, atol=1e-5, rtol=0)
    first, second = dual.verdicts()
    assert first.slackness < 1e-5
    assert second.slackness < 1e-5
    assert first.movement < 1e-6
    assert first.met
    assert second.met


def test_before_anything_is_seen_multipliers_are_0_and_a_measured_nan_is_not_hidden():
    dual = Dual(["a", "b"], [0.1, 0.1], [1.0, 1.0], Controller())
    assert dual.multiplier.tolist() == [0.0, 0.0]
    dual.observe(torch.tensor([0.5, float("nan")]), torch.ones(2))
    dual.commit()
    assert torch.isfinite(dual.multiplier[0])
    assert torch.isnan(dual.multiplier[1])


@pytest.mark.slow
def test_what_the_dual_reads_may_differ_from_what_the_student_descends():
    """Rate constraint: the dual reads a step function without gradient, the student descends a smooth surrogate."""
    x = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
    thresholds = torch.linspace(-1, 1, 41, dtype=torch.float64)
    dual = Dual(["rate"], [0.25], [0.25], Controller(integral=0.01, proportional=0.1, window=20))
    for _ in range(2000):
        smooth = torch.sigmoid(4 * (x - thresholds)).mean()
        loss = (x - 1.0) ** 2 + dual.multiplier[0] * smooth
        (gradient,) = torch.autograd.grad(loss, x)
        with torch.no_grad():
            x -= 0.01 * gradient
        hard = (x.detach() > thresholds).double()
        dual.observe(hard.sum()[None], torch.tensor([float(len(hard))]))
        dual.commit()
    (verdict,) = dual.verdicts()
    assert verdict.met
    assert verdict.value == pytest.approx(0.25, abs=0.03)


@pytest.mark.slow
def test_an_impossible_constraint_is_named_and_not_chased_for_ever():
    """`|x| <= -1` cannot be met; the best attainable value is 0."""
    x = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    dual = Dual(["impossible", "easy"], [-1.0, 5.0], [1.0, 1.0], Controller(integral=0.05, window=20, patience=50))
    dual.observe_safest(torch.tensor([3.0, 3.0]), torch.tensor([10.0, 10.0]))
    path = []
    for _ in range(1500):
        value = x**2
        (gradient,) = torch.autograd.grad((x - 2.0) ** 2 + dual.multiplier[0] * value, x)
        with torch.no_grad():
            x -= 0.02 * gradient / (1 + float(dual.multiplier[0]))
        dual.observe(value.detach().expand(2), torch.ones(2))
        dual.commit()
        path.append(float(dual.mu[0]))
    verdict, easy = dual.verdicts()
    assert verdict.infeasible
    assert not verdict.met
    assert path[-1] == path[-200], "the multiplier rests"
    assert verdict.best == pytest.approx(0.0, abs=0.05)
    assert "cannot be met here" in verdict.says()
    assert "the safest teacher does not meet it either" in verdict.says()
    assert easy.met
    assert not easy.infeasible
    assert easy.multiplier == 0.0


def test_state_goes_on_bitwise_and_reset_forgets():
    torch.manual_seed(0)
    controller = Controller(window=5, patience=3)
    first, second = (Dual(["a", "b"], [0.1, 0.2], [0.1, 0.2], controller) for _ in range(2))
    noise = torch.rand(40, 2, dtype=torch.float64)
    for row in noise[:20]:
        first.observe(row, torch.ones(2))
        first.commit()
    second.load_state_dict(first.state_dict())
    for row in noise[20:]:
        for dual in (first, second):
            dual.observe(row, torch.ones(2))
            dual.commit()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    first.reset()
    assert float(first.mu.sum()) == 0.0
    assert first.verdicts()[0].says().endswith("nothing that it is about was seen")


def test_a_step_without_critical_text_moves_nothing():
    dual = Dual(["a"], [0.1], [0.1], Controller())
    dual.observe(torch.tensor([0.5]), torch.tensor([1.0]))
    dual.commit()
    before = {k: v.clone() for k, v in dual.state_dict().items()}
    dual.commit()
    for name, value in dual.state_dict().items():
        torch.testing.assert_close(value, before[name], equal_nan=True)


@pytest.mark.parametrize("options", [{"integral": 0}, {"smoothing": 1.0}, {"clip": 0}, {"window": 0}])
def test_gains_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="the dual"):
        Controller(**options)


def test_a_step_that_is_left_out_takes_its_own_sums_and_not_what_the_safest_teacher_was_found_to_be():
    dual = Dual(["harm"], [0.1], [1.0], Controller())
    one = torch.ones(1, dtype=torch.float64)
    dual.observe_safest(0.2 * one, one)
    dual.observe(5 * one, one)
    dual.discard()
    dual.commit()
    assert float(dual.mu) == 0.0
    assert dual.verdicts()[0].safest == pytest.approx(0.2)
