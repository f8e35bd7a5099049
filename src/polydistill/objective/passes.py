"""The point-wise passes over a tile of rows: everything that is done to a vocabulary's worth of numbers.

Plain PyTorch, in place where the numbers are not needed again. Each function is run on tiles by an `Engine`, as it
is or compiled.

Denormals: a teacher that is sure of itself makes probabilities below 1e-38, on which a CPU is ten times slower, here
and in every later product. Exponents are therefore clamped where they are formed, `exp(max(x, FLOOR))`: the
probability that this adds is `V e^FLOOR`, 1e-21 in float32, far below its rounding.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

FLOOR = {torch.float32: -60.0, torch.float64: -600.0}
"""Smallest log-ratio to the largest entry of a row; its exponential times a weight of 1e-10 is still normal."""


def shape(logits: Float[Tensor, "n V"], bias: Float[Tensor, " V"] | None, scale: float, softcap: float | None) -> None:
    """`softcap tanh(scale (logits + bias) / softcap)`, in place."""
    if bias is not None:
        logits.add_(bias)
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)


def normaliser(
    logits: Float[Tensor, "n V"], label: Int[Tensor, " n"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """`log p(label)` and `log max p`; for positions that carry evidence and no loss. Overwrites the logits."""
    top, silent = logits.amax(-1, keepdim=True), 0.0 * logits.amin(-1)
    chosen = (logits.gather(1, label[:, None]) - top).squeeze(1)
    log_s = logits.sub_(top).clamp_min_(FLOOR[logits.dtype]).exp_().sum(-1).log()
    return chosen - log_s, silent - log_s


def notice(
    logits: Float[Tensor, "n V"], label: Int[Tensor, " n"], temperature: float, keeps_log: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Label log-probability, log of the maximum, entropy at temperature 1, and entropy at `temperature`.

    Overwrites the logits by the tempered probabilities, or log-probabilities if `keeps_log`. Where a logit is NaN or
    infinite, the log of the maximum is NaN: minus infinity, which the sum would hide, is caught by `0 * minimum`.
    """
    floor = FLOOR[logits.dtype]
    top, silent = logits.amax(-1, keepdim=True), 0.0 * logits.amin(-1)
    chosen = (logits.gather(1, label[:, None]) - top).squeeze(1)
    logits.sub_(top)
    below = logits.clamp_min(floor) if keeps_log else logits.clamp_min_(floor)
    p, log_s = softmax(below)
    if temperature == 1.0:
        entropy = tempered_entropy = log_s.squeeze(1) - (p * below).sum(-1)
        logits.copy_(logits - log_s if keeps_log else p)
    else:
        entropy = log_s.squeeze(1) - p.mul_(below).sum(-1)
        logits.mul_(1.0 / temperature)
        cooled = logits.clamp_min(floor)
        p, log_t = softmax(cooled)
        tempered_entropy = log_t.squeeze(1) - (p * cooled).sum(-1)
        logits.copy_(logits - log_t if keeps_log else p)
    log_s = log_s.squeeze(1)
    return chosen - log_s, silent - log_s, entropy, tempered_entropy


def softmax(below: Float[Tensor, "n V"]) -> tuple[Float[Tensor, "n V"], Float[Tensor, "n 1"]]:
    """Probabilities and `log sum exp` of rows whose largest entry is 0.

    The plain kernel does maximum, sum and division in one go and hides the sum, which is read off the largest
    probability; compiled, the sum is at hand and the second maximum would be a loop of its own.
    """
    if torch.compiler.is_compiling():
        raised = below.exp()
        total = raised.sum(-1, keepdim=True)
        return raised / total, total.log()
    p = below.softmax(-1)
    return p, -p.amax(-1, keepdim=True).log()


def raised(log_q: Float[Tensor, "n V"]) -> Float[Tensor, "n V"]:
    """`exp(log q)` without denormals."""
    return log_q.clamp_min(FLOOR[log_q.dtype]).exp_()
