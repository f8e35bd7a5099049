"""On-policy training: `trl.DistillationTrainer` with several teachers; the student writes, the teachers correct."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from trl import DistillationConfig, DistillationTrainer

from polydistill.data.context import COLUMNS, ContextCollator, DataError, refuse_empty, to_the_left
from polydistill.data.prompts import fixed_turn, with_prompts
from polydistill.data.rows import Reading, readable, repeated
from polydistill.data.severity import FromRules, Source, along, annotate
from polydistill.objective import Divergence, ForwardKL, ReverseKL
from polydistill.records.parts import OBJECTIVE, REST
from polydistill.safety import Order
from polydistill.safety.constrained import Constrained
from polydistill.teachers import Teachers, Translated, head_of, last_hidden_state, named_teachers
from polydistill.training.batch import IGNORED, Batch
from polydistill.training.placement import Placement
from polydistill.training.prepare import refuse_longer, refuse_text
from polydistill.training.sampled import Sampled, TokenScorer, refuse_for_sampled, sampled_step, scorers
from polydistill.training.step import StepOutcome
from polydistill.training.student import flags_of
from polydistill.training.taught import DATA, UNTEMPLATED, Observer, Taught, parts
from polydistill.training.text import ByEpoch, Text, measured, refuse_few
from polydistill.training.watch import unwrapped
from polydistill.weighting import Operator, Tag
from polydistill.weighting.labels import refuse_label_readers


class OnPolicyPolyDistillTrainer(Taught, DistillationTrainer):
    """`trl.DistillationTrainer` whose loss is distillation from several teachers under adaptive weights.

    The student completes the prompts; the divergence to the pooled teachers is taken on its own completions. Generation
    (also by vLLM), tools and chat templates are trl's, and so are the arguments that it has. Data sets need a `prompt`
    (or `messages`, whose last answer is then the completion), and may have `task`, `severity` and `teacher_id`.

    Args:
        model: student: hub id, folder or model.
        teachers: name -> hub id, folder, model or `LocalTeacher`; with a sampled objective also `TokenScorer`.
        weighting: operator stack, or a function from evidence `[n, K]` to weights. It must not read labels, which
            generated text does not have; the prefix posterior reads what the student wrote so far.
        args: `trl.DistillationConfig`; its `temperature` is that of sampling.
        floor: share of uniform weights mixed in, in [0, 1].
        safety: `Tilt`, `Ordered` or `Veto`.
        constraints: limits on the student.
        severity: how critical each context is; the data's column `severity` when None.
        objective: `ReverseKL()` (the default), another divergence such as `PoolThenDivide(pair=JSD(0.5))`, or a sampled
            one.
        tasks: names of the tasks; found in the data set's `task` column when None.
        fixed_share: share of the steps on the data's own completions, in [0, 1]: exactly that share, evenly spaced.
        max_length: tokens of prompt and completion together: completions end there, longer prompts are left out.
        skip_below: teachers of at most this total weight need not run (T5); 0 skips exact zeros only, None nothing.
        loss_bytes: byte budget of a chunk of the objective.
        observers: functions called on every training batch.
        placement: `Copied()`, `Sharded()` or `Offloaded()`.
        **kwargs: as for `DistillationTrainer` (`train_dataset`, `processing_class`, `tools`, `callbacks`, ...).

    Raises:
        ValueError: weights or an option that cannot be honoured on generated text.
        DataError: a data set is empty, or has no prompts.
        VocabularyMismatchError: a teacher's vocabulary is not the student's.

    >>> from datasets import Dataset
    >>> from trl import DistillationConfig
    >>> from polydistill import OnPolicyPolyDistillTrainer, PrefixPosterior
    >>> data = Dataset.from_dict({"prompt": ["def add(a, b):", "two and three make"] * 4})
    >>> args = DistillationConfig(
    ...     "run", max_steps=1, max_completion_length=8, bf16=False, report_to=[], disable_tqdm=True
    ... )
    >>> trainer = OnPolicyPolyDistillTrainer(
    ...     "org/small", {"code": "org/coder", "maths": "org/counter"}, PrefixPosterior(), args=args, train_dataset=data
    ... )
    >>> trainer.train().global_step  # doctest: +ELLIPSIS
    {'train_runtime': ...}
    1
    """

    own_text: ClassVar[bool] = True

    def __init__(  # noqa: PLR0913
        self,
        model: str | PreTrainedModel | PeftModel,
        teachers: Teachers | dict[str, Any],
        weighting: Operator | Callable[[Tensor], Tensor],
        *,
        args: DistillationConfig | None = None,
        floor: float = 0.02,
        safety: Order | None = None,
        constraints: Constrained | None = None,
        severity: Source | None = None,
        objective: Divergence | Sampled | None = None,
        tasks: Sequence[str] | None = None,
        fixed_share: float = 0.0,
        max_length: int | None = None,
        skip_below: float | None = 0.0,
        loss_bytes: int | None = None,
        observers: Sequence[Observer] = (),
        placement: Placement | None = None,
        **kwargs: Any,
    ) -> None:
        args = DistillationConfig("polydistill-run", bf16=False) if args is None else args
        args.logging_nan_inf_filter = False  # it would hide a NaN in the logged loss
        self.tokens: list[TokenScorer] | None = None
        chosen = ReverseKL() if objective is None else objective
        if isinstance(chosen, Sampled):
            self.tokens, local = scorers(teachers)
            names: tuple[str, ...] = tuple(teacher.name for teacher in self.tokens)
        else:
            local = named_teachers(teachers)
            names = tuple(teacher.name for teacher in local)
        self.objective = chosen
        for name, words in DATA.items():
            if kwargs.get(name) is not None:
                refuse_empty(kwargs[name], words)
                # Of a share that is refused below, nothing is asked of the rows.
                answered = 0 < fixed_share <= 1 and name == "train_dataset" and not isinstance(chosen, Sampled)
                reading = Reading(own_text=True, answered=answered, teachers=names)
                kwargs[name] = readable(with_prompts(readable(kwargs[name], words, reading), words), words, reading)
                if severity is not None:
                    kwargs[name] = annotate(kwargs[name], severity)
        found = self._tasks(tasks, *(kwargs.get(name) for name in DATA))
        self.data_says += repeated(kwargs.get("train_dataset"), kwargs.get("eval_dataset"))
        self._bind(local, weighting, names, found, floor, safety, constraints, placement)
        if self.pipeline.stack.reads_prefix_labels:
            self.pipeline.stack.tag = Tag.DYNAMIC  # the prefix is the student's own text
        self.fixed_share, self.loss_bytes, self.observers = float(fixed_share), loss_bytes, list(observers)
        linear = isinstance(chosen, ForwardKL | Sampled)
        self.skip_below = self._skipping(skip_below, linear)
        _refuse_unsupported(self, args, kwargs)
        self.flags = flags_of(model, args)
        super().__init__(model=model, teacher_model=None, args=args, **kwargs)
        self._place_models(self._tokenizer)
        self._settle_generation()
        self.context = ContextCollator(lambda rows: {}, names, found)
        self.max_length = max_length
        arguments: Any = self.chat_template_kwargs
        self.text = Text(self.processing_class, self._tokenizer, self.chat_template, self.tools, arguments)
        self._measure(answered=fixed_share > 0)
        self._compare_lengths()
        self.severity_along = None
        if isinstance(severity, FromRules) and severity.along:
            self.severity_along = along(severity, self._tokenizer)
        self.rows: list[dict[str, Any]] = []
        self.fixed = False
        self.made: list[StepOutcome] = []

    def _measure(self, answered: bool) -> None:
        """Every row becomes ids once before the first step, so that none ends a run in its middle or after it."""
        longest, writes = [], cast(DistillationConfig, self.args).max_completion_length or 0
        template = self.chat_template or getattr(self._tokenizer, "chat_template", None)
        for name, words in DATA.items():
            for part in parts(getattr(self, name)):
                first: Any = next(iter(part), {})
                if isinstance(first.get("prompt"), list) and not template:
                    raise DataError(UNTEMPLATED.format(words))
            given = getattr(self, name), words, self.text, self.max_length, answered or name == "eval_dataset"
            dataset, length, said = measured(*given, partial(refuse_text, self.teachers))
            setattr(self, name, dataset)
            longest.append(length + writes if length else 0)
            self.data_says += said
        self.longest = max(longest) if self.max_length is None else min(max(longest), self.max_length)
        refuse_longer(self.teachers, self.longest)
        refuse_few(self.train_dataset, self.args, self.accelerator.num_processes)

    def _settle_generation(self) -> None:
        """The student writes ids that are text, since others have no place in the loss."""
        rows = cast(Any, self.model).get_output_embeddings().weight.shape[0]
        known = set(self._tokenizer.get_vocab().values())
        without = [index for index in range(rows) if index not in known]
        if without:
            self.generation_config.suppress_tokens = [*(self.generation_config.suppress_tokens or []), *without]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """The student writes by its own law at the temperature of the run: without dropout, and without what its
        checkpoint says of generation beside the end tokens."""
        student: Any = self.model
        models = {id(model): model for model in (student, unwrapped(student))}.values()
        kept, training = [getattr(model, "generation_config", None) for model in models], student.training
        student.eval()
        for model in models:
            model.generation_config = GenerationConfig(
                eos_token_id=self.eos_token_ids, pad_token_id=self._tokenizer.pad_token_id
            )
        try:
            yield
        finally:
            for model, config in zip(models, kept, strict=True):
                model.generation_config = config
            student.train(training)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        known: list[str] = list(self._signature_columns or [])
        self._signature_columns = list(dict.fromkeys([*known, "completion", *COLUMNS]))  # type: ignore[assignment]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Completions, with the context of every row beside them: rows are shuffled and split together later."""
        training = self._training
        fixed = training and fixed_turn(self.state.global_step, self.fixed_share)
        self.rows, self.fixed = inputs, fixed
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if "pixel_values" in output:
            raise DataError("images are not supported: the teachers would not see them; train on text prompts")
        device, rows = output["prompt_ids"].device, len(inputs)
        output |= {name: value.to(device) for name, value in self.context(inputs).items()}
        if self.severity_along is not None:
            output["severity"] = self._severities_along(output)
        output["fixed"] = torch.full((rows,), fixed, device=device)
        return output

    def _get_train_sampler(self, dataset: Any = None) -> ByEpoch:
        return ByEpoch(cast(Any, super()._get_train_sampler(dataset)), lambda: int((self.state.epoch or 0.0) + 1e-6))

    def _room(self, prompt: list[int]) -> int | None:
        return None if self.max_length is None else max(self.max_length - len(prompt), 1)

    @property
    def _training(self) -> bool:
        student: Any = self.model
        return bool(student.training)

    def _severities_along(self, output: dict[str, Any]) -> Tensor:
        """`[B, T]`: what the rules say of the text up to each token."""
        assert self.severity_along is not None
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
        real = torch.cat([output["prompt_mask"], output["completion_mask"]], 1).bool()
        values = torch.zeros(ids.shape, device=ids.device)
        for row in range(len(ids)):
            said = self.severity_along(ids[row][real[row]].tolist())
            values[row][real[row]] = torch.tensor(said, device=ids.device)
        return values

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """With each row's own tools and arguments of the template."""
        rows = [{**row, "prompt": prompt} for row, prompt in zip(self.rows, prompts, strict=True)]
        return [self.text.example(row)[0] if self.fixed else self.text.prompt(row) for row in rows], None, {}

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fixed:
            ids = [self.text.example(row)[1][: self.max_completion_length] for row in self.rows]
        else:
            with self._writing():
                ids = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        return [row[: self._room(prompt)] for row, prompt in zip(ids, prompt_ids, strict=True)]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Mean loss over the completion tokens of the whole optimizer step, on all ranks."""
        training = self.clock.on = self._training
        self.clock.mark("writing")
        count = inputs.get("num_items_in_batch") if training else None
        # Each rank's loss is a share of the whole sum; DDP averages over ranks afterwards.
        items = None if count is None else count.clamp(min=1) / self.accelerator.num_processes
        student = self.accelerator.unwrap_model(model)
        # In a closure: FSDP2's mixed precision would round floating arguments, such as counts, to bfloat16.
        loss = self._forward_redirection(model, student, partial(self._compute_loss, student, inputs, items))
        done = self.last_step = self.made.pop()
        mode = "train" if training else "eval"
        heard = self._heard(done, self.batch_of(inputs), mode)
        del heard["tokens"]
        for name, value in heard.items():
            self._metrics[mode][name].append(value)
        self._total_train_tokens = int(self.state.num_input_tokens_seen)
        self.clock.mark(REST)
        return (loss, None) if return_outputs else loss

    def _compute_loss(self, unwrapped_student: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        """The body, inside the student's wrapped forward, where sharded parameters are whole."""
        batch = self.batch_of(inputs)
        training = self._training
        where = f"step {self.state.global_step + 1}" if training else "evaluation"
        with self.accelerator.autocast():  # the redirected forward has lost it
            base = unwrapped(unwrapped_student)
            hidden = last_hidden_state(base, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            head = head_of(base, self.visible)
            self.clock.mark("student")
            if self.tokens is not None:
                assert isinstance(self.objective, Sampled)
                given = hidden, head, self.tokens, batch, self.pipeline, self.objective
                done = sampled_step(*given, where=where, clock=self.clock)
                self.clock.mark(OBJECTIVE)
            else:
                assert not isinstance(self.objective, Sampled)
                method = self.method if training else replace(self.method, constraints=None)
                if batch.sampled is not None:
                    method = replace(method, divergence=replace(method.divergence, ce=0.0))
                own, heard, done = self._learn(hidden, head, method, batch, where)
                if training:
                    self._compare(own, heard)
        self.made.append(done)
        items = done.outcome.count if num_items_in_batch is None else num_items_in_batch
        return done.loss / torch.as_tensor(items, device=done.loss.device).clamp(min=1e-6)

    def held_out(self) -> Iterator[Batch] | None:
        """The evaluation data's own completions, so that losses compare with other runs; None without any.

        Rows without one have no loss to measure and are left out.
        """
        size = self.args.per_device_eval_batch_size
        answered = [
            (part, [i for i, answer in enumerate(part["completion"]) if answer])
            for part in parts(self.eval_dataset)
            if "completion" in (part.column_names or [])
        ]
        if not any(chosen for _, chosen in answered):
            return None
        return (
            self._given_batch([part[i] for i in chosen[start : start + size]])
            for part, chosen in answered
            for start in range(0, len(chosen), size)
        )

    def _given_batch(self, rows: list[dict[str, Any]]) -> Batch:
        pairs = [self.text.example(row) for row in rows]
        prompts = [prompt for prompt, _ in pairs]
        answers = [answer[: self._room(prompt)] for prompt, answer in pairs]
        pad, device = self._tokenizer.pad_token_id, self.args.device

        def padded(lists: list[list[int]], side: str, value: int) -> Tensor:
            tensors = [torch.tensor(ids) for ids in lists]
            return torch.nn.utils.rnn.pad_sequence(tensors, True, value, padding_side=side).to(device)

        inputs: dict[str, Any] = {
            "prompt_ids": padded(prompts, "left", pad),
            "prompt_mask": padded([[1] * len(ids) for ids in prompts], "left", 0),
            "completion_ids": padded(answers, "right", pad),
            "completion_mask": padded([[1] * len(ids) for ids in answers], "right", 0),
            **{name: value.to(device) for name, value in self.context(rows).items()},
        }
        if self.severity_along is not None:
            inputs["severity"] = self._severities_along(inputs)
        return self.batch_of(inputs)

    def batch_of(self, inputs: dict[str, Any]) -> Batch:
        """What was generated, as the method's own batch: tools' answers are read but not learned."""
        given = "fixed" not in inputs or bool(inputs["fixed"].any())
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        learned = inputs["completion_mask"]
        if inputs.get("tool_mask") is not None:
            learned = learned * inputs["tool_mask"]
        answers = inputs["completion_ids"].masked_fill(learned == 0, IGNORED)
        own = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], 1)
        severity, mask = inputs["severity"], torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        labels = torch.cat([torch.full_like(inputs["prompt_ids"], IGNORED), answers], 1)
        order = to_the_left(mask)  # prompts are padded before their first token
        return Batch(
            input_ids=ids.gather(1, order),
            attention_mask=mask.gather(1, order),
            labels=labels.gather(1, order),
            task=inputs["task"][:, None].expand(ids.shape),
            teacher=inputs["teacher_id"][:, None].expand(ids.shape),
            severity=severity.gather(1, order) if severity.ndim == 2 else severity[:, None].expand(ids.shape),
            sampled=None if given else own.gather(1, order),
        )


