"""The point-wise passes over a tile of rows: everything that is done to a vocabulary's worth of numbers.

Plain PyTorch. Each function is run on tiles by an `Engine`, as it is or compiled.

Denormals: a teacher that is sure of itself makes probabilities below 1e-38, on which a CPU is ten times slower, here
and in every later product. Exponents are therefore clamped where they are formed, `exp(max(x, FLOOR))`: the
probability that this adds is `V e^FLOOR`, 1e-21 in float32, far below its rounding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = {torch.float32: -60.0, torch.float64: -600.0}
"""Smallest log-ratio to the largest entry of a row; its exponential times a weight of 1e-10 is still normal."""


def normaliser(
    logits: Float[Tensor, "n V"], label: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`log p(label)` and `log max p`; for positions that carry evidence and no loss."""
    top, silent = logits.amax(-1, keepdim=True), 0.0 * logits.amin(-1)
    chosen = (logits.gather(1, label[:, None]) - top).squeeze(1)
    log_s = (logits - top).clamp_min_(FLOOR[logits.dtype]).exp_().sum(-1).log()
    return chosen - log_s, silent - log_s


def notice(
    logits: Float[Tensor, "n V"],
    label: Int[Tensor, " n"],
    temperature: float,
    keeps_log: bool,
    kept: Float[Tensor, "n V"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Label log-probability, log of the maximum, entropy at temperature 1; entropy and log-normaliser at `temperature`.

    Writes `exp((logits - max) / T)`, or `(logits - max) / T` if `keeps_log`, into `kept`; dividing by the normaliser
    would be one more pass, and is folded into the weights later. The logits are left alone: a compiled pass that
    overwrote what it reads would make a copy first. Where a logit is NaN or infinite, the log of the maximum is NaN:
    minus infinity, which the sum would hide, is caught by `0 * minimum`.
    """
    floor = FLOOR[logits.dtype]
    top, silent = logits.amax(-1, keepdim=True), 0.0 * logits.amin(-1)
    chosen = (logits.gather(1, label[:, None]) - top).squeeze(1)
    if temperature != 1.0:
        below = (logits - top).clamp_min_(floor)
        risen = below.exp()
        total = risen.sum(-1)
        log_s = total.log()
        entropy = log_s - risen.mul_(below).sum(-1) / total
    below = (logits - top).mul_(1.0 / temperature) if temperature != 1.0 else logits - top
    if keeps_log:
        kept.copy_(below)
        risen = below.clamp_min_(floor).exp()
    else:
        risen = torch.exp(below.clamp_min_(floor), out=kept)
    total = risen.sum(-1)
    log_t = total.log()
    tempered_entropy = log_t - below.mul_(risen).sum(-1) / total
    if temperature == 1.0:
        log_s, entropy = log_t, tempered_entropy
    return chosen - log_s, silent - log_s, entropy, tempered_entropy, log_t


def raised(log_q: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """`exp(log q)` without denormals."""
    return log_q.clamp_min(FLOOR[log_q.dtype]).exp_()
