"""Reading an answer: everything is checked, and what cannot be trusted is refused with its first characters shown."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polydistill.logprobs import Sparse
from polydistill.teachers.served.client import RefusedError
from polydistill.teachers.truncated import spread_tail

NOTHING = -9999.0
"""What servers write for no probability at all."""

SLACK = 1e-3
"""By which probabilities may sum to more than 1, and log-probabilities be out of order: servers round."""


PADDED = 1.25
"""Rows that a server's model may have for each entry of the vocabulary: matrices are padded."""


class OtherTokensError(RefusedError):
    """The server read other tokens than it was sent."""

    def __init__(self, said: object, difference: str) -> None:
        super().__init__(str(said))
        self.difference = difference


@dataclass(frozen=True)
class Entries:
    """What the server says about a text of T tokens; row t is the distribution of token t + 1.

    Attributes:
        said: the k likeliest entries, the token that follows, and the rest as a tail.
        follows: log-probability of the token that does follow.
        log_cap: log of the most that an entry outside the k likeliest can have.
        best: the two largest log-probabilities, or one where k = 1.
        tail: mass of what is not named.
        named: entries of `said` that the server named; others fill rows up, with their even share of the tail.
        foreign: named entries that the student's vocabulary does not have; they count as tail.
    """

    said: Sparse
    follows: Float[Tensor, " n"]
    log_cap: Float[Tensor, " n"]
    best: Float[Tensor, "n m"]
    tail: Float[Tensor, " n"]
    named: Bool[Tensor, "n S"]
    foreign: int


def read_json(body: bytes, refuse: Callable[[str], RefusedError]) -> Any:
    """Decoded JSON, without NaN and infinities, which are not JSON.

    Args:
        body: of the answer.
        refuse: makes the error from a reason.
    """

    def constant(name: str) -> float:
        raise refuse(f"it contains {name}")

    try:
        return json.loads(body, parse_constant=constant)
    except (ValueError, RecursionError):
        raise refuse("it is not JSON, or only a part of it") from None


def read_entries(
    body: bytes,
    ids: Sequence[int],
    models: Sequence[str],
    k: int,
    vocabulary: int,
    refuse: Callable[[str], RefusedError],
) -> Entries:
    """The answer to one prompt.

    Args:
        body: of the answer.
        ids: what was sent, T >= 2 tokens.
        models: who was asked, and its other names.
        k: entries per position that were asked for.
        vocabulary: V of the student.
        refuse: makes the error from a reason.

    Raises:
        RefusedError: from `refuse`; naming what is wrong.
        OtherTokensError: the ids that are echoed are not those that were sent.
    """
    choice = _choice(read_json(body, refuse), models, refuse)
    echoed = choice.get("prompt_token_ids")
    if echoed is not None and echoed != list(ids):
        other = _difference(echoed, ids)
        raise OtherTokensError(refuse(f"it is about other tokens than were sent; {other}"), other)
    told = choice.get("prompt_logprobs")
    if not isinstance(told, list):
        raise refuse(
            "it has no prompt_logprobs: this server does not give log-probabilities of a prompt; vLLM and `polydistill "
            "serve` do, or load the model here"
        )
    if len(told) != len(ids):
        raise refuse(f"it is about {len(told)} tokens instead of {len(ids)}")
    if told[0] is not None:
        raise refuse("its first entry must be null: nothing comes before the first token")
    most = min(k, vocabulary)
    rows = [_row(t, told[t], ids[t], most, vocabulary, refuse) for t in range(1, len(ids))]
    return _packed(rows, ids, most, vocabulary)


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    log_p: list[float]
    follows: float
    outside: bool


