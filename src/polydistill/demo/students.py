"""The adaptive stack, and the controls that learn beside it: the same batches, and each decides whom to trust."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM

from polydistill.demo.corpus import DOMAINS
from polydistill.demo.passages import Passages
from polydistill.demo.teachers import ModelSize, adamw, token_losses, update
from polydistill.logprobs import Positions
from polydistill.objective import Divergence
from polydistill.pipeline import Pipeline
from polydistill.records import StepRecord
from polydistill.teachers import TeacherSource, head_of, last_hidden_state
from polydistill.training import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import StepOutcome, step
from polydistill.training.taught import Taught
from polydistill.weighting import Hedge, Operator, PrefixPosterior, Softmax, TaskRouter, TeacherRouter, Uniform
from polydistill.weighting.signals import Entropy, LabelLikelihood

FLOOR = 0.02


@dataclass(frozen=True)
class StudentSettings:
    """What every student has in common.

    Attributes:
        size: of each student; smaller than a teacher.
        whole: training passages per domain.
        mixed: training passages per ordered pair of domains.
        held_whole, held_mixed: likewise, held out.
        steps, batch: optimizer steps of `batch` passages.
        learning_rate: peak.
        ce: share of cross-entropy on the labels in the distillation loss.
    """

    size: ModelSize = field(default_factory=lambda: ModelSize(hidden=96, layers=2, heads=4, intermediate=256))
    whole: int = 90
    mixed: int = 30
    held_whole: int = 48
    held_mixed: int = 24
    steps: int = 240
    batch: int = 16
    learning_rate: float = 3e-3
    ce: float = 0.1


def task_scale() -> Operator:
    """Nobody says what a text is about, so there is one task, and its weights are learned: gently, by Hedge."""
    return Hedge(rate=0.2, share=0.2)(LabelLikelihood(spread=4.0)) ** 0.25


def context_scale() -> Operator:
    """Who predicted the text so far."""
    return PrefixPosterior(share=0.02)


def token_scale() -> Operator:
    """Who is sure here."""
    return Softmax(2.0)(Entropy(spread=4.0))


def adaptive() -> Operator:
    """All three scales."""
    return task_scale() * context_scale() * token_scale()


def untold(weighting: Operator, floor: float = FLOOR) -> Pipeline:
    """A pipeline that knows the teachers' names and nothing about the text."""
    return Pipeline.of(weighting, DOMAINS, floor=floor)


STACK = untold(adaptive())
"""The adaptive stack as the demo uses it: `polydistill certify polydistill.demo.students:STACK`."""


def oracle() -> Pipeline:
    """Told the domain of every position."""
    return Pipeline.of(TaskRouter({domain: domain for domain in DOMAINS}, strength=inf), DOMAINS, DOMAINS)


def controls() -> dict[str, Pipeline | None]:
    """Whom the adaptive student is compared with; None learns from labels only."""
    return {
        "labels_only": None,
        "uniform": untold(Uniform(), floor=0.0),
        "entropy_alone": untold(token_scale()),
        "router": Pipeline.of(TeacherRouter(strength=inf), DOMAINS),
        "oracle": oracle(),
    }


def told(passages: Passages) -> Batch:
    """Passages as a batch: the task is the true domain of the token to be predicted, the router's teacher that of the
    first one. Only students that are told look at either."""
    predicted = torch.cat([passages.domain[:, 1:], passages.domain[:, -1:]], 1)
    first = passages.domain[:, :1].expand_as(passages.ids).contiguous()
    return Batch(passages.ids, torch.ones_like(passages.ids), passages.ids, task=predicted, teacher=first)


