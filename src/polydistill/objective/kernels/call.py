"""What a call of the objective asks of a kernel, and what the kernel answers."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polydistill.logprobs import Head
from polydistill.objective.divergence import Divergence


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        device: where it runs.
        dtype: of all sums, float32 or float64.
        rows: of a chunk at most.
        vocabulary: V.
        teachers: K.
        positions: N.
        divergence: what is compared, at which temperature.
        needs: statistics that are read.
        with_gradient: the student's gradient is wanted.
        storage: dtype in which products may stay without losing anything.
        heads: of the K teachers and of the student; None where logits are written as they are.
    """

    device: torch.device
    dtype: torch.dtype
    rows: int
    vocabulary: int
    teachers: int
    positions: int
    divergence: Divergence
    needs: frozenset[str]
    with_gradient: bool
    storage: torch.dtype = torch.float32
    heads: tuple[Head | None, ...] = ()

    @property
    def numbers(self) -> int:
        """In all logits together."""
        return self.positions * self.vocabulary * (self.teachers + 1)

    @property
    def compares(self) -> bool:
        """Teachers are compared with the student before they are weighed."""
        return "student_gap" in self.needs


class Read(NamedTuple):
    """What is read off one teacher's logits, once; nats.

    Attributes:
        label_log_prob: of the next token, at temperature 1.
        top: log-probability of the likeliest entry; not finite where a logit is not.
        entropy: at temperature 1.
        tempered_entropy: at the divergence's temperature.
        log_z: log-normaliser of the tempered logits less their largest.
        margin: between the two likeliest entries; None unless it is needed.
    """

    label_log_prob: Float[Tensor, "m ..."]
    top: Float[Tensor, "m ..."]
    entropy: Float[Tensor, "m ..."]
    tempered_entropy: Float[Tensor, "m ..."]
    log_z: Float[Tensor, "m ..."]
    margin: Float[Tensor, "m ..."] | None = None


class Pulled(NamedTuple):
    """What comes of a chunk once the weights are known.

    Attributes:
        divergence: `sum_k w_k D(p_k, q)`, nats.
        cross_entropy: of the label under the student, nats.
        gradient: of the loss with respect to the student's product `h W^T`, until the kernel is used again; None
            unless it was wanted.
    """

    divergence: Float[Tensor, " m"]
    cross_entropy: Float[Tensor, " m"]
    gradient: Float[Tensor, "m V"] | None

    def without(self, nobody: Bool[Tensor, " m"]) -> "Pulled":
        """Without divergence and gradient of positions at which nobody is heard."""
        if self.gradient is not None:
            self.gradient.masked_fill_(nobody[:, None], 0.0)
        return self._replace(divergence=self.divergence.masked_fill(nobody, 0.0))