def _row(t: int, entry: Any, follows: int, k: int, vocabulary: int, refuse: Callable[[str], RefusedError]) -> _Row:
    """One position: the k likeliest by rank, and the token that follows beside them when it is none of them."""
    if not isinstance(entry, dict):
        raise refuse(f"token {t} has {'null' if entry is None else type(entry).__name__} instead of log-probabilities")
    try:
        named = {int(i): (e["logprob"], e["rank"]) for i, e in entry.items()}
    except (TypeError, ValueError, KeyError):
        raise refuse(f"token {t} has an entry that is not `id: {{logprob, rank}}`") from None
    for i, (value, rank) in named.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise refuse(f"token {t}, id {i}: the log-probability is {value!r}")
        if value <= NOTHING:
            raise refuse(f"token {t}, id {i}: the log-probability is {value!r}, the word for none at all")
        if value > SLACK or not isinstance(rank, int):
            raise refuse(f"token {t}, id {i}: log-probability {value!r}, rank {rank!r}")
    if follows not in named:
        other = f"token {t} was sent as id {follows}, which is not among those that it speaks of"
        raise OtherTokensError(refuse(other), other)
    own, rank = named[follows]
    outside = rank > k or len(named) > k
    tops = sorted(((r, v, i) for i, (v, r) in named.items() if not (outside and i == follows)), key=lambda x: x[:1])
    if len(tops) != k or [r for r, *_ in tops] != list(range(1, k + 1)):
        raise refuse(f"token {t} has {len(tops)} entries instead of the {k} likeliest, ranked from 1")
    values = [v for _, v, _ in tops]
    if any(b > a + SLACK for a, b in itertools.pairwise(values)) or (outside and own > values[-1] + SLACK):
        raise refuse(f"token {t}: the log-probabilities do not fall with their ranks")
    mass = math.fsum(map(math.exp, [*values, *([own] if outside else [])]))
    if mass > 1.0 + SLACK:
        raise refuse(f"token {t}: the probabilities sum to more than 1")
    left = max(vocabulary * PADDED - len(named), 0.0) * math.exp(values[-1])
    if 1.0 - mass > left + SLACK:
        raise refuse(
            f"token {t}: its {len(named)} entries have a mass of {mass:.3g}, and the others, none likelier than the "
            f"last of them, cannot have the rest: at most {left:.3g}"
        )
    chosen = [i for *_, i in tops]
    return _Row(
        [*chosen, follows] if outside else chosen, [*values, own] if outside else values, min(float(own), 0.0), outside
    )


def _packed(rows: list[_Row], ids: Sequence[int], k: int, vocabulary: int) -> Entries:
    width = min(k + 1, vocabulary)
    entry = torch.zeros(len(rows), width, dtype=torch.int64)
    log_p = torch.zeros(len(rows), width)
    missing = torch.ones(len(rows), width, dtype=torch.bool)
    foreign = 0
    for n, row in enumerate(rows):
        kept = [(i, v) for i, v in zip(row.ids, row.log_p, strict=True) if 0 <= i < vocabulary]
        foreign += len(row.ids) - len(kept)
        entry[n, : len(kept)] = torch.tensor([i for i, _ in kept], dtype=torch.int64)
        log_p[n, : len(kept)] = torch.tensor([v for _, v in kept])
        missing[n, : len(kept)] = False
    said, tail = spread_tail(entry, log_p.clamp_max(0.0), missing, vocabulary)
    values: Int[Tensor, "n k"] | Float[Tensor, "n k"] = torch.tensor([row.log_p[:k] for row in rows]).clamp_max(0.0)
    follows = torch.tensor([row.follows for row in rows])
    return Entries(said, follows, values[:, -1], values[:, :2], tail, ~missing, foreign)


def _choice(content: Any, models: Sequence[str], refuse: Callable[[str], RefusedError]) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise refuse("it is not a JSON object")
    if content.get("model") not in models:
        raise refuse(f"it is from the model {content.get('model')!r} instead of {models[0]!r}")
    choices = content.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        count = len(choices) if isinstance(choices, list) else "no"
        raise refuse(f"it has {count} choices instead of 1")
    return choices[0]


def _difference(echoed: Any, ids: Sequence[int]) -> str:
    if not isinstance(echoed, list):
        return f"prompt_token_ids is {type(echoed).__name__}"
    for t, (theirs, ours) in enumerate(zip(echoed, ids, strict=False)):
        if theirs != ours:
            return f"token {t} is id {theirs} there and {ours} here"
    return f"{len(echoed)} tokens there and {len(ids)} here"
