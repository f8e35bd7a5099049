"""What every trainer of ours does about teachers: bound once, checked against the student, placed, and heard."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from polydistill.data.context import refuse_unlisted_stream, task_names, uncalled, unlisted
from polydistill.diagnostics import losses_by_task
from polydistill.logprobs import Head, HiddenStates
from polydistill.objective import Divergence, OwnPool
from polydistill.objective.distil import chunk_bytes
from polydistill.pipeline import Pipeline
from polydistill.promises import Promise, Terms, promises, says
from polydistill.records.parts import OBJECTIVE, REST
from polydistill.safety import Order
from polydistill.safety.constrained import Constrained
from polydistill.teachers import LocalTeacher, ModelRefusedError, Teacher, Translated, check_rows, examine
from polydistill.teachers.translated import KEPT
from polydistill.teachers.vocabulary import refuse_in, reserved_ids, tokens_by_id
from polydistill.training.batch import Batch
from polydistill.training.between import Commit
from polydistill.training.checkpointed import Checkpointed
from polydistill.training.clock import Clock
from polydistill.training.gradient.across_groups import AcrossGroups, Split
from polydistill.training.gradient.across_teachers import AcrossTeachers
from polydistill.training.hearing import Heard, Method, hear, skipping
from polydistill.training.overlap import overlap, trusted
from polydistill.training.partial import (
    counted,
    fit_foreign,
    fit_served,
    foreign_facts,
    ordinary,
    served_among,
    served_facts,
)
from polydistill.training.placement import Copied, Placement, Sharded, refuse_silent_single
from polydistill.training.probe import probed
from polydistill.training.sampled import Sampled
from polydistill.training.seated import refuse_coarse, refuse_unfit, too_coarse, too_long
from polydistill.training.spikes import Spikes
from polydistill.training.step import StepOutcome, step
from polydistill.training.terms import terms_of
from polydistill.training.watch import Watch, unwrapped
from polydistill.weighting import Operator

logger = logging.get_logger(__name__)

DATA = {"train_dataset": "the training data", "eval_dataset": "the held-out data"}
"""What a trainer calls its data sets -> what messages call them."""

UNTEMPLATED = (
    "{} has conversations and the student's tokenizer no chat template; give one with student.chat_template (a folder "
    "with a tokenizer, or a file), or write the data as plain text"
)


class Taught(Checkpointed):
    """A trainer with teachers and a pipeline; to be mixed in before one of trl's trainers.

    Attributes:
        teachers: in the order of weights.
        given: the same as they came, before they were placed.
        objective: what is learned from them.
        visible: entries of the vocabulary that are real.
        masked: sentences about padded tails of embedding matrices.
        last_step: of the last batch.
        watch: the probe batch, looked at by whoever records the run.
        terms: what promises depend on, with what was seen on a batch; None before one was looked at.
        gradient: modification of the gradient, or None.
        said: sentences about what it means for the safety order.
        data_says: sentences about the rows: cut, left out, of tasks that no weight knows.
        flags: what the student's checkpoint says of a configuration that training switches.
        longest: tokens of the longest row, as far as that is known before it is written.
        compared: student and teachers on the last batch of a step that is logged; see `overlap`.
        evaluated: by task, then without one, the summed cross-entropy and tokens of the evaluation at `evaluated_at`.
        evaluated_at: optimizer steps done before it; -1 without any.
    """

    teachers: list[Teacher]
    given: list[Teacher]
    objective: Divergence | Sampled
    visible: int
    masked: list[str]
    placement: Placement
    last_step: StepOutcome | None = None
    _step_sums: tuple[float, float, float] = (0.0, 0.0, 0.0)
    observers: "list[Observer]"
    loss_bytes: int | None = None
    skip_below: float | None = 0.0
    own_text: ClassVar[bool] = False
    terms: Terms | None = None
    gradient: AcrossTeachers | AcrossGroups | None = None
    said: tuple[str, ...] = ()
    data_says: list[str]
    flags: dict[str, Any]
    longest: int = 0
    compared: dict[str, float]
    evaluated: Float[Tensor, "J 2"]
    evaluated_at: int = -1

    def _tasks(self, given: Sequence[str] | None, *datasets: Any) -> tuple[str, ...]:
        """Names of the tasks: those that were given, or those of training and held-out data together."""
        for dataset, name in zip(datasets, DATA.values(), strict=True):
            if given is None and dataset is not None:
                refuse_unlisted_stream(dataset, name)
        found = task_names(*datasets) if given is None else tuple(given)
        pairs = zip(datasets, DATA.values(), strict=True)
        said = [unlisted(dataset, found, name) for dataset, name in pairs]
        self.data_says = list(filter(None, [*said, uncalled(datasets[0], found)]))
        return found

    def _bind(  # noqa: PLR0913
        self,
        teachers: list[Teacher],
        weighting: Operator | Callable[[Tensor], Tensor],
        names: Sequence[str],
        tasks: Sequence[str],
        floor: float,
        safety: Order | None,
        constraints: Constrained | None,
        placement: Placement | None,
        gradient: AcrossTeachers | AcrossGroups | None = None,
    ) -> None:
        """Names resolved before the student is loaded: one that does not exist should not cost a minute.

        Raises:
            GradientRefusedError: the gradient modification would break what the run promises.
            ValueError: an aggregator of the user's own is no pool.
            TypeError: words of run.yaml in place of objects.
        """
        for key, value, like in (("objective", self.objective, "ForwardKL()"), ("safety", safety, "Tilt({'safe': 1})")):
            if isinstance(value, str | dict):
                raise TypeError(f"{key}={value!r}: in Python it is an object such as {like}; words are for run.yaml")
        if isinstance(self.objective, OwnPool):
            terms_of(self.objective)
        self.teachers = self.given = teachers
        self._sums = torch.zeros(4, dtype=torch.float64)
        weighting = counted(teachers, weighting)
        self.pipeline = Pipeline.of(weighting, names, tasks, floor=floor, safety=safety)
        self.evaluated = torch.zeros(len(tasks) + 1, 2, dtype=torch.float64)
        self.compared = {}
        self.gradient, self.watch, self.spikes = gradient, Watch(), Spikes()
        self.targets_off: list[Tensor] = []
        if isinstance(gradient, AcrossTeachers):
            plain, stack = self.pipeline, weighting * gradient.factor()
            self.pipeline = Pipeline.of(stack, names, tasks, floor=floor, safety=safety)
            self.said = tuple(gradient.judge(plain, self.pipeline, self.objective))
        elif gradient is not None:
            self.said = tuple(gradient.judge(self.pipeline, self.objective))
        self.constraints = constraints
        if constraints is not None:
            constraints.bind(names, tasks, self.pipeline.safety)
        self.placement = Copied() if placement is None else placement

    def _skipping(self, skip_below: float | None, linear: bool) -> float | None:
        """Total weight that may be left out, after `_bind`; None runs every teacher."""
        looks_at_all = self.constraints is not None or isinstance(self.gradient, AcrossTeachers)
        looks_at_all |= isinstance(self.objective, OwnPool)  # nobody knows what it does with a teacher that weighs 0
        done = skipping(skip_below, linear, looks_at_all)
        if any(isinstance(teacher, Translated) for teacher in self.teachers):
            if skip_below:
                raise ValueError(
                    f"skip_below={skip_below}: what is known of a teacher with a tokenizer of its own is found out "
                    "while it is heard, on whole batches, so that beside one every teacher runs; use 0"
                )
            return None
        if isinstance(self.placement, Sharded):
            if skip_below:
                raise ValueError(
                    f"skip_below={skip_below}: where teachers are sharded, every rank needs each equally often, so "
                    "that all run; use 0, or another placement"
                )
            return None
        return done

    @property
    def method(self) -> Method:
        """What is learned by, on batches that the model is trained on."""
        assert isinstance(self.objective, Divergence)
        size = self.device_bytes if self.loss_bytes is None else self.loss_bytes
        return Method(self.teachers, self.pipeline, self.objective, self.constraints, size, self.skip_below)

    def _place_models(self, tokenizer: Any) -> PreTrainedModel:
        """After the student is there: vocabularies agree, state and teachers are where they belong."""
        self.teachers, said = ordinary(self.teachers, tokenizer)
        refuse_silent_single(self.accelerator)
        refuse_coarse(self.args.device)
        self.pipeline.stack.to(self.args.device)
        self.clock = Clock(self.args.device)
        self.device_bytes = None if self.args.device.type == "cpu" else chunk_bytes(self.args.device)
        if self.constraints is not None:
            self.constraints.dual.to(self.args.device)
        student = cast(PreTrainedModel, self.model)
        refuse_unfit(student, self.teachers)
        student = unwrapped(student)
        if not any(parameter.is_meta for parameter in student.parameters()):  # FSDP loads on the first rank only
            try:
                examine(student, trained=True)
            except ModelRefusedError as error:
                raise ModelRefusedError(f"the student: {error}") from error
        rows, tokens = student.get_output_embeddings().weight.shape[0], len(tokens_by_id(tokenizer))
        self.visible = min(rows, tokens)
        told = [*said, check_rows(rows, tokens, "the student", reserved_ids(tokenizer))]
        told.append(too_coarse(student, self.args.learning_rate))
        if rows < tokens:
            rowless = range(rows, tokens)
            student.get_input_embeddings().register_forward_pre_hook(
                lambda _, given: refuse_in(given[0].unique().tolist(), rowless, "the student", tokenizer)
            )
        looks_at_all = self.constraints is not None or self.gradient is not None
        fit_foreign(self.teachers, self.pipeline, self.objective, self.placement, looks_at_all=looks_at_all)
        fit_served(self.teachers, self.pipeline, self.objective, looks_at_all=looks_at_all)
        told += [teacher.agree_with(tokenizer, self.visible) for teacher in self.teachers]
        self.masked = [sentence for sentence in told if sentence]
        for sentence in self.masked:
            logger.info(sentence)
        self.teachers = [self.placement.place(teacher, self.accelerator) for teacher in self.teachers]
        self.add_callback(Commit(self))
        return student

    def _compare_lengths(self) -> None:
        """The longest row beside what every model has positions for."""
        models: dict[str, Any] = {"the student": self.model}
        models |= {f"teacher {t.name!r}": t.model for t in self.teachers if isinstance(t, LocalTeacher)}
        self.masked += filter(None, [too_long(who, model, self.longest) for who, model in models.items()])

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's; what is left when the loss is made is its way back through the student."""
        self.clock.mark(REST)
        loss = super().training_step(*args, **kwargs)
        self.clock.mark("student")
        return loss

    def _learn(
        self,
        hidden: Float[Tensor, "B T D"],
        head: Head,
        method: Method,
        batch: Batch,
        where: str,
        split: Split | None = None,
    ) -> tuple[HiddenStates, Heard, StepOutcome]:
        """Hear the teachers, then step; the clock has had the mark of the student's hidden states."""
        heard = hear(method, batch)
        student = heard.of(hidden, head)
        self.clock.mark("teachers")
        self.clock.time_products(student, heard.outputs)
        self.clock.mark(REST)
        done = step(student, heard, method, where, split)
        self.clock.mark(OBJECTIVE, (len(heard.rows), done.outcome.count))
        return student, heard, done

    def batch_of(self, inputs: dict[str, Any]) -> Batch:
        """A collated batch as the method sees it."""
        raise TypeError(f"{type(self).__name__} does not say what its batches are")

    def progress(self) -> dict[str, Any]:
        """Also what truncation and outages of served teachers cost."""
        return super().progress() | {"served": {t.name: dict(vars(t.tally)) for t in served_among(self.teachers)}}

    def take_up(self, progress: dict[str, Any]) -> None:
        """Also what served teachers cost so far."""
        super().take_up(progress)
        for teacher in served_among(self.teachers):
            vars(teacher.tally).update(progress["served"].get(teacher.name, {}))

    def held_out(self) -> Iterator[Batch] | None:
        """Batches of the held-out data on one process's device; None where there is nothing to measure a loss on."""
        raise TypeError(f"{type(self).__name__} does not say what its held-out data is")

    def promises(self) -> list[Promise]:
        """What is promised of this run's weights and targets."""
        return promises(self.pipeline, terms_of(self.objective, self) if self.terms is None else self.terms)

    def probe(self, batch: Batch) -> None:
        """Look at a batch for what the promises are worth there; they say it from now on."""
        self.terms = probed(self, terms_of(self.objective, self), batch)

    def certificate(self) -> str:
        """What this run's weights promise, in words, with the derivation."""
        guarantee = self.pipeline.guarantee()
        return "\n".join([repr(self.pipeline.stack), *says(self.promises()), "derivation:", *guarantee.lines(1)])

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.evaluation_loop`, with means over all tokens, however they lie in batches."""
        self._sums = torch.zeros(4, dtype=torch.float64)
        if self.evaluated_at != self.state.global_step:  # several held-out sets count together
            self.evaluated.zero_()
            self.evaluated_at = self.state.global_step
        output: Any = super().evaluation_loop(*args, **kwargs)
        divergence, cross_entropy, count, loss = self._sums.tolist()
        if count:
            prefix = kwargs.get("metric_key_prefix", "eval")
            output.metrics[f"{prefix}_loss"] = loss / count
            seen: Any = self._metrics["eval"]
            seen["divergence"], seen["cross_entropy"] = [divergence / count], [cross_entropy / count]
        return output

    def _is_logged(self) -> bool:
        """Whether the step under way will be."""
        step, every = self.state.global_step + 1, self.state.logging_steps
        return bool(every and step % int(every) == 0) or (step == 1 and self.args.logging_first_step)

    def _compare(self, student: HiddenStates, heard: Heard) -> None:
        """Look at student and teachers side by side where that will be logged; inside the student's forward."""
        if self._is_logged():
            self.compared = overlap(student, heard, self.pipeline.teachers)

    def _heard(self, done: StepOutcome, batch: Batch, mode: str) -> dict[str, float]:
        """Means over all ranks for the log, and the number of tokens; operators and observers take note in training."""
        outcome = done.outcome
        totals = torch.stack([outcome.divergence.sum(), outcome.cross_entropy.sum(), batch.attention_mask.sum()])
        own = totals.new_tensor([float(outcome.count), float(outcome.loss.detach())])  # without a penalty
        totals = self.accelerator.reduce(torch.cat([totals, own]), "sum")
        divergence, cross_entropy, tokens, count, loss = totals.tolist()
        if mode == "eval":
            self._sums += totals[[0, 1, 3, 4]].double().cpu()
            by_task = losses_by_task(outcome, len(self.pipeline.tasks))
            self.evaluated += self.accelerator.reduce(by_task, "sum").double().cpu()
        if mode == "train":  # of the whole step, as the loss is: its forwards have different numbers of tokens
            before = self._step_sums
            self._step_sums = before[0] + divergence, before[1] + cross_entropy, before[2] + count
            divergence, cross_entropy, whole = self._step_sums
        else:
            whole = count
        heard = {"tokens": tokens}
        if mode != "train" or self.accelerator.sync_gradients:
            heard |= {"divergence": divergence / max(whole, 1.0), "cross_entropy": cross_entropy / max(whole, 1.0)}
            self._step_sums = (0.0, 0.0, 0.0) if mode == "train" else self._step_sums
        if done.unheard is not None:
            heard["distil/translated/unheard"] = float(done.unheard.sum() / max(outcome.count, 1))
        if done.runs is not None:
            heard["teachers_run"] = float(done.runs.float().mean())
        if mode == "train":
            if self.spikes is not None:
                self.spikes.add(loss, count)
            self.pipeline.stack.observe(outcome.statistics)
            heard |= served_facts(self.teachers)
            if done.off is not None and sum(map(len, self.targets_off)) < KEPT:
                self.targets_off.append(done.off[done.positions.has_loss & done.off.isfinite()].cpu())
            if self._is_logged():
                heard |= trusted(outcome, self.pipeline.teachers) | self.compared
                heard |= foreign_facts(self.teachers, self.targets_off)
            self.compared = {}
            for observer in self.observers:
                heard |= observer(done, self)
        return heard


def parts(dataset: Any) -> list[Any]:
    """The data sets of one that may be several by name, or None."""
    return [] if dataset is None else list(dataset.values()) if isinstance(dataset, dict) else [dataset]


Observer = Callable[[StepOutcome, Taught], dict[str, float]]
"""Called on every training batch; what it returns is averaged and logged."""
