"""A witness that is shorter to read: rounder numbers on which the same law still fails."""

import operator
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from polydistill.axioms.pools import Scene

Inputs = dict[str, Tensor]
Fails = Callable[[Inputs], Tensor]
ROUNDS = 3


def simplified(inputs: Inputs, fails: Fails) -> Inputs:
    """The roundest numbers that still fail.

    Args:
        inputs: of one row, each `[1, ...]`; integers are left alone.
        fails: for each of several rows, whether the law still fails there.
    """
    for _ in range(ROUNDS):
        before = {name: value.clone() for name, value in inputs.items()}
        for name in inputs:
            if inputs[name].is_floating_point():
                inputs = _rounder(name, inputs, fails)
        if all(torch.equal(before[name], inputs[name]) for name in inputs):
            break
    return inputs


def _rounder(name: str, inputs: Inputs, fails: Fails) -> Inputs:
    inputs = _first(name, list(_candidates(inputs[name])), inputs, fails)
    if inputs[name].numel() > 64:
        return inputs
    for place in range(inputs[name].numel()):
        value, tried = inputs[name].flatten(), []
        for digits in (None, 0, 1, 2, 3):
            changed = value.clone()
            changed[place] = 0.0 if digits is None else value[place].round(decimals=digits)
            if torch.equal(changed, value):
                break
            tried.append(changed.reshape(inputs[name].shape))
        inputs = _first(name, tried, inputs, fails)
    return inputs


def _first(name: str, values: Sequence[Tensor], inputs: Inputs, fails: Fails) -> Inputs:
    """The inputs with the first of the values with which the law fails, in one batch and then by itself."""
    values = [value for value in values if not torch.equal(value, inputs[name])]
    if values:
        together = {key: rows.repeat(len(values), *(1,) * (rows.ndim - 1)) for key, rows in inputs.items()}
        for place in fails({**together, name: torch.cat(values)}).nonzero().flatten().tolist():
            trial = {**inputs, name: values[place]}
            if bool(fails(trial)[0]):
                return trial
    return inputs


def _candidates(value: Tensor) -> Iterator[Tensor]:
    """From the simplest on: small, round, and measured from the least or the largest teacher."""
    moved = [value]
    if value.ndim >= 2:
        moved = [value - value.amin(-1, keepdim=True), value - value.amax(-1, keepdim=True), value]
    for scale in (2.0**-12, 2.0**-9, 2.0**-6, 2.0**-4, 2.0**-2, 0.5, 1.0):
        for start in moved:
            for digits in (0, 1, 2, 3):
                yield (start * scale).round(decimals=digits)
    yield from moved[:-1]


def jump_at(middle: Tensor, way: Tensor, fails: Callable[[Tensor, Tensor], bool]) -> tuple[Tensor, Tensor] | None:
    """Two round inputs to both sides of a jump, or None.

    Args:
        middle: where it is, `[1, ...]`.
        way: the direction in which it is passed, largest entry 1.
        fails: whether the law fails between two inputs.
    """
    for digits in (2, 3, 4, 5, 6, 8, 10, 12):
        width = 10.0**-digits
        for centre in (middle.round(decimals=digits), middle):
            first, second = (
                (centre - way * width).round(decimals=digits + 1),
                (centre + way * width).round(decimals=digits + 1),
            )
            if fails(first, second):
                return first, second
    return None


def smaller_scenes(scene: Scene) -> Iterator[Scene]:
    """A case of a pool with fewer rows, teachers or symbols."""
    n, teachers, vocabulary = scene.log_p.shape
    if n > 1:
        half = n // 2
        yield scene.of(lambda x: x[:half])
        yield scene.of(lambda x: x[half:])
    for k in range(teachers if teachers > 1 else 0):
        keep = [j for j in range(teachers) if j != k]
        fewer = scene.of(operator.itemgetter((slice(None), keep)), "w", "other_w", "log_p", "other_p")
        yield fewer.of(lambda x: x / x.sum(-1, keepdim=True), "w", "other_w")
    for v in range(vocabulary if vocabulary > 2 else 0):
        keep = [j for j in range(vocabulary) if j != v]
        fewer = scene.of(operator.itemgetter((..., keep)), "log_p", "other_p")
        yield fewer.of(lambda x: x.log_softmax(-1), "log_p", "other_p")


def rounded_scene(scene: Scene, digits: int) -> Scene:
    """A case of a pool whose numbers have so many digits."""
    least = 10.0**-digits

    def shares(x: Tensor) -> Tensor:
        """Round and positive; the largest takes what is missing to 1."""
        x = x.div(least).round().clamp_min(1.0).mul(least)
        top = x.argmax(-1, keepdim=True)
        return x.scatter_add(-1, top, 1.0 - x.sum(-1, keepdim=True)).clamp_min(least / 10)

    scene = scene.of(shares, "w", "other_w").of(lambda x: shares(x.exp()).log(), "log_p", "other_p")
    return scene.of(lambda x: x.div(least).round().clamp(1.0, 1.0 / least - 1.0).mul(least), "share")
