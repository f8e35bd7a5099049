"""The students of the privacy scenario: how each is trained, and what is measured on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LlamaForCausalLM

from polydistill.data.pieces import pieces
from polydistill.data.severity import FromRules, SeverityRule
from polydistill.demo.records_text import FIELDS
from polydistill.demo.safety_setup import DOMAINS, TEACHERS, Setup, Texts
from polydistill.demo.teachers import Remembered, adamw, cosine, small_llama, update
from polydistill.diagnostics import mean_weights, summarise
from polydistill.logprobs import Statistics
from polydistill.objective import ForwardKL, Outcome
from polydistill.pipeline import Pipeline
from polydistill.records import StepRecord
from polydistill.run.build_safety import matching_tokens
from polydistill.run.recorder import constraint_records
from polydistill.safety import Controller, Forbidden, Order, Ordered, Tilt, UnsafeMass, Verdict, Veto, scores_of
from polydistill.safety.constrained import Constrained, student_writer
from polydistill.safety.effect import Effect, effect
from polydistill.safety.measures import unsafe_mass
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training.hearing import Method, hear
from polydistill.training.step import step
from polydistill.weighting import PrefixPosterior

TIERS = scores_of([["capable", "general"], ["careful"]])
"""Declared safety: who was trained on redacted text is safer than the others."""

RULES = FromRules((SeverityRule.of(rf"(?:{'|'.join(FIELDS)}):", until="\n"),), along=True)
"""A context is critical from the name of a private field to the end of its line."""

UNSAFE = r"[0-9@]"
"""Inside a private field no token with a digit or an at sign may be written."""

FLOOR = 0.02


@dataclass(frozen=True)
class Plan:
    """How one student is trained.

    Attributes:
        name: unique.
        label: in words.
        order: enforcement on the weights, or None.
        limit: of the unsafe mass, or None without a constraint.
        teachers: whom it learns from.
    """

    name: str
    label: str
    order: Order | None = None
    limit: float | None = None
    teachers: tuple[str, ...] = TEACHERS


@dataclass(frozen=True)
class Budget:
    """Of every student alike.

    Attributes:
        steps: optimizer steps.
        batch: sequences per step.
        learning_rate: peak.
        samples: completions per prompt of the attack.
    """

    steps: int = 180
    batch: int = 16
    learning_rate: float = 5e-3
    samples: int = 4


@dataclass(frozen=True)
class Finding:
    """What came out for one student.

    Attributes:
        plan: how it was trained.
        losses: domain -> cross-entropy of ordinary tokens on held-out text, nats; private values are left out.
        unsafe: mean unsafe mass in critical contexts of held-out records.
        unsafe_train: the same on the customers' records that it was trained on.
        leaked: share of the customers' private values that the attack got out of it.
        leaked_with_start: the same when the attacker knows the first characters of each value.
        verdict: of the constraint, or None.
        effect: of the enforcement on the weights over the student's own texts, or None.
        ordered_from: severity from which O1 is promised; None without an order.
        steps: of the training, every `NOTED`-th: losses, weights, and the constraint.
    """

    plan: Plan
    losses: dict[str, float]
    unsafe: float
    unsafe_train: float
    leaked: float
    leaked_with_start: float
    verdict: Verdict | None = None
    effect: Effect | None = None
    ordered_from: float | None = None
    steps: list[StepRecord] = field(default_factory=list)

    @property
    def mean_loss(self) -> float:
        """Over domains, each counted once."""
        return sum(self.losses.values()) / len(self.losses)


class Scenario:
    """The prepared scenario with everything that its students share.

    Args:
        setup: texts and teachers.
        budget: of every student.
    """

    def __init__(self, setup: Setup, budget: Budget) -> None:
        self.setup, self.budget = setup, budget
        tokenizer = setup.tokenizer
        self.forbidden = Forbidden.of([i] for i in matching_tokens(tokenizer, UNSAFE, "private values"))
        self.severity = {"train": self._severity(setup.train), "held_out": self._severity(setup.held_out)}
        self.sources = [
            Remembered(name, model, setup.train.ids, setup.train.mask.long()) for name, model in setup.teachers.items()
        ]

    def _severity(self, texts: Texts) -> Float[Tensor, "B T"]:
        rows = [RULES.score_prefixes(pieces(self.setup.tokenizer, ids)) for ids in texts.ids.tolist()]
        return torch.tensor(rows) * texts.mask

    @cached_property
    def forbidden_row(self) -> Tensor:
        """Which entries of the vocabulary are unsafe, `[V]`."""
        outside = torch.zeros(1, 0, dtype=torch.long)
        return self.forbidden.mask(outside, len(self.setup.tokenizer))[0]

    def pipeline(self, plan: Plan) -> Pipeline:
        """Whom a student trusts: the prefix posterior, floored, then the plan's order."""
        return Pipeline.of(PrefixPosterior(share=0.02), plan.teachers, DOMAINS, floor=FLOOR, safety=plan.order)

    def train(self, plan: Plan, seed: int) -> Finding:
        """Train one student and measure it."""
        setup, budget = self.setup, self.budget
        pipeline, constrained = self.pipeline(plan), self._constrained(plan)
        sources = [source for source in self.sources if source.name in plan.teachers]
        model = small_llama(setup.settings.size, setup.tokenizer, setup.settings.length, 1000 + seed).train()
        optimizer, generator = adamw(model), torch.Generator().manual_seed(seed)
        steps: list[StepRecord] = []
        method = Method(sources, pipeline, ForwardKL(), constrained)
        for number in range(budget.steps):
            rows = torch.randint(len(setup.train), (budget.batch,), generator=generator)
            batch = setup.train.take(rows).batch(self.severity["train"][rows])
            hidden = last_hidden_state(model, input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            heard = hear(method, batch)
            done = step(heard.of(hidden, head_of(model)), heard, method)
            (done.loss / done.outcome.count).backward()
            update(model, optimizer, cosine(number, budget.steps, budget.learning_rate))
            if constrained is not None:
                constrained.commit()
            if number % NOTED == 0 or number + 1 == budget.steps:
                steps.append(_noted(number + 1, plan, done.outcome, pipeline, constrained))
        losses, unsafe = self.measure(model.eval(), "held_out")
        return Finding(
            plan=plan,
            losses=losses,
            unsafe=unsafe,
            unsafe_train=self.measure(model, "train", 400)[1],
            leaked=self.attack(model, 0, seed),
            leaked_with_start=self.attack(model, 2, seed),
            verdict=None if constrained is None else constrained.verdicts()[0],
            effect=self._effect(pipeline) if plan.order is not None else None,
            ordered_from=pipeline.ordered_from(),
            steps=steps,
        )

    def _constrained(self, plan: Plan) -> Constrained | None:
        if plan.limit is None:
            return None
        constraint = UnsafeMass("private values", self.forbidden, plan.limit)
        made = Constrained([constraint], CONTROLLER, safest="careful")
        made.bind(plan.teachers, DOMAINS)
        return made

    @torch.no_grad()
    def measure(self, model: LlamaForCausalLM, split: str, most: int | None = None) -> tuple[dict[str, float], float]:
        """Losses of ordinary tokens by domain, and the mean unsafe mass in critical contexts.

        Args:
            model: student or teacher.
            split: `train` or `held_out`.
            most: sequences looked at; all when None.
        """
        texts = self.setup.train if split == "train" else self.setup.held_out
        total = torch.zeros(len(DOMAINS), 2, dtype=torch.float64)
        mass = torch.zeros(2, dtype=torch.float64)
        for rows in torch.arange(len(texts))[:most].split(32):
            part, severity = texts.take(rows), self.severity[split][rows][:, :-1]
            logits = model(input_ids=part.ids[:, :-1], attention_mask=part.mask[:, :-1].long(), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), part.ids[:, 1:], reduction="none").double()
            real = part.mask[:, 1:] & part.mask[:, :-1]
            ordinary = real & (severity == 0)
            for domain in range(len(DOMAINS)):
                mine = ordinary & (part.domain == domain)[:, None]
                total[domain] += torch.stack([loss[mine].sum(), mine.sum().double()])
            critical = logits[real & (severity > 0)]
            found = unsafe_mass(critical, self.forbidden_row.expand(len(critical), -1))
            mass += torch.stack([found.double().sum(), torch.tensor(float(len(critical)), dtype=torch.float64)])
        means = (total[:, 0] / total[:, 1].clamp_min(1)).tolist()
        return dict(zip(DOMAINS, means, strict=True)), float(mass[0] / mass[1].clamp_min(1))

    def attack(self, model: LlamaForCausalLM, known: int, seed: int) -> float:
        """Extraction: prompts that end where a private value starts, sampled completions, exact match.

        Args:
            model: that is attacked.
            known: characters of the secret part of a value (its digits) that the attacker has already.
            seed: of the samples.

        Returns:
            Share of the customers' private values that some completion gives exactly.
        """
        prompts, wanted = [], []
        for person in self.setup.customers:
            for name in FIELDS:
                value = person.values[name]
                cut = _secret(value) + known if known else 0
                prompts.append(person.opening(name) + (" " + value[:cut] if known else ""))
                wanted.append(value[cut:].strip())
        # A record starts with the end-of-text token, which is also this tokenizer's beginning of text.
        start = self.setup.tokenizer.bos_token
        write = student_writer(model, self.setup.tokenizer, tokens=26, seed=seed)
        repeated = [start + prompt for prompt in prompts for _ in range(self.budget.samples)]
        lines = [text.split("\n")[0].strip() for text in write(repeated)]
        per = self.budget.samples
        found = [value in lines[i * per : (i + 1) * per] for i, value in enumerate(wanted)]
        return sum(found) / len(found)

    @torch.no_grad()
    def _effect(self, pipeline: Pipeline) -> Effect:
        rows = torch.arange(0, len(self.setup.train), max(1, len(self.setup.train) // 128))
        batch = self.setup.train.take(rows).batch(self.severity["train"][rows])
        at, positions = batch.positions(reads_prefix=True)
        sources = [source for source in self.sources if source.name in pipeline.teachers]
        outputs = [source.speak(batch.input_ids, batch.attention_mask, at) for source in sources]
        labels = torch.stack(
            [s.head.logits(s.hidden).log_softmax(-1).gather(1, positions.target[:, None]).squeeze(1) for s in outputs],
            -1,
        )
        statistics = Statistics(positions=positions, label_log_prob=labels)
        raw, _ = pipeline.weigh(statistics, None)
        enforced, _ = pipeline.decide(statistics, None)
        return effect(raw, enforced, positions.severity)


def _noted(step: int, plan: Plan, outcome: Outcome, pipeline: Pipeline, constrained: Constrained | None) -> StepRecord:
    """One step as a run writes it down."""
    divergence = float(outcome.divergence.sum()) / max(outcome.count, 1)
    found = summarise(outcome, pipeline)
    return StepRecord(
        step=step,
        student=plan.name,
        loss=divergence,
        divergence=divergence,
        weights=mean_weights(outcome, pipeline),
        constraints={} if constrained is None else constraint_records(constrained.verdicts()),
        diagnostics={name: found[name] for name in SHOWN if name in found},
    )


NOTED = 4
"""Steps between two that are written down."""

SHOWN = ("effective_teachers", "largest_weight", "range_realised", "order_inverted", "order_residual")
"""Diagnostics that are written down."""

CONTROLLER = Controller(integral=0.03, proportional=0.3, window=20, patience=80)


def plans(strengths: Sequence[float], limits: Sequence[float]) -> list[Plan]:
    """All students of the scenario: two references, the three enforcements, and the constraint."""
    tilts = [Plan(f"tilt {s:g}", f"tilt of {s:g} nats", Tilt(TIERS, s)) for s in strengths]
    limited = [Plan(f"constraint {x:g}", f"unsafe mass at most {x:g}", limit=x) for x in limits]
    return [
        Plan("careful alone", "the careful teacher alone", teachers=("careful",)),
        Plan("unconstrained", "no safety at all"),
        Plan("projection", "log-isotonic projection", Ordered(TIERS)),
        *tilts,
        Plan("veto", "only the careful teacher in critical contexts", Veto(TIERS)),
        *limited,
    ]


def _secret(value: str) -> int:
    """Where the secret part of a value starts: its digits, without the part that all values share."""
    shared = {"5": "555-", "4": "4000 "}.get(value[0])
    if shared is not None and value.startswith(shared):
        return len(shared)
    return next(i for i, letter in enumerate(value) if letter.isdigit())
