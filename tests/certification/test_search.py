import torch

from polydistill.certification import certify
from polydistill.certification.search import jumps


def test_bisection_closes_in_on_the_jump():
    def rule(x):
        return torch.log_softmax(torch.where(x[:, :1] > 0.3, x.flip(-1), x), -1)

    base, along = torch.tensor([[0.0, 2.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    left, right, _, _ = jumps(rule, base, along, torch.arange(-4.0, 4.01, 0.25, dtype=torch.float64), keep=1)
    assert left[0, 0] <= 0.3 < right[0, 0]
    assert right[0, 0] - left[0, 0] < 1e-10


def test_a_jump_is_shown_rather_than_a_steep_place():
    def rule(evidence):
        return torch.softmax((2e3 * evidence).clamp(-1, 1) + 0.5 * (evidence > 3.3), -1)

    witness = certify(rule, teachers=2, effort=0.02).finding("C").witness
    first, second = (torch.tensor(witness.inputs[end], dtype=torch.float64) for end in ("first", "second"))
    apart = (torch.log(rule(first)) - torch.log(rule(second))).diff().abs().max()
    assert (first - second).abs().max() < 1e-3
    assert apart > 0.4
    assert ((first > 3.3) != (second > 3.3)).any()
