"""Text that a student is asked to go on with: from a row to token ids, as `trl.SFTTrainer` makes them, and in order."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch.utils.data import Sampler
from transformers import TrainingArguments
from trl.data_utils import _tokenize, common_prefix_length, is_conversational
from trl.trainer.utils import RepeatSampler

from polydistill.data.context import DataError, is_empty


@dataclass(frozen=True)
class Text:
    """How rows become ids: the same ones off-policy and on-policy.

    Attributes:
        processor: with a chat template, for conversations.
        tokenizer: its tokenizer.
        template: chat template in place of the processor's own.
        tools: for rows that name none.
        arguments: of the chat template, under a row's own `chat_template_kwargs`.
    """

    processor: Any
    tokenizer: Any
    template: str | None
    tools: list[Any] | None
    arguments: Mapping[str, Any]

    def prompt(self, row: Mapping[str, Any]) -> list[int]:
        """What the student goes on with; an end token that the tokenizer puts behind any text is left out."""
        if is_conversational(dict(row)):
            return self._ids(row["prompt"], add_generation_prompt=True, **self._said(row))
        ids = self._ids(row["prompt"])
        ends = ids[-1:] == [self.tokenizer.eos_token_id] and not row["prompt"].endswith(self.tokenizer.eos_token)
        return ids[:-1] if ends else ids

    def example(self, row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
        """Prompt and completion of the data's own; the completion begins where the two tokenisations part."""
        if is_conversational(dict(row)):
            said = self._said(row)
            alone = self._ids(row["prompt"], add_generation_prompt=True, **said)
            whole = self._ids([*row["prompt"], *row["completion"]], **said)
        else:
            end = "" if row["completion"].endswith(self.tokenizer.eos_token) else self.tokenizer.eos_token
            alone, whole = self._ids(row["prompt"]), self._ids(row["prompt"] + row["completion"] + end)
        border = common_prefix_length(alone, whole)
        return whole[:border], whole[border:]

    def _ids(self, text: Any, **arguments: Any) -> list[int]:
        return list(_tokenize(self.processor, text, chat_template=self.template, **arguments)["input_ids"])

    def _said(self, row: Mapping[str, Any]) -> dict[str, Any]:
        tools = row.get("tools")
        tools = json.loads(tools) if isinstance(tools, str) else tools
        return {"tools": tools or self.tools or None, **self.arguments, **(row.get("chat_template_kwargs") or {})}


class ByEpoch(Sampler[int]):
    """Rows in an order that follows from the epoch alone, so that a run that goes on meets those that it would have.

    Args:
        rows: trl's, whose order follows from how often it was asked for one.
        epoch: number of the one that begins.
    """

    def __init__(self, rows: RepeatSampler, epoch: Callable[[], int]) -> None:
        self.rows, self.epoch = rows, epoch

    def __iter__(self) -> Iterator[int]:
        if self.rows.shuffle:
            self.rows.generator.manual_seed((self.rows.seed or 0) + self.epoch())
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def refuse_few(prompts: Any, args: TrainingArguments, processes: int) -> None:
    """Trl leaves out what is not a whole step's: of fewer prompts none would be made, and nothing said.

    Raises:
        DataError: there are fewer prompts than a step takes.
    """
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    if hasattr(prompts, "__len__") and len(prompts) < step:
        raise DataError(
            f"the training data: {len(prompts):,} prompts, and a step takes {step:,} (batch size times accumulation "
            "times processes), so that there would be none; lower training.batch_size or "
            "training.gradient_accumulation, or bring more prompts"
        )


def measured(
    dataset: Any,
    name: str,
    text: Text,
    max_length: int | None,
    answered: bool,
    look: Callable[[list[int]], None],
) -> tuple[Any, int, list[str]]:
    """A data set without the prompts that `max_length` has no room behind; its longest prompt; and what to say of it.

    Args:
        dataset: with `prompt`; of a stream its prompts are looked at as they come.
        name: for messages.
        text: from rows to ids.
        max_length: of prompt and completion together, tokens.
        answered: the data's own completions are read as well.
        look: at the ids of every row that stays, completions included; not at a stream's.

    Raises:
        DataError: a row cannot be made ids, or no row is left.
    """
    if dataset is None:
        return None, 0, []
    if not hasattr(dataset, "__len__"):
        room = dataset if max_length is None else dataset.filter(lambda row: len(text.prompt(row)) < max_length)
        if is_empty(room):
            raise DataError(_no_room(name, max_length))
        return room, max_length or 0, []
    if isinstance(dataset, dict):
        parts = {
            key: measured(part, f"{name} {key!r}", text, max_length, answered, look) for key, part in dataset.items()
        }
        said = [sentence for _, _, sentences in parts.values() for sentence in sentences]
        return {key: part for key, (part, _, _) in parts.items()}, max(n for _, n, _ in parts.values()), said
    kept, longest = [], 0
    for index, row in enumerate(dataset):
        try:
            ids = text.prompt(row)
            length = len(ids)
            if answered and row.get("completion"):
                ids = [*chain(*text.example(row))]
        except Exception as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{name}, row {index + 1}: no tokens can be made of it: {why}") from error
        if length == 0:
            raise DataError(f"{name}, row {index + 1}: the prompt is empty; there is nothing to go on with")
        if max_length is None or length < max_length:
            look(ids)
            kept.append(index)
            longest = max(longest, length)
    lost = len(dataset) - len(kept)
    if not kept:
        raise DataError(_no_room(name, max_length))
    if not lost:
        return dataset, longest, []
    said = [
        f"{name}: {lost:,} of {len(dataset):,} prompts have max_length={max_length} tokens or more and are left out"
    ]
    return dataset.select(kept), longest, said


def _no_room(name: str, max_length: int | None) -> str:
    return f"{name}: no prompt is shorter than max_length={max_length}; nothing can be written behind them"
