"""The share of an on-policy run that learns from the data's own completions."""

import math
from typing import Any

from trl.data_utils import is_conversational

from polydistill.data.context import DataError


def fixed_turn(step: int, share: float) -> bool:
    """Is this optimizer step (from 0) one of the share on fixed data? Evenly spaced, the same on every rank.

    Of the first n steps exactly `floor(n share)` are.
    """
    return math.floor((step + 1) * share + 1e-9) > math.floor(step * share + 1e-9)


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
