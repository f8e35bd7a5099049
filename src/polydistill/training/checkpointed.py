"""What every trainer of ours does about checkpoints: operator state inside, manifest last, verified on resume."""

import copy
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer
from transformers.utils import logging

from polydistill.objective.distil import chunk_bytes
from polydistill.pipeline import Pipeline
from polydistill.safety.constrained import Constrained
from polydistill.teachers import TeacherUnavailableError
from polydistill.training import checkpoint
from polydistill.training.between import WholeStep
from polydistill.training.checkpoint import CheckpointError
from polydistill.training.clock import Clock
from polydistill.training.spikes import RETURNS, DivergedError, Spikes
from polydistill.training.step import NonFiniteValueError
from polydistill.training.watch import Watch

logger = logging.get_logger(__name__)

HISTORY = 1000
"""Rows of a trainer's `log_history` after its oldest evaluations."""


class Checkpointed(Trainer):
    """A `Trainer` whose checkpoints hold the operators' state and can be trusted; to be mixed in before a trainer.

    Attributes:
        pipeline: whom we trust; its state goes into the checkpoint.
        constraints: limits on the student; the state of their dual goes there too.
        clock: where the time of its steps goes.
        watch: the probe batch goes there, and what was seen on it.
        device_bytes: byte budget of the objective's chunks that follows from this device; a run that goes on elsewhere
            keeps it, so that sums are formed in the same order. None on a CPU, whose budget is a constant.
        resumed: the checkpoint that training is about to go on from.
        spikes: the level of the loss, and what was done about steps far above it; None asks for neither.
        threads: of torch, where somebody has set them; otherwise a run that goes on takes those of its checkpoint.
        changes: what is another setting than in the checkpoint that training went on from, a sentence each.
        run: what the run is, in a hash; a checkpoint of another one is not resumed from. None asks for none.
    """

    pipeline: Pipeline
    clock: Clock
    constraints: Constrained | None = None
    watch: Watch | None = None
    spikes: Spikes | None = None
    device_bytes: int | None = None
    loss_bytes: int | None = None
    threads: int | None = None
    changes: tuple[str, ...] = ()
    run: str | None = None
    resumed: Path | None = None
    _total_train_tokens: int
    _metrics: dict[str, Any]
    _good: WholeStep | None = None

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)):
            raise NonFiniteValueError(
                f"step {self.state.global_step + 1}: the student's gradient is not finite (norm {float(norm)}); "
                "nothing was updated; lower the learning rate or train in float32"
            )
        return norm

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None in the folder of checkpoints: trl's knows neither the student's origin nor its teachers."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"{checkpoint.PREFIX}{self.state.global_step}"
        keep, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with checkpoint.storing(folder):
                super()._save_checkpoint(model, trial)
                self._complete(folder, keep)
        except checkpoint.StorageError:
            shutil.rmtree(folder, ignore_errors=True)  # the room may be what the others need
            raise
        finally:
            self.args.save_total_limit = keep

    def _complete(self, folder: Path, keep: int | None) -> None:
        if self.args.should_save:
            save_file(self._method_state() or {"empty": torch.zeros(1)}, folder / checkpoint.STATE)
        rank = self.args.process_index
        (folder / checkpoint.PROGRESS.format(rank=rank)).write_text(json.dumps(self.progress()))
        self.accelerator.wait_for_everyone()  # every rank's files are there before they are hashed
        if self.args.should_save:
            checkpoint.write_manifest(folder, self.run)
            fault = checkpoint.verify(folder)
            if fault is not None:
                raise CheckpointError(f"{folder} could not be verified after it was written: {fault.reason}")
            checkpoint.rotate(folder.parent, keep, self._spared(folder), self.run)
        self.accelerator.wait_for_everyone()  # no rank resumes from, or ends before, a checkpoint that is not whole

    def _spared(self, newest: Path) -> set[Path]:
        """Checkpoints that are kept whatever their age: the best ones, and the last one without spikes before it."""
        run, best = newest.parent, self.state.best_model_checkpoint
        good = _last_good(run, self.run) if _spikes_of(newest).get("skipped") else newest  # which was verified just now
        levels = {folder: _spikes_of(folder).get("level") for folder in checkpoint.in_order(run)}
        known = {folder: level for folder, level in levels.items() if level is not None}
        lowest = [folder for folder, level in known.items() if level == min(known.values())][-1:]
        return {*lowest, *filter(None, [good]), *([Path(best)] if best else [])}

    def leaves_out(self, step: int) -> bool:
        """Whether a step's update is left out; its gradients and what was observed in it are then gone.

        Args:
            step: counted from 1.
        """
        assert self.spikes is not None
        reason = "" if self.is_deepspeed_enabled else self.spikes.judge(step)
        if not reason:
            return False
        logger.warning(reason)
        self._metrics["train"]["distil/updates_left_out"] = [float(self.spikes.total)]
        for parameter in cast(Any, self.model).parameters():
            parameter.grad = None  # to every optimizer: this one does not take part
        self.pipeline.stack.discard()
        if self.constraints is not None:
            self.constraints.discard()
        return True

    def go_back(self) -> str:
        """The student, its optimizer and the operators as the last good checkpoint has them; the data goes on.

        Returns the sentence about it.

        Raises:
            DivergedError: there is none, or it was done often enough.
        """
        assert self.spikes is not None
        step, run = self.state.global_step, Path(str(self.args.output_dir))
        good = _last_good(run, self.run)
        advice = "lower training.learning_rate or training.max_grad_norm and give the same command"
        if good is None:
            raise DivergedError(
                f"step {step}: the loss stays far above its level, and there is no checkpoint to go back to; {advice}"
            )
        optimizer, scheduler = cast(Any, self.optimizer), cast(Any, self.lr_scheduler)
        rates = [group["lr"] for group in optimizer.param_groups]
        schedule = copy.deepcopy(scheduler.state_dict())
        self._load_from_checkpoint(str(good), self.model_wrapped if self.is_fsdp_enabled else None)
        super()._load_optimizer_and_scheduler(str(good))
        scheduler.load_state_dict(schedule)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        state = load_file(good / checkpoint.STATE)
        self._load_method_state({n: v for n, v in state.items() if not n.startswith(checkpoint.PROBE)})
        before = self.spikes.returns
        said = self.spikes.gone_back(_spikes_of(good).get("losses", []), step, checkpoint.step_of(good))
        if before < RETURNS:
            return said
        self.spikes.returns = 0
        self._save_checkpoint(self.model, None)
        raise DivergedError(
            f"step {step}: the loss stays far above its level although the student went back {RETURNS} times; "
            f"{checkpoint.PREFIX}{step} holds the student of {good.name}; {advice} to go on there"
        )

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        """As `Trainer`'s; a learning rate, or a number of steps, that is another one now takes effect, and is said."""
        super()._load_optimizer_and_scheduler(folder)
        if folder is None or not isinstance(self.lr_scheduler, LambdaLR):
            return
        groups, rate = cast(Any, self.optimizer).param_groups, float(self.args.learning_rate)
        before, was = [group["lr"] for group in groups], _progress(Path(folder), "settings").get("learning_rate", rate)
        if was != rate:
            old = self.lr_scheduler.base_lrs
            self.lr_scheduler.base_lrs = [rate if base == was else base * rate / was for base in old]
        factors = [factor(self.lr_scheduler.last_epoch) for factor in self.lr_scheduler.lr_lambdas]
        now = [base * factor for base, factor in zip(self.lr_scheduler.base_lrs, factors, strict=True)]
        if now == before:
            return
        for group, following in zip(groups, now, strict=True):
            group["lr"] = following
        self.lr_scheduler._last_lr = now
        logger.warning(f"the learning rate of the next step is {now[0]:.4g}; the checkpoint has {before[0]:.4g}")

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
        folder = self.resumed = self._verified(resume_from_checkpoint)
        if folder is not None:
            try:
                self._load_method_state(load_file(folder / checkpoint.STATE))
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(
                    f"cannot resume from {folder}: its state is not that of {self.pipeline.stack!r}; resume with the "
                    f"weighting, teachers and tasks that it was written with ({reason})"
                ) from error
        try:
            return super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)
        except (TeacherUnavailableError, NonFiniteValueError) as error:
            self._rescue(error)
            raise

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        super()._maybe_log_save_evaluate(*args, **kwargs)
        self._good = WholeStep.now(self)

    def _rescue(self, error: Exception) -> None:
        """A checkpoint of the last whole step, as it would have been written then, when the next one failed.

        Ranks do not fail together, and a checkpoint needs all of them: on several there is none.
        """
        good, run = self._good, Path(str(self.args.output_dir))
        if good is None or good.step != self.state.global_step or self.args.world_size > 1:
            return
        if not all(bool(torch.isfinite(p).all()) for p in cast(Any, self.model).parameters()):
            return
        if checkpoint.verify(run / f"{checkpoint.PREFIX}{good.step}", self.run) is not None:
            good.back(self)
            keep, self.args.save_total_limit = self.args.save_total_limit, None  # the numbers may be bad already
            try:
                self._save_checkpoint(self.model, None)
            finally:
                self.args.save_total_limit = keep
        error.add_note(f"step {good.step} is saved; give the same command to go on there")

    def progress(self) -> dict[str, Any]:
        """What is counted and averaged on the way and is in none of Transformers' files, as JSON."""
        return {
            "tokens": self._total_train_tokens,
            "seen": self.state.num_input_tokens_seen,
            "loss": float(self._tr_loss),
            "logged": self._globalstep_last_logged,
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics["train"].items()},
            "callbacks": {type(c).__name__: c.progress() for c in self._counting()},
            "spikes": {} if self.spikes is None else self.spikes.state(),
            "settings": self._settings(),
            "changes": self.changes,
        }

    def _settings(self) -> dict[str, Any]:
        """What may change on the way."""
        return {
            "threads": torch.get_num_threads(),
            "max_steps": self.state.max_steps,
            "learning_rate": float(self.args.learning_rate),
            "max_grad_norm": float(self.args.max_grad_norm),
            "skip_spikes": self.spikes is not None,
            "bytes of a chunk": self.loss_bytes or self.device_bytes or chunk_bytes(self.args.device),
        }

    def _set_as_before(self, before: dict[str, Any]) -> None:
        """Threads and chunks as in the checkpoint, since sums depend on them, unless others are asked for; what is
        another setting now is said."""
        if self.threads is None and "threads" in before:
            torch.set_num_threads(before["threads"])
        now = self._settings()
        if (
            self.loss_bytes is None
            and before.get("bytes of a chunk", now["bytes of a chunk"]) != now["bytes of a chunk"]
        ):
            self.device_bytes = now["bytes of a chunk"] = before["bytes of a chunk"]
        step = self.state.global_step
        said = [
            f"from step {step + 1} on: {name} {now[name]}, {old} before"
            for name, old in before.items()
            if now.get(name, old) != old
        ]
        for sentence in said:
            logger.warning(sentence)
        self.changes = (*self.changes, *said)

    def take_up(self, progress: dict[str, Any]) -> None:
        """Count and average on from there."""
        self._total_train_tokens, self.state.num_input_tokens_seen = progress["tokens"], progress["seen"]
        self._tr_loss.fill_(progress["loss"])
        self._globalstep_last_logged = progress["logged"]
        if self.spikes is not None:
            self.spikes.load(progress.get("spikes", {}))
        self.changes = tuple(progress.get("changes", ()))
        self._set_as_before(progress.get("settings", {}))
        self._metrics["train"].clear()
        self._metrics["train"].update({name: list(values) for name, values in progress["metrics"].items()})
        for callback in self._counting():
            if type(callback).__name__ in progress["callbacks"]:
                callback.take_up(progress["callbacks"][type(callback).__name__])

    def _counting(self) -> list[Any]:
        return [callback for callback in self.callback_handler.callbacks if hasattr(callback, "take_up")]

    def log(self, *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`; of the history, which every checkpoint holds, the last rows stay and all evaluations."""
        super().log(*args, **kwargs)
        history = self.state.log_history
        first = next((i for i, row in enumerate(history) if not any(name.startswith("eval_") for name in row)), 0)
        if len(history) - first > HISTORY:
            del history[first]

    def _init_training_state(self, max_steps: int, *args: Any) -> Any:
        """As `Trainer`'s, with today's steps between logs, checkpoints and evaluations."""
        begun = super()._init_training_state(max_steps, *args)
        self.state.compute_steps(self.args, max_steps)
        return begun

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
            fault = checkpoint.verify(Path(wanted), self.run)
            if fault is not None:
                raise CheckpointError(
                    f"cannot resume from {wanted}: {fault.reason}; resume_from_checkpoint=True takes "
                    "the newest checkpoint that is whole"
                )
            return Path(wanted)
        folder, faults = checkpoint.newest_verified(Path(str(self.args.output_dir)), self.run)
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


def _progress(folder: Path, part: str) -> dict[str, Any]:
    """What a checkpoint's main rank counted; nothing where it cannot be read."""
    with suppress(OSError, ValueError, KeyError):
        return dict(json.loads((folder / checkpoint.PROGRESS.format(rank=0)).read_text())[part])
    return {}


def _spikes_of(folder: Path) -> dict[str, Any]:
    """What a checkpoint says of the level of the loss."""
    return _progress(folder, "spikes")


def _last_good(run: Path, identity: str | None) -> Path | None:
    """The newest checkpoint that verifies and had no step left out shortly before it."""
    calm = (folder for folder in reversed(checkpoint.in_order(run)) if not _spikes_of(folder).get("skipped"))
    return next((folder for folder in calm if checkpoint.verify(folder, identity) is None), None)
