"""A teacher on a server with a tokenizer of its own: it is asked about its own tokens of the same bytes.

Its likeliest entries are translated as a local teacher's whole distributions are; the rest may be on any of the tokens
that it does not name, none of which has more than the least of the likeliest, and is in the bound so (`Stated`).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from polydistill.alignment import Branches, Reading, Stated, pack
from polydistill.logprobs import Dense, Informed, Sparse, TeacherOutput
from polydistill.teachers.local import reason_of
from polydistill.teachers.served.lost import TeacherLostError
from polydistill.teachers.served.teacher import ServedTeacher
from polydistill.teachers.source import TeacherUnavailableError
from polydistill.teachers.translated import Heard, Positions, Translated
from polydistill.teachers.vocabulary import VocabularyMismatchError

END = 0
"""Token behind every text: a server speaks of what comes before tokens that it is sent."""


class ServedForeignTeacher(Translated, ServedTeacher):
    """A served teacher that is asked in its own tokens about the student's.

    Args:
        name: the teacher's name in the stack.
        url: of the server, up to and with `/v1`.
        model: as the server calls it.
        tokenizer: its own, which is here: a tokenizer, a folder or a hub id.
        positions: what the bound does to its weight.
        **options: as of a `ServedTeacher`.

    Raises:
        ValueError: it counts at positions alone of which there are none, or `tempered` is `bound`.
        TeacherUnavailableError: there is no such tokenizer.
        VocabularyMismatchError: its tokenizer does not give text back byte for byte.
    """

    unknown = frozenset()

    def __init__(
        self,
        name: str,
        url: str,
        model: str,
        *,
        tokenizer: PreTrainedTokenizerBase | str,
        positions: Positions = "all",
        **options: Any,
    ) -> None:
        ServedTeacher.__init__(self, name, url, model, **options)
        Translated.__init__(self)
        if positions == "strict":
            raise ValueError(
                f"teacher {name!r}: positions: strict counts where the bound is 0, and a server leaves a little "
                "unnamed everywhere: nothing would be heard; use `bound`"
            )
        if self.tempered == "bound":
            raise ValueError(
                f"teacher {name!r}: tempered: bound does nothing for a teacher with a tokenizer of its own, which is "
                "translated at temperature 1 alone; leave it out"
            )
        self.positions, self.options = positions, options
        self.tokenizer = own_tokenizer(name, tokenizer) if isinstance(tokenizer, str) else tokenizer
        self.spelling = self._spelled(self.tokenizer, "its tokenizer")
        begun: Any = self.tokenizer("a")["input_ids"]
        self.opening = [begun[0]] if begun and begun[0] in self.spelling.special else []

    def agree_with(self, tokenizer: PreTrainedTokenizerBase, visible: int) -> str | None:
        """Ask the server for a text, which it has to read as the tokenizer that is here does.

        Raises:
            VocabularyMismatchError: it reads other tokens, or the student's does not give text back byte for byte.
            TeacherUnavailableError: it does not answer, or gives no log-probabilities of a prompt's likeliest tokens.
        """
        try:
            told = ServedTeacher.agree_with(self, self.tokenizer, len(self.spelling.spelled))
        except VocabularyMismatchError as error:
            raise VocabularyMismatchError(
                f"teacher {self.name!r}: its server reads other tokens than the tokenizer that it is asked with "
                f"({self.tokenizer.name_or_path or type(self.tokenizer).__name__}); name the one that it "
                f"serves: {error.__cause__ or error}"
            ) from error
        return f"{self._put_together(tokenizer, visible, len(self.spelling.spelled))}; {told}"

    def plain(self) -> ServedTeacher:
        """The same server, asked about the student's tokens."""
        return ServedTeacher(self.name, self.address.url, self.model, **self.options)

    def reads_otherwise(self, tokenizer: PreTrainedTokenizerBase, samples: Any) -> None:
        """It reads its own tokens."""

    def over(self, text: list[int]) -> int:
        """As `ServedTeacher.over`, of its own tokens.

        Raises:
            VocabularyMismatchError: the text holds a special token that the teacher has nothing for.
        """
        longest, spelled = self.probed.longest, self.pair.student.spelled
        if longest is None:
            return 0
        # No token is less than a byte, but for one in front of a text, a space in front of each part, and the end.
        if self.turns is None and sum(len(spelled[i] or "  ") for i in text) + 3 <= longest:
            return 0
        size = len(self.reading(text).tokens) + 1
        return size if size > longest else 0

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> Informed:
        """As every translated teacher's; raises what a served one's does."""
        try:
            return Translated.speak(self, input_ids, attention_mask, rows)
        except TeacherLostError as error:
            raise TeacherLostError(str(error), self.pair.visible, error.counted) from error

    def describe(self) -> str:
        """Where it is and what it is asked."""
        return f"{ServedTeacher.describe(self)}; {len(self.spelling.spelled):,} tokens of its own"

    @property
    def caveat(self) -> str:
        """What the bound is about."""
        return f"{super().caveat} and as the server answers"

    def _hear(self, text: list[int]) -> Heard:
        packed = pack(self.pair, self.reading(text).path(self.pair))
        longest, size = self.probed.longest, len(packed.tokens) + 1
        if longest is not None and size > longest:
            if self.pair.sampled:  # how long a text may become in these tokens is not known beforehand
                return pack(self.pair, Reading(size=len(text)).path(self.pair)), Branches(), None
            raise TeacherUnavailableError(
                f"teacher {self.name!r}: a text of {len(text):,} tokens has {size:,} of its own with the end, and its "
                f"server takes up to {longest:,}; lower data.max_length, or start the server with room for more"
            )
        return packed, Branches(), None

    def _says(self, texts: Sequence[Heard]) -> TeacherOutput | Stated:
        asked = [[*packed.tokens, END] for packed, _, _ in texts if packed.tokens]
        if not asked:
            return Dense(torch.zeros(0, self._visible()))
        heard = self._heard(asked)
        self._same_model()
        for entries in heard:
            self._count(entries, torch.arange(len(entries.follows)))
        ids, log_p, tail = (torch.cat([getattr(e.said, name) for e in heard]) for name in ("ids", "log_p", "log_tail"))
        named = torch.cat([entries.named for entries in heard])
        first = ids.gather(1, named.long().argmax(1, keepdim=True))
        return Stated(
            Sparse(ids, log_p, tail, self._visible()),
            torch.tensor([token for text in asked for token in text[1:]]),
            torch.cat([entries.follows for entries in heard]),
            label_error=0.0,
            log_error=torch.zeros(len(ids)),
            names=torch.where(named, ids, first),
            most=torch.cat([entries.log_cap for entries in heard]).exp(),
            rest=torch.cat([entries.tail for entries in heard]),
        )


def own_tokenizer(name: str, source: str) -> PreTrainedTokenizerBase:
    """The tokenizer in which a teacher's server is asked.

    Args:
        name: the teacher's.
        source: folder or hub id.

    Raises:
        TeacherUnavailableError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise TeacherUnavailableError(
            f"teacher {name!r}: the tokenizer {source!r}, in which its server is to be asked, could not be loaded: "
            f"{reason_of(error)}; name a folder or hub id with `tokenizer`"
        ) from error
