"""Teachers with tokenizers of their own, wherever they are: what they say of their tokens, said of the student's."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polydistill.alignment import (
    TERMS,
    Aligned,
    Branches,
    NoBytesError,
    NoCounterpartError,
    Packed,
    Pair,
    Reader,
    Reading,
    Spelling,
    Stated,
    Turns,
    evidence,
    joined,
    lay,
    read,
)
from polydistill.logprobs import Informed, KnownStatistics, TeacherOutput
from polydistill.teachers.vocabulary import VocabularyMismatchError

KEPT = 200_000
"""Positions whose error terms are remembered for the record."""

PATHS = 4096
"""Texts of which it is remembered how they lie in the teacher's tokens."""

Positions = Literal["all", "bound", "strict"]

Heard = tuple[Packed, Branches, Tensor | None]
"""A text, what it is run further behind, and the hidden states there if they are remembered."""


class Translated(ABC):
    """A teacher that is asked in its own tokens about the student's.

    Attributes:
        name: the teacher's name in the stack.
        tokenizer: its own.
        spelling: its tokenizer as bytes.
        opening: special tokens that it begins a text with.
        pair: its vocabulary and the student's.
        turns: its chat template and the student's, where they differ.
        positions: what the bound does to its weight.
        silent: positions so far at which nothing that it says can be translated.
    """

    name: str
    tokenizer: Any
    spelling: Spelling
    opening: list[int]
    pair: Pair
    turns: Turns | None = None
    positions: Positions = "all"
    readers: ClassVar[WeakKeyDictionary[PreTrainedTokenizerBase, Reader]] = WeakKeyDictionary()
    """Of students' tokenizers: several teachers ask one."""

    def __init__(self) -> None:
        self.last: Aligned | None = None
        self.paths: dict[tuple[int, ...], Heard] = {}
        self.terms: list[Float[Tensor, "n 5"]] = []
        self.closely: list[Float[Tensor, " n"]] = []
        self.silent = 0

    @abstractmethod
    def _hear(self, text: list[int]) -> Heard:
        """What it reads of a text."""

    @abstractmethod
    def _says(self, texts: Sequence[Heard]) -> TeacherOutput | Stated:
        """What it says of its own tokens: at every row of the texts, and then at those that are branched off."""

    def _spelled(self, tokenizer: PreTrainedTokenizerBase, whose: str) -> Spelling:
        try:
            return Spelling(tokenizer)
        except NoBytesError as error:
            raise VocabularyMismatchError(f"teacher {self.name!r} cannot be translated: {whose}, {error}") from error

    def _put_together(self, tokenizer: PreTrainedTokenizerBase, visible: int, heard: int) -> str:
        """Put the two vocabularies side by side; returns which special tokens go together, in words.

        Args:
            tokenizer: the student's.
            visible: entries of its vocabulary.
            heard: entries of the teacher's.

        Raises:
            VocabularyMismatchError: the student's tokenizer does not give text back byte for byte.
        """
        own = self.readers.get(tokenizer)
        if own is None or own.visible != visible:
            own = Reader(self._spelled(tokenizer, "the student's tokenizer"), visible)
            self.readers[tokenizer] = own
        self.pair, self.paths = Pair(Reader(self.spelling, heard), own), {}
        templates = [getattr(one, "chat_template", None) for one in (self.tokenizer, tokenizer)]
        apart = all(templates) and templates[0] != templates[1] and not own.spelling.leads
        self.turns = Turns(self.pair, self.tokenizer, tokenizer) if apart else None
        told = (
            "; its chat template is another than the student's: turns go together by role and content, and where "
            "templates write it says nothing"
            if apart
            else ""
        )
        theirs, ours = self.spelling.special, own.spelling.special
        known = [f"{theirs[one][-1]} for {ours[other][-1]}" for one, other in self.pair.same.items()]
        alone = [says[-1] for index, says in theirs.items() if index not in self.pair.same]
        named = f"; without a counterpart: {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}" if alone else ""
        return (
            f"teacher {self.name!r} has a tokenizer of its own ({heard:,} entries) and is translated; special tokens: "
            f"{', '.join(known) or 'none in common'}{named}{told}"
        )

    @torch.no_grad()
    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Informed:
        """Distributions over the student's tokens at the flattened positions `rows`, and the evidence of their bytes.

        Raises:
            VocabularyMismatchError: a text that is not sampled holds a special token that the teacher has nothing for.
        """
        self._take_note()
        texts, places = self._asked(input_ids, attention_mask, rows)
        heard = {b: self._path(text) for b, text in texts.items()}
        fidelity = torch.ones(len(places), device=input_ids.device)
        self.last = self._aligned(heard, places, fidelity)
        label = self.last.evidence.label[self.last.places].float()
        label = label.where(self.last.tells, -math.log(self.last.vocabulary)).to(input_ids.device)
        return Informed(self.last, KnownStatistics(label_log_prob=label, fidelity=fidelity))

    def _asked(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> tuple[dict[int, list[int]], list[tuple[int, int]]]:
        """Texts that are asked about, by their number, and number and place of every position."""
        length, real = input_ids.shape[1], attention_mask.bool()
        rank = (real.long().cumsum(1) - 1).flatten()[rows.to(real.device)].tolist()
        asked, ids, there = (rows // length).tolist(), input_ids.tolist(), real.tolist()
        texts = {b: [i for i, is_real in zip(ids[b], there[b], strict=True) if is_real] for b in set(asked)}
        return texts, list(zip(asked, rank, strict=True))

    def _aligned(
        self, texts: dict[int, Heard], places: list[tuple[int, int]], fidelity: Float[Tensor, " N"]
    ) -> Aligned:
        """What it says at places of texts."""
        packed, branches = [text for text, _, _ in texts.values()], [found for _, found, _ in texts.values()]
        layout = lay(packed, [len(found.rows) for found in branches])
        says = self._says(list(texts.values()))
        known = evidence(says, layout, self.pair, joined(branches, [len(text.tokens) for text in packed]))
        first = dict(zip(texts, accumulate([0, *(text.places for text in packed)]), strict=False))
        index = torch.tensor([first[b] + at for b, at in places]).long()
        blank = torch.full((len(index), len(TERMS)), torch.nan)
        return Aligned(says, layout, index, self.pair, known, blank, fidelity)

    def _path(self, text: list[int]) -> Heard:
        """What it reads of a text, remembered unless it is sampled: others come again in every epoch."""
        key = tuple(text)
        if key not in self.paths:
            heard = self._hear(text)
            if self.pair.sampled:
                return heard
            if len(self.paths) >= PATHS:
                self.paths.pop(next(iter(self.paths)))
            self.paths[key] = heard
        return self.paths[key]

    def reading(self, text: list[int], further: str = "") -> Reading:
        """Its own tokens of a text of the student's, and of what comes after that.

        Raises:
            VocabularyMismatchError: a text that is not sampled holds a special token that the teacher has nothing for.
        """
        try:
            turns = None if self.turns is None else self.turns.read(text, further)
            return read(self.pair, text, self.opening, further) if turns is None else turns
        except NoCounterpartError as error:
            if self.pair.sampled:
                return Reading(size=len(text))
            raise VocabularyMismatchError(f"teacher {self.name!r}: {error}") from error

    def refuse(self, text: list[int]) -> None:
        """Look at a text before anything is asked about it.

        Raises:
            VocabularyMismatchError: it holds a special token that the teacher has nothing for, or is a conversation
                that its chat template does not take.
        """
        if self.may_refuse(text):
            self.reading(text)

    def may_refuse(self, ids: Iterable[int]) -> bool:
        """Whether texts of such tokens have to be looked at one by one."""
        lacking = self.pair.student.special.keys() - self.pair.same.values()
        return self.turns is not None or not lacking.isdisjoint(ids)

    def _take_note(self) -> None:
        """Error terms of the batch before, which its objective has filled in."""
        if self.last is not None:
            written, says = self.last.terms.isfinite().all(-1), (self.last.fidelity > 0.0).cpu()
            if sum(map(len, self.terms)) < KEPT:
                self.terms.append(self.last.terms[written & says])
                self.silent += int((written & ~says).sum())
            self.last = None

    def errors(self) -> dict[str, Float[Tensor, " n"]]:
        """Bounds of the positions so far at which it says something, `all` and by term; total variation."""
        self._take_note()
        terms = torch.cat([torch.zeros(0, len(TERMS)), *self.terms])
        return {"all": terms.sum(-1).clamp_max(1.0), **dict(zip(TERMS, terms.T, strict=True))}

    @property
    def caveat(self) -> str:
        """What the bound is about."""
        return "the bound is about text as its tokenizer writes it"