def _refuse_unsupported(trainer: OnPolicyPolyDistillTrainer, args: DistillationConfig, kwargs: dict[str, Any]) -> None:
    if not 0.0 <= trainer.fixed_share <= 1.0:
        raise ValueError(f"the share of fixed data (lambda) must lie in [0, 1], got {trainer.fixed_share}")
    goal = trainer.objective
    if isinstance(goal, Sampled):
        for teacher in trainer.teachers:
            if isinstance(teacher, Translated):
                raise ValueError(
                    f"teacher {teacher.name!r} has a tokenizer of its own, and what is estimated from sampled tokens "
                    "has no bound under a translation; write `objective: {kind: forward_kl}`, or leave `tokenizer: "
                    "own` out where it is the student's"
                )
        refuse_for_sampled(trainer.pipeline, args, trainer.fixed_share)
        if trainer.constraints is not None:
            raise ValueError("constraints need whole distributions; a sampled objective has none")
    else:
        refuse_label_readers(trainer.pipeline.stack)
        if goal.ce and not trainer.fixed_share:
            raise ValueError(
                f"ce={goal.ce} is a share of cross-entropy on labels, which generated text does not have; use ce=0, or "
                "mix fixed data in (lambda > 0), on which it then acts"
            )
    if args.beta != 1.0:
        raise ValueError(f"beta={args.beta} is trl's way to choose the divergence; use objective= instead")
    if args.use_liger_kernel:
        raise ValueError("use_liger_kernel is not supported: it replaces the model's forward")
    if kwargs.get("teacher_model") is not None:
        raise ValueError("teacher_model is trl's single teacher; use teachers= instead")
