"""The adaptive stack, and the controls that learn beside it: the same batches, and each decides whom to trust."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM

from polydistill.demo.corpus import DOMAINS
from polydistill.demo.passages import Passages
from polydistill.demo.teachers import ModelSize, adamw, token_losses, update
from polydistill.logprobs import TeacherOutput, logits_of
from polydistill.objective import Divergence
from polydistill.pipeline import Pipeline
from polydistill.records import StepRecord
from polydistill.records.parts import REST
from polydistill.teachers import TeacherSource, head_of, last_hidden_state
from polydistill.training import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import StepOutcome, step
from polydistill.training.taught import Taught
from polydistill.weighting import Hedge, Operator, PrefixPosterior, Softmax, Uniform
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
    steps: int = 180
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


def controls() -> dict[str, Pipeline | None]:
    """Whom the adaptive student is compared with; None learns from labels only.

    The last two are told a teacher: the one of the text's first domain, and the one of every position's own.
    """
    return {
        "labels_only": None,
        "uniform": untold(Uniform(), floor=0.0),
        "entropy_alone": untold(token_scale()),
        "router": Pipeline.of(Uniform(), ("first",)),
        "oracle": Pipeline.of(Uniform(), ("own",)),
    }


@dataclass
class Named:
    """What the teacher that is named at each position says there: a hard route, for the price of one teacher.

    Attributes:
        outputs: of every teacher.
        who: index of the one that is named.
    """

    outputs: Sequence[TeacherOutput]
    who: Int[Tensor, " N"]
    exact: bool = True

    @property
    def vocabulary(self) -> int:
        """Number of entries V."""
        return self.outputs[0].vocabulary

    def __len__(self) -> int:
        return len(self.who)

    def write(self, rows: Int[Tensor, " n"] | slice, out: Float[Tensor, "n V"]) -> None:
        """Finished logits of the named ones."""
        who, place = self.who[rows], torch.arange(len(self.who))[rows]
        for k, output in enumerate(self.outputs):
            out[who == k] = logits_of(output, place[who == k])

    def finish(self, logits: Float[Tensor, "n V"]) -> None:
        """Nothing is missing."""


@dataclass
class NamedTeacher:
    """Several teachers as one: the named one speaks.

    Attributes:
        name: of all together.
        teachers: in the order of the domains.
        who: index of the one that speaks about each token.
    """

    name: str
    teachers: Sequence[TeacherSource]
    who: Int[Tensor, "B T"]

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Named:
        """The named one's words at the flattened positions `rows`."""
        return Named([t.speak(input_ids, attention_mask, rows) for t in self.teachers], self.who.flatten()[rows])


def told(passages: Passages, teachers: Sequence[TeacherSource]) -> dict[str, list[NamedTeacher]]:
    """Student -> the teacher that it is told: of the text's first domain, or of the token's that is to be predicted."""
    first = passages.domain[:, :1].expand_as(passages.domain)
    own = torch.cat([passages.domain[:, 1:], passages.domain[:, -1:]], 1)
    return {"router": [NamedTeacher("first", teachers, first)], "oracle": [NamedTeacher("own", teachers, own)]}


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
            loss, mean = token_losses(self.model, batch.input_ids).mean(), None
            cross_entropy = loss.item()
        else:
            method = Method(teachers, self.pipeline, divergence)
            heard, hidden = hear(method, batch), last_hidden_state(self.model, input_ids=batch.input_ids)
            done = step(heard.of(hidden, head_of(self.model)), heard, method)
            self.pipeline.stack.observe(done.outcome.statistics)
            self.pipeline.stack.commit()
            loss = done.loss / done.outcome.count
            mean = done.outcome.divergence.sum().item() / done.outcome.count
            cross_entropy = done.outcome.cross_entropy.sum().item() / done.outcome.count
        loss.backward()
        update(self.model, self.optimizer, rate)
        return StepRecord(step=0, student=self.name, loss=loss.item(), divergence=mean, cross_entropy=cross_entropy)


class Controls:
    """Students that learn beside a run, from the batches of its training: an observer.

    Args:
        pipelines: by name.
        start: the weights that every student starts from.
        teachers: that remember the passages, or whom of a run's to ask beside it.
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
        teachers: Sequence[TeacherSource] | Callable[[Sequence[object]], Sequence[TeacherSource]],
        passages: Passages,
        divergence: Divergence,
    ) -> None:
        self.students = {name: Control(name, pipeline, start) for name, pipeline in pipelines.items()}
        self.asked, self.passages, self.divergence = teachers, passages, divergence
        self.teachers: Sequence[TeacherSource] = () if callable(teachers) else teachers
        self.row = {tuple(ids): i for i, ids in enumerate(passages.ids.tolist())}
        self.records: list[StepRecord] = []
        self.weights: dict[int, dict[str, dict[str, float]]] = {}
        self.seconds = 0.0

    def __call__(self, done: StepOutcome, trainer: Taught) -> dict[str, float]:
        """One step of every student, at the run's learning rate; nothing is logged with the run's own figures."""
        clock = perf_counter()
        trainer.clock.mark(REST)
        if callable(self.asked) and not self.teachers:
            self.teachers = self.asked(trainer.teachers)
        assert done.batch is not None
        assert trainer.optimizer is not None
        rows = torch.tensor([self.row[tuple(ids)] for ids in done.batch.input_ids.tolist()])
        passages, rate = self.passages.take(rows), float(trainer.optimizer.param_groups[0]["lr"])
        named = told(passages, self.teachers)
        heard: dict[str, Sequence[TeacherSource]] = {name: named.get(name, self.teachers) for name in self.students}
        records = [
            student.learn(done.batch, heard[name], self.divergence, rate) for name, student in self.students.items()
        ]
        number = trainer.state.global_step + 1
        if number % trainer.args.logging_steps == 0:
            self.records += [record.model_copy(update={"step": number}) for record in records]
            self.weights[number] = weights_by_domain(done.outcome.log_w, named["oracle"][0].who.flatten()[done.rows])
        self.seconds += perf_counter() - clock
        trainer.clock.begin()  # it was no part of the run's step
        return {}


def weights_by_domain(log_w: Float[Tensor, "N K"], domain: Int[Tensor, " N"]) -> dict[str, dict[str, float]]:
    """True domain of the predicted token -> teacher -> mean weight."""
    present = [index for index in range(len(DOMAINS)) if bool((domain == index).any())]
    means = {DOMAINS[index]: log_w[domain == index].exp().mean(0).tolist() for index in present}
    return {name: dict(zip(DOMAINS, mean, strict=True)) for name, mean in means.items()}


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
    return scores_of(losses, passages)


def scores_of(losses: Float[Tensor, "B n"], passages: Passages) -> Scores:
    """Means of losses at every position but the last."""
    predicted, mixed = passages.domain[:, 1:], passages.mixed
    return Scores(
        mean=float(losses.mean()),
        whole=float(losses[~mixed].mean()),
        mixed=float(losses[mixed].mean()),
        domains={domain: float(losses[predicted == index].mean()) for index, domain in enumerate(DOMAINS)},
    )
