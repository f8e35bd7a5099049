"""Gradient modification in training, by torchjd's aggregators (extra `gradients`).

`AcrossTeachers` reads coefficients off the Gramian of the teachers' gradients in logit space and puts them into the
stack as a factor that lags by a step; no extra backward pass (`weighting.gradient`). `AcrossGroups` splits the loss in
two and combines the two gradients of the student's parameters; two backward passes, exact (`training.groups`).
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.utils import logging

from polydistill.logprobs import Head, TeacherOutput, logits_of
from polydistill.objective import ForwardKL, Outcome
from polydistill.pipeline import Pipeline
from polydistill.weighting import GradientFactor

logger = logging.get_logger(__name__)


class GradientsMissingError(ImportError, ValueError):
    """torchjd, or what one of its aggregators needs, is not installed."""


class GradientRefusedError(ValueError):
    """A gradient modification that would break what the run promises."""


def _torchjd(name: str, **options: Any) -> Any:
    try:
        from torchjd import aggregation

        return getattr(aggregation, name)(**options)
    except ImportError as error:
        raise GradientsMissingError(
            f"gradient: {name} needs torchjd with its solvers, which are not all installed ({error}); install them "
            "with: pip install 'polydistill[gradients]'"
        ) from error


METHODS: dict[str, Callable[[int], Any]] = {
    "upgrad": lambda rows: _torchjd("UPGrad"),
    "mgda": lambda rows: _torchjd("MGDA"),
    "pcgrad": lambda rows: _torchjd("PCGrad"),
    "cagrad": lambda rows: _torchjd("CAGrad", c=0.5),
    "imtl_g": lambda rows: _torchjd("IMTLG"),
    "nash_mtl": lambda rows: _torchjd("NashMTL", n_tasks=rows, max_norm=0.0),
    "graddrop": lambda rows: _torchjd("GradDrop"),
}
"""Name -> torchjd's aggregator for a number of gradients. Ours in `theory.surgery` are what they are tested against."""


def aggregator(method: str, rows: int) -> Any:
    """torchjd's aggregator.

    Raises:
        ValueError: there is none of that name.
        GradientsMissingError: it is not installed.
    """
    if method not in METHODS:
        raise ValueError(f"gradient: there is no method {method!r}; there are {', '.join(METHODS)}")
    return METHODS[method](rows)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """PCGrad's order and GradDrop's coin are the same on all ranks; random numbers outside stay as they were.

    What Nash-MTL's solver says about its own future is not for the user of this package.
    """
    with torch.random.fork_rng([device] if device is not None and device.type == "cuda" else []):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(ECOS|DPP)", category=Warning)
            yield


class Coefficients:
    """`GradientFactor`'s `aggregate` by one of torchjd's aggregators.

    Args:
        method: name in `METHODS`; `graddrop` gives no coefficients.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.made: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Coefficients":
        return Coefficients(self.method)  # solvers are not copied; Nash-MTL's warm start is no state of ours

    def __call__(self, gramian: Float[Tensor, "K K"], seed: int) -> Float[Tensor, " K"]:
        """Coefficients; the gradients' common size does not matter, so it is taken out."""
        gramian = gramian / gramian.diagonal().mean()
        self.made = aggregator(self.method, len(gramian)) if self.made is None else self.made
        with seeded(seed):
            if hasattr(self.made, "gramian_weighting"):
                found: Tensor = self.made.gramian_weighting(gramian)
            else:  # Nash-MTL takes the gradients themselves, and only their Gramian counts: a root will do
                values, vectors = torch.linalg.eigh(gramian)
                found = self.made.weighting(vectors * values.clamp_min(0.0).sqrt())
        return found


