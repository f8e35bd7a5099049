"""Tiny teachers that know something: each learned the sentences of its own tasks."""

import functools
import random
from pathlib import Path

import models
import torch

WORDS = {
    "sums": ("two", "three", "plus", "five", "minus", "seven", "is", "nine"),
    "code": ("def", "return", "for", "item", "print", "in", "if", "not"),
}


def sentences(task: str, count: int, seed: int, words: int = 14) -> list[str]:
    """A walk over the task's words: the next one is one of two that follow."""
    draw, known = random.Random(f"{task}{seed}"), WORDS[task]
    made = []
    for _ in range(count):
        at, said = draw.randrange(len(known)), []
        for _ in range(words):
            said.append(known[at])
            at = (at * 3 + draw.choice((1, 1, 1, 4))) % len(known)
        made.append(" ".join(said))
    return made


@functools.cache
def taught(*tasks: str, seed: int = 0, steps: int = 120) -> torch.nn.Module:
    """A model that learned the sentences of some tasks; of none it is as it was made."""
    model, tokenizer = models.llama(seed, layers=1), models.tokenizer()
    texts = [text for task in tasks for text in sentences(task, 64, seed)]
    optimizer, draw = torch.optim.AdamW(model.parameters(), lr=1e-2), random.Random(seed)
    for _ in range(steps if tasks else 0):
        batch = tokenizer(draw.sample(texts, 8), return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
    return model


def rows(count: int, seed: int) -> list[dict]:
    """As many texts of every task, in turn."""
    each = [sentences(task, count, seed) for task in WORDS]
    return [
        {"text": text, "task": task} for pair in zip(*each, strict=True) for text, task in zip(pair, WORDS, strict=True)
    ]


def configured(folder: Path, teachers: dict[str, torch.nn.Module], **sections) -> dict:
    """A run's sections: these teachers, an untaught student, and texts of both tasks."""
    named = {"student": models.llama(9), **teachers}
    for name, model in named.items():
        model.save_pretrained(folder / name)
        models.tokenizer().save_pretrained(folder / name)
    models.written(folder / "train.jsonl", rows(48, 1))
    models.written(folder / "held.jsonl", rows(24, 2))
    return {
        "output": str(folder / "run"),
        "student": str(folder / "student"),
        "teachers": {name: str(folder / name) for name in teachers},
        "data": {"train": str(folder / "train.jsonl"), "evaluation": str(folder / "held.jsonl"), "max_length": 64},
        "weighting": [{"kind": "prefix_posterior"}],
        "training": {"max_steps": 60, "batch_size": 8, "learning_rate": 1e-2, "cpu": True},
    } | sections
