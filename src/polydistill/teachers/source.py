"""Who speaks, wherever it lives: a model in this process, an adapter on a shared base, a cache, a server."""

from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polydistill.logprobs import TeacherOutput


class TeacherUnavailableError(RuntimeError):
    """A teacher could not be loaded or did not answer."""


@runtime_checkable
class TeacherSource(Protocol):
    """Anything that speaks: batch -> what one teacher says about some of its positions.

    The objective takes sources of all kinds side by side in one run. A source must

    * answer for exactly the positions `rows`, in their order, on the device of `input_ids`, in any form of
      `TeacherOutput`: `HiddenStates` (and a head), `Dense` (every log-probability), `Sparse` (some of them and the mass
      of the rest). What it knows more exactly than that form tells (the label's log-probability, the entropy) it wraps
      around it as `Informed`; the weights are then computed from those numbers;
    * say which rows it is asked about from the token ids alone. A trainer shuffles, drops columns and pads; the ids of
      a row are what is left. A source that remembers finds its row by them, never by a position in a data set;
    * never invent: a position that it cannot answer for is an error that names the row, raised before the update;
    * be the same for the same ids at every call, so that a resumed run repeats itself.

    Attributes:
        name: the teacher's name in the stack; set by the trainer.
    """

    name: str

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> TeacherOutput:
        """What the teacher says at the flattened positions `rows`: its distribution over the token after each.

        Raises:
            TeacherUnavailableError: it does not answer, or not for these rows.
        """
        ...


@runtime_checkable
class Teacher(TeacherSource, Protocol):
    """A source that a trainer can check against its student before the first step, and tell about."""

    def agree_with(self, tokenizer: PreTrainedTokenizerBase, visible: int) -> str | None:
        """Check the vocabulary against the student's; returns what is masked or worth saying, or None.

        Args:
            tokenizer: the student's.
            visible: entries of the vocabulary that are real, V; `TeacherOutput.vocabulary` of every answer is this.

        Raises:
            VocabularyMismatchError: the vocabularies differ.
        """
        ...

    def describe(self) -> str:
        """What it is, in a few words, for `polydistill check`."""
        ...
