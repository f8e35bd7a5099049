"""Signals during a run: the step is finished, a checkpoint is written, and the run ends with the signal's exit code."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
AT_ONCE = b"polydistill: stopped at once; give the same command to go on at the last checkpoint\n"

SHOW_CURSOR = b"\x1b[?25h"
"""The live screen has hidden it."""


class InterruptedRunError(RuntimeError):
    """A signal ended the run.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"interrupted {where}; give the same command to go on")
        self.number = number


class StopOnSignal(TrainerCallback):
    """A trainer's callback that ends training, with a checkpoint, at the end of a step in which a signal came.

    Before the first step and after the last one there is nothing to wait for: the signal raises where it comes. A
    second signal ends the process at once: every file is written under another name first, so that nothing is spoiled.
    """

    def __init__(self) -> None:
        self.number = 0
        self.training = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """The handler."""
        if self.number:
            os.write(2, (SHOW_CURSOR if os.isatty(2) else b"") + AT_ONCE)
            os._exit(128 + number)
        self.number = number
        if not self.training:
            raise InterruptedRunError(number, "between steps")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """From here on steps are finished; data-loader workers leave signals to this process."""
        self.training = True
        loader = kwargs.get("train_dataloader")
        if isinstance(loader, DataLoader) and loader.num_workers:
            loader.worker_init_fn = partial(_deaf, loader.worker_init_fn)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """All ranks stop after the same step when one of them has heard a signal."""
        if args.world_size > 1:
            heard = torch.tensor(self.number, device=args.device)
            distributed.all_reduce(heard, distributed.ReduceOp.MAX)
            self.number = int(heard)
        if self.number:
            control.should_training_stop = control.should_save = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The run ends here if a signal came.

        Raises:
            InterruptedRunError: naming the step.
        """
        self.training = False
        if self.number:
            raise InterruptedRunError(self.number, f"at step {state.global_step}")


@contextmanager
def stopping_on_signals() -> Iterator[StopOnSignal]:
    """Handlers while a run lasts, on the main thread only; a signal that is ignored (`nohup`) stays ignored."""
    stop = StopOnSignal()
    main = threading.current_thread() is threading.main_thread()
    before = {n: signal.getsignal(n) for n in SIGNALS if main and signal.getsignal(n) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _deaf(first: Any, worker: int) -> None:
    """A data-loader worker that a terminal or a scheduler signals too; it ends when its parent does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if first is not None:
        first(worker)
