"""Token sequences with what is known about them, and the positions of them that carry loss or evidence."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import UNKNOWN, Positions

IGNORED = -100
"""Label of a position that is not trained on."""


@dataclass(frozen=True)
class Batch:
    """Token sequences with what is known about them.

    Attributes:
        input_ids: token ids.
        attention_mask: 1 for real tokens.
        labels: as Transformers has them: not shifted, `-100` where nothing is learned.
        task: task index of each token's sequence, or `UNKNOWN`.
        teacher: index of the teacher named for it, or `UNKNOWN`.
        severity: in [0, 1].
        document_start: a document begins at this token; the first real token of a sequence always is one. None where
            every sequence is one document; otherwise the batch is packed, and no sequence is padded.
        sampled: 1 for tokens that the student wrote; None of given text.
    """

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    labels: Int[Tensor, "B T"]
    task: Int[Tensor, "B T"] | None = None
    teacher: Int[Tensor, "B T"] | None = None
    severity: Float[Tensor, "B T"] | None = None
    document_start: Int[Tensor, "B T"] | None = None
    sampled: Int[Tensor, "B T"] | None = None

    def starts(self) -> Bool[Tensor, "B T"]:
        """Where documents begin."""
        real = self.attention_mask.bool()
        starts = real.clone()
        starts[:, 1:] &= ~real[:, :-1]
        return starts if self.document_start is None else starts | (self.document_start.bool() & real)

    def inputs(self) -> dict[str, Tensor]:
        """What a model reads: of a packed batch positions in place of a mask, from which it tells documents apart."""
        if self.document_start is None:
            return {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return {"input_ids": self.input_ids, "position_ids": self.position_ids()}

    def position_ids(self) -> Int[Tensor, "B T"]:
        """Number of tokens before each one in its document."""
        place = torch.arange(self.input_ids.shape[1], device=self.input_ids.device).expand(self.input_ids.shape)
        return place - torch.where(self.starts(), place, 0).cummax(1).values

    def apart(self) -> "Batch":
        """The same with one document to a sequence, padded behind."""
        if self.document_start is None:
            return self
        start, within = self.starts().flatten(), self.position_ids().flatten()
        row = start.long().cumsum(0) - 1
        shape = int(row[-1]) + 1, int(within.max()) + 1
        blank = {"labels": IGNORED}
        taken: dict[str, Any] = {}
        for name in (f.name for f in fields(self) if f.name != "document_start"):
            value = getattr(self, name)
            if value is not None:
                taken[name] = value.new_full(shape, blank.get(name, 0))
                taken[name][row, within] = value.flatten()
        return Batch(**taken)

    def rows_apart(self, rows: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """Where flattened positions are in `apart()`."""
        if self.document_start is None:
            return rows
        within, row = self.position_ids().flatten(), self.starts().flatten().long().cumsum(0) - 1
        return row[rows] * (int(within.max()) + 1) + within[rows]

    def positions(self, reads_prefix: bool) -> tuple[Int[Tensor, " N"], Positions]:
        """Flattened positions that carry loss or evidence, sequence-major, and what is known about them.

        Position t predicts token t + 1; it carries evidence when both tokens are real, loss when the label of the
        latter says so. The last position of a sequence predicts nothing.

        Args:
            reads_prefix: the stack reads labels of earlier positions, so that prompts carry evidence. Otherwise
                positions without loss are left out.
        """
        real = self.attention_mask.bool()
        starts = self.starts()
        follows = torch.zeros_like(real)
        follows[:, :-1] = real[:, :-1] & real[:, 1:] & ~(starts[:, 1:])
        next_label = torch.full_like(self.labels, IGNORED)
        next_label[:, :-1] = self.labels[:, 1:]
        has_loss = follows & (next_label != IGNORED)
        target = torch.zeros_like(self.input_ids)
        target[:, :-1] = self.input_ids[:, 1:]
        keep = follows if reads_prefix else has_loss
        rows = keep.flatten().nonzero().squeeze(1)

        def taken(values: Tensor | None, default: Tensor) -> Tensor:
            return (default if values is None else values).flatten()[rows]

        unknown = torch.full_like(self.input_ids, UNKNOWN)
        # Without its prompt a document's first kept position may not be its first one.
        document = starts.flatten().cumsum(0)[rows]
        first = torch.ones_like(document, dtype=torch.bool)
        first[1:] = document[1:] != document[:-1]
        positions = Positions(
            target=target.flatten()[rows],
            has_target=follows.flatten()[rows],
            has_loss=has_loss.flatten()[rows],
            document_start=first,
            task=taken(self.task, unknown),
            teacher=taken(self.teacher, unknown),
            severity=taken(self.severity, torch.zeros(self.input_ids.shape, device=self.input_ids.device)),
        )
        return rows, positions