@dataclass(frozen=True)
class AcrossTeachers:
    """Coefficients on the teachers' gradients in logit space, lagged by a step, before floor and safety.

    Attributes:
        method: name in `METHODS` but `graddrop`.
        share: of uniform weights mixed into the coefficients: bounds what the aggregator can do to `log(1 + K (1 -
            share) / share)` nats between two teachers.
        sample: positions of a micro-batch whose inner products are taken, evenly spaced; the Gramian is exact when the
            micro-batch has no more, otherwise it is that of a sample.

    >>> from polydistill.training.gradient.across_teachers import AcrossTeachers
    >>> AcrossTeachers("upgrad", share=0.5).share
    0.5
    """

    method: str = "upgrad"
    share: float = 0.05
    sample: int = 128

    def __post_init__(self) -> None:
        if self.method == "graddrop":
            raise GradientRefusedError(
                "gradient: GradDrop drops coordinates of the gradient and gives no weights of teachers; use it across "
                "groups, or another method"
            )
        if self.sample < 1:
            raise ValueError(f"gradient: sample must be at least 1 position, got {self.sample}")
        aggregator(self.method, 2)

    def factor(self) -> GradientFactor:
        """What goes into the stack."""
        return GradientFactor(Coefficients(self.method), self.method, self.share)

    def judge(self, plain: Pipeline, modified: Pipeline, objective: Any) -> list[str]:
        """What is to be said about the safety order.

        Raises:
            GradientRefusedError: another divergence than forward KL, or an order that is promised would be lost.
        """
        if not isinstance(objective, ForwardKL):
            raise GradientRefusedError(
                f"gradient across teachers needs ForwardKL, got {type(objective).__name__}: only there is the gradient "
                "of a teacher's divergence with respect to the student's logits q - p_k"
            )
        before, after = plain.ordered_from(), modified.ordered_from()
        if before is None or after is None or after <= before:
            return []
        reach = modified.before_safety().range
        if before <= 1.0 < after:
            raise GradientRefusedError(
                f"gradient: {self.method} can invert the safety order: with its coefficients a less safe teacher can "
                f"lead by {reach:.2f} nats, which {modified.safety!r} does not make up for at any severity (without it "
                f"{plain.before_safety().range:.2f}); make the tilt stronger by a factor {after:.2f}, raise "
                "`gradient.share`, or use an `ordered` safety, which is enforced after it"
            )
        if after > 1.0:
            return []
        said = (
            f"gradient modification ({self.method}) widens the range of the weights to {reach:.2f} nats: the safety "
            f"order holds from severity {after:.2f} on instead of {before:.2f}"
        )
        logger.warning(said)
        return [said]

    def observe(
        self,
        factor: GradientFactor,
        pipeline: Pipeline,
        hidden: Float[Tensor, "N D"],
        head: Head,
        outputs: Sequence[TeacherOutput],
        outcome: Outcome,
        temperature: float,
    ) -> None:
        """Take in the Gramian of one micro-batch, on evenly spaced positions of those with loss.

        Args:
            factor: of the bound stack.
            pipeline: that it stands in.
            hidden: student's last hidden states.
            head: student's head.
            outputs: the teachers.
            outcome: of the objective; its statistics decide the weights again, without the factor.
            temperature: of the divergence.
        """
        rows = outcome.statistics.positions.has_loss.nonzero().squeeze(1)
        rows = rows[:: max(1, -(-len(rows) // self.sample))]
        if not len(rows):
            return
        with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False), factor.resting():
            log_w, _ = pipeline.decide(outcome.statistics, None)
            factor.take(logit_gramian(hidden[rows], head, outputs, rows, log_w[rows], temperature), len(rows))


def logit_gramian(
    hidden: Float[Tensor, "n D"],
    head: Head,
    outputs: Sequence[TeacherOutput],
    rows: Int[Tensor, " n"],
    log_w: Float[Tensor, "n K"],
    temperature: float = 1.0,
    at_once: int = 64,
) -> Float[Tensor, "K K"]:
    """`sum_t w_k(t) w_j(t) <q(t) - p_k(t), q(t) - p_j(t)>`: of the gradients of forward KL in all logits of `rows`.

    The factor `1 / temperature^2` that all entries share is left out.

    Args:
        hidden: student's last hidden states at `rows`.
        head: student's head.
        outputs: K teachers over all positions.
        rows: which positions.
        log_w: weights there.
        temperature: of student and teachers.
        at_once: positions whose distributions are held.
    """
    total = torch.zeros(len(outputs), len(outputs), dtype=torch.float64, device=hidden.device)
    for part in torch.arange(len(rows), device=rows.device).split(at_once):
        q = (head.logits(hidden[part]) / temperature).softmax(-1)
        p = [(logits_of(teacher, rows[part]).to(q) / temperature).softmax(-1) for teacher in outputs]
        pull = (q[:, None] - torch.stack(p, 1)) * log_w[part].exp()[..., None].to(q)
        total += (pull @ pull.mT).double().sum(0)
    return total


def factor_of(pipeline: Pipeline) -> GradientFactor:
    """The factor of a pipeline whose stack has one."""
    return next(part for part in pipeline.stack.modules() if isinstance(part, GradientFactor))


def said_of(factor: GradientFactor) -> dict[str, float]:
    """For the log: range of the coefficients' weights in nats, their sum before it was set to 1, how many were cut."""
    return {
        "gradient_range": float(factor.log_state.max() - factor.log_state.min()),
        "gradient_scale": float(factor.sum),
        "gradient_negative": float(factor.negative),
    }
