"""What a teacher said of its own tokens where that is known within stated errors: stored, or served.

With x the teacher's probability of a token and y what is said of it, `|log x - log y| <= log_error` where the token is
named. Those that are not named have at most `rest` together and `most` each. Whatever is made of masses that are all
within a factor `exp(E)` and normalised is within `tanh(E / 2)` in total variation.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import TeacherOutput, logits_of


@dataclass(frozen=True)
class Stated:
    """Rows of a teacher's own texts, one behind every token.

    Attributes:
        says: over its vocabulary.
        following: the token that comes next.
        label: its log-probability, within `label_error` nats per token.
        label_error: see there.
        log_error: of the other tokens that are named, nats.
        names: tokens that are named, a row with fewer repeating one of them; None where all are.
        most: probability of a token that is not named, at most.
        rest: of all of them together, at most.
    """

    says: TeacherOutput
    following: Int[Tensor, " M"]
    label: Float[Tensor, " M"]
    label_error: float
    log_error: Float[Tensor, " M"]
    names: Int[Tensor, "M S"] | None
    most: Float[Tensor, " M"]
    rest: Float[Tensor, " M"]

    def probabilities(self, rows: Int[Tensor, " r"]) -> Float[Tensor, "r V"]:
        """What is said at some rows, with the next token's own; a row may miss 1 by as much as is stated."""
        q = logits_of(self.says, rows).softmax(-1).cpu()
        if self.names is not None:
            q = torch.where(self.unnamed(rows), q.minimum(self.most[rows, None]), q)
        return q.scatter_(1, self.following[rows, None], self.label[rows, None].exp().to(q))

    def unnamed(self, rows: Int[Tensor, " r"]) -> Bool[Tensor, "r V"]:
        """Tokens of some rows that are not named, where some are not."""
        assert self.names is not None
        found = torch.ones(len(rows), self.says.vocabulary, dtype=torch.bool)
        found.scatter_(1, self.names[rows], False)
        return found.scatter_(1, self.following[rows, None], False)


def probabilities(says: TeacherOutput | Stated, rows: Int[Tensor, " r"]) -> Float[Tensor, "r V"]:
    """A teacher's distributions at some rows."""
    return says.probabilities(rows) if isinstance(says, Stated) else logits_of(says, rows).softmax(-1).cpu()