class Control:
    """One student while it learns.

    Args:
        name: of the student.
        pipeline: whom it trusts; None learns from labels only.
        start: the weights that every student starts from.
    """

    def __init__(self, name: str, pipeline: Pipeline | None, start: LlamaForCausalLM) -> None:
        self.name, self.pipeline = name, pipeline
        self.model = copy.deepcopy(start).train()
        self.optimizer = adamw(self.model)

    def learn(self, batch: Batch, teachers: Sequence[TeacherSource], divergence: Divergence, rate: float) -> StepRecord:
        """One step of training."""
        if self.pipeline is None:
            loss = token_losses(self.model, batch.input_ids).mean()
            record = StepRecord(step=0, student=self.name, loss=loss.item(), cross_entropy=loss.item())
        else:
            method = Method(teachers, self.pipeline, divergence)
            heard, hidden = hear(method, batch), last_hidden_state(self.model, input_ids=batch.input_ids)
            done = step(heard.of(hidden, head_of(self.model)), heard, method)
            self.pipeline.stack.observe(done.outcome.statistics)
            self.pipeline.stack.commit()
            loss = done.loss / done.outcome.count
            divergence_sum, entropy_sum = done.outcome.divergence.sum().item(), done.outcome.cross_entropy.sum().item()
            record = StepRecord(
                step=0,
                student=self.name,
                loss=loss.item(),
                divergence=divergence_sum / done.outcome.count,
                cross_entropy=entropy_sum / done.outcome.count,
            )
        loss.backward()
        update(self.model, self.optimizer, rate)
        return record


class Controls:
    """Students that learn beside a run, from the batches of its training: an observer.

    Args:
        pipelines: by name.
        start: the weights that every student starts from.
        teachers: that remember the passages.
        passages: all that the run learns from.
        divergence: what is learned.

    Attributes:
        students: by name.
        records: of their logged steps.
        weights: logged step -> true domain -> teacher -> the run's own mean weight.
        seconds: that they took.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline | None],
        start: LlamaForCausalLM,
        teachers: Sequence[TeacherSource],
        passages: Passages,
        divergence: Divergence,
    ) -> None:
        self.students = {name: Control(name, pipeline, start) for name, pipeline in pipelines.items()}
        self.teachers, self.passages, self.divergence = teachers, passages, divergence
        self.row = {tuple(ids): i for i, ids in enumerate(passages.ids.tolist())}
        self.records: list[StepRecord] = []
        self.weights: dict[int, dict[str, dict[str, float]]] = {}
        self.seconds = 0.0

    def __call__(self, done: StepOutcome, trainer: Taught) -> dict[str, float]:
        """One step of every student, at the run's learning rate; nothing is logged with the run's own figures."""
        clock = perf_counter()
        assert done.batch is not None
        assert trainer.optimizer is not None
        rows = torch.tensor([self.row[tuple(ids)] for ids in done.batch.input_ids.tolist()])
        batch, rate = told(self.passages.take(rows)), float(trainer.optimizer.param_groups[0]["lr"])
        records = [one.learn(batch, self.teachers, self.divergence, rate) for one in self.students.values()]
        number = trainer.state.global_step + 1
        if number % trainer.args.logging_steps == 0:
            self.records += [record.model_copy(update={"step": number}) for record in records]
            _, positions = batch.positions(reads_prefix=True)
            self.weights[number] = weights_by_domain(done.outcome.log_w, positions)
        self.seconds += perf_counter() - clock
        return {}


def weights_by_domain(log_w: Float[Tensor, "N K"], positions: Positions) -> dict[str, dict[str, float]]:
    """True domain of the predicted token -> teacher -> mean weight."""
    means = {}
    for index, domain in enumerate(DOMAINS):
        chosen = positions.has_loss & (positions.task == index)
        if chosen.any():
            means[domain] = dict(zip(DOMAINS, log_w[chosen].exp().mean(0).tolist(), strict=True))
    return means


@dataclass(frozen=True)
class Scores:
    """Held-out losses of one model, nats per token.

    Attributes:
        mean: over all texts.
        whole, mixed: over texts of one domain, and over texts that change domain.
        domains: by the true domain of the predicted token.
    """

    mean: float
    whole: float
    mixed: float
    domains: dict[str, float]


@torch.no_grad()
def judge(model: LlamaForCausalLM, passages: Passages) -> Scores:
    """A model on held-out passages."""
    was_training = model.training
    model.eval()
    losses = torch.cat([token_losses(model, part.ids) for part in passages.batches(32)]).double()
    model.train(was_training)
    predicted, mixed = passages.domain[:, 1:], passages.mixed
    return Scores(
        mean=float(losses.mean()),
        whole=float(losses[~mixed].mean()),
        mixed=float(losses[mixed].mean()),
        domains={domain: float(losses[predicted == index].mean()) for index, domain in enumerate(DOMAINS)},
    )
