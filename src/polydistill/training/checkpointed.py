"""What every trainer of ours does about checkpoints: operator state inside, manifest last, verified on resume."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from polydistill.pipeline import Pipeline
from polydistill.safety.constrained import Constrained, student_writer
from polydistill.training import checkpoint
from polydistill.training.checkpoint import CheckpointError
from polydistill.training.step import NonFiniteValueError
from polydistill.training.watch import Watch

logger = logging.get_logger(__name__)


class Checkpointed(Trainer):
    """A `Trainer` whose checkpoints hold the operators' state and can be trusted; to be mixed in before a trainer.

    Attributes:
        pipeline: whom we trust; its state goes into the checkpoint.
        constraints: limits on the student; the state of their dual goes there too.
        watch: the probe batch goes there, and what was seen on it.
        device_bytes: byte budget of the objective's chunks that follows from this device; a run that goes on elsewhere
            keeps it, so that sums are formed in the same order. None on a CPU, whose budget is a constant.
    """

    pipeline: Pipeline
    constraints: Constrained | None = None
    watch: Watch | None = None
    device_bytes: int | None = None

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteValueError(
                f"step {self.state.global_step + 1}: the student's gradient is not finite (norm {float(norm)}); "
                "nothing was updated; lower the learning rate or train in float32"
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        keep = self.args.save_total_limit
        self.args.save_total_limit = None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = keep
        run = Path(str(self.args.output_dir))
        folder = run / f"{checkpoint.PREFIX}{self.state.global_step}"
        if self.args.should_save:
            save_file(self._method_state() or {"empty": torch.zeros(1)}, folder / checkpoint.STATE)
        self.accelerator.wait_for_everyone()  # every rank's files are there before they are hashed
        if self.args.should_save:
            checkpoint.write_manifest(folder)
            fault = checkpoint.verify(folder)
            if fault is not None:
                raise CheckpointError(f"{folder} could not be verified after it was written: {fault.reason}")
            best = self.state.best_model_checkpoint
            checkpoint.rotate(run, keep, Path(best) if best else None)
        self.accelerator.wait_for_everyone()  # no rank resumes from, or ends before, a checkpoint that is not whole

    def _method_state(self) -> dict[str, torch.Tensor]:
        state = {name: value.contiguous().cpu() for name, value in self.pipeline.stack.state_dict().items()}
        if self.device_bytes is not None:
            state[checkpoint.DEVICE_BYTES] = torch.tensor(self.device_bytes)
        if self.constraints is not None:
            dual = self.constraints.dual.state_dict()
            state |= {checkpoint.DUAL + name: value.contiguous().cpu() for name, value in dual.items()}
        if self.watch is not None:
            seen = self.watch.state()
            state |= {checkpoint.PROBE + name: value.contiguous().cpu() for name, value in seen.items()}
        return state

    def _load_method_state(self, state: dict[str, torch.Tensor]) -> None:
        state.pop("empty", None)
        if checkpoint.DEVICE_BYTES in state:
            self.device_bytes = int(state.pop(checkpoint.DEVICE_BYTES))
        seen = {name: state.pop(name) for name in list(state) if name.startswith(checkpoint.PROBE)}
        if self.watch is not None:
            self.watch.load({k.removeprefix(checkpoint.PROBE): v for k, v in seen.items()}, self.args.device)
        dual = {name: state.pop(name) for name in list(state) if name.startswith(checkpoint.DUAL)}
        if self.constraints is not None:
            self.constraints.dual.load_state_dict({k.removeprefix(checkpoint.DUAL): v for k, v in dual.items()})
        self.pipeline.stack.load_state_dict(state)

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any
    ) -> Any:
        """As `Trainer.train`; a checkpoint is verified first, and `True` means the newest one that verifies.

        Without any checkpoint, or with an unfinished first one only, `True` starts at the beginning.

        Raises:
            CheckpointError: the checkpoint that was asked for is damaged, or all of them are, or it is of a run with
                another weighting.
        """
        folder = self._verified(resume_from_checkpoint)
        if folder is not None:
            try:
                self._load_method_state(load_file(folder / checkpoint.STATE))
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"cannot resume from {folder}: its state is not that of {self.pipeline.stack!r}; resume with the "
                    f"weighting, teachers and tasks that it was written with ({reason})"
                ) from error
        return super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Nothing when the checkpoint that was loaded is of the last step: the loop would look only after another."""
        if self.state.global_step < self.state.max_steps:
            return super()._run_epoch(*args, **kwargs)
        self._load_rng_state(kwargs["resume_from_checkpoint"])
        self.control.should_training_stop = True
        return None

    def _verified(self, wanted: str | Path | bool | None) -> Path | None:
        if not wanted:
            return None
        if isinstance(wanted, str | Path):
            fault = checkpoint.verify(Path(wanted))
            if fault is not None:
                raise CheckpointError(
                    f"cannot resume from {wanted}: {fault.reason}; resume_from_checkpoint=True takes "
                    "the newest checkpoint that is whole"
                )
            return Path(wanted)
        folder, faults = checkpoint.newest_verified(Path(str(self.args.output_dir)))
        for fault in faults:
            logger.warning(f"{fault.folder.name} is passed over: {fault.reason}")
        if folder is None and [fault.unfinished for fault in faults] == [True]:
            logger.warning("the run ended while its first checkpoint was written; it starts anew")
        elif folder is None and faults:
            raise CheckpointError(
                f"no checkpoint in {self.args.output_dir} is whole: {faults[0].folder.name}, "
                f"{faults[0].reason}; remove them to start anew"
            )
        return folder


class Commit(TrainerCallback):
    """What operators observed during a step takes effect after it, and multipliers move."""

    def __init__(self, trainer: Checkpointed) -> None:
        self.trainer = trainer

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Commit the observed evidence; multipliers move."""
        trainer = self.trainer
        trainer.pipeline.stack.commit()
        if trainer.constraints is not None:
            student = trainer.accelerator.unwrap_model(trainer.model)
            trainer.constraints.rates(state.global_step + 1, student_writer(student, trainer.processing_class))
            trainer.constraints.commit()
