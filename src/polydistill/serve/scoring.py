"""What the model says about every token of a text: the likeliest entries of each position and the token's own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.data.pieces import inner_pieces, pieces
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.teachers.vocabulary import tokens_by_id

ROWS = 128
"""Positions whose whole distributions are held at once."""


class GoneError(Exception):
    """Nobody waits for the answer any more."""


class NonFiniteScoresError(ValueError):
    """The model's numbers are no log-probabilities."""


@dataclass(frozen=True)
class Scored:
    """What is said about a text of T tokens; row t is the distribution of token t + 1, the last row of what follows.

    Attributes:
        ids: the k likeliest entries, likeliest first.
        log_p: their log-probabilities, nats, temperature 1.
        own: log-probability of the token that does follow.
        rank: its rank, from 1; ties count for it.
        following: the distribution after the last token.
    """

    ids: Int[Tensor, "n k"]
    log_p: Float[Tensor, "n k"]
    own: Float[Tensor, " n"]
    rank: Int[Tensor, " n"]
    following: Float[Tensor, " V"]


class Scorer:
    """A model that scores one text at a time, so that the same text always gets the same bytes."""

    def __init__(self, teacher: LocalTeacher) -> None:
        if teacher.tokenizer is None:
            raise ValueError("a model without a tokenizer cannot be served")
        self.model, self.tokenizer = teacher.model, teacher.tokenizer
        self.visible = min(len(tokens_by_id(self.tokenizer)), self.model.get_output_embeddings().weight.shape[0])
        teacher.agree_with(self.tokenizer, self.visible)
        self.words: dict[int, str] = {}

    @property
    def longest(self) -> int | None:
        """Tokens that the model was made for."""
        config: Any = self.model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None)
        return None if longest is None else int(longest)

    @cached_property
    def longest_word(self) -> int:
        """Characters of the longest token, with room for what a tokenizer leaves out, such as repeated spaces."""
        return 4 * max(len(token) for token in tokens_by_id(self.tokenizer) if token is not None)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text."""
        return list(self.tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"])

    def word(self, index: int) -> str:
        """A token as the text that it is inside a longer one."""
        if index not in self.words:
            (self.words[index],) = inner_pieces(self.tokenizer, [index])
        return self.words[index]

    def pieces(self, ids: list[int]) -> list[str]:
        """What each token of a text adds to it."""
        return pieces(self.tokenizer, ids)

    @torch.inference_mode()
    def score(self, ids: list[int], k: int, gone: Callable[[], bool] = lambda: False) -> Scored:
        """Score a text.

        Args:
            ids: at least one token.
            k: entries per position, in 0..V.
            gone: whether nobody waits for it any more; asked before every block of rows.

        Raises:
            GoneError: nobody does.
            NonFiniteScoresError: the model gives NaN or infinity, which no answer can carry.
        """
        if gone():
            raise GoneError
        device = self.model.device
        tokens = torch.tensor([ids], device=device)
        hidden = last_hidden_state(self.model, input_ids=tokens, attention_mask=torch.ones_like(tokens))[0]
        head = head_of(self.model, self.visible)
        parts: list[tuple[Tensor, ...]] = []
        for start in range(0, len(ids) - 1, ROWS):
            if gone():
                raise GoneError
            rows = slice(start, min(start + ROWS, len(ids) - 1))
            log_p = head.logits(hidden[rows]).log_softmax(-1)
            best = log_p.topk(k, dim=-1)
            own = log_p.gather(1, tokens[0, rows.start + 1 : rows.stop + 1, None])
            parts.append((best.indices, best.values, own[:, 0], (log_p > own).sum(-1) + 1))
        following = head.logits(hidden[-1:]).log_softmax(-1)[0]
        if not all(bool(part.isfinite().all()) for part in (following, *(p for row in parts for p in row[1:3]))):
            raise NonFiniteScoresError(
                "the model's log-probabilities of this text are not finite: its weights are damaged, or its dtype is "
                "too narrow for them"
            )
        if not parts:
            nothing = tokens.new_zeros(0)
            return Scored(nothing.view(0, k), following.new_zeros(0, k), following.new_zeros(0), nothing, following)
        top_ids, top, follows, rank = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
        return Scored(top_ids, top, follows, rank, following.cpu())
