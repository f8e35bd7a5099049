"""Where the time of a step goes, on the device's own time line.

A host has queued the work of a GPU long before it is done. So marks are events of the device, what lies between two is
read when it has passed both, and nothing waits. The products with heads are inside the loop over chunks, which has no
marks: they are timed once by themselves, and counted.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from polydistill.logprobs import HiddenStates, Informed, TeacherOutput
from polydistill.objective.distil import GOOD_ROWS
from polydistill.records.parts import PRODUCTS

NONE = (0, 0)
ROWS = 1024
"""Positions whose products are timed; on a CPU as many as a chunk has at least."""


class Clock:
    """Seconds by part.

    Attributes:
        on: marks count; they do not while something is evaluated.
        product: seconds of the products of one position, of all teachers and of the student; None before they were
            timed.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, True
        self.product: tuple[float, float] | None = None
        self._marks: deque[tuple[str | None, tuple[int, int], Any]] = deque()
        self._spent: dict[str, float] = defaultdict(float)

    def begin(self) -> None:
        """What lies before is part of nothing."""
        self._add(None, NONE)

    def mark(self, part: str, positions: tuple[int, int] = NONE) -> None:
        """What lies between the mark before and this one was spent on a part.

        Args:
            part: its name.
            positions: that it had products of, with the teachers' heads and with the student's.
        """
        if self.on:
            self._add(part, positions)

    def take(self, wait: bool = False) -> dict[str, float]:
        """Seconds by part since they were last taken, as far as the device has come."""
        self._settle(wait)
        taken, self._spent = dict(self._spent), defaultdict(float)
        return taken

    def _settle(self, wait: bool = False) -> None:
        """Marks that the device has passed become seconds; whoever takes none keeps none."""
        while len(self._marks) > 1 and (wait or _passed(self._marks[1][2])):
            (_, _, before), (part, positions, now) = self._marks.popleft(), self._marks[0]
            if part is not None:
                seconds = _between(before, now)
                each = self.product or (0.0, 0.0)
                products = min(seconds, each[0] * positions[0] + each[1] * positions[1])
                self._spent[part] += seconds - products
                if positions != NONE:
                    self._spent[PRODUCTS] += products

    def time_products(self, student: HiddenStates, outputs: Iterable[TeacherOutput]) -> None:
        """Once, before the objective: what the products of a position take by themselves."""
        if self.on and self.product is None and len(student):
            theirs, own, rows = products(student, outputs)
            self.product = (self._timed(theirs) / rows, self._timed(own) / rows)

    def _timed(self, call: Callable[[], None]) -> float:
        call()  # warms up
        began = self._now()
        call()
        return _between(began, self._now())

    def _add(self, part: str | None, positions: tuple[int, int]) -> None:
        self._marks.append((part, positions, self._now()))
        self._settle()

    def _now(self) -> Any:
        if self.device.type == "cpu":
            return perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event


def _passed(mark: Any) -> bool:
    return isinstance(mark, float) or bool(mark.query())


def _between(before: Any, after: Any) -> float:
    """Seconds; waits for the later mark."""
    if isinstance(after, float):
        return after - float(before)
    after.synchronize()
    return float(before.elapsed_time(after)) / 1e3


@torch.no_grad()
def products(
    student: HiddenStates, outputs: Iterable[TeacherOutput]
) -> tuple[Callable[[], None], Callable[[], None], int]:
    """The products of some positions with the teachers' heads, with the student's and of its gradients; how many.

    Args:
        student: hidden states and head.
        outputs: of the teachers; those that have no hidden states on the student's device have no products there.
    """
    device = student.hidden.device
    rows = min(len(student), GOOD_ROWS if device.type == "cpu" else ROWS)
    hidden, trained = student.hidden[:rows].detach(), student.head.weight.requires_grad
    if torch.is_autocast_enabled(device.type):
        hidden = hidden.to(torch.get_autocast_dtype(device.type))
    head = replace(student.head, weight=student.head.weight.detach().to(hidden.dtype))
    said = [one.says if isinstance(one, Informed) else one for one in outputs]
    theirs = [one for one in said if isinstance(one, HiddenStates) and one.hidden.device == device]
    kinds = {hidden.dtype, *(one.hidden.dtype for one in theirs)}
    room: dict[torch.dtype, Tensor] = {
        dtype: torch.empty(rows, head.vocabulary, dtype=dtype, device=device) for dtype in kinds
    }

    @torch.no_grad()
    def of_teachers() -> None:
        with torch.autocast(device.type, enabled=False):
            for one in theirs:
                one.write(slice(0, rows), room[one.hidden.dtype])

    @torch.no_grad()
    def of_student() -> None:
        out = room[hidden.dtype]
        with torch.autocast(device.type, enabled=False):
            head.project(hidden, out)
            torch.mm(out, head.weight[: out.shape[1]])
            if trained:
                torch.mm(out.T, hidden)

    return of_teachers, of_student, rows
