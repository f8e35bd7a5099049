"""From the loss of a tile to the gradients of the student's hidden states and head, made while its logits exist."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.objective.divergence import Divergence


@dataclass(frozen=True)
class Gradients:
    """Of the student's hidden states, head weight and head bias, as far as they are wanted; filled chunk by chunk."""

    hidden: Float[Tensor, "N D"] | None
    weight: Float[Tensor, "rows D"] | None
    bias: Float[Tensor, " rows"] | None

    def add(
        self,
        gradient: Float[Tensor, "m V"],
        student: Float[Tensor, "m D"],
        head: Float[Tensor, "V D"],
        rows: Tensor | slice,
    ) -> None:
        """Take in the gradient with respect to the product `h W^T` of some rows."""
        compact, visible = gradient.to(student.dtype), gradient.shape[1]
        if self.hidden is not None:
            weight = head.to(student.dtype)
            if isinstance(rows, slice):
                torch.mm(compact, weight, out=self.hidden[rows])
            else:
                self.hidden[rows] = compact @ weight
        if self.weight is not None:
            part = self.weight[:visible]
            if part.dtype == compact.dtype:
                part.addmm_(compact.T, student)
            else:
                part += compact.T @ student
        if self.bias is not None:
            self.bias[:visible] += gradient.sum(0)


def pull(  # noqa: PLR0913
    divergence: Divergence,
    shaping: tuple[float, float | None],
    logits: Float[Tensor, "n V"],
    log_z: Float[Tensor, " n"] | None,
    kept: Float[Tensor, "K n V"],
    log_t: Float[Tensor, "n K"],
    entropy: Float[Tensor, "n K"],
    log_w: Float[Tensor, "n K"],
    label: Int[Tensor, " n"],
    with_gradient: bool,
    with_price: bool,
    gradient: Float[Tensor, "n V"],
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"], Float[Tensor, "n _"]]:
    """Divergence, cross-entropy and prices of a tile.

    Args:
        divergence: what we learn.
        shaping: the head's scale and soft cap, through which the gradient goes back.
        logits: student's, or its log-probabilities.
        log_z: what was subtracted from the logits, if anything was.
        kept: teachers.
        log_t: log-normaliser of what is kept.
        entropy: of the teachers.
        log_w: weights.
        label: next tokens.
        with_gradient: compute the gradient too.
        with_price: compute the prices too; no columns otherwise.
        gradient: where the gradient with respect to `h W^T + b` is written.
    """
    scale, softcap = shaping
    slope = None
    if with_gradient and softcap is not None:
        raw = logits if log_z is None else logits + log_z[:, None]
        slope = 1.0 - (raw / softcap) ** 2
    point = divergence.evaluate(logits, kept, entropy, log_w, label, with_gradient, with_price, log_t)
    if point.gradient is not None:
        if slope is not None:
            point.gradient.mul_(slope)
        if scale != 1.0:
            point.gradient.mul_(scale)
        gradient.copy_(point.gradient)
    price = entropy[:, :0] if point.price is None else point.price
    return point.divergence, point.cross_entropy, price
