"""The point-wise passes over a tile of rows: everything that is done to a vocabulary's worth of numbers.

Plain PyTorch; a kernel runs them as they are, or compiled. No pass overwrites what it reads.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.objective.divergence import FLOOR, Divergence


class Kept(NamedTuple):
    """What a tile's teachers have left until their weights are known.

    Attributes:
        values: exponentials of the tempered logits less their largest, or those themselves.
        log_z: log-normalisers of the values.
        entropy: at the divergence's temperature, nats.
    """

    values: Float[Tensor, "K n V"]
    log_z: Float[Tensor, "n K"]
    entropy: Float[Tensor, "n K"]


def normaliser(
    logits: Float[Tensor, "n V"], label: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`log p(label)` and `log max p`; for positions that carry evidence and no loss."""
    top, silent = logits.amax(-1, keepdim=True), 0.0 * logits.amin(-1)
    chosen = (logits.gather(1, label[:, None]) - top).squeeze(1)
    log_s = (logits - top).clamp_min_(FLOOR[logits.dtype]).exp_().sum(-1).log()
    return chosen - log_s, silent - log_s


def read_rows(
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


def pull(
    divergence: Divergence,
    shaping: tuple[float, float | None],
    logits: Float[Tensor, "n V"],
    log_z: Float[Tensor, " n"] | None,
    kept: Kept,
    log_w: Float[Tensor, "n K"],
    label: Int[Tensor, " n"],
    gradient: Float[Tensor, "n V"] | None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Divergence and cross-entropy of a tile.

    Args:
        divergence: what we learn.
        shaping: the head's scale and soft cap, through which the gradient goes back.
        logits: student's, or its log-probabilities.
        log_z: what was subtracted from the logits, if anything was.
        kept: teachers.
        log_w: weights.
        label: next tokens.
        gradient: where the gradient with respect to `h W^T + b` is written; None if it is not wanted.
    """
    scale, softcap = shaping
    slope = None
    if gradient is not None and softcap is not None:
        raw = logits if log_z is None else logits + log_z[:, None]
        slope = 1.0 - (raw / softcap) ** 2
    wanted = gradient is not None
    point = divergence.evaluate(logits, kept.values, kept.entropy, log_w, label, wanted, kept.log_z)
    if gradient is not None and point.gradient is not None:
        if slope is not None:
            point.gradient.mul_(slope)
        if scale != 1.0:
            point.gradient.mul_(scale)
        gradient.copy_(point.gradient)
    return point.divergence, point.cross_entropy
