"""Off-policy training: `trl.SFTTrainer` with teachers and a weighting."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from polydistill.logprobs import Head
from polydistill.objective import ForwardKL, ReverseKL
from polydistill.pipeline import Pipeline
from polydistill.safety import Order
from polydistill.teachers import Teachers, check_rows, named_teachers
from polydistill.teachers.vocabulary import tokens_by_id
from polydistill.training import checkpoint
from polydistill.training.checkpoint import CheckpointError
from polydistill.training.constrained import Constrained, student_writer
from polydistill.training.context import COLUMNS, ContextCollator, refuse_empty, refuse_masked, task_names
from polydistill.training.severity import Source, annotate, annotate_tokens
from polydistill.training.step import Batch, NonFiniteValueError, StepOutcome, step
from polydistill.training.student import teach_forward
from polydistill.weighting import Operator

logger = logging.get_logger(__name__)

Observer = Callable[[StepOutcome, "PolyDistillTrainer"], dict[str, float]]
"""Called on every training batch; what it returns is averaged and logged."""


class PolyDistillTrainer(SFTTrainer):
    """`trl.SFTTrainer` whose loss is distillation from several teachers under adaptive weights.

    The arguments that `SFTTrainer` has mean what they mean there. Data sets may have the columns `task` (a name),
    `severity` (0 to 1, or a list with one number per token) and `teacher_id` (a teacher's name or index), all optional.

    Args:
        model: student: hub id, folder or model.
        teachers: name -> hub id, folder, model or `LocalTeacher`; or a list, named after their folders.
        weighting: operator stack, or a function from evidence `[n, K]` to weights.
        args: `trl.SFTConfig`.
        floor: share of uniform weights mixed in, in [0, 1].
        safety: `Tilt`, `Ordered` or `Veto`.
        constraints: limits on the student; their multipliers move once per optimizer step.
        severity: how critical each context is; the data's column `severity` when None.
        objective: `ForwardKL` or `ReverseKL`.
        tasks: names of the tasks; found in the data set's `task` column when None.
        loss_bytes: byte budget of a chunk of the objective.
        observers: functions called on every training batch, e.g. diagnostics.
        **kwargs: as for `SFTTrainer` (`train_dataset`, `eval_dataset`, `processing_class`, `callbacks`, ...).

    Raises:
        ValueError: an option that the pooled loss cannot honour (packing, padding-free, another loss).
        DataError: a data set is empty, or nothing in it is left to learn.
        VocabularyMismatchError: a teacher's vocabulary is not the student's.
        TeacherUnavailableError: a teacher cannot be loaded.
    """

    def __init__(
        self,
        model: str | PreTrainedModel | PeftModel,
        teachers: Teachers,
        weighting: Operator | Callable[[Tensor], Tensor],
        *,
        args: SFTConfig | None = None,
        floor: float = 0.0,
        safety: Order | None = None,
        constraints: Constrained | None = None,
        severity: Source | None = None,
        objective: ForwardKL | ReverseKL | None = None,
        tasks: Sequence[str] | None = None,
        loss_bytes: int | None = None,
        observers: Sequence[Observer] = (),
        **kwargs: Any,
    ) -> None:
        args = SFTConfig("polydistill-run") if args is None else args
        _refuse_unsupported(args, kwargs)
        for name in ("train_dataset", "eval_dataset"):
            if kwargs.get(name) is not None:
                refuse_empty(kwargs[name], name)
                if severity is not None:
                    kwargs[name] = annotate(kwargs[name], severity, args.dataset_text_field)
        args.logging_nan_inf_filter = False  # it would hide a NaN in the logged loss
        self.teachers = named_teachers(teachers)
        names = tuple(teacher.name for teacher in self.teachers)
        self.objective: ForwardKL | ReverseKL = ForwardKL() if objective is None else objective
        found = task_names(kwargs.get("train_dataset")) if tasks is None else tuple(tasks)
        # Bound before any model is loaded: a name that does not exist should not cost a minute.
        self.pipeline = Pipeline.of(weighting, names, found, floor=floor, safety=safety)
        self.constraints = constraints
        if constraints is not None:
            constraints.bind(names, found, self.pipeline.safety)
        self.loss_bytes, self.observers = loss_bytes, list(observers)
        self.last_step: StepOutcome | None = None
        super().__init__(model=model, args=args, **kwargs)
        refuse_masked(self.train_dataset, "training")
        if severity is not None:
            self.train_dataset = annotate_tokens(self.train_dataset, severity, self._tokenizer)
            self.eval_dataset = annotate_tokens(self.eval_dataset, severity, self._tokenizer)
        self.data_collator = ContextCollator(self.data_collator, names, found)
        self.pipeline.stack.to(self.args.device)
        if constraints is not None:
            constraints.dual.to(self.args.device)
        student = cast(PreTrainedModel, self.model)
        student = student.get_base_model() if isinstance(student, PeftModel) else student
        self.masked = self._agree_on_vocabulary(student)
        teach_forward(student, self.visible)
        for teacher in self.teachers:
            if getattr(teacher.model, "hf_device_map", None) is None:
                teacher.model.to(self.args.device)
        # Our loss divides by the number of visible tokens of the whole step, whatever the model would have done.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, True
        self.add_callback(_Commit(self))

    def _agree_on_vocabulary(self, student: PreTrainedModel) -> list[str]:
        self.visible = len(tokens_by_id(self._tokenizer))
        rows = student.get_output_embeddings().weight.shape[0]
        said = [check_rows(rows, self.visible, "the student")]
        said += [teacher.agree_with(self._tokenizer, self.visible) for teacher in self.teachers]
        for sentence in filter(None, said):
            logger.info(sentence)
        return [sentence for sentence in said if sentence]

    def certificate(self) -> str:
        """What this run's weights promise, in words, with the derivation."""
        guarantee = self.pipeline.guarantee()
        return "\n".join(
            [repr(self.pipeline.stack), *self.pipeline.promises(), "derivation:", *guarantee.step.lines(1)]
        )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean loss over the visible tokens of the whole optimizer step."""
        batch = self.batch_of(inputs)
        training = bool(model.training)
        made: list[StepOutcome] = []

        def distil(hidden: Tensor, head: Head) -> Tensor:
            done = step(
                hidden,
                head,
                self.teachers,
                batch,
                self.pipeline,
                self.objective,
                penalty=self.constraints.penalty if self.constraints is not None and training else None,
                loss_bytes=self.loss_bytes,
                where=f"step {self.state.global_step + 1}" if training else "evaluation",
            )
            made.append(done)
            return done.loss

        outputs = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, distil=distil)
        done = self.last_step = made[-1]
        count = done.outcome.count if num_items_in_batch is None else num_items_in_batch
        loss = outputs["loss"] / torch.as_tensor(count, device=outputs["loss"].device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if outputs["aux_loss"] is not None and self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            loss = loss + self.router_aux_loss_coef * outputs["aux_loss"] / steps
        self._note(done, batch, "train" if training else "eval")
        return loss

    def batch_of(self, inputs: dict[str, Any]) -> Batch:
        """What the collator made, as the method's own batch."""
        ids = inputs["input_ids"]

        def per_token(name: str) -> Tensor | None:
            value = inputs.get(name)
            if value is None or value.ndim == 2:
                return value
            return value[:, None].expand(ids.shape)

        return Batch(
            input_ids=ids,
            attention_mask=inputs["attention_mask"],
            labels=inputs["labels"],
            task=per_token("task"),
            teacher=per_token("teacher_id"),
            severity=per_token("severity"),
        )

    def _note(self, done: StepOutcome, batch: Batch, mode: str) -> None:
        outcome = done.outcome
        totals = torch.stack([outcome.divergence.sum(), outcome.cross_entropy.sum(), batch.attention_mask.sum()])
        totals = self.accelerator.reduce(torch.cat([totals, totals.new_tensor([float(outcome.count)])]), "sum")
        divergence, cross_entropy, tokens, count = totals.tolist()
        metrics = self._metrics[mode]
        metrics["divergence"].append(divergence / max(count, 1.0))
        metrics["cross_entropy"].append(cross_entropy / max(count, 1.0))
        if mode == "train":
            self._total_train_tokens += int(tokens) // self._tp_size
            self.pipeline.stack.observe(outcome.statistics)
            for observer in self.observers:
                for name, value in observer(done, self).items():
                    metrics[name].append(value)
        metrics["num_tokens"] = [self._total_train_tokens]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: list[str] = list(self._signature_columns or [])
        self._signature_columns = list(dict.fromkeys([*known, *COLUMNS]))  # type: ignore[assignment]

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
        if self.args.should_save:
            run = Path(str(self.args.output_dir))
            folder = run / f"{checkpoint.PREFIX}{self.state.global_step}"
            state = {name: value.contiguous().cpu() for name, value in self.pipeline.stack.state_dict().items()}
            if self.constraints is not None:
                dual = self.constraints.dual.state_dict()
                state |= {checkpoint.DUAL + name: value.contiguous().cpu() for name, value in dual.items()}
            save_file(state or {"empty": torch.zeros(1)}, folder / checkpoint.STATE)
        self.accelerator.wait_for_everyone()  # every rank's files are there before they are hashed
        if self.args.should_save:
            checkpoint.write_manifest(folder)
            fault = checkpoint.verify(folder)
            if fault is not None:
                raise CheckpointError(f"{folder} could not be verified after it was written: {fault.reason}")
            best = self.state.best_model_checkpoint
            checkpoint.rotate(run, keep, Path(best) if best else None)

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> Any:
        """As `Trainer.train`; a checkpoint is verified first, and `True` means the newest one that verifies.

        Raises:
            CheckpointError: the checkpoint that was asked for is damaged, or all of them are.
        """
        folder = self._verified(resume_from_checkpoint)
        if folder is not None:
            state = load_file(folder / checkpoint.STATE)
            state.pop("empty", None)
            dual = {name: state.pop(name) for name in list(state) if name.startswith(checkpoint.DUAL)}
            if self.constraints is not None:
                self.constraints.dual.load_state_dict({k.removeprefix(checkpoint.DUAL): v for k, v in dual.items()})
            self.pipeline.stack.load_state_dict(state)
        return super().train(resume_from_checkpoint=None if folder is None else str(folder), **kwargs)

    def _verified(self, wanted: str | bool | None) -> Path | None:
        if not wanted:
            return None
        if isinstance(wanted, str):
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
        if folder is None and faults:
            raise CheckpointError(
                f"no checkpoint in {self.args.output_dir} is whole: {faults[0].folder.name}, "
                f"{faults[0].reason}; remove them to start anew"
            )
        return folder


class _Commit(TrainerCallback):
    """What operators observed during a step takes effect after it."""

    def __init__(self, trainer: PolyDistillTrainer) -> None:
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


def _refuse_unsupported(args: SFTConfig, kwargs: dict[str, Any]) -> None:
    refused = {
        "packing": (
            args.packing or bool(args.eval_packing),
            "packed rows lose their task and severity; use packing=False",
        ),
        "padding_free": (
            args.padding_free,
            "it replaces the collator that carries the context; use padding_free=False",
        ),
        "loss_type": (args.loss_type != "nll", "the loss is the pooled divergence; set its share of labels with ce="),
        "label_smoothing_factor": (args.label_smoothing_factor > 0, "the teachers smooth the labels already"),
        "compute_loss_func": (kwargs.get("compute_loss_func") is not None, "the loss is the pooled divergence"),
        "compute_metrics": (
            kwargs.get("compute_metrics") is not None,
            "it needs the full [N, V] logits, which are never made; evaluate the saved student instead",
        ),
        "use_liger_kernel": (args.use_liger_kernel, "it replaces the model's forward"),
    }
    for name, (asked, why) in refused.items():
        if asked:
            raise ValueError(f"{name} is not supported by PolyDistillTrainer: {why}")


__all__ = ["Observer", "PolyDistillTrainer"]
