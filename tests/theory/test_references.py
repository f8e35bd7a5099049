"""The reference algorithms of the theory room against slow, obvious twins."""

import pytest
import torch
from scipy.optimize import minimize

from polydistill.theory import surgery
from polydistill.theory.constraint import dual_ascent, infeasibility, known_dual
from polydistill.theory.cost import Counter
from polydistill.theory.descent import collinear, constant, network, sgd, softmax_regression


@pytest.fixture
def gradients() -> torch.Tensor:
    return torch.randn(20, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gramian(gradients: torch.Tensor) -> torch.Tensor:
    return gradients @ gradients.transpose(1, 2)


def combine(coefficients: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    return (coefficients[..., None] * gradients).sum(1)


def test_mgda_is_the_shortest_vector_of_the_hull(gradients: torch.Tensor) -> None:
    ours = combine(surgery.mgda(gramian(gradients)), gradients).norm(dim=-1)
    for mine, rows in zip(ours, gradients, strict=True):
        g = (rows @ rows.T).numpy()
        found = minimize(
            lambda c, g=g: float(c @ g @ c),
            [1 / 3] * 3,
            bounds=[(0, 1)] * 3,
            constraints=[{"type": "eq", "fun": lambda c: c.sum() - 1}],
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert float(mine) == pytest.approx(found.fun**0.5, abs=1e-6)


def test_upgrad_conflicts_with_no_gradient(gradients: torch.Tensor) -> None:
    direction = combine(surgery.upgrad(gramian(gradients)), gradients)
    assert ((gradients @ direction[..., None])[..., 0] > -1e-8).all()


def test_upgrad_of_agreeing_gradients_is_their_mean() -> None:
    rows = torch.rand(5, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(surgery.upgrad(gramian(rows)), torch.full((5, 3), 1 / 3, dtype=torch.float64))
    assert torch.allclose(surgery.pcgrad(gramian(rows)), torch.full((5, 3), 1 / 3, dtype=torch.float64))


def test_pcgrad_of_two_opposed_gradients_by_hand() -> None:
    rows = torch.tensor([[[1.0, 0.0], [-1.0, 1.0]]], dtype=torch.float64)
    # g1 - (-1/2) g2 = (1/2, 1/2); g2 - (-1) g1 = (0, 1); mean (1/4, 3/4)
    expected = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
    assert torch.allclose(combine(surgery.pcgrad(gramian(rows)), rows), expected)


def test_nash_solves_its_equation(gradients: torch.Tensor) -> None:
    g = gramian(gradients)
    c = surgery.nash_mtl(g)
    assert torch.allclose((g @ c[..., None])[..., 0], 1 / c, rtol=1e-6)


def test_imtl_g_projects_equally_on_all(gradients: torch.Tensor) -> None:
    c = surgery.imtl_g(gramian(gradients))
    direction = combine(c, gradients)
    onto = (gradients @ direction[..., None])[..., 0] / gradients.norm(dim=-1)
    assert torch.allclose(onto, onto[:, :1].expand_as(onto), atol=1e-6)
    assert torch.allclose(c.sum(-1), torch.ones(20, dtype=torch.float64))


def test_cagrad_stays_within_its_ball(gradients: torch.Tensor) -> None:
    direction, mean = combine(surgery.cagrad(gramian(gradients)), gradients), gradients.mean(1)
    assert torch.allclose((direction - mean).norm(dim=-1), 0.5 * mean.norm(dim=-1), rtol=1e-6)


@pytest.mark.parametrize("make", [softmax_regression, network, collinear])
def test_a_problems_gradient_is_autograds(make) -> None:
    generator = torch.Generator().manual_seed(2)
    problem = make(generator)
    theta = torch.randn(2, *problem.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    w = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64)
    (truth,) = torch.autograd.grad((w * problem.losses(theta)).sum(-1).mean(-1).sum(), theta)
    ours = torch.einsum("rnh,nd->rhd", problem.pulls(theta.detach(), w), problem.x) / len(problem.x)
    assert torch.allclose(ours, truth, atol=1e-10)


@pytest.mark.parametrize("make", [softmax_regression, network, collinear])
def test_a_problems_smoothness_bounds_its_hessian(make) -> None:
    generator = torch.Generator().manual_seed(3)
    problem = make(generator)
    w = torch.tensor([[[0.2, 0.2, 0.6]]], dtype=torch.float64)

    def loss(flat: torch.Tensor) -> torch.Tensor:
        return (w * problem.losses(flat.reshape(1, *problem.shape))).sum(-1).mean()

    for size in (0.1, 1.0, 3.0):
        point = size * torch.randn(problem.shape[0] * problem.shape[1], generator=generator, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(loss, point)
        assert float(torch.linalg.eigvalsh(hessian)[-1]) <= problem.smoothness + 1e-9


def test_descent_on_all_positions_never_raises_the_loss() -> None:
    problem = softmax_regression(torch.Generator().manual_seed(4))
    w = torch.full((1, 1, 3), 1 / 3, dtype=torch.float64)
    path = sgd(problem, constant(w), 1 / problem.smoothness, 50, torch.Generator().manual_seed(5), batch=None)
    assert (path.value[1:] <= path.value[:-1] + 1e-12).all()
    assert (path.drift, path.noise) == (0.0, 0.0)


def test_a_constraint_that_is_already_met_has_no_dual() -> None:
    p = torch.tensor([0.6, 0.4], dtype=torch.float64)
    run = dual_ascent(p[None], p[None, None], torch.tensor([[0.5]], dtype=torch.float64), 500)
    assert float(run.dual) == 0.0
    assert known_dual(p, p, 0.5) == 0.0
    assert torch.allclose(run.q[0], p, atol=1e-6)


def test_two_sure_teachers_cannot_both_be_matched() -> None:
    safe = torch.tensor([[0.99, 0.01], [0.01, 0.99]], dtype=torch.float64)
    assert infeasibility(torch.ones(2, dtype=torch.float64), safe, torch.full((2,), 0.1, dtype=torch.float64)) > 0


def test_a_matrix_product_costs_two_n_m_k() -> None:
    with Counter() as counter:
        torch.ones(3, 4) @ torch.ones(4, 5)
    assert counter.operations == 2 * 3 * 4 * 5 + 3 * 4 + 4 * 5
