"""Losses that are finite and far above their level: which updates are left out, and when the student goes back.

A step's loss is far above its level when it exceeds the median of the last 100 steps that were learned from by 10 of
their median absolute deviations and by 1 nat; with fewer steps n both margins are `sqrt(100 / n)` times as wide, since
less is known. Five such steps among 50 mean that it is the student, not the batch: it goes back to its last good
checkpoint, while the data goes on (Chowdhery et al., PaLM, 2022, section 5.1: the same batches after a return do no
harm, the same batches in the same state do the same harm again).
"""

from statistics import median
from typing import Any

WINDOW, DEVIATIONS, NATS = 100, 10.0, 1.0
OFTEN, WITHIN, RETURNS = 5, 50, 3
KNOWN = 20
"""Steps from which on the level says something about a checkpoint."""


class DivergedError(FloatingPointError):
    """The loss is finite and stays far above its level; the sentence says where to go on, and how."""


class Spikes:
    """The level of the loss, and what was done about steps far above it; equal on all ranks, and in checkpoints.

    Attributes:
        losses: means per position with loss of the last steps that were learned from, nats.
        skipped: steps left out among the last 50, counted from 1.
        total: steps left out so far.
        lowest: level of the loss so far; None before it says something.
        returns: to a checkpoint since the run began, or since it last ended by them.
        said: what was done, a sentence each.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.skipped: list[int] = []
        self.lowest: float | None = None
        self.total, self.returns = 0, 0
        self.said: list[str] = []
        self.sums = [0.0, 0.0]

    def add(self, loss: float, count: float) -> None:
        """Of one batch of the step, over all ranks: summed loss and positions."""
        self.sums = [self.sums[0] + loss, self.sums[1] + count]

    def level(self) -> float | None:
        """Median of the window, once it says something."""
        return median(self.losses) if len(self.losses) >= KNOWN else None

    def judge(self, step: int) -> str:
        """End of a step's batches: why its update is to be left out; empty where it is not.

        Args:
            step: counted from 1.
        """
        (loss, count), self.sums = self.sums, [0.0, 0.0]
        self.skipped = [before for before in self.skipped if before > step - WITHIN]
        if count == 0:
            return ""
        loss /= count
        if self.losses:
            middle = median(self.losses)
            spread = median(abs(one - middle) for one in self.losses)
            margin = max(DEVIATIONS * spread, NATS) * (WINDOW / len(self.losses)) ** 0.5
            if loss > middle + margin:
                self.skipped.append(step)
                self.total += 1
                return (
                    f"step {step}: its loss of {loss:.4g} is far above the level of {middle:.4g}: its update is left "
                    f"out, number {len(self.skipped)} in {WITHIN} steps"
                )
        self.losses = [*self.losses[-WINDOW + 1 :], loss]
        if (level := self.level()) is not None:
            self.lowest = level if self.lowest is None else min(level, self.lowest)
        return ""

    def too_often(self) -> bool:
        """The student has to go back."""
        return len(self.skipped) >= OFTEN

    def gone_back(self, losses: list[float], step: int, to: int) -> str:
        """The level of a checkpoint counts again; returns the sentence about it.

        Args:
            losses: of its window.
            step: of the run, which goes on.
            to: the checkpoint's.
        """
        self.losses, self.skipped = list(losses), []
        self.returns += 1
        self.said.append(
            f"step {step}: {OFTEN} updates of {WITHIN} steps were left out, so that the student went back to what it "
            f"was at step {to}; the data went on"
        )
        return self.said[-1]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON."""
        kept = ("losses", "skipped", "lowest", "total", "returns", "said")
        return {name: getattr(self, name) for name in kept} | {"level": self.level()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        vars(self).update({name: value for name, value in state.items() if name != "level"})

    def says(self) -> list[str]:
        """For the summary; nothing where all went well."""
        found, level = list[str](), self.level()
        if self.total:
            number = "1 update was" if self.total == 1 else f"{self.total} updates were"
            found = [f"{number} left out, the loss being finite and far above its level", *self.said]
        if level is not None and self.lowest is not None and level > self.lowest + NATS:
            found.append(
                f"WARNING: the level of the loss, {level:.4g} at the end, was {self.lowest:.4g} before; the checkpoint "
                "with the lowest level is kept"
            )
        return found
