"""Listening: one projection of every teacher over one chunk, and everything that is read off it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.logprobs import Informed, Positions, Says, Statistics
from polydistill.objective.divergence import Divergence
from polydistill.objective.engine import Engine, Tile
from polydistill.objective.passes import normaliser, notice, raised

OF_STUDENT = frozenset({"student_gap"})
"""Statistics that compare a teacher with the student."""


class NonFiniteError(FloatingPointError):
    """A teacher or the student produced NaN or an infinite logit.

    Attributes:
        teacher: index of the teacher, or None for the student.
        row: flattened position.
    """

    def __init__(self, teacher: int | None, row: int) -> None:
        super().__init__(f"{'the student' if teacher is None else f'teacher {teacher}'} is not finite at row {row}")
        self.teacher, self.row = teacher, row


@dataclass(frozen=True)
class Heard:
    """One chunk of what K teachers say; m of its n positions carry loss.

    Attributes:
        kept: what the divergence keeps of each teacher on the positions with loss, not normalised.
        log_t: log-normaliser of what is kept.
        entropy: of each teacher at the divergence's temperature, nats.
        statistics: of all n positions.
    """

    kept: Float[Tensor, "K m V"]
    log_t: Float[Tensor, "m K"]
    entropy: Float[Tensor, "m K"]
    statistics: Statistics


@dataclass(frozen=True)
class Listener:
    """What is the same for all chunks of a call.

    Attributes:
        spoken: K teachers over all N positions.
        divergence: says what is kept, and at which temperature.
        needs: statistics to measure.
        engine: runs the passes.
        kept: storage for one chunk of K teachers.
        scratch: storage for the logits of one chunk of one teacher.
    """

    spoken: Sequence[Says]
    divergence: Divergence
    needs: frozenset[str]
    engine: Engine
    kept: Float[Tensor, "K R V"]
    scratch: Float[Tensor, "R V"]

    def overhear(self, positions: Positions, start: int) -> Float[Tensor, "n K"]:
        """Likelihood of the next token at positions without loss: it is evidence all the same; 0 elsewhere.

        Raises:
            NonFiniteError: a teacher's logits are not finite.
        """
        only = (positions.has_target & ~positions.has_loss).nonzero().squeeze(1)
        like = self.scratch.new_zeros(len(positions), len(self.spoken))
        if not len(only):
            return like
        label = positions.target[only]
        for k, teacher in enumerate(self.spoken):
            told = _known(teacher, "label_log_prob", only + start)
            if told is not None:
                refuse_non_finite(told, k, only + start)
                like[only, k] = told.to(like)
                continue
            logits = self.scratch[: len(only)]
            teacher.write(only + start, logits)
            chosen, maximum = self.engine.over(len(only), partial(self._glance, teacher, logits, label))
            refuse_non_finite(maximum, k, only + start)
            like[only, k] = chosen
        return like

    def listen(
        self,
        positions: Positions,
        rows: Int[Tensor, " m"] | slice,
        local: Int[Tensor, " m"],
        like: Float[Tensor, "n K"],
        log_q: Float[Tensor, "m V"] | None,
    ) -> Heard:
        """Project every teacher once over the positions with loss.

        Args:
            positions: of the chunk.
            rows: flattened positions with loss.
            local: the same, counted from the chunk's first position.
            like: from `overhear`; filled in.
            log_q: student's log-probabilities, where `needs` compares with them.

        Raises:
            NonFiniteError: a teacher's logits are not finite.
        """
        kept = self.kept[:, : len(local)]
        label = positions.target[local]
        heard = [self._one(k, kept[k], rows, label) for k in range(len(self.spoken))]
        for k, one in enumerate(heard):
            refuse_non_finite(one["maximum"], k, rows)
        columns = {name: torch.stack([one[name] for one in heard], -1) for name in heard[0]}
        entropy, log_t = columns.pop("tempered_entropy"), columns.pop("log_t")
        if self.needs & {"distance_to_pool", "student_gap"}:
            columns.update(self._compare(kept, log_t, columns["entropy"], log_q))
        columns = self._told(columns, rows)
        like[local] = columns.pop("label_log_prob")
        whole = {name: scatter(columns[name], local, len(positions)) for name in self.needs - {"label_log_prob"}}
        return Heard(kept, log_t, entropy, Statistics(positions=positions, label_log_prob=like, **whole))

    def _one(
        self,
        k: int,
        kept: Float[Tensor, "m V"],
        rows: Int[Tensor, " m"] | slice,
        label: Int[Tensor, " m"],
    ) -> dict[str, Float[Tensor, " m"]]:
        """Project teacher k, read the statistics off and leave what is kept in `kept`."""
        teacher, divergence = self.spoken[k], self.divergence
        logits = self.scratch[: len(label)]
        teacher.write(rows, logits)
        margins: list[Tensor] = []

        def read(tile: Tile) -> tuple[Tensor, ...]:
            part = logits[tile.new]
            teacher.shape(part)
            if "margin" in self.needs:
                best = part.topk(min(2, part.shape[1]), dim=-1).values
                margins.append(best[:, 0] - best[:, -1])
            given = (label[tile.rows], divergence.temperature, divergence.keeps_log, kept[tile.rows])
            found: tuple[Tensor, ...] = self.engine.call(notice, tile.compiled, logits[tile.rows], *given)
            return found

        names = ("label_log_prob", "maximum", "entropy", "tempered_entropy", "log_t")
        made = dict(zip(names, self.engine.over(len(label), read), strict=True))
        if margins:
            made["margin"] = torch.cat(margins)
        return made

    def _glance(self, teacher: Says, logits: Tensor, label: Tensor, tile: Tile) -> tuple[Tensor, ...]:
        """Label log-probability and log of the maximum of a tile."""
        teacher.shape(logits[tile.new])
        found: tuple[Tensor, ...] = self.engine.call(normaliser, tile.compiled, logits[tile.rows], label[tile.rows])
        return found

    def _told(
        self, columns: dict[str, Float[Tensor, "m K"]], rows: Int[Tensor, " m"] | slice
    ) -> dict[str, Float[Tensor, "m K"]]:
        """The columns, with what is known about a teacher in place of what was read off its truncated distribution."""
        told = {
            (name, k): value
            for name in columns
            for k, teacher in enumerate(self.spoken)
            if (value := _known(teacher, name, rows)) is not None
        }
        if not told:
            return columns
        columns = {name: values.clone() for name, values in columns.items()}
        for (name, k), value in told.items():
            refuse_non_finite(value, k, rows)
            columns[name][:, k] = value.to(columns[name])
        return columns

    def _compare(
        self,
        kept: Float[Tensor, "K m V"],
        log_t: Float[Tensor, "m K"],
        entropy: Float[Tensor, "m K"],
        log_q: Float[Tensor, "m V"] | None,
    ) -> dict[str, Float[Tensor, "m K"]]:
        """`KL(p_k || mean)` and `KL(p_k || q)`, as far as they are needed."""
        to_mean: list[Tensor] = []
        to_student: list[Tensor] = []
        for tile in (each.new for each in self.engine.tiles(len(entropy))):
            p = [self._at_temperature_one(x, log_t[tile, k]) for k, x in enumerate(kept[:, tile])]
            if "distance_to_pool" in self.needs:
                log_mean = torch.stack(p).mean(0).log()
                to_mean.append(-torch.stack([(x * log_mean).sum(-1) for x in p], -1))
            if log_q is not None and "student_gap" in self.needs:
                to_student.append(-torch.stack([(x * log_q[tile]).sum(-1) for x in p], -1))
        made = {"distance_to_pool": to_mean, "student_gap": to_student}
        return {name: torch.cat(parts) - entropy for name, parts in made.items() if parts}

    def _at_temperature_one(self, kept: Float[Tensor, "n V"], log_t: Float[Tensor, " n"]) -> Float[Tensor, "n V"]:
        """Probabilities of one teacher from what is kept of it."""
        temperature, keeps_log = self.divergence.temperature, self.divergence.keeps_log
        if temperature != 1.0:
            return raised(((kept if keeps_log else kept.log()) * temperature).log_softmax(-1))
        return raised(kept - log_t[:, None]) if keeps_log else kept * (-log_t).exp()[:, None]


def _known(teacher: Says, name: str, rows: Int[Tensor, " n"] | slice) -> Float[Tensor, " n"] | None:
    """A statistic that a teacher brings along, or None."""
    value: Tensor | None = getattr(teacher.known, name, None) if isinstance(teacher, Informed) else None
    return None if value is None else value[rows]


def refuse_non_finite(values: Float[Tensor, " n"], teacher: int | None, rows: Int[Tensor, " n"] | slice) -> None:
    """Raise for the first position whose value, read off all its logits, is not finite.

    Raises:
        NonFiniteError: naming the teacher (None: the student) and the row.
    """
    finite = torch.isfinite(values)
    if not finite.all():
        first = int((~finite).nonzero()[0, 0])
        raise NonFiniteError(teacher, first + rows.start if isinstance(rows, slice) else int(rows[first]))


def scatter(values: Float[Tensor, "m ..."], rows: Int[Tensor, " m"], length: int) -> Float[Tensor, "n ..."]:
    """Values at their rows among `length`, 0 elsewhere."""
    if len(rows) == length:
        return values
    spread = values.new_zeros(length, *values.shape[1:])
    spread[rows] = values
    return spread
