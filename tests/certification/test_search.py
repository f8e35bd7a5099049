import torch

from polydistill.certification.search import jumps


def test_bisection_closes_in_on_the_jump():
    def rule(x):
        return torch.log_softmax(torch.where(x[:, :1] > 0.3, x.flip(-1), x), -1)

    base, along = torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    left, right, _ = jumps(rule, base, along, reach=4.0, step=0.25, keep=1)
    assert left[0, 0] <= 0.3 < right[0, 0]
    assert right[0, 0] - left[0, 0] < 1e-10
