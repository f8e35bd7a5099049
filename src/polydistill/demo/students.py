"""Students that learn in step: one batch, the teachers run once, and every student decides for itself whom to trust."""

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from time import perf_counter

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from polydistill.demo.corpus import DOMAINS
from polydistill.demo.passages import Passages
from polydistill.demo.teachers import ModelSize, adamw, cosine, small_llama, token_losses, update
from polydistill.logprobs import Positions, TeacherOutput
from polydistill.objective import ForwardKL, distil
from polydistill.pipeline import Pipeline
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.training import Batch
from polydistill.training.hearing import listen_to
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
    return Hedge(rate=0.2, share=0.2)(LabelLikelihood(spread=4)) ** 0.25


def context_scale() -> Operator:
    """Who predicted the text so far."""
    return PrefixPosterior(share=0.02)


def token_scale() -> Operator:
    """Who is sure here."""
    return Softmax(2.0)(Entropy(spread=4))


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


def contestants() -> dict[str, Pipeline | None]:
    """The demo's students; None learns from labels only."""
    return {
        "labels_only": None,
        "uniform": untold(Uniform(), floor=0.0),
        "entropy_alone": untold(token_scale()),
        "router": Pipeline.of(TeacherRouter(strength=inf), DOMAINS),
        "adaptive": copy.deepcopy(STACK),
        "oracle": oracle(),
    }


@dataclass
class Student:
    """One contestant while it learns."""

    name: str
    pipeline: Pipeline | None
    model: LlamaForCausalLM
    optimizer: torch.optim.Optimizer
    loss: float = 0.0
    cross_entropy: float = 0.0
    divergence: float = 0.0
    weights: dict[str, dict[str, float]] = field(default_factory=dict)


def batch_of(passages: Passages) -> Batch:
    """Passages as a batch: the task is the true domain of the token to be predicted, the router's teacher that of the
    first one. Only contestants that are told look at either."""
    predicted = torch.cat([passages.domain[:, 1:], passages.domain[:, -1:]], 1)
    first = passages.domain[:, :1].expand_as(passages.ids).contiguous()
    return Batch(passages.ids, torch.ones_like(passages.ids), passages.ids, task=predicted, teacher=first)


def learn(
    settings: StudentSettings,
    pipelines: Mapping[str, Pipeline | None],
    teachers: Sequence[LocalTeacher],
    tokenizer: PreTrainedTokenizerFast,
    passages: Passages,
    seed: int,
    after_step: Callable[[int, Mapping[str, Student]], None],
) -> tuple[dict[str, Student], dict[str, float]]:
    """Train one student per pipeline, in step, from equal weights and the same batches.

    Args:
        settings: common to all.
        pipelines: by name.
        teachers: in the order of the pipelines.
        tokenizer: shared.
        passages: to learn from.
        seed: of the students' weights and the order of the passages.
        after_step: called with the number of steps done.

    Returns:
        The students, and the seconds spent by part.
    """
    students = {}
    for name, pipeline in pipelines.items():
        model = small_llama(settings.size, tokenizer, passages.ids.shape[1], 1000 + seed).train()
        students[name] = Student(name, pipeline, model, adamw(model))
    seconds: dict[str, float] = defaultdict(float)
    generator = torch.Generator().manual_seed(seed)
    needed = settings.steps * settings.batch
    rounds = -(-needed // len(passages))
    order = torch.cat([torch.randperm(len(passages), generator=generator) for _ in range(rounds)])
    divergence = ForwardKL(ce=settings.ce)
    for step in range(settings.steps):
        chosen = passages.take(order[step * settings.batch : (step + 1) * settings.batch])
        batch = batch_of(chosen)
        rows, positions = batch.positions(reads_prefix=True)
        clock = perf_counter()
        outputs = listen_to(teachers, batch, rows)
        seconds["teachers"] += perf_counter() - clock
        rate = cosine(step, settings.steps, settings.learning_rate)
        for student in students.values():
            clock = perf_counter()
            objective = _learn_once(student, chosen, rows, positions, outputs, divergence, seconds)
            update(student.model, student.optimizer, rate)
            seconds["student"] += perf_counter() - clock - objective
        after_step(step + 1, students)
    return students, dict(seconds)


def _learn_once(
    student: Student,
    passages: Passages,
    rows: Int[Tensor, " N"],
    positions: Positions,
    outputs: list[TeacherOutput],
    divergence: ForwardKL,
    seconds: dict[str, float],
) -> float:
    """One backward pass; returns the seconds that the objective took."""
    if student.pipeline is None:
        loss = token_losses(student.model, passages.ids).mean()
        loss.backward()
        student.loss = student.cross_entropy = float(loss.detach())
        return 0.0
    hidden = last_hidden_state(student.model, input_ids=passages.ids)
    clock = perf_counter()
    stack = student.pipeline.stack
    out = distil(
        hidden.flatten(0, 1)[rows],
        head_of(student.model),
        outputs,
        positions,
        student.pipeline.decide,
        divergence,
        needs=stack.needs,
    )
    spent = perf_counter() - clock
    seconds["objective"] += spent
    loss = out.loss / out.count
    loss.backward()
    stack.observe(out.statistics)
    stack.commit()
    student.loss = float(loss.detach())
    student.divergence = float(out.divergence.sum()) / out.count
    student.cross_entropy = float(out.cross_entropy.sum()) / out.count
    student.weights = weights_by_domain(out.log_w, positions)
    return spent


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
