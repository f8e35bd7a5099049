"""Operators that nobody of this project wrote, each with one hidden flaw."""

import torch


def slab(evidence):
    """A jump in a slab of evidence 0.05 nat wide."""
    log_w = torch.log_softmax(evidence.clamp(-6, 6) / 2, -1)
    gap = evidence[..., 0] - evidence[..., -1]
    inside = (gap > 1.31) & (gap < 1.36)
    return torch.where(inside[..., None], log_w.flip(-1), log_w)


def faint_slab(evidence):
    """The same along one teacher, of 0.1 nat only, in weights."""
    clipped = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 4)
    inside = (evidence[..., 1:2] > 7.31) & (evidence[..., 1:2] < 7.36)
    return torch.softmax(clipped + 0.1 * inside * torch.arange(evidence.shape[-1]), -1)


def only_five(evidence, severity):
    """Keeps the safety order, except for five teachers."""
    teachers = evidence.shape[-1]
    sigma = torch.linspace(0, 1, teachers, dtype=evidence.dtype)
    sigma = sigma[[0, 1, 3, 2, 4]] if teachers == 5 else sigma
    clipped = torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 1)
    return torch.log_softmax(clipped + 100 * severity[..., None] * sigma, -1)


def steep_corner(evidence):
    """A modulus that blows up near one-hot evidence."""
    inside = evidence.clamp(0, 1)
    left = 1 - (inside.amax(-1, keepdim=True) - inside.amin(-1, keepdim=True))
    return torch.log_softmax(inside * (left + 1e-14).sqrt(), -1)


def heavy(evidence):
    """Sums to 1 + 1e-4."""
    return torch.softmax(evidence.clamp(-3, 3), -1) * (1 + 1e-4)


def sound(evidence):
    """A softmax of evidence clipped to a spread of 3 nats: no flaw."""
    return torch.softmax(torch.maximum(evidence, evidence.amax(-1, keepdim=True) - 3), -1)


FLAWS = {slab: {"C"}, faint_slab: {"C"}, only_five: {"O1", "O2"}, steep_corner: {"C"}, heavy: {"N"}}
