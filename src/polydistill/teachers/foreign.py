"""A local teacher with a tokenizer of its own: it reads the same bytes, and speaks of the student's tokens."""

from collections.abc import Iterable
from itertools import accumulate
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydistill.alignment import (
    TERMS,
    Aligned,
    Branches,
    NoBytesError,
    NoCounterpartError,
    Packed,
    Pair,
    Reader,
    Spelling,
    branch,
    evidence,
    joined,
    lay,
    pack,
    walk,
)
from polydistill.logprobs import HiddenStates, Informed, KnownStatistics, logits_of
from polydistill.teachers.branched import branched_states, reads_branches
from polydistill.teachers.head import head_of, last_hidden_state
from polydistill.teachers.local import LocalTeacher
from polydistill.teachers.source import TeacherUnavailableError
from polydistill.teachers.vocabulary import VocabularyMismatchError

KEPT = 200_000
"""Positions whose error terms are remembered for the record."""


PATHS = 4096
"""Texts of which it is remembered how they lie in the teacher's tokens."""

CLOSELY = 1024
"""Tokens per position behind which it is run where its error is looked at closely."""

FURTHER = 2**29
"""Bytes of hidden states behind the tokens of `expand` that are remembered; beyond them they are made anew."""

Positions = Literal["all", "bound", "strict"]

Heard = tuple[Packed, Branches, Tensor | None]
"""A text, what it is run further behind, and the hidden states there if they are remembered."""


