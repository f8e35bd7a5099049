"""What on-policy training asks of its data and weights: prompts, completions for the fixed share, no labels."""

import math
from collections.abc import Mapping
from typing import Any

from trl.data_utils import is_conversational

from polydistill.training.context import DataError
from polydistill.weighting import Operator, Power, Product
from polydistill.weighting.task import HedgeOf


def fixed_turn(step: int, share: float) -> bool:
    """Is this optimizer step (from 0) one of the share on fixed data? Evenly spaced, the same on every rank.

    Of the first n steps exactly `floor(n share)` are.
    """
    return math.floor((step + 1) * share + 1e-9) > math.floor(step * share + 1e-9)


def with_prompts(dataset: Any, name: str) -> Any:
    """A data set with `prompt`, and `completion` where there is one; of `messages` the last answer is the completion.

    Raises:
        DataError: it has neither `prompt` nor `messages`.
    """
    if isinstance(dataset, dict):
        return {key: with_prompts(part, f"{name} {key}") for key, part in dataset.items()}
    columns = list(getattr(dataset, "column_names", None) or [])
    if not columns or "prompt" in columns:
        return dataset
    if "messages" in columns:
        return dataset.map(_split, remove_columns=["messages"])
    raise DataError(
        f"the {name} has the columns {', '.join(columns)}; on-policy training needs a `prompt` (or `messages`) for the "
        "student to complete"
    )


def fixed_ids(rows: list[dict[str, Any]], prompt_ids: list[list[int]], processor: Any, tokenizer: Any) -> list[Any]:
    """Token ids of the data's own completions, as they follow the prompts' ids; each ends with the end token.

    Raises:
        DataError: a row has no completion, or the chat template does not continue the prompt.
    """
    made = []
    for row, prompt in zip(rows, prompt_ids, strict=True):
        completion = row.get("completion")
        if not completion:
            raise DataError(
                f"lambda > 0 mixes in fixed data, but a row has no `completion`: {str(row['prompt'])[:80]!r}; give one "
                "to every row, or set lambda to 0"
            )
        if is_conversational(row):
            whole = processor.apply_chat_template(
                row["prompt"] + completion, tokenize=True, return_dict=True, add_generation_prompt=False
            )["input_ids"]
            whole = whole[0] if whole and isinstance(whole[0], list) else whole
        else:
            whole = tokenizer(row["prompt"] + completion)["input_ids"]
            if whole[: len(prompt)] != list(prompt):  # a token across the border
                whole = list(prompt) + tokenizer(completion, add_special_tokens=False)["input_ids"]
        if list(whole[: len(prompt)]) != list(prompt):
            raise DataError(
                f"the chat template does not continue the prompt {str(row['prompt'])[:80]!r} when the answer is added; "
                "fixed data cannot be mixed in with it"
            )
        ids = list(whole[len(prompt) :])
        if tokenizer.eos_token_id not in ids[-2:]:
            ids.append(tokenizer.eos_token_id)
        made.append(ids)
    return made


def label_readers(stack: Operator) -> list[str]:
    """Factors whose weights need labels, as they were written."""
    found = []
    for module in stack.modules():
        if not isinstance(module, Operator) or isinstance(module, Product | Power):
            continue
        learns = isinstance(module, HedgeOf) and module.signal.reads_label
        if module.reads_label or learns or any(signal.reads_label for signal in module.signals):
            found.append(repr(module))
    return found


def refuse_label_readers(stack: Operator) -> None:
    """Generated text has no labels.

    Raises:
        ValueError: naming the factors.
    """
    if found := label_readers(stack):
        raise ValueError(
            f"{' and '.join(found)} needs labels, and text that the student generates has none; use Entropy(), "
            "Margin(), Consensus(), StudentGap(), a router, a prior, or PrefixPosterior (which reads what the student "
            "wrote so far)"
        )


def _split(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = row["messages"]
    answered = bool(turns) and turns[-1].get("role") == "assistant"
    return {"prompt": turns[:-1] if answered else turns, "completion": turns[-1:] if answered else []}
