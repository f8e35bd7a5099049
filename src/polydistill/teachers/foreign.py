"""A local teacher with a tokenizer of its own: it reads the same bytes, and speaks of the student's tokens."""

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from polydistill.alignment import Branches, Packed, branch, pack
from polydistill.logprobs import HiddenStates, logits_of
from polydistill.teachers.branched import branched_states, reads_branches
from polydistill.teachers.carried import tokenizer_bytes
from polydistill.teachers.head import head_of, last_hidden_state
from polydistill.teachers.local import LocalTeacher
from polydistill.teachers.source import TeacherUnavailableError
from polydistill.teachers.translated import Heard, Positions, Translated
from polydistill.teachers.vocabulary import VocabularyMismatchError

CLOSELY = 1024
"""Tokens per position behind which it is run where its error is looked at closely."""

FURTHER = 2**29
"""Bytes of hidden states behind the tokens of `expand` that are remembered; beyond them they are made anew."""


class ForeignTeacher(Translated, LocalTeacher):  # type: ignore[misc]
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

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        expand: int = 0,
        positions: Positions = "all",
    ) -> None:
        LocalTeacher.__init__(self, name, model, tokenizer)
        Translated.__init__(self)
        self.expand, self.positions = self._allowed(expand), positions
        if tokenizer is None:
            raise VocabularyMismatchError(f"teacher {name!r} has no tokenizer of its own to be asked with")
        self.spelling = self._spelled(tokenizer, "its tokenizer")
        begun: Any = tokenizer("a")["input_ids"]
        self.opening = [begun[0]] if begun and begun[0] in self.spelling.special else []
        self.kept = 0

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

    @property
    def heard(self) -> int:
        """Entries of its own vocabulary that it speaks of."""
        return min(self.model.get_output_embeddings().weight.shape[0], len(self.spelling.spelled))

    def agree_with(self, tokenizer: PreTrainedTokenizerBase, visible: int) -> str | None:
        """As `Translated._put_together`."""
        self.kept, self.visible, self.student_tokenizer = 0, visible, tokenizer
        return self._put_together(tokenizer, visible, self.heard)

    def plain(self) -> LocalTeacher:
        """The same model, asked about its own tokens."""
        made = LocalTeacher(self.name, self.model, self.tokenizer)
        made.visible = self.heard
        return made

    def carried(self) -> bytes:
        """Its tokenizer, as `tokenizer_bytes`."""
        assert self.tokenizer is not None
        return tokenizer_bytes(self.tokenizer, self.opening)

    @torch.no_grad()
    def look_closer(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """A smaller bound of what `speak` says at some positions, total variation.

        The teacher is run behind all that is open there: what it says then has a small bound of its own, and the
        distance to it is known. Dear: for a sample.
        """
        heard = self.speak(input_ids, attention_mask, rows)
        said = logits_of(heard, torch.arange(len(rows))).softmax(-1).cpu()
        assert heard.known.fidelity is not None
        says, self.last = (heard.known.fidelity > 0.0).cpu(), None
        texts, places = self._asked(input_ids, attention_mask, rows)
        read = {}
        for b, text in texts.items():
            packed, only = self._packed(text), torch.zeros(len(text), dtype=torch.bool)
            only[[at for of, at in places if of == b]] = True
            read[b] = self._branched(packed, CLOSELY, only)
        near = self._aligned(read, places, torch.ones(len(places)))
        p = logits_of(near, torch.arange(len(places))).softmax(-1).cpu()
        bound = ((said - p).abs().sum(-1) / 2 + near.error).clamp_max(1.0)
        self.closely.append(bound[says])
        return bound

    def _hear(self, text: list[int]) -> Heard:
        return self._branched(self._packed(text), self.expand)

    def _packed(self, text: list[int]) -> Packed:
        return pack(self.pair, self.reading(text).path(self.pair))

    def _says(self, texts: Sequence[Heard]) -> HiddenStates:
        hidden = [self._hidden([text.tokens for text, _, _ in texts]), *self._further(texts)]
        return HiddenStates(torch.cat(hidden), head_of(self.model, self.pair.heard))

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
        if only is None and not self.pair.sampled:
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

    def describe(self) -> str:
        """Size, dtype and vocabulary."""
        further = f", run further behind {self.expand} per position" if self.expand else ""
        return f"{super().describe()}, {len(self.spelling.spelled):,} tokens of its own{further}"
