"""One step as training takes it, which moves nothing: what it takes of memory, and where its time goes."""

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from polydistill.records.parts import MODELS, REST
from polydistill.run.devices import Sizes
from polydistill.run.fits import Peak, Watched, peak
from polydistill.training.partial import served_among
from polydistill.training.step import StepOutcome
from polydistill.training.taught import Taught


@dataclass(frozen=True)
class Rehearsal:
    """What was seen.

    Attributes:
        done: of the batch.
        loss: its mean, nats.
        seconds: of a forward and backward pass, by part.
        update: seconds of the optimizer's; 0 where it was not tried.
        optimizer: bytes of its state.
        peak: of memory; None where nothing is known.
    """

    done: StepOutcome
    loss: float
    seconds: dict[str, float]
    update: float
    optimizer: int
    peak: Peak | None

    def shares(self, accumulation: int) -> dict[str, float]:
        """Of the time of a step: teachers, student, their heads' products, and all that is not the models'."""
        whole = accumulation * sum(self.seconds.values()) + self.update
        parts = {part: accumulation * self.seconds.get(part, 0.0) / max(whole, 1e-9) for part in MODELS}
        return parts | {REST: 1.0 - sum(parts.values())}


def rehearse(trainer: Taught, sizes: Sizes) -> Rehearsal:
    """A first batch forward and backward, the optimizer's update by nothing, and the batch once more beside its state.

    Servers are asked once, and where several processes train together, or its state has no room, no optimizer is tried.
    """
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    student: Any = trainer.model
    student.train()  # as a step does first
    watched = Watched(trainer.args.device)
    loss, seconds = _back_and_forth(trainer, inputs)
    done = trainer.last_step
    assert done is not None
    assert done.batch is not None
    sequences, tokens = done.batch.input_ids.shape
    # A chunk that the batch does not fill grows with it.
    logits = 4 * sequences * tokens * trainer.visible * (len(trainer.teachers) + 1)
    fixed = sizes.trained + (sizes.objective if logits >= sizes.objective else 0)
    found = peak(watched, fixed, sizes.optimizer, sizes.student, (sequences, tokens))
    optimizer, update = sizes.optimizer, 0.0
    if _is_alone(trainer) and (found is None or found.bytes < found.room):
        trainer.create_optimizer()
        optimizer = _update(trainer)
    if trainer.args.gradient_accumulation_steps == 1:
        student.zero_grad(set_to_none=True)
    if not served_among(trainer.teachers):
        _, seconds = _back_and_forth(trainer, inputs)
        if trainer.optimizer is not None:
            trainer.clock.begin()
            _update(trainer)
            trainer.clock.mark(REST)
            update = trainer.clock.take(wait=True)[REST]
    if found is not None and trainer.optimizer is not None:
        found = replace(found, highest=max(found.highest, watched.highest() - optimizer), optimizer=optimizer)
    student.zero_grad(set_to_none=True)
    return Rehearsal(done, float(loss), seconds, update, optimizer, found)


def _back_and_forth(trainer: Taught, inputs: Any) -> tuple[Tensor, dict[str, float]]:
    """The loss, and seconds by part."""
    student: Any = trainer.model
    trainer.clock.begin()
    loss: Any = trainer.compute_loss(student, inputs)
    loss.backward()
    trainer.clock.mark("student")
    return loss.detach(), trainer.clock.take(wait=True)


def _is_alone(trainer: Taught) -> bool:
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return trainer.accelerator.num_processes == 1 and not spread


def _update(trainer: Taught) -> int:
    """An update at learning rate 0, which makes the optimizer's state; the bytes of that."""
    optimizer: Any = trainer.optimizer
    with suppress(AttributeError):  # an optimizer without schedule wants to know
        optimizer.train()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    kept = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(value.numel() * value.element_size() for value in kept)
