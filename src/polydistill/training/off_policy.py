"""Off-policy training: `trl.SFTTrainer` with teachers and a weighting."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.utils import logging
from trl import SFTConfig, SFTTrainer

from polydistill.data.context import COLUMNS, PLACE, ContextCollator, DataError, ids_in, refuse_empty, refuse_masked
from polydistill.data.rows import Reading, begun, columns_of, readable, repeated
from polydistill.data.severity import Source, annotate, annotate_tokens
from polydistill.logprobs import Head, HiddenStates
from polydistill.objective import Divergence, ForwardKL, Outcome
from polydistill.records.parts import REST
from polydistill.safety import Order
from polydistill.safety.constrained import Constrained
from polydistill.teachers import LocalTeacher, Teachers, named_teachers
from polydistill.teachers.vocabulary import refuse_in, tokens_by_id
from polydistill.training.batch import Batch
from polydistill.training.gradient.across_groups import AcrossGroups, Rows, refuse_unfit
from polydistill.training.gradient.across_teachers import AcrossTeachers, factor_of, said_of
from polydistill.training.hearing import Heard
from polydistill.training.packing import Packing
from polydistill.training.placement import Placement
from polydistill.training.prepare import cut, named, refuse_too_long, refuse_unread
from polydistill.training.seated import refuse_joined
from polydistill.training.step import StepOutcome
from polydistill.training.student import flags_of, of_the_tokens, teach_forward
from polydistill.training.taught import DATA, UNTEMPLATED, Observer, Taught, parts
from polydistill.weighting import Operator

logger = logging.get_logger(__name__)


class PolyDistillTrainer(Taught, SFTTrainer):
    """`trl.SFTTrainer` whose loss is distillation from several teachers under adaptive weights.

    The arguments that `SFTTrainer` has mean what they mean there. Data sets may have the columns `task` (a name),
    `severity` (0 to 1, or a list with one number per token) and `teacher_id` (a teacher's name or index), all optional.

    Args:
        model: student: hub id, folder or model.
        teachers: name -> hub id, folder, model or any `Teacher`; or a list, named after their folders.
        weighting: operator stack, or a function from evidence `[n, K]` to weights.
        args: `trl.SFTConfig`.
        floor: share of uniform weights mixed in, in [0, 1].
        safety: `Tilt`, `Ordered` or `Veto`.
        constraints: limits on the student; their multipliers move once per optimizer step.
        severity: how critical each context is; the data's column `severity` when None.
        objective: `ForwardKL` (the default) or another divergence.
        tasks: names of the tasks; found in the data set's `task` column when None.
        loss_bytes: byte budget of a chunk of the objective.
        observers: functions called on every training batch, e.g. diagnostics.
        placement: `Copied()` (a copy of every teacher on each rank), `Sharded()` or `Offloaded()`.
        gradient: `AcrossTeachers` or `AcrossGroups`: what an aggregator of torchjd makes of conflicting gradients.
        skip_below: teachers of at most this total weight need not run (T5); 0 skips exact zeros only, None nothing.
        **kwargs: as for `SFTTrainer` (`train_dataset`, `eval_dataset`, `processing_class`, `callbacks`, ...).

    Raises:
        ValueError: an option that the pooled loss cannot honour (another loss), or rows are packed and a model would
            let documents read each other.
        DataError: a data set is empty, or nothing in it is left to learn.
        VocabularyMismatchError: a teacher's vocabulary is not the student's.
        TeacherUnavailableError: a teacher cannot be loaded.

    >>> from datasets import Dataset
    >>> from trl import SFTConfig
    >>> from polydistill import PolyDistillTrainer, PrefixPosterior
    >>> data = Dataset.from_dict({"text": ["def add(a, b): return a + b", "two and three make five"] * 4})
    >>> args = SFTConfig("run", max_steps=2, bf16=False, report_to=[], disable_tqdm=True)
    >>> trainer = PolyDistillTrainer(
    ...     "org/small", {"code": "org/coder", "maths": "org/counter"}, PrefixPosterior(), args=args, train_dataset=data
    ... )
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    2
    """

    objective: Divergence
    brings_ids: bool = False

    def __init__(  # noqa: PLR0913
        self,
        model: str | PreTrainedModel | PeftModel,
        teachers: Teachers,
        weighting: Operator | Callable[[Tensor], Tensor],
        *,
        args: SFTConfig | None = None,
        floor: float = 0.02,
        safety: Order | None = None,
        constraints: Constrained | None = None,
        severity: Source | None = None,
        objective: Divergence | None = None,
        tasks: Sequence[str] | None = None,
        loss_bytes: int | None = None,
        observers: Sequence[Observer] = (),
        placement: Placement | None = None,
        gradient: AcrossTeachers | AcrossGroups | None = None,
        skip_below: float | None = 0.0,
        **kwargs: Any,
    ) -> None:
        args = SFTConfig("polydistill-run", bf16=False) if args is None else args
        _refuse_unsupported(args, kwargs)
        for name, words in DATA.items():
            if kwargs.get(name) is not None:
                refuse_empty(kwargs[name], words)
        args.logging_nan_inf_filter = False  # it would hide a NaN in the logged loss
        self.objective = ForwardKL() if objective is None else objective
        found = self._tasks(tasks, *(kwargs.get(name) for name in DATA))
        local = named_teachers(teachers)
        for teacher in local:
            if isinstance(teacher, LocalTeacher) and teacher.model is model:
                raise ValueError(
                    f"teacher {teacher.name!r} is the student itself, the same object; load the model twice, since a "
                    "teacher is frozen"
                )
        names = tuple(teacher.name for teacher in local)
        self._bind(local, weighting, names, found, floor, safety, constraints, placement, gradient)
        self.loss_bytes, self.observers = loss_bytes, list(observers)
        self.skip_below = self._skipping(skip_below, isinstance(self.objective, ForwardKL))
        self.rows = Rows(gradient) if isinstance(gradient, AcrossGroups) else None
        self.severity_of, self.completion_only = severity, bool(args.completion_only_loss)
        self.reading = Reading(
            args.dataset_text_field,
            answered=bool(args.assistant_only_loss),
            teachers=names,
            formatted=kwargs.get("formatting_func") is not None,
        )
        kwargs |= {n: begun(kwargs[n], words, self.reading) for n, words in DATA.items() if kwargs.get(n) is not None}
        self.data_says += repeated(kwargs.get("train_dataset"), kwargs.get("eval_dataset"), args.dataset_text_field)
        self.packing = Packing.of(args, names, found)
        if not hasattr(kwargs.get("train_dataset"), "__len__"):
            cast(Any, args.accelerator_config).dispatch_batches = False  # every rank takes its own rows of a stream
        asked = {"packing": args.packing, "padding_free": args.padding_free}
        args.packing = args.padding_free = False  # what trl does for them knows of no context; it is done here
        self.flags = flags_of(model, args)
        super().__init__(model=model, args=args, **kwargs)
        vars(self.args).update(asked)
        for name, words in DATA.items():
            for part in parts(getattr(self, name)):
                refuse_masked(part, words)
        self.data_collator = ContextCollator(self.data_collator, names, found)
        student = self._place_models(self._tokenizer)
        data = [*parts(self.train_dataset), *parts(self.eval_dataset)]
        refuse_unread(self.teachers, *data)
        refuse_too_long(self.teachers, *data)
        if self.packing is not None:
            refuse_joined(self.model, self.teachers)
        teach_forward(student, self.visible)
        self._refuse_unknown_tokens()
        self._compare_lengths()
        # Our loss divides by the number of visible tokens of the whole step, whatever the model would have done.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, True
        if self.rows is not None:
            refuse_unfit(self)

    def _refuse_unknown_tokens(self) -> None:
        """At once, not at the step that meets one: tokens that a teacher or the student lacks."""
        masked = {teacher.name: teacher.masked for teacher in self.teachers if isinstance(teacher, LocalTeacher)}
        lacks = {f"teacher {name!r}": ids.tolist() for name, ids in masked.items() if ids is not None}
        tokens = len(tokens_by_id(self._tokenizer))
        if tokens > self.visible:
            lacks["the student"] = list(range(self.visible, tokens))
        for dataset in (*parts(self.train_dataset), *parts(self.eval_dataset)) if lacks else ():
            found = ids_in(dataset)
            for who, ids in lacks.items():
                refuse_in(found, ids, who, self._tokenizer)
        for dataset in (*parts(self.train_dataset), *parts(self.eval_dataset)) if self.brings_ids else ():
            if (most := max(ids_in(dataset), default=0)) >= max(tokens, self.visible):
                raise DataError(
                    f"column 'input_ids' has the id {most}, and the student's tokenizer ends at {tokens - 1}; the rows "
                    "were made with another tokenizer"
                )

    def _prepare_dataset(
        self, dataset: Any, processor: Any, args: Any, packing: bool, formatting: Any, dataset_name: str
    ) -> Any:
        """As trl's, of rows that were looked at one by one; then severities, and the cut, both per token."""
        name = DATA.get(f"{dataset_name}_dataset", f"the data {dataset_name!r}")
        source, reading = self.severity_of, self.reading
        dataset = readable(dataset, name, reading)
        self.brings_ids = self.brings_ids or "input_ids" in columns_of(dataset)
        self._refuse_format(columns_of(dataset), name, processor)
        if source is not None:
            dataset = annotate(dataset, source, reading.text_field)
        whole = copy(args)
        whole.max_length, whole.shuffle_dataset = None, False
        prepare = super()._prepare_dataset
        dataset = named(name, dataset, lambda rows: prepare(rows, processor, whole, False, formatting, dataset_name))
        if source is not None:
            dataset = annotate_tokens(dataset, source, self._tokenizer)
        packs = self.packing if dataset_name == "train" else None
        splits = packs is not None and packs.splits
        done = cut(dataset, name, None if splits else args.max_length, args.truncation_mode)
        self.data_says += done.said
        rows = done.rows.shuffle(seed=args.seed) if args.shuffle_dataset and dataset_name == "train" else done.rows
        longest = done.longest or (args.max_length or 0)
        if packs is not None:
            rows, said = packs.pack(rows, name)
            self.data_says += said
            longest = min(longest, args.max_length or longest)
        self.longest = max(self.longest, longest)
        return rows

    def _refuse_format(self, columns: list[str], name: str, processor: Any) -> None:
        """What the options ask of the columns.

        Raises:
            DataError: conversations without a chat template.
            ValueError: completions are to be learned, and there are none.
        """
        if self.reading.formatted or "input_ids" in columns:
            return
        if "messages" in columns and not getattr(processor, "chat_template", None):
            raise DataError(UNTEMPLATED.format(name))
        if self.completion_only and "completion" not in columns:
            raise ValueError(
                f"completions alone are to be learned (data.loss: completion), and {name} has no column `completion`; "
                + ("learn answers with data.loss: assistant" if "messages" in columns else "leave it out")
            )

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss over the visible tokens of the whole optimizer step; with `return_outputs` also the logits."""
        batch = self.batch_of(inputs)
        training = self.clock.on = bool(model.training)
        self.clock.mark(REST)
        made: list[StepOutcome] = []
        method = self.method if training else replace(self.method, constraints=None)
        where = f"step {self.state.global_step + 1}" if training else "evaluation"
        split = self.gradient.split if isinstance(self.gradient, AcrossGroups) and training else None

        def distil(hidden: Tensor, head: Head) -> Tensor:
            self.clock.mark("student")
            hidden = of_the_tokens(hidden, batch.input_ids, self.model)
            student, heard, done = self._learn(hidden, head, method, batch, where, split)
            if isinstance(self.gradient, AcrossTeachers) and training:
                self._notice(self.gradient, student, heard, done.outcome)
            if training:
                self._compare(student, heard)
            made.append(done)
            return done.loss if done.losses is None else done.losses

        # Gradients of groups are averaged over ranks by themselves.
        alone = self.accelerator.no_sync(model) if split is not None else contextlib.nullcontext()
        with alone:
            outputs = model(**batch.inputs(), distil=distil)
        done = self.last_step = made[-1]
        count = done.outcome.count if num_items_in_batch is None else num_items_in_batch
        loss = outputs["loss"] / torch.as_tensor(count, device=outputs["loss"].device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        if outputs["aux_loss"] is not None and self.aux_loss_enabled:
            steps = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
            balance = self.router_aux_loss_coef * outputs["aux_loss"] / steps
            loss = loss + (balance if split is None else torch.stack([balance, torch.zeros_like(balance)]))
        modified = {} if split is None else self._modify(loss)
        self.clock.mark("student")
        self._note(done, batch, "train" if training else "eval", modified)
        self.clock.mark(REST)
        # Its gradient has been taken group by group: what is returned is the number, and a leaf of its own.
        loss = loss if split is None else loss.detach().sum().requires_grad_()
        if not return_outputs:
            return loss
        with torch.no_grad():  # the loss above made no logits
            outputs = model(**batch.inputs(), use_cache=False)
        return loss, CausalLMOutput(loss=loss.detach(), logits=outputs.logits[..., : self.visible])

    def _modify(self, losses: Float[Tensor, " G"]) -> dict[str, float]:
        """A backward pass per group; at the end of the optimizer step the combined gradient is put in place."""
        assert self.rows is not None
        student: Any = self.model
        trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
        self.rows.add(losses, trained)
        if not self.accelerator.sync_gradients:
            return {}
        found = self.rows.combine(trained, self.state.global_step)
        return found | self.rows.across.split.effective(found, self.objective)

    def _notice(self, gradient: AcrossTeachers, student: HiddenStates, heard: Heard, outcome: Outcome) -> None:
        """The Gramian across teachers; its coefficients take effect after the optimizer step."""
        hidden, temperature = student.hidden.detach(), self.objective.temperature
        factor = factor_of(self.pipeline)
        gradient.observe(factor, self.pipeline, hidden, student.head, heard.outputs, outcome, temperature)

    def held_out(self) -> Iterator[Batch] | None:
        """The evaluation data as the collator makes it; None without any."""
        if self.eval_dataset is None:
            return None
        # The loader of a single process: evaluation is the main rank's, whatever the number of ranks.
        size = self.args.per_device_eval_batch_size
        loaders = [
            torch.utils.data.DataLoader(part, size, collate_fn=self.data_collator) for part in parts(self.eval_dataset)
        ]
        batches = chain.from_iterable(loaders)
        return (self.batch_of({k: v.to(self.args.device) for k, v in batch.items()}).apart() for batch in batches)

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
            document_start=inputs.get("document_start"),
        )

    def _note(self, done: StepOutcome, batch: Batch, mode: str, modified: dict[str, float]) -> None:
        heard = self._heard(done, batch, mode)
        tokens = int(heard.pop("tokens"))
        heard |= {f"distil/{name}": value for name, value in modified.items()}
        if mode == "train" and isinstance(self.gradient, AcrossTeachers):
            heard |= {f"distil/{name}": value for name, value in said_of(factor_of(self.pipeline)).items()}
        metrics = self._metrics[mode]
        for name, value in heard.items():
            metrics[name].append(value)
        if mode == "train":
            self._total_train_tokens += tokens // self._tp_size
        metrics["num_tokens"] = [self._total_train_tokens]

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: list[str] = list(self._signature_columns or [])
        self._signature_columns = list(dict.fromkeys([*known, PLACE, *COLUMNS]))  # type: ignore[assignment]


def _refuse_unsupported(args: SFTConfig, kwargs: dict[str, Any]) -> None:
    if not isinstance(args, SFTConfig):
        raise TypeError(
            f"args must be a trl.SFTConfig, got {type(args).__name__}; it takes the same arguments and more"
        )
    refused = {
        "eval_packing": (
            bool(args.eval_packing),
            "held-out rows are measured one by one, whatever the training rows are; leave it out",
        ),
        "loss_type": (args.loss_type != "nll", "the loss is the pooled divergence; set its share of labels with ce="),
        "label_smoothing_factor": (args.label_smoothing_factor > 0, "the teachers smooth the labels already"),
        "compute_loss_func": (kwargs.get("compute_loss_func") is not None, "the loss is the pooled divergence"),
        "compute_metrics": (
            kwargs.get("compute_metrics") is not None,
            "it needs the full [N, V] logits, which are never made; evaluate the saved student instead",
        ),
        "activation_offloading": (
            args.activation_offloading and args.device.type == "cpu",
            "on a CPU there is no other memory to put activations into",
        ),
        "use_liger_kernel": (args.use_liger_kernel, "it replaces the model's forward"),
    }
    for name, (asked, why) in refused.items():
        if asked:
            raise ValueError(f"{name} is not supported by PolyDistillTrainer: {why}")
