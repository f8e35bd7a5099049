"""A cache as a teacher: it says what the model said, for the very texts that the model was shown."""

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Int
from torch import Tensor

from polydistill.cache.label import SIGNALS
from polydistill.cache.manifest import CacheError
from polydistill.cache.saved import head_from
from polydistill.cache.says import Backed
from polydistill.cache.shard import key_of
from polydistill.cache.store import Cache, Example
from polydistill.logprobs import TAIL_STATISTICS, Head, HiddenStates, Informed, KnownStatistics, TeacherOutput
from polydistill.teachers import TeacherUnavailableError, VocabularyMismatchError
from polydistill.teachers.vocabulary import Tokenizer, tokens_by_id


def tokenizer_fingerprint(tokenizer: Tokenizer) -> str:
    """xxh3_128 of the tokens in order of their ids."""
    return xxhash.xxh3_128_hexdigest("\n".join("" if t is None else t for t in tokens_by_id(tokenizer)).encode())


class CachedTeacher:
    """One teacher of a cache.

    Rows are found by their token ids: every run of real tokens in a row, without padding, is an example. So a trainer
    may shuffle and pad as it likes; another template, tokenizer or length gives other ids, which are not found.

    Args:
        name: the teacher's name in the stack.
        cache: open; teachers of one cache share it, and with it what was decoded for a batch.
        teacher: its name in the cache.

    Raises:
        CacheError: the cache has no such teacher.
    """

    def __init__(self, name: str, cache: Cache, teacher: str | None = None) -> None:
        self.name, self.cache, wanted = name, cache, name if teacher is None else teacher
        if wanted not in cache.names:
            raise CacheError(
                f"teacher {name!r}: {cache.files.address} has no teacher {wanted!r}; it has {', '.join(cache.names)}"
            )
        self._head: Head | None = None
        self.place = cache.names.index(wanted)
        self.sparse = cache.codec.sparse.index(self.place) if self.place in cache.codec.sparse else None
        self.background = None if self.sparse is None else torch.tensor(cache.codec.log_background[self.sparse])

    @property
    def unknown(self) -> frozenset[str]:
        """Statistics that depend on the shape of the tail; none of hidden states."""
        return frozenset() if self.sparse is None else TAIL_STATISTICS

    def agree_with(self, tokenizer: Tokenizer, visible: int) -> str | None:
        """The student's tokenizer must be the one that the teacher was asked with.

        Raises:
            VocabularyMismatchError: it is another one.
        """
        plan = self.cache.plan
        if plan.own:
            raise VocabularyMismatchError(
                f"teacher {self.name!r}: {self.cache.files.address} is in tokens of the teacher's own; read it with "
                "polydistill.cache.CachedForeignTeacher"
            )
        if plan.vocabulary != visible or plan.tokenizer != tokenizer_fingerprint(tokenizer):
            raise VocabularyMismatchError(
                f"teacher {self.name!r}: {self.cache.files.address} was built with another tokenizer "
                f"({plan.vocabulary:,} tokens, the student's has {visible:,}); build it anew with this one"
            )
        return None

    def describe(self) -> str:
        """Where it is kept and how much it takes."""
        manifest = self.cache.manifest
        each = manifest.size / max(manifest.positions, 1)
        return f"cached in {self.cache.files.address}, {len(self.cache):,} examples, {each:.1f} bytes per position"

    def speak(
        self, input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]
    ) -> TeacherOutput:
        """What was stored for the flattened positions `rows`.

        Raises:
            TeacherUnavailableError: a text is not in the cache.
        """
        ids, real = input_ids.cpu().numpy(), attention_mask.cpu().numpy().astype(bool)
        flat, length = rows.cpu().numpy(), ids.shape[1]
        where = np.full(ids.size, -1)
        examples: list[Example] = []
        offset = 0
        for b in np.unique(flat // length):
            edges = np.flatnonzero(np.diff(real[b].astype(np.int8), prepend=0, append=0))
            for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                example = self.cache.example(key_of(ids[b, begin:end]))
                if example is None:
                    raise TeacherUnavailableError(
                        f"teacher {self.name!r}: row {b} of the batch ({end - begin} tokens) is not in "
                        f"{self.cache.files.address}; the data, the template or max_length differ from those of the "
                        "build; build the cache for this run"
                    )
                where[b * length + begin : b * length + end - 1] = offset + np.arange(end - 1 - begin)
                offset += end - 1 - begin
                examples.append(example)
        at = where[flat]
        if (at < 0).any():
            raise TeacherUnavailableError(f"teacher {self.name!r}: asked about a position that predicts nothing")
        known = {
            name: np.concatenate([e.noted.signals[name][self.place] for e in examples])[at] if examples else at
            for name in SIGNALS
        }
        says = self._says(examples, at, input_ids.device)
        return Informed(
            says, KnownStatistics(**{n: torch.as_tensor(v).float().to(input_ids.device) for n, v in known.items()})
        )

    def off_by(self, stored: TeacherOutput) -> float:
        """Nats by which log-ratios of what was stored are off at most: among its entries and the tail as a whole.

        Entries are rounded to within half a step, and normalising moves all of them alike.
        """
        return self.cache.codec.step if self.sparse is not None else 2.0 * self.logit_error(stored)

    def logit_error(self, stored: TeacherOutput, rows: Int[Tensor, " n"] | slice = slice(None)) -> float:
        """Stated bound of a logit made from stored hidden states: half a level times the largest row of the head."""
        says = stored.says if isinstance(stored, Informed) else stored
        assert isinstance(says, HiddenStates)
        head, levels = says.head, 2 ** (self.cache.codec.hidden[self.place].bits - 1) - 1
        row = max(float(block.float().abs().sum(-1).max()) for block in head.weight[: head.vocabulary].split(4096))
        return float(says.hidden[rows].abs().max()) / levels / 2 * row * abs(head.scale)

    def log_errors(self, says: TeacherOutput) -> Float[Tensor, " N"]:
        """Nats by which a stored log-probability of each position is off at most.

        Of hidden states twice the error of a logit, in which what all rows of the head have in common does not count.
        """
        if self.sparse is not None:
            return torch.full((len(says),), self.cache.codec.step)
        assert isinstance(says, HiddenStates)
        level = says.hidden.abs().amax(-1).float().cpu() / (2 ** (self.cache.codec.hidden[self.place].bits - 1) - 1)
        return level * self._reach

    @cached_property
    def _reach(self) -> float:
        """Largest sum of magnitudes of a row of the head, less the mean row."""
        head = self.head(torch.device("cpu"))
        rows = head.weight[: head.vocabulary]
        # Under a soft cap a shift of all logits is none of the distribution's.
        mean = rows.float().mean(0) if head.softcap is None else torch.zeros(rows.shape[1])
        return max(float((part.float() - mean).abs().sum(-1).max()) for part in rows.split(4096)) * abs(head.scale)

    def _says(self, examples: list[Example], at: Int[np.ndarray, " N"], device: torch.device) -> TeacherOutput:
        if self.sparse is None:
            width = self.cache.codec.hidden[self.place].width
            none = np.zeros((0, width), np.float32)
            states = np.concatenate([none, *(e.noted.hidden[self.place] for e in examples)])[at]
            return HiddenStates(torch.as_tensor(states).to(device), self.head(device))
        counts, entries, log_p = self._chosen(examples)
        tails = np.concatenate([np.zeros(0, np.float32), *(e.noted.log_tail[self.sparse] for e in examples)])
        which = np.concatenate([at[:0], *(e.noted.background[self.sparse] for e in examples)])
        begin, number = (np.cumsum(counts) - counts)[at], counts[at]
        column = np.arange(int(number.max(initial=1)))
        fresh = column < number[:, None]
        taken = begin[:, None] + np.where(fresh, column, 0)
        made = (entries[taken], log_p[taken], fresh, tails[at], which[at])
        ids, values, kept, tail, background = (torch.as_tensor(x).to(device) for x in made)
        assert self.background is not None
        if self.background.device != device:
            self.background = self.background.to(device)
        return Backed(ids, values, kept, tail, self.background, background)

    def _chosen(self, examples: list[Example]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Entries that this teacher chose: how many per position, their ids, their log-probabilities."""
        counts, ids, values = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        for example in examples:
            noted = example.noted
            row = noted.log_p[self.sparse]
            mine = np.isfinite(row)
            position = np.repeat(np.arange(len(noted)), noted.counts)
            counts.append(np.bincount(position[mine], minlength=len(noted)))
            ids.append(noted.ids[mine])
            values.append(row[mine])
        return np.concatenate(counts), np.concatenate(ids), np.concatenate(values)

    def head(self, device: torch.device) -> Head:
        """The head of a teacher whose hidden states are stored."""
        if self._head is None or self._head.weight.device != device:
            record = self.cache.manifest.heads[self.cache.names[self.place]]
            self.cache.verify(record)
            head = head_from(self.cache.files.read(record.name)).to(device)
            if device.type == "cpu":  # as the states are: each chunk would convert the whole matrix
                head = replace(head, weight=head.weight.float())
            self._head = head
        return self._head