class ForeignTeacher(LocalTeacher):
    """A causal language model that is asked in its own tokens about the student's.

    Args:
        name: the teacher's name in the stack.
        model: the model; put into evaluation mode.
        tokenizer: its own.
        expand: tokens per position, on average over a text, behind which it is run one token further: the heaviest of
            those that do not settle what the student's token is. More lower the bound, and cost as many of its tokens.
        positions: where it counts: at all as ever, by 1 less its bound, or at those alone where its bound is 0.

    Raises:
        TeacherUnavailableError: the model's logits are not those of its body and head, or it cannot be run further.
        VocabularyMismatchError: its tokenizer does not give text back byte for byte.
    """

    configured: ClassVar[str] = "own"
    pair: Pair
    readers: ClassVar[WeakKeyDictionary[PreTrainedTokenizerBase, Reader]] = WeakKeyDictionary()
    """Of students' tokenizers: several teachers ask one."""

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        expand: int = 0,
        positions: Positions = "all",
    ) -> None:
        super().__init__(name, model, tokenizer)
        self.expand, self.positions = self._allowed(expand), positions
        if tokenizer is None:
            raise VocabularyMismatchError(f"teacher {name!r} has no tokenizer of its own to be asked with")
        self.spelling = self._spelled(tokenizer, "its tokenizer")
        begun: Any = tokenizer("a")["input_ids"]
        self.opening = [begun[0]] if begun and begun[0] in self.spelling.special else []
        self.last: Aligned | None = None
        self.kept = 0
        self.paths: dict[tuple[int, ...], Heard] = {}
        self.terms: list[Float[Tensor, "n 4"]] = []
        self.closely: list[Float[Tensor, " n"]] = []

    @classmethod
    def load(
        cls, name: str, source: str, *, expand: int = 0, positions: Positions = "all", **options: Any
    ) -> "ForeignTeacher":
        """As a `LocalTeacher`, with `expand` and `positions`."""
        made = super().load(name, source, **options)
        assert isinstance(made, ForeignTeacher)
        made.expand, made.positions = made._allowed(expand), positions
        if made.source is not None:
            made.source |= {"expand": expand, "positions": positions}
        return made

    def _allowed(self, expand: int) -> int:
        if expand < 0:
            raise ValueError(f"expand must be 0 or more tokens per position, got {expand}")
        if expand and not reads_branches(self.model):
            raise TeacherUnavailableError(
                f"teacher {self.name!r} cannot be run further behind several tokens at once: "
                f"{type(self.model).__name__} does not obey a mask of its positions; leave `expand` out"
            )
        return expand

    def _spelled(self, tokenizer: PreTrainedTokenizerBase, whose: str) -> Spelling:
        try:
            return Spelling(tokenizer)
        except NoBytesError as error:
            raise VocabularyMismatchError(f"teacher {self.name!r} cannot be translated: {whose}, {error}") from error

    def agree_with(self, tokenizer: PreTrainedTokenizerBase, visible: int) -> str | None:
        """Put the two vocabularies side by side; returns which special tokens go together, in words.

        Raises:
            VocabularyMismatchError: the student's tokenizer does not give text back byte for byte.
        """
        own = self.readers.get(tokenizer)
        if own is None or own.visible != visible:
            own = Reader(self._spelled(tokenizer, "the student's tokenizer"), visible)
            self.readers[tokenizer] = own
        heard = min(self.model.get_output_embeddings().weight.shape[0], len(self.spelling.spelled))
        self.pair, self.visible = Pair(Reader(self.spelling, heard), own), visible
        self.paths, self.kept, self.student_tokenizer = {}, 0, tokenizer
        theirs, ours = self.spelling.special, own.spelling.special
        known = [f"{theirs[one][-1]} for {ours[other][-1]}" for one, other in self.pair.same.items()]
        alone = [says[-1] for index, says in theirs.items() if index not in self.pair.same]
        named = f"; without a counterpart: {', '.join(alone[:5])}{' ...' if len(alone) > 5 else ''}" if alone else ""
        return (
            f"teacher {self.name!r} has a tokenizer of its own ({heard:,} entries) and is translated; special tokens: "
            f"{', '.join(known) or 'none in common'}{named}"
        )

    @torch.no_grad()
    def speak(  # type: ignore[override]
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Informed:
        """Distributions over the student's tokens at the flattened positions `rows`, and the evidence of their bytes.

        Raises:
            VocabularyMismatchError: a text holds a special token that the teacher has nothing for.
        """
        self._take_note()
        texts, places = self._asked(input_ids, attention_mask, rows)
        read = {b: self._path(text) for b, text in texts.items()}
        fidelity = torch.ones(len(places), device=input_ids.device)
        self.last = self._aligned(read, places, fidelity)
        label = self.last.evidence.label[self.last.places].float().to(input_ids.device)
        return Informed(self.last, KnownStatistics(label_log_prob=label, fidelity=fidelity))

    @torch.no_grad()
    def look_closer(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """A smaller bound of what `speak` says at some positions, total variation.

        The teacher is run behind all that is open there: what it says then has a small bound of its own, and the
        distance to it is known. Dear: for a sample.
        """
        said = logits_of(self.speak(input_ids, attention_mask, rows), torch.arange(len(rows))).softmax(-1).cpu()
        self.last = None
        texts, places = self._asked(input_ids, attention_mask, rows)
        read = {}
        for b, text in texts.items():
            packed, only = self._packed(text), torch.zeros(len(text), dtype=torch.bool)
            only[[at for of, at in places if of == b]] = True
            read[b] = self._branched(packed, CLOSELY, only)
        near = self._aligned(read, places, torch.ones(len(places)))
        p = logits_of(near, torch.arange(len(places))).softmax(-1).cpu()
        self.closely.append(((said - p).abs().sum(-1) / 2 + near.error).clamp_max(1.0))
        return self.closely[-1]

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
        read, branches = [text for text, _, _ in texts.values()], [found for _, found, _ in texts.values()]
        layout = lay(read, [len(found.rows) for found in branches])
        hidden = [self._hidden([text.tokens for text in read]), *self._further(texts.values())]
        says = HiddenStates(torch.cat(hidden), head_of(self.model, self.pair.heard))
        known = evidence(says, layout, self.pair, joined(branches, [len(text.tokens) for text in read]))
        first = dict(zip(texts, accumulate([0, *(text.places for text in read)]), strict=False))
        index = torch.tensor([first[b] + at for b, at in places]).long()
        blank = torch.full((len(index), len(TERMS)), torch.nan)
        return Aligned(says, layout, index, self.pair, known, blank, fidelity)

    def _path(self, text: list[int]) -> Heard:
        """What it reads of a text, remembered: texts come again in every epoch."""
        key = tuple(text)
        if key not in self.paths:
            packed = self._packed(text)
            if len(self.paths) >= PATHS:
                self.paths.pop(next(iter(self.paths)))
            self.paths[key] = self._branched(packed, self.expand)
        return self.paths[key]

    def _packed(self, text: list[int]) -> Packed:
        try:
            return pack(self.pair, walk(self.pair, text, self.opening))
        except NoCounterpartError as error:
            raise VocabularyMismatchError(f"teacher {self.name!r}: {error}") from error

    def _branched(self, packed: Packed, most: int, only: Bool[Tensor, " n"] | None = None) -> Heard:
        """A text and what it is run further behind; of some places, nothing is remembered."""
        if not most or not packed.tokens:
            return packed, Branches(), None
        head, states = head_of(self.model, self.pair.heard), list[Tensor]()
        read = self._hidden([packed.tokens])

        def ask(tokens: list[int], rows: list[int], said: list[int]) -> HiddenStates:
            states.append(branched_states(self.model, tokens, rows, said, sum(map(len, states))))
            return HiddenStates(torch.cat([read, *states]), head)

        packed, found = branch(self.pair, packed, most, ask, only)
        ask(packed.tokens, found.rows, found.tokens)
        further = torch.cat(states)
        if only is None:
            if self.kept + further.nbytes > FURTHER:
                return packed, found, None
            self.kept += further.nbytes
        return packed, found, further

    def _further(self, texts: Iterable[Heard]) -> list[Float[Tensor, "E D"]]:
        """Hidden states behind the tokens that it is run further behind."""
        return [
            branched_states(self.model, text.tokens, found.rows, found.tokens) if states is None else states
            for text, found, states in texts
            if found.rows
        ]

    def _hidden(self, texts: list[list[int]]) -> Float[Tensor, "M D"]:
        """Last hidden states of the teacher's own tokens, text after text."""
        longest, device = max(map(len, texts), default=0), self.model.device
        if not longest:
            return torch.zeros(0, head_of(self.model).weight.shape[1], device=device)
        ids = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
        mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts], device=device)
        with torch.autocast(device.type, enabled=False):
            hidden = last_hidden_state(self.model, input_ids=ids, attention_mask=mask)
        return hidden[mask.bool()]

    def _take_note(self) -> None:
        """Error terms of the batch before, which its objective has filled in."""
        if self.last is not None:
            terms = self.last.terms[self.last.terms.isfinite().all(-1)]
            if sum(map(len, self.terms)) < KEPT:
                self.terms.append(terms)
            self.last = None

    def errors(self) -> dict[str, Float[Tensor, " n"]]:
        """Bounds of the positions that were written so far, `all` and by term; total variation."""
        self._take_note()
        terms = torch.cat([torch.zeros(0, len(TERMS)), *self.terms])
        return {"all": terms.sum(-1).clamp_max(1.0), **dict(zip(TERMS, terms.T, strict=True))}

    @property
    def caveat(self) -> str:
        """What the bound is about."""
        return "the bound is about text as its tokenizer writes it"

    def describe(self) -> str:
        """Size, dtype and vocabulary."""
        further = f", run further behind {self.expand} per position" if self.expand else ""
        return f"{super().describe()}, {len(self.spelling.spelled):,} tokens of its own{further}"
