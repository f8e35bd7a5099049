"""Token sequences of one length: whole documents, and documents that change domain at half."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from polydistill.demo.corpus import DOMAINS, Corpus, Document

END, PAD = "<|end|>", "<|pad|>"


@dataclass(frozen=True)
class Passages:
    """Sequences and the domain that each position was taken from.

    Attributes:
        ids: tokens, `[B, T]`; every sequence starts with the end-of-text token.
        domain: index into `DOMAINS` of every position, `[B, T]`. Whole passages have one value in a row.
    """

    ids: Int[Tensor, "B T"]
    domain: Int[Tensor, "B T"]

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def mixed(self) -> Tensor:
        """Which sequences change domain, `[B]` of bool."""
        return self.domain[:, 0] != self.domain[:, -1]

    @property
    def names(self) -> list[str]:
        """What each sequence is about: `code`, or `code, then prose`."""
        return [", then ".join(dict.fromkeys(DOMAINS[d] for d in row)) for row in self.domain.tolist()]

    def take(self, rows: Tensor) -> "Passages":
        """The passages of `rows` (indices or mask over `B`)."""
        return Passages(self.ids[rows], self.domain[rows])

    def batches(self, size: int) -> Iterator["Passages"]:
        """Consecutive batches of at most `size` sequences, in order."""
        for start in range(0, len(self), size):
            yield Passages(self.ids[start : start + size], self.domain[start : start + size])


def train_tokenizer(corpus: Corpus, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `size` entries, learned from the teachers' split of the three domains.

    It encodes every string and decodes back to the same bytes. End of text is also the start of a sequence.

    Raises:
        ValueError: `size` leaves no room for the 256 bytes and the two special tokens.
    """
    if size < 258:
        raise ValueError(f"a byte-level vocabulary needs at least 258 entries, got {size}")
    return byte_bpe((document.text for domain in DOMAINS for document in corpus.documents["teacher"][domain]), size)


def byte_bpe(texts: Iterable[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `size` entries, learned from these texts."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: with numbers as single entries the arithmetic could only be memorised.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """As transformers has it; end of text is also the start of a sequence."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def windows(documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, length: int) -> Int[Tensor, "N T"]:
    """Consecutive windows of `length` tokens that each stay within one document; rests are left out.

    Short documents (less than a window) contribute nothing.
    """
    rows: list[list[int]] = []
    encoded = tokenizer([document.text for document in documents], add_special_tokens=False)["input_ids"]
    for ids in encoded:
        rows += [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, length)


def draw(
    documents: Mapping[str, Sequence[Document]],
    tokenizer: PreTrainedTokenizerFast,
    length: int,
    whole: int,
    mixed: int,
    seed: int,
) -> Passages:
    """Passages drawn without replacement from windows of the documents, in an order given by the seed.

    Args:
        documents: by domain, one split of a corpus.
        length: tokens per passage, `T`, even and at least 4; one of them is the end-of-text token at the start.
        whole: passages per domain.
        mixed: passages per ordered pair of different domains; the second domain starts at position `T/2`.
        seed: which windows are drawn, and their order.

    Raises:
        ValueError: a domain has too few windows, or `length` is odd or below 4.
    """
    if length < 4 or length % 2:
        raise ValueError(f"length must be even and at least 4, got {length}")
    generator = torch.Generator().manual_seed(seed)
    pools, half = {}, length // 2
    needed = whole + 2 * mixed * (len(DOMAINS) - 1)
    for domain in DOMAINS:
        found = windows(documents[domain], tokenizer, length)
        if len(found) < needed:
            raise ValueError(
                f"{needed} windows of {length} {domain} tokens are needed and the corpus has {len(found)}: "
                "ask for fewer or shorter passages, or for a larger corpus"
            )
        pools[domain] = iter(found[torch.randperm(len(found), generator=generator)[:needed]])
    rows, origins = [], []
    for index, domain in enumerate(DOMAINS):
        for _ in range(whole):
            rows.append(next(pools[domain])[:-1])
            origins.append(torch.full((length,), index))
    for first, second in permutations(range(len(DOMAINS)), 2):
        for _ in range(mixed):
            head, tail = next(pools[DOMAINS[first]]), next(pools[DOMAINS[second]])
            rows.append(torch.cat([head[: half - 1], tail[:half]]))
            origins.append(torch.tensor([first] * half + [second] * half))
    order = torch.randperm(len(rows), generator=generator)
    ids = torch.stack(rows)[order]
    start = torch.full((len(ids), 1), tokenizer.bos_token_id)
    return Passages(torch.cat([start, ids], dim=1), torch.stack(origins)[order])
