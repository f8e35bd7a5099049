"""Prompts for the student to complete, and the completions that some data have."""

import math
from collections.abc import Mapping
from typing import Any

from polydistill.data.context import DataError


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


def _split(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = row["messages"]
    answered = bool(turns) and turns[-1].get("role") == "assistant"
    return {"prompt": turns[:-1] if answered else turns, "completion": turns[-1:] if answered else []}


def fixed_turn(step: int, share: float) -> bool:
    """Is this optimizer step (from 0) one of the share on fixed data? Evenly spaced, the same on every rank.

    Of the first n steps exactly `floor(n share)` are.
    """
    return math.floor((step + 1) * share + 1e-9) > math.floor(step * share + 1e-9)
