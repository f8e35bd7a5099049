"""E13: a trial of a fifth of the steps, recommended stack against labels alone, beside what came of it in the end."""

from collections.abc import Callable
from dataclasses import replace

import torch
from experiments import recommended
from experiments.cases import EXPERIMENTS, RECOMMENDED
from experiments.cells import RESULTS, kept, shortened
from experiments.learn import Data, Settings, has_loss, prepare, taught
from experiments.measured import Measured, Rows
from experiments.methods import METHODS, Method
from transformers import LlamaForCausalLM

from polydistill.records.paired import Interval, resampled

SHARE = 5
"""The trial has one step of so many."""


def trial(data: Data, settings: Settings, seed: int) -> Interval:
    """By how much the stack's student is ahead of that of labels alone, nats per token of texts drawn for it."""
    found = replace(recommended.recommendation(data, seed), unknown=0.0)
    stack = Method(RECOMMENDED, lambda *_: recommended.pipeline(found, data))
    short = replace(settings, steps=settings.steps // SHARE)
    losses, counts = zip(
        *(_by_text(taught(data, one, short, seed), data, seed) for one in (stack, METHODS["labels only"])), strict=True
    )
    return resampled((losses[1] - losses[0])[None].numpy(), counts[0].numpy())


@torch.no_grad()
def _by_text(student: LlamaForCausalLM, data: Data, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and tokens of each text, `[n]`."""
    texts = data.problem.draw(recommended.TEXTS, torch.Generator().manual_seed(9000 + seed))
    learned, said = has_loss(texts), student.eval()(input_ids=texts.ids).logits.log_softmax(-1)
    following = torch.cat([texts.ids[:, 1:], texts.ids[:, -1:]], 1)
    loss = -said.gather(-1, following[..., None]).squeeze(-1).double()
    return (loss * learned).sum(1), learned.sum(1)


def _of(name: str) -> Callable[[int, bool], Rows]:
    def rows(seed: int, quick: bool) -> Rows:
        settings = shortened(Settings()) if quick else Settings()
        ended = {cell.key: cell for cell in kept(RESULTS / f"{name}.jsonl", Settings())}
        found: dict[str, dict[str, float]] = {}
        for case, build in list(EXPERIMENTS[name].cases.items())[: 1 if quick else None]:
            gain = trial(prepare(build(seed), settings, seed), settings, seed)
            found[case] = {"on trial": gain.mean, "its half-width": gain.half}
            named, labels = ended.get((case, RECOMMENDED, seed)), ended.get((case, "labels only", seed))
            if named is not None and labels is not None:
                stack = ended[case, "context", seed] if named.stack == "labels" else named
                found[case]["at the end"] = labels.excess - stack.excess
        return found

    return rows


E13 = Measured(
    "A trial before the run, and what came of it",
    {name: _of(name) for name in ("E0", "E1", "E4")},
    "By how much the student of the recommended stack (of the context scale, where labels are named) is ahead of "
    "that of labels alone, nats per token: after a fifth of the steps, with the half-width of its interval over texts, "
    "and at the end.",
)
