"""Constraints in training: measured on the student of every batch, pressed on by their multipliers.

The penalty is a sum over positions, `sum_j lambda_j s_j(t)`, added to the sum of the distillation loss and divided by
the same number of tokens: it does not depend on how a batch is split. Multipliers move once per optimizer step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from polydistill.logprobs import ROWS, Head, Positions, TeacherOutput, logits_of
from polydistill.safety import Constraint, Controller, Dual, GeneratedRate, Order, Verdict, View
from polydistill.safety.measures import prefixes

ENOUGH = 4096
"""Positions on which the safest teacher is measured; teachers do not change."""

Generate = Callable[[Sequence[str]], list[str]]
"""Prompts -> what the student writes after each."""


class InfeasibleError(ValueError):
    """A constraint was not met and the configuration asks for that to be an error."""


class Constrained:
    """The constraints of one run and their dual.

    Args:
        constraints: any number, with different names.
        controller: gains of the dual.
        safest: name of the teacher whose own feasibility is measured; the most safe of the order when None.
    """

    def __init__(
        self,
        constraints: Sequence[Constraint | GeneratedRate],
        controller: Controller | None = None,
        *,
        safest: str | None = None,
    ) -> None:
        if not constraints:
            raise ValueError("at least one constraint is needed")
        self.controller = Controller() if controller is None else controller
        self.constraints = list(constraints)
        self.safest = safest
        names = [c.name for c in constraints]
        self.dual = Dual(names, [c.limit for c in constraints], [c.scale for c in constraints], self.controller)
        self.direct = [j for j, c in enumerate(constraints) if not isinstance(c, GeneratedRate)]
        self.carried = {j: self._carrier(c) for j, c in enumerate(constraints) if isinstance(c, GeneratedRate)}
        self.safest_index: int | None = None

    def _carrier(self, rate: GeneratedRate) -> int:
        for j in self.direct:
            if self.constraints[j].name == rate.follows:
                return j
        known = ", ".join(repr(self.constraints[j].name) for j in self.direct) or "none"
        raise ValueError(
            f"constraint {rate.name!r} is measured on generated text and has no gradient; `follows` must name a "
            f"constraint that has one, got {rate.follows!r}, there are {known}"
        )

    def bind(self, teachers: Sequence[str], tasks: Sequence[str], order: Order | None = None) -> None:
        """Find the teachers and tasks that are named; once.

        Raises:
            ValueError: a name is unknown.
        """
        for j in self.direct:
            self.constraints[j] = self._measured(j).bind(teachers, tasks)
        if self.safest is not None:
            if self.safest not in teachers:
                raise ValueError(f"the safest teacher is {self.safest!r}, but the teachers are {', '.join(teachers)}")
            self.safest_index = list(teachers).index(self.safest)
        elif order is not None and order.sigma is not None:
            self.safest_index = max(range(len(teachers)), key=lambda k: order.sigma[k] if order.sigma else 0.0)

    def _measured(self, j: int) -> Constraint:
        constraint = self.constraints[j]
        assert not isinstance(constraint, GeneratedRate)
        return constraint

    def penalty(
        self,
        hidden: Float[Tensor, "N D"],
        head: Head,
        outputs: Sequence[TeacherOutput],
        positions: Positions,
        input_ids: Int[Tensor, "B T"],
        rows: Int[Tensor, " N"],
    ) -> Float[Tensor, ""]:
        """`sum_j lambda_j sum_t s_j(t)`, differentiable; what the dual reads is noted on the way.

        Args:
            hidden: student's last hidden states of the flattened positions `rows`.
            head: student's head.
            outputs: the teachers, at the same positions.
            positions: what is known about them.
            input_ids: the sequences, for prefixes.
            rows: flattened positions.
        """
        multiplier = self._carrying().to(hidden.device)
        total = hidden.new_zeros((), dtype=torch.float32)
        for taken, wanted, prefix in self._chunks(positions, input_ids, rows):

            def chunk(
                h: Tensor, taken: Tensor = taken, wanted: Tensor = wanted, prefix: Tensor = prefix
            ) -> tuple[Tensor, Tensor]:
                with torch.autocast(h.device.type, enabled=False):
                    return self._evaluate(head.logits(h), outputs, taken, wanted, prefix, positions, multiplier)

            # Nothing of size V outlives its chunk: the backward pass makes the logits again.
            pressed, totals = checkpoint(chunk, hidden[taken], use_reentrant=False, preserve_rng_state=False)
            total = total + pressed
            self.dual.observe(totals, wanted.sum(0).double())
        known = self.dual.safest_count[self.direct]
        if self.safest_index is not None and self.direct and float(known.min()) < ENOUGH:
            safest = outputs[self.safest_index]
            found = self.totals(lambda at: logits_of(safest, at).to(rows.device), outputs, positions, input_ids, rows)
            self.dual.observe_safest(*found)
        return total

    @torch.no_grad()
    def totals(
        self,
        logits: Callable[[Tensor], Float[Tensor, "n V"]],
        outputs: Sequence[TeacherOutput],
        positions: Positions,
        input_ids: Int[Tensor, "B T"],
        rows: Int[Tensor, " N"],
    ) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
        """Sums of the strict measures over the positions of a batch, and how many; for any model's logits.

        Args:
            logits: indices into the positions -> the model's logits there.
            outputs, positions, input_ids, rows: as for `penalty`.
        """
        none = torch.zeros(len(self.constraints), dtype=torch.float64, device=rows.device)
        sums, counts = none, none.clone()
        for taken, wanted, prefix in self._chunks(positions, input_ids, rows):
            _, totals = self._evaluate(logits(taken), outputs, taken, wanted, prefix, positions, none)
            sums, counts = sums + totals, counts + wanted.sum(0).double()
        return sums, counts

    def rates(self, step: int, generate: Generate) -> dict[str, float]:
        """Evaluate the constraints on generated text that are due at an optimizer step, and tell the dual."""
        found = {}
        for j in self.carried:
            rate = self.constraints[j]
            assert isinstance(rate, GeneratedRate)
            if step % rate.every:
                continue
            flags = rate.classify(generate(rate.prompts))
            found[rate.name] = sum(flags) / len(flags)
            one = torch.zeros(len(self.constraints), dtype=torch.float64)
            one[j] = 1.0
            self.dual.observe(one * sum(flags), one * len(flags))
        return found

    def generated(self, generate: Generate) -> dict[str, float]:
        """Every rate of flagged texts among what a finished student writes; the dual does not hear of it."""
        rates = [self.constraints[j] for j in self.carried]
        flags = {r.name: r.classify(generate(r.prompts)) for r in rates if isinstance(r, GeneratedRate)}
        return {name: sum(found) / len(found) for name, found in flags.items()}

    def discard(self) -> None:
        """End of a step whose update is left out."""
        self.dual.discard()

    def commit(self) -> None:
        """End of an optimizer step."""
        self.dual.commit()

    def verdicts(self) -> list[Verdict]:
        """How every constraint stands."""
        return self.dual.verdicts()

    def says(self) -> list[str]:
        """One sentence per constraint: what it limits, before anything was measured."""
        return [f"constraint {c.name!r}: {c.says()}" for c in self.constraints]

    def weights(self) -> dict[str, float]:
        """Name -> `lambda / (1 + lambda)`."""
        return dict(zip(self.dual.names, self.dual.weight.tolist(), strict=True))

    def values(self) -> dict[str, float]:
        """Name -> averaged strict measure; those that were seen."""
        pairs = zip(self.dual.names, self.dual.value.tolist(), strict=True)
        return {name: value for name, value in pairs if value == value}

    def _carrying(self) -> Float[Tensor, " J"]:
        """Multipliers of the surrogates: those of generated rates are added to the constraint that they follow."""
        own = self.dual.multiplier.clone()
        for j, carrier in self.carried.items():
            own[carrier] += own[j]
            own[j] = 0.0
        return own

    def _chunks(
        self, positions: Positions, input_ids: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Positions that some constraint is about, which ones are, and their prefixes; a few at a time."""
        columns = [
            self._measured(j).select(positions) if j in self.direct else torch.zeros_like(positions.has_loss)
            for j in range(len(self.constraints))
        ]
        wanted = torch.stack(columns, -1)
        reach = max(self._measured(j).reach for j in self.direct) if self.direct else 0
        some = wanted.any(-1).nonzero().squeeze(1)
        return [(at, wanted[at], prefixes(input_ids, rows[at], reach)) for at in some.split(ROWS) if len(at)]

    def _evaluate(
        self,
        logits: Float[Tensor, "n V"],
        outputs: Sequence[TeacherOutput],
        taken: Int[Tensor, " n"],
        wanted: Tensor,
        prefix: Int[Tensor, "n L"],
        positions: Positions,
        multiplier: Float[Tensor, " J"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " J"]]:
        """Penalty of a chunk, and the sums of the strict measures."""
        pressed, totals = logits.new_zeros(()), torch.zeros_like(multiplier)
        for j in self.direct:
            mine = wanted[:, j].nonzero().squeeze(1)
            if not len(mine):
                continue
            at, constraint = taken[mine], self._measured(j)

            def said(k: int, at: Tensor = at) -> Tensor:
                return logits_of(outputs[k], at).to(logits)

            view = View(
                logits=logits[mine],
                target=positions.target[at],
                prefix=prefix[mine],
                teacher=said,
            )
            with torch.no_grad():
                totals[j] = constraint.points(view).double().sum()
            pressed = pressed + multiplier[j].to(logits) * constraint.surrogate(view).sum()
        return pressed, totals


def student_writer(model: Any, tokenizer: Any, *, tokens: int = 48, seed: int = 0) -> Generate:
    """Sampled continuations by a model in evaluation mode; the random state is left as it was.

    Args:
        model: causal language model.
        tokenizer: its own.
        tokens: written at most.
        seed: of the samples.
    """

    def generate(prompts: Sequence[str]) -> list[str]:
        side, was_training = tokenizer.padding_side, model.training
        tokenizer.padding_side = "left"
        model.eval()
        try:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(seed)
                made = []
                for start in range(0, len(prompts), 32):
                    inputs = tokenizer(list(prompts[start : start + 32]), return_tensors="pt", padding=True)
                    inputs = {k: inputs[k].to(model.device) for k in ("input_ids", "attention_mask")}
                    ids = model.generate(
                        **inputs, max_new_tokens=tokens, do_sample=True, top_k=0, pad_token_id=tokenizer.pad_token_id
                    )
                    new = ids[:, inputs["input_ids"].shape[1] :]
                    made += tokenizer.batch_decode(new, skip_special_tokens=True)
                return made
        finally:
            tokenizer.padding_side = side
            model.train(was_training)

    return generate
