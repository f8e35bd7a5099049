"""`distil` beside its twin in double precision: the same call of both, and how far apart they may be."""

import reference
import torch

from polydistill.logprobs import STATISTICS, Head
from polydistill.objective import ReverseKL, distil
from polydistill.pipeline import Pipeline
from polydistill.weighting import PrefixPosterior, Softmax
from polydistill.weighting.signals import Entropy, LabelLikelihood

ALL = frozenset(STATISTICS)
NAMES = "abcdefghijklmnop"
STACK = PrefixPosterior(0.1) * Softmax(2.0)(Entropy(spread=3)) * Softmax(3.0)(LabelLikelihood(spread=4))


def pipeline(teachers, stack=STACK, **options):
    return Pipeline.of(stack, list(NAMES[:teachers]), ["t", "u"], **options)


def rows_per_chunk(vocabulary, teachers, rows):
    """The byte budget at which a chunk has that many rows (never fewer than 128)."""
    return rows * 4 * vocabulary * (teachers + 3)


def trained(student, head):
    """Leaves that require gradients, in the place of `student` and `head`."""
    bias = None if head.bias is None else head.bias.clone().requires_grad_()
    weight = head.weight.clone().requires_grad_()
    return student.clone().requires_grad_(), Head(weight, bias, head.scale, head.softcap, head.visible)


def both(student, own, heard, where, bound, divergence, loss_bytes=None, needs=None):
    """Outcome and gradients, fast; and the twin's in double precision."""
    needs = bound.stack.needs if needs is None else needs
    h, top = trained(student, own)
    out = distil(h, top, heard, where, bound.decide, divergence, needs=needs, loss_bytes=loss_bytes)
    out.loss.backward()
    h2, top2 = trained(
        student.double(),
        Head(own.weight.double(), None if own.bias is None else own.bias.double(), own.scale, own.softcap, own.visible),
    )
    loss, per_position, ce, log_w, noticed = reference.distil(
        h2,
        top2,
        heard,
        where,
        lambda noticed: bound.decide(noticed, None)[0],
        needs,
        reverse=isinstance(divergence, ReverseKL),
        temperature=divergence.temperature,
        ce=divergence.ce,
        temperature_squared=divergence.temperature_squared,
    )
    loss.backward()
    fast = (out, h.grad, top.weight.grad, None if top.bias is None else top.bias.grad)
    slow = (
        loss.detach(),
        per_position,
        ce,
        log_w,
        noticed,
        h2.grad,
        top2.weight.grad,
        None if top2.bias is None else top2.bias.grad,
    )
    return fast, slow


def near(got, want, tolerance):
    assert torch.isfinite(got).all()
    size = max(1.0, float(want.abs().max())) if want.numel() else 1.0
    assert float((got.double() - want).abs().max() if want.numel() else 0.0) <= tolerance * size


def agree(fast, slow, tolerance):
    out, d_hidden, d_weight, d_bias = fast
    loss, per_position, ce, log_w, noticed, t_hidden, t_weight, t_bias = slow
    near(out.loss.detach(), loss, tolerance)
    near(out.divergence, per_position, tolerance)
    near(out.cross_entropy, ce, tolerance)
    near(out.log_w.exp(), log_w.exp(), tolerance)
    near(d_hidden, t_hidden, tolerance)
    near(d_weight, t_weight, tolerance)
    if t_bias is not None:
        near(d_bias, t_bias, tolerance)
    for (name, got), (_, want) in zip(out.statistics.measured(), noticed.measured(), strict=True):
        near(got, want, tolerance), name
