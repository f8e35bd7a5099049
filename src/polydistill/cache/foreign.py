"""A cache of a teacher with a tokenizer of its own: one for students of any tokenizer.

Its texts are the teacher's own encodings of their bytes, so that they are found whatever tokens the student has; one
token more stands behind each, for what the teacher says at the end. A text that is cut off earlier than the cached one
is found as its beginning.
"""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from polydistill.alignment import Branches, Reading, Stated, pack
from polydistill.cache.says import Backed
from polydistill.cache.shard import key_of
from polydistill.cache.store import Cache
from polydistill.cache.teacher import CachedTeacher
from polydistill.logprobs import Dense, HiddenStates, Informed, TeacherOutput
from polydistill.teachers import TeacherUnavailableError, Translated
from polydistill.teachers.carried import tokenizer_from
from polydistill.teachers.translated import Heard, Positions

END = 0
"""Token behind every text."""

SPECIAL = b"\xff"
"""Stands around the number of a special token among the bytes of a text, where it cannot be."""


class CachedForeignTeacher(Translated):
    """One teacher of a cache, with a tokenizer of its own.

    Args:
        name: the teacher's name in the stack.
        cache: open.
        teacher: its name in the cache.
        positions: what the bound does to its weight.

    Raises:
        CacheError: the cache has no such teacher.
        ValueError: it counts at positions alone of which there are none.
        VocabularyMismatchError: its tokenizer does not give text back byte for byte.
    """

    def __init__(self, name: str, cache: Cache, teacher: str | None = None, positions: Positions = "all") -> None:
        super().__init__()
        if positions == "strict":
            raise ValueError(
                f"teacher {name!r}: positions: strict counts where the bound is 0, and what a cache keeps is off by a "
                "little everywhere: nothing would be heard; use `bound`, or the model itself"
            )
        self.stored = CachedTeacher(name, cache, teacher)
        self.name, self.cache, self.positions = name, cache, positions
        self.tokenizer, self.opening = tokenizer_from(cache.codec.tokenizer)
        self.spelling = self._spelled(self.tokenizer, "its tokenizer")

    def agree_with(self, tokenizer: Any, visible: int) -> str | None:
        """As every translated teacher's.

        Raises:
            VocabularyMismatchError: the student's tokenizer does not give text back byte for byte.
        """
        return self._put_together(tokenizer, visible, self.cache.plan.vocabulary)

    def describe(self) -> str:
        """Where it is kept, how much it takes, and its vocabulary."""
        return f"{self.stored.describe()}, in {self.cache.plan.vocabulary:,} tokens of its own"

    def lacks(self, text: list[int]) -> str | None:
        """Why a text of the student's cannot be answered for; None where it can.

        Raises:
            VocabularyMismatchError: it holds a special token that the teacher has nothing for.
        """
        try:
            self._located(text)
        except TeacherUnavailableError as error:
            return str(error)
        return None

    @cached_property
    def _texts(self) -> tuple[list[bytes], list[tuple[int, int]]]:
        """Bytes of all texts, in order, and where they are."""
        found = [(self._bytes(self._tokens(place)), place) for place in self.cache.places.values()]
        found.sort()
        return [text for text, _ in found], [place for _, place in found]

    def _tokens(self, place: tuple[int, int]) -> list[int]:
        return self.cache.tokens(*place).tolist()[:-1]

    def _bytes(self, tokens: Sequence[int]) -> bytes:
        spelled = self.spelling.spelled
        return b"".join(SPECIAL + b"%d" % i + SPECIAL if (part := spelled[i]) is None else part for i in tokens)

    def _located(self, text: list[int]) -> Reading:
        """What it reads of a text, in a cached one that is the same or goes on.

        Raises:
            TeacherUnavailableError: there is none.
        """
        reading = self.reading(text)
        if not reading.tokens or _key(reading.tokens) in self.cache:
            return reading
        begun, (texts, places) = self._bytes(reading.tokens), self._texts
        at = bisect_left(texts, begun)
        if at < len(texts) and texts[at].startswith(begun):
            whole = self._tokens(places[at])
            further, _, _ = texts[at][len(begun) :].partition(SPECIAL)
            longer = self.reading(text, further.decode())
            if longer.tokens == whole[: len(longer.tokens)]:
                longer.tokens = whole
                return longer
        if at and begun.startswith(texts[at - 1]):
            raise TeacherUnavailableError(
                f"it goes on after {len(texts[at - 1]):,} bytes, where that of {self.cache.files.address} was cut "
                "by max_length, in tokens of another student; lower data.max_length, or build it with a larger one"
            )
        raise TeacherUnavailableError(
            f"{self.cache.files.address} has no such text; it was built from "
            f"{', '.join(self.cache.plan.data.sources)}: the data or the template differ"
        )

    def _hear(self, text: list[int]) -> Heard:
        try:
            reading = self._located(text)
        except TeacherUnavailableError as error:
            raise TeacherUnavailableError(f"teacher {self.name!r}: a text of {len(text)} tokens: {error}") from error
        return pack(self.pair, reading.path(self.pair)), Branches(), None

    def _says(self, texts: Sequence[Heard]) -> TeacherOutput | Stated:
        rows = [[*packed.tokens, END] for packed, _, _ in texts if packed.tokens]
        if not rows:
            return Dense(torch.zeros(0, self.cache.plan.vocabulary))
        longest = max(map(len, rows))
        ids = torch.tensor([row + [END] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        asked = (mask[:, 1:].nonzero() @ torch.tensor([longest, 1])).flatten()
        said = self.stored.speak(ids, mask, asked)
        assert isinstance(said, Informed)
        assert said.known.label_log_prob is not None
        names, most, rest = _unnamed(said.says, self.cache.codec.step)
        return Stated(
            said.says,
            ids.flatten()[asked + 1],
            said.known.label_log_prob,
            self.cache.codec.signal_step / 2,
            self.stored.log_errors(said.says),
            names,
            most,
            rest,
        )


def _key(tokens: Sequence[int]) -> bytes:
    return key_of(np.array([*tokens, END]))


def _unnamed(
    says: TeacherOutput, step: float
) -> tuple[torch.Tensor | None, Float[torch.Tensor, " M"], Float[torch.Tensor, " M"]]:
    """Tokens that are named, the most that another one can have, and all of the others together."""
    if isinstance(says, HiddenStates):
        return None, torch.zeros(len(says)), torch.zeros(len(says))
    assert isinstance(says, Backed)
    least = says.log_p.masked_fill(~says.fresh, torch.inf).amin(-1)
    return says.ids, (least + step).exp(), (says.log_tail + step).exp()
