"""Two tasks whose answers can be judged: sums, and what a line of Python evaluates to. One byte is one token."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from polydistill.demo.passages import END, PAD, wrapped

TASKS = ("arithmetic", "code")
LETTERS = "abcdefgh"


@dataclass(frozen=True)
class Exercise:
    """A prompt, the right answer, and the task that it belongs to."""

    prompt: str
    answer: str
    task: str


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token; beside them only the end of text and padding."""
    entries = [END, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE(vocab={entry: index for index, entry in enumerate(entries)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return wrapped(raw)


def exercise(task: str, rng: random.Random) -> Exercise:
    """One exercise; the answers to code are Python's own.

    Raises:
        ValueError: there is no such task.
    """
    if task == "arithmetic":
        a, b = rng.randrange(100), rng.randrange(100)
        return Exercise(f"{a}+{b}=", str(a + b), task)
    if task != "code":
        raise ValueError(f"the tasks are {', '.join(TASKS)}, got {task!r}")
    word = "".join(rng.choices(LETTERS, k=rng.randint(3, 6)))
    shape, answer = rng.choice(
        [
            ("'{}'[::-1]", word[::-1]),
            ("'{}'.upper()", word.upper()),
            ("'{}'[1:]", word[1:]),
            ("''.join(sorted('{}'))", "".join(sorted(word))),
        ]
    )
    return Exercise(f">>> {shape.format(word)} ", answer, task)


def held_out(prompt: str) -> bool:
    """Does this prompt belong to the quarter that is never trained on? By its bytes, the same on every machine."""
    return sum(index * byte for index, byte in enumerate(prompt.encode(), 1)) % 4 == 0


def exercises(tasks: Sequence[str], number: int, seed: int, *, judged: bool = False) -> list[Exercise]:
    """Exercises of the tasks in turn, from the quarter that is held out or from the rest.

    Args:
        tasks: which.
        number: how many in all.
        seed: of the exercises.
        judged: from the held-out quarter, each prompt at most once.
    """
    rng, made, seen = random.Random(seed), list[Exercise](), set[str]()
    while len(made) < number:
        one = exercise(tasks[len(made) % len(tasks)], rng)
        if held_out(one.prompt) == judged and not (judged and one.prompt in seen):
            seen.add(one.prompt)
            made.append(one)
    return made


def as_dataset(rows: Sequence[Exercise]) -> Dataset:
    """Prompt and completion, as trl has them; the task is not told."""
    return Dataset.from_dict({"prompt": [row.prompt for row in rows], "completion": [row.answer for row in rows]})


def as_ids(rows: Sequence[Exercise], tokenizer: PreTrainedTokenizerFast) -> Int[Tensor, "B T"]:
    """Prompt, answer and end of text, padded on the right."""
    ids = [tokenizer(row.prompt + row.answer)["input_ids"] + [tokenizer.eos_token_id] for row in rows]
    width = max(map(len, ids))
    return torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in ids])
