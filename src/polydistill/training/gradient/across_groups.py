"""The loss in two groups, and the gradient that an aggregator makes of theirs.

`Labels` sets cross-entropy on labels against distillation, `Critical` sets critical contexts (and the constraints on
the student) against all others. Both gradients are taken of the student's parameters, one backward pass each, kept by
torchjd as a Jacobian of two rows over all micro-batches of a step, and combined when the step is whole: exact.

Coefficients are scaled to the sum 2, so that a method which changes nothing gives the plain loss; their own sum is
reported apart. They multiply losses of positions, never single teachers, and are not negative but for GradDrop, which
gives none: the weights of the teachers at a position, and their safety order, are what the pipeline decided.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.utils import logging

from polydistill.logprobs import Positions, Statistics
from polydistill.objective import Divergence, ForwardKL, Outcome
from polydistill.pipeline import Pipeline
from polydistill.training.gradient.across_teachers import GradientRefusedError, aggregator, seeded

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class LossPart:
    """One group: which positions carry its loss, and which divergence that is.

    Attributes:
        positions: all of the batch, with `has_loss` where this group has it.
        divergence: of the group.
        share: factor of its loss.
        labels_only: it does not listen to teachers, beyond one that the objective needs to be there.
    """

    positions: Positions
    divergence: Divergence
    share: float = 1.0
    labels_only: bool = False


@dataclass(frozen=True)
class Labels:
    """Distillation (with the constraints on the student), and cross-entropy on the labels."""

    names: ClassVar[tuple[str, str]] = ("distillation", "labels")

    def refuse(self, divergence: Divergence) -> None:
        """A loss of one group only.

        Raises:
            GradientRefusedError: there is no cross-entropy, or nothing but that.
        """
        if not 0.0 < divergence.ce < 1.0:
            raise GradientRefusedError(
                f"gradient across labels needs cross-entropy beside distillation: ce must lie strictly between 0 and "
                f"1, got {divergence.ce}"
            )

    def parts(self, positions: Positions, divergence: Divergence) -> list[LossPart]:
        """The two losses; their sum is the loss of `divergence`."""
        ce = divergence.ce
        return [
            LossPart(positions, replace(divergence, ce=0.0), 1.0 - ce),
            LossPart(positions, ForwardKL(ce=1.0), ce, labels_only=True),
        ]

    def effective(self, found: dict[str, float], divergence: Divergence) -> dict[str, float]:
        """The share of cross-entropy that the modified gradient amounts to."""
        teachers, labels = (found[f"gradient_coefficient_{name}"] for name in self.names)
        learned, told = (1.0 - divergence.ce) * teachers, divergence.ce * labels
        return {"gradient_share_labels": told / (learned + told)} if learned + told > 0.0 else {}

    def merge(self, outcomes: Sequence[Outcome], positions: Positions) -> Outcome:
        """The outcome of both together."""
        first, second = outcomes
        return replace(first, loss=first.loss + second.loss)


@dataclass(frozen=True)
class Critical:
    """Contexts of at least some severity (with the constraints on the student), and all others.

    Attributes:
        severity: from which a context is critical, in (0, 1].
    """

    severity: float = 0.5
    names: ClassVar[tuple[str, str]] = ("safety", "utility")

    def __post_init__(self) -> None:
        if not 0.0 < self.severity <= 1.0:
            raise ValueError(f"gradient: the critical severity must lie in (0, 1], got {self.severity}")

    def refuse(self, divergence: Divergence) -> None:
        """Every divergence will do."""

    def parts(self, positions: Positions, divergence: Divergence) -> list[LossPart]:
        """The same loss on two sets of positions."""
        critical = positions.severity >= self.severity
        return [
            LossPart(replace(positions, has_loss=positions.has_loss & critical), divergence),
            LossPart(replace(positions, has_loss=positions.has_loss & ~critical), divergence),
        ]

    def effective(self, found: dict[str, float], divergence: Divergence) -> dict[str, float]:
        """The coefficients say it all: 1 is the plain loss."""
        return {}

    def merge(self, outcomes: Sequence[Outcome], positions: Positions) -> Outcome:
        """Every position from the outcome in which it carried loss."""
        first, second = outcomes
        here = (positions.severity >= self.severity)[:, None]
        other = dict(second.statistics.measured())
        measured: dict[str, Any] = {
            name: torch.where(here, value, other[name]) for name, value in first.statistics.measured()
        }
        return replace(
            first,
            loss=first.loss + second.loss,
            count=first.count + second.count,
            log_w=torch.where(here, first.log_w, second.log_w),
            divergence=first.divergence + second.divergence,
            cross_entropy=first.cross_entropy + second.cross_entropy,
            statistics=Statistics(positions=positions, **measured),
        )


Split = Labels | Critical


@dataclass(frozen=True)
class AcrossGroups:
    """The two groups of a split, by one of torchjd's aggregators.

    Attributes:
        method: name in `METHODS`.
        split: the groups.

    >>> from polydistill.training.gradient.across_groups import AcrossGroups, Critical
    >>> AcrossGroups("upgrad", Critical(0.5)).split.names
    ('safety', 'utility')
    """

    method: str = "upgrad"
    split: Split = Labels()

    def __post_init__(self) -> None:
        aggregator(self.method, 2)

    def judge(self, pipeline: Pipeline, divergence: Any) -> list[str]:
        """What is to be said about the safety order.

        Raises:
            GradientRefusedError: the split does not fit the loss, or nothing would be left of a safety order.
        """
        self.split.refuse(divergence)
        if pipeline.safety is None:
            return []
        if self.method == "graddrop":
            raise GradientRefusedError(
                "gradient: GradDrop keeps or drops single coordinates: what the student then follows is no weighting "
                f"of its teachers, and the order of {pipeline.safety!r} can come out inverted; use another method, or "
                "no safety order"
            )
        said = (
            f"gradient modification ({self.method}) across {' and '.join(self.split.names)} leaves the weights of the "
            "teachers at a position, and their safety order, as they are; what it moves is how much the positions of "
            "either group count"
        )
        if isinstance(self.split, Critical):
            said += ", and it may make critical contexts count less than the plain loss does"
            logger.warning(said)
        return [said]


class Rows:
    """Gradients of the groups over the micro-batches of one optimizer step, combined at its end."""

    def __init__(self, across: AcrossGroups) -> None:
        self.across = across
        self.aggregator = aggregator(across.method, 2)

    def add(self, losses: Float[Tensor, " G"], parameters: Sequence[nn.Parameter]) -> None:
        """One backward pass for every group's loss.

        Args:
            losses: of a micro-batch, already divided as the whole step's loss is.
            parameters: that are trained.
        """
        from torchjd.autojac import backward

        backward(list(losses.unbind()), inputs=parameters, parallel_chunk_size=1)

    @torch.no_grad()
    def combine(self, parameters: Sequence[nn.Parameter], seed: int) -> dict[str, float]:
        """Put the modified gradient where the optimizer looks for it; what was done, for the log.

        Args:
            parameters: that are trained.
            seed: equal on all ranks.
        """
        from torchjd.aggregation import GramianWeightedAggregator
        from torchjd.autojac import jac_to_grad

        rows = [parameter.jac for parameter in parameters]  # type: ignore[attr-defined]
        _average(rows)
        flat = [row.flatten(1).float() for row in rows]
        gramian = torch.stack([(row @ row.T).double() for row in flat]).sum(0)
        plain = torch.ones(2, dtype=torch.float64, device=gramian.device)
        if float(gramian.diagonal().amin()) == 0.0:  # a group without positions in this step, or without a pull
            for parameter, row in zip(parameters, rows, strict=True):
                parameter.grad = row.sum(0)
                del parameter.jac  # type: ignore[attr-defined]
            return self._said(gramian, plain, plain)
        size = gramian.diagonal().mean().sqrt()
        for row in rows:
            row.div_(size.to(row))
        with seeded(seed, gramian.device):
            if isinstance(self.aggregator, GramianWeightedAggregator):  # without joining the rows
                given = jac_to_grad(parameters, self.aggregator, retain_jac=True, optimize_gramian_computation=True)
            else:
                given = jac_to_grad(parameters, self.aggregator, retain_jac=True)
        coefficients, residual = _fitted(parameters, rows) if given is None else (given.double(), 0.0)
        total = float(coefficients.sum())
        # GradDrop sums what it keeps, so its scale is the plain sum's already.
        scale = 2.0 / total if given is not None and total > 0.0 else 1.0
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(size.to(parameter.grad) * scale)
            del parameter.jac  # type: ignore[attr-defined]
        return {**self._said(gramian, coefficients * scale, coefficients), "gradient_residual": residual}

    def _said(self, gramian: Tensor, effective: Tensor, given: Tensor) -> dict[str, float]:
        names = self.across.split.names
        lengths = gramian.diagonal().sqrt()
        cosine = float(gramian[0, 1] / (lengths[0] * lengths[1]).clamp_min(1e-300))
        found = {f"gradient_coefficient_{name}": float(c) for name, c in zip(names, effective, strict=True)}
        return {**found, "gradient_cosine": cosine, "gradient_scale": float(given.sum())}


def refuse_unfit(trainer: Any) -> None:
    """Ways to train in which the gradient of a group is not a plain tensor.

    Raises:
        GradientRefusedError: naming it.
    """
    unfit = {
        "FSDP": trainer.is_fsdp_enabled,
        "DeepSpeed": trainer.is_deepspeed_enabled,
        "float16 with loss scaling": trainer.args.fp16,
        "several GPUs in one process": trainer.args.n_gpu > 1,
    }
    for name, used in unfit.items():
        if used:
            raise GradientRefusedError(
                f"gradient across groups does not work with {name}: it keeps the gradients of two losses apart, each "
                "whole and unscaled; use one device or DDP, in float32 or bfloat16, or `across: teachers`"
            )


def _fitted(
    parameters: Sequence[nn.Parameter], rows: Sequence[Float[Tensor, "G ..."]]
) -> tuple[Float[Tensor, " G"], float]:
    """Coefficients of the least-squares fit of the modified gradient by the rows, and its relative residual (T18)."""
    gradients = [parameter.grad.flatten().double() for parameter in parameters if parameter.grad is not None]
    flat = [row.flatten(1).double() for row in rows]
    gramian = torch.stack([row @ row.T for row in flat]).sum(0)
    onto = torch.stack([row @ gradient for row, gradient in zip(flat, gradients, strict=True)]).sum(0)
    fitted = torch.linalg.lstsq(gramian, onto[:, None]).solution[:, 0]
    length = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    left = (length - 2.0 * fitted @ onto + fitted @ gramian @ fitted).clamp_min(0.0)
    return fitted, float((left / length.clamp_min(1e-300)).sqrt())


def _average(rows: Sequence[Tensor]) -> None:
    """The mean over ranks, as the plain gradient has it."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for row in rows:
            torch.distributed.all_reduce(row)
            row.div_(torch.distributed.get_world_size())
