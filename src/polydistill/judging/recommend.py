"""Which stack, and is it worth it: candidates compared as predictors on the run's own held-out text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import TypeAdapter
from torch import Tensor

from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig
from polydistill.config.safety import build_safety
from polydistill.config.weighting import AnyFactor, build_stack
from polydistill.data.load import DataError
from polydistill.judging.recommendation import SURE, Recommendation, Sections, Tried, sentences
from polydistill.logprobs import Statistics
from polydistill.objective import ForwardKL, distil
from polydistill.pipeline import Pipeline
from polydistill.records.paired import Interval
from polydistill.run.build import build_trainer
from polydistill.run.cache import refuse_unheard
from polydistill.run.evaluate import ALL
from polydistill.safety import Order
from polydistill.teachers import TeacherSource, head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.hearing import listen_to
from polydistill.training.taught import Taught
from polydistill.training.watch import unwrapped
from polydistill.weighting import Operator, Uniform
from polydistill.worth import (
    Answers,
    by_position,
    by_text,
    clones,
    difference,
    mean_over_texts,
    simplest,
    tuned,
    tuned_elsewhere,
    tuned_powers,
)

POSTERIOR: dict[str, Any] = {"kind": "prefix_posterior", "share": 0.02}
ENTROPY: dict[str, Any] = {"kind": "softmax", "signal": "entropy", "temperature": 0.5, "spread": 4.0}
LEAST_POWER = 0.05
"""A factor whose exponent is less is left out."""
ENTROPIES = frozenset({"entropy"})
"""Statistics that every comparison reads."""
LEAST_TEXTS = 8
"""Fewer than this say nothing about any other text."""


def recommend_run(config: RunConfig, texts: int = 200) -> Recommendation:
    """Ask the teachers about held-out text once, and compare stacks on what they say.

    Args:
        config: of the run; its own stack is one of those compared.
        texts: at most so many, taken at random.

    Raises:
        ConfigError: the data is too little, or nothing in it has a loss.
    """
    with TemporaryDirectory() as elsewhere:
        trainer = build_trainer(config.model_copy(update={"output": elsewhere}))
        refuse_unheard(trainer)
        which, said = "held-out", []
        if trainer.eval_dataset is None:
            trainer.eval_dataset, which = trainer.train_dataset, "training"
            said.append("there is no data.evaluation: these are training texts, which teachers may have seen")
            if config.data.streamed:
                raise ConfigError("data.evaluation is needed to compare on, where data.train is a stream")
        data: Any = trainer.eval_dataset
        if len(data) < LEAST_TEXTS:
            raise ConfigError(
                f"{len(data)} {which} texts are too few to tell stacks apart; {LEAST_TEXTS} are the least"
            )
        trainer.eval_dataset = data.shuffle(seed=0).select(range(min(texts, len(data))))
        compared = Comparison(
            list(_heard(trainer)),
            trainer.pipeline.teachers,
            trainer.pipeline.tasks,
            floor=config.floor,
            safety=build_safety(config.safety),
        )
        if compared.can_predict(trainer.pipeline):
            own = [factor.model_dump(mode="json", exclude_defaults=True) for factor in config.weighting]
            compared.further["as configured"] = own, trainer.pipeline
        return compared.recommendation(said)


@dataclass(frozen=True)
class Heard:
    """A batch of held-out texts, position by position.

    Attributes:
        statistics: what the teachers say.
        loss: the student's as it stands, nats.
        text: index of the text.
    """

    statistics: Statistics
    loss: Float[Tensor, " N"]
    text: Int[Tensor, " N"]

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        student: Any,
        batch: Batch,
        teachers: Sequence[TeacherSource],
        *,
        needs: frozenset[str] = ENTROPIES,
        first: int = 0,
        visible: int | None = None,
    ) -> "Heard | None":
        """Student and teachers on a batch; None where nothing in it has a loss.

        Args:
            student: without adapters around it.
            batch: one text to a sequence.
            teachers: in order.
            needs: statistics that a candidate reads.
            first: index of the batch's first text.
            visible: entries of the vocabulary that are real.
        """
        rows, positions = batch.positions(reads_prefix=True)
        if not bool(positions.has_loss.any()):
            return None
        hidden = last_hidden_state(student, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        flat, head = hidden.flatten(0, 1)[rows], head_of(student, visible)
        outputs = listen_to(teachers, batch, rows)
        averaging = Pipeline.of(Uniform(), [teacher.name for teacher in teachers]).decide
        needs |= {*ENTROPIES, "fidelity"}
        found = distil(flat, head, outputs, positions, averaging, ForwardKL(), needs=needs)
        assert found.statistics.fidelity is not None
        # Where a translated teacher says nothing there is nothing to compare it by.
        speak = replace(positions, has_loss=positions.has_loss & (found.statistics.fidelity > 0.0).all(-1))
        texts = first + rows // batch.input_ids.shape[1]
        return cls(replace(found.statistics, positions=speak), found.cross_entropy, texts)


def _stack(weighting: Sections) -> Operator:
    return build_stack(TypeAdapter(list[AnyFactor]).validate_python(weighting))


def _raised(factors: Sections, powers: Float[Tensor, " S"]) -> Sections:
    """The factors to their powers, without those whose power is as good as 0."""
    raised = [factor | {"power": round(power, 2)} for factor, power in zip(factors, powers.tolist(), strict=True)]
    return [factor for factor in raised if factor["power"] >= LEAST_POWER] or [{"kind": "uniform"}]


@torch.no_grad()
def _heard(trainer: Taught) -> Iterator[Heard]:
    """What student and teachers say of every held-out batch."""
    student: Any = trainer.model
    student.eval()
    student = unwrapped(student)  # adapters stay in its layers
    batches, seen = trainer.held_out(), 0
    if batches is None:
        raise ConfigError("data.evaluation has no `completion`, so that there is no loss to compare on")
    needs, teachers = trainer.pipeline.stack.needs, trainer.teachers
    for batch in batches:
        heard = Heard.of(student, batch, teachers, needs=needs, first=seen, visible=trainer.visible)
        if heard is not None:
            yield heard
        seen += len(batch.input_ids)


class Comparison:
    """Everything that the teachers said, and every candidate's loss on it.

    Args:
        heard: of every batch.
        teachers, tasks: names.
        floor, safety: of every candidate's pipeline.

    Attributes:
        further: name -> section and pipeline of candidates beside the usual ones; the last to be preferred.

    Raises:
        DataError: no position has a loss.
    """

    def __init__(
        self,
        heard: Sequence[Heard],
        teachers: Sequence[str],
        tasks: Sequence[str],
        *,
        floor: float,
        safety: Order | None = None,
    ) -> None:
        self.names, self.tasks, self.floor, self.safety = list(teachers), list(tasks), floor, safety
        self.further: dict[str, tuple[Sections, Pipeline]] = {}
        self.batches = [batch.statistics for batch in heard]
        self.chosen = [statistics.positions.has_loss for statistics in self.batches]
        if not any(bool(chosen.any()) for chosen in self.chosen):
            raise DataError("the texts have no position with a loss; nothing can be compared")
        self.student = torch.cat([batch.loss[keep] for batch, keep in zip(heard, self.chosen, strict=True)]).cpu()
        entropy = [s.entropy[keep] for s, keep in zip(self.batches, self.chosen, strict=True) if s.entropy is not None]
        self.entropy = torch.cat(entropy).cpu()
        self.answers = Answers(
            log_p=self._kept(lambda statistics: statistics.label_log_prob),
            text=torch.cat([batch.text[keep] for batch, keep in zip(heard, self.chosen, strict=True)]).cpu(),
            task=self._kept(lambda statistics: statistics.positions.task),
        )

    def _kept(self, of: Callable[[Statistics], Tensor]) -> Tensor:
        return torch.cat([of(s)[keep] for s, keep in zip(self.batches, self.chosen, strict=True)]).cpu()

    @staticmethod
    def can_predict(pipeline: Pipeline) -> bool:
        """Whether its weights follow from what comes before the label, and are not learned while a student is."""
        return not pipeline.stack.state_dict() and not pipeline.stack.reads_label

    def weights(self, weighting: Sections) -> Float[Tensor, "N K"]:
        """Log-weights of a stack at the positions with a loss."""
        return self._under(Pipeline.of(_stack(weighting), self.names, self.tasks, floor=self.floor, safety=self.safety))

    @torch.no_grad()
    def _under(self, pipeline: Pipeline) -> Float[Tensor, "N K"]:
        pipeline.stack.to(self.batches[0].label_log_prob.device)
        decided = [pipeline.decide(s, None)[0][keep] for s, keep in zip(self.batches, self.chosen, strict=True)]
        return torch.cat(decided).cpu()

    def candidates(self) -> dict[str, tuple[Sections, Float[Tensor, "N K"]]]:
        """Name -> section and log-weights, in order of simplicity; what is tuned is measured on other texts."""
        answers = self.answers
        made: dict[str, Sections] = {"averaging": [{"kind": "uniform"}]}
        made |= {f"{name} alone": [{"kind": "fixed", "weights": {name: 1.0}}] for name in self.names}
        found = {name: (section, self.weights(section)) for name, section in made.items()}
        everything = torch.zeros_like(answers.task)
        fixed = {"kind": "fixed", "weights": self._rounded(tuned(answers.log_p))}
        found["fixed weights"] = [fixed], self._floored(tuned_elsewhere(answers, everything))
        by_task: Sections = []
        if len(self.tasks) > 1:
            table = {
                task: self._rounded(tuned(answers.log_p[answers.task == index]))
                for index, task in enumerate(self.tasks)
                if bool((answers.task == index).any())
            }
            by_task = [{"kind": "task_prior", "table": table}]
            found["weights by task"] = by_task, self._floored(tuned_elsewhere(answers, answers.task))
        posteriors = {f"posterior, share {share:g}": POSTERIOR | {"share": share} for share in (0.02, 0.1, 0.005)}
        found |= {name: ([factor], self.weights([factor])) for name, factor in posteriors.items()}
        best = max(posteriors, key=lambda name: -float(answers.pooled(found[name][1]).double().mean()))
        found["entropy"] = self._powered([ENTROPY])
        found["posterior * entropy"] = self._powered([posteriors[best], ENTROPY])
        if by_task:
            found["posterior * task * entropy"] = self._powered([posteriors[best], *by_task, ENTROPY])
        found |= {name: (section, self._under(pipeline)) for name, (section, pipeline) in self.further.items()}
        return found

    def _powered(self, factors: Sections) -> tuple[Sections, Float[Tensor, "N K"]]:
        """Their product with the exponents that predict best; factors that are not needed are left out."""
        bare = [Pipeline.of(_stack([factor]), self.names, self.tasks) for factor in factors]
        logs, log_p = torch.stack([self._under(one) for one in bare]), self.answers.log_p
        log_w = torch.empty_like(log_p)
        for half in (0, 1):
            here = self.answers.half == half
            log_w[here] = self.weights(_raised(factors, tuned_powers(log_p[~here], logs[:, ~here])))[here]
        return _raised(factors, tuned_powers(log_p, logs)), log_w

    def _rounded(self, log_w: Float[Tensor, " K"]) -> dict[str, float]:
        """To three digits, and none at 0, which would be a veto."""
        weights = zip(self.names, log_w.exp().tolist(), strict=True)
        return {name: max(round(weight, 3), 0.001) for name, weight in weights}

    def _floored(self, log_w: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        floor = self.floor
        return ((1.0 - floor) * log_w.exp() + floor / log_w.shape[1]).log()

    def recommendation(self, said: Sequence[str] = ()) -> Recommendation:
        """What is found; `said` comes before its sentences."""
        answers, found = self.answers, self.candidates()
        losses = {name: answers.pooled(log_w) for name, (_, log_w) in found.items()}
        average = losses["averaging"]
        tried = [
            Tried(
                name,
                section,
                float(losses[name].double().mean()),
                difference(losses[name], average, answers.text),
                dict(zip(self.names, log_w.exp().mean(0).tolist(), strict=True)),
            )
            for name, (section, log_w) in found.items()
        ]
        chosen = list(losses)[simplest(list(losses.values()), answers.text)]
        headroom = {
            "fixed weights": difference(losses["fixed weights"], average, answers.text),
            "best teacher of each text": difference(by_text(answers), average, answers.text),
            "best teacher of each token": difference(by_position(answers), average, answers.text),
        }
        mean = (-answers.log_p.double().mean(0) - self.entropy.double().mean(0)).tolist()
        result = Recommendation(
            texts=len(answers.text.unique()),
            positions=len(answers.text),
            teachers=self._by_task(),
            surprise=dict(zip(self.names, mean, strict=True)),
            unknown=self._unknown(losses[chosen], found[chosen][1]),
            disagreement=float((answers.log_p.amax(-1) - answers.log_p.amin(-1)).double().mean()),
            clones=clones(answers, self.names),
            student=float(self.student.double().mean()),
            teaching=difference(losses[chosen], self.student, answers.text),
            headroom=headroom,
            tried=tried,
            chosen=chosen,
            says=[],
        )
        result.says.extend([*said, *sentences(result)])
        return result

    def _unknown(self, loss: Float[Tensor, " N"], log_w: Float[Tensor, "N K"]) -> float:
        """Share of the texts on which a stack is surprised: its loss is far above its teachers' own entropy."""
        surprise = loss.double() - (log_w.exp() * self.entropy).sum(-1).double()
        _, text = self.answers.text.unique(return_inverse=True)
        total = torch.zeros(int(text.max()) + 1, dtype=torch.float64).index_add_(0, text, surprise)
        return float((total / text.bincount() > SURE).double().mean())

    def _by_task(self) -> dict[str, dict[str, Interval]]:
        groups = {ALL: torch.ones_like(self.answers.task, dtype=torch.bool)}
        groups |= {task: self.answers.task == index for index, task in enumerate(self.tasks)}
        return {
            name: {
                task: mean_over_texts(-self.answers.log_p[here, k], self.answers.text[here])
                for task, here in groups.items()
                if bool(here.any())
            }
            for k, name in enumerate(self.names)
        }
