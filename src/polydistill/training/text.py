"""From a row to token ids, as `trl.SFTTrainer` makes them, for text that a student is asked to go on with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trl.data_utils import _tokenize, common_prefix_length, is_conversational

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


def measured(dataset: Any, name: str, text: Text, max_length: int | None, answered: bool) -> tuple[Any, int, list[str]]:
    """A data set without the prompts that `max_length` has no room behind; its longest prompt; and what to say of it.

    Args:
        dataset: with `prompt`; of a stream its prompts are looked at as they come.
        name: for messages.
        text: from rows to ids.
        max_length: of prompt and completion together, tokens.
        answered: the data's own completions are read as well.

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
        parts = {key: measured(part, f"{name} {key!r}", text, max_length, answered) for key, part in dataset.items()}
        said = [sentence for _, _, sentences in parts.values() for sentence in sentences]
        return {key: part for key, (part, _, _) in parts.items()}, max(n for _, n, _ in parts.values()), said
    kept, longest = [], 0
    for index, row in enumerate(dataset):
        try:
            length = len(text.prompt(row))
            if answered and row.get("completion"):
                text.example(row)
        except Exception as error:
            why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{name}, row {index + 1}: no tokens can be made of it: {why}") from error
        if length == 0:
            raise DataError(f"{name}, row {index + 1}: the prompt is empty; there is nothing to go on with")
        if max_length is None or length < max_length:
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
