"""What a served teacher is asked: a text through the whole vocabulary at first, then a batch's sequences."""

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from polydistill.data.pieces import inner_pieces


@dataclass(frozen=True)
class Ask:
    """One sequence: its tokens, which rows are wanted, and where they go."""

    ids: list[int]
    wanted: Int[Tensor, " m"]
    places: Int[Tensor, " m"]


def probe_text(tokenizer: PreTrainedTokenizerBase, visible: int, tokens: int) -> tuple[str, list[int]]:
    """A text that leads through the whole vocabulary in even steps, and its ids.

    Args:
        tokenizer: the student's.
        visible: entries of the vocabulary, V.
        tokens: length at most.
    """
    special = set(tokenizer.all_special_ids)
    step = max(1, visible // tokens)
    words = inner_pieces(tokenizer, [i for i in range(0, visible, step) if i not in special])
    text = " ".join(word for word in words if word.isprintable() and "\ufffd" not in word)
    while True:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if len(ids) <= tokens or len(text) < 2:
            return text, ids
        text = text[: max(1, len(text) * tokens // (len(ids) + 1))]


def sequences(input_ids: Int[Tensor, "B T"], attention_mask: Int[Tensor, "B T"], rows: Int[Tensor, " N"]) -> list[Ask]:
    """One request per sequence that has rows: its real tokens up to the one after the last row."""
    ids, mask, rows = input_ids.cpu(), attention_mask.cpu().bool(), rows.cpu()
    length, made = ids.shape[1], []
    sequence, token = rows // length, rows % length
    for b in sequence.unique().tolist():
        places = (sequence == b).nonzero().squeeze(1)
        index = mask[b].long().cumsum(0) - 1
        wanted = index[token[places]]
        real = ids[b][mask[b]].tolist()
        if int(wanted.max()) + 1 >= len(real):
            raise ValueError(f"row {b} of the batch: the last token of a sequence predicts nothing")
        made.append(Ask(real[: int(wanted.max()) + 2], wanted, places))
    return made
