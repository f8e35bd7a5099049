"""E8: real pretrained models. LoRA specialists of Gemma 3 270M, and students of the same base distilled from a cache.

Needs the extra `gemma`, 6 GB of memory and, at full length, about an hour of one core; `examples/real/` has the same
with larger models and public data for one card of 80 GB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from experiments.cache_commands import gemma_models, write_texts
from experiments.measured import Measured, Record, Rows
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from polydistill.config.run import RunConfig
from polydistill.demo.corpus import DOMAINS, read_corpus
from polydistill.demo.teachers import cache_folder
from polydistill.judging.baselines import CONTROLS, baselines_run
from polydistill.judging.recommend import recommend_run
from polydistill.judging.trial import on_trial
from polydistill.run.train import train_run


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


NAMED, PREDICTED, TRIAL = ", recommended", "predicted of the stack", "on trial, the stack is"
"""Of rows: the student of what is recommended, what `recommend` says of the stack, and what its trial says."""
LOOK = Length(specialist=1, student=1, train=2, held=3, characters=60, tokens=16)


def specialist(base: Path, tokenizer: Any, texts: Sequence[str], length: Length, seed: int, to: Path) -> None:
    """Adapters of the base, trained on texts of one domain."""
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
            "student": {"model": str(root.parent / "gemma"), "lora": {"r": 8, "alpha": 16}},
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
                "completions": {"prompts": 0},
                "seed": seed,
            },
        }
    )


def teachers(length: Length, seed: int) -> Path:
    """The folder of specialists and texts, made once and kept with the demo's teachers; their base lies beside it."""
    base = cache_folder() / "E8"
    root, corpus = base / f"{length.specialist}-steps-seed{seed}", read_corpus()
    if (root / DOMAINS[-1] / "adapter_config.json").is_file():
        return root
    root.mkdir(parents=True, exist_ok=True)
    if not (base / "gemma" / "tokenizer_config.json").is_file():
        gemma_models(base, torch.bfloat16)
    write_texts(root, corpus, length.train, length.held, length.characters)
    tokenizer = AutoTokenizer.from_pretrained(base / "gemma")
    for index, domain in enumerate(DOMAINS):
        joined = "\n\n".join(document.text for document in corpus.documents["teacher"][domain])
        starts = range(0, len(joined) - length.characters, length.characters)
        texts = [joined[start : start + length.characters] for start in starts]
        specialist(base / "gemma", tokenizer, texts, length, 10 * seed + index, root / domain)
    return root


def students(seed: int, quick: bool) -> Rows:
    """What `recommend` names, after a trial, against the baselines: nats per held-out token, by domain."""
    length = LOOK if quick else Length()
    root = teachers(length, seed)
    asked = config(root, length, seed, [{"kind": "prefix_posterior"}])
    found = recommend_run(asked) if quick else on_trial(asked, recommend_run(asked), length.trial, told=print)
    run = config(root, length, seed, found.best.weighting)
    rows: dict[str, Mapping[str, float]] = {
        PREDICTED: {"mean": found.best.loss, "better than uniform": found.best.gain.mean}
    }
    if quick:  # its student is trained, and nothing else
        train_run(run, "E8")
        rmtree(run.output)
        return rows
    assert found.trial is not None
    rows[TRIAL] = {"better than labels": found.trial.gain.mean, "interval": found.trial.gain.half}
    compared = baselines_run(run, CONTROLS, found=found, command="E8", told=print)
    rmtree(compared.folder)  # gigabytes; until here an interrupted seed goes on with the students that are missing
    trained = {found.chosen: compared.contestants[0], **{c.name: c for c in compared.contestants[1:]}}
    named = "labels" if found.labels_are_better else found.chosen
    return {name + NAMED * (name == named): {**one.losses, "mean": one.mean} for name, one in trained.items()} | rows


def outcome(record: Record) -> tuple[str, float, float, str, float]:
    """Of one seed: what is recommended, predicted and real gain over averaging, the best student, how far behind it."""
    means = {name: row["mean"] for name, row in record.rows.items() if name not in (PREDICTED, TRIAL)}
    named, best = next(name for name in means if name.endswith(NAMED)), min(means, key=means.__getitem__)
    predicted, gain = record.rows[PREDICTED]["better than uniform"], means["uniform"] - means[named]
    return named.removesuffix(NAMED), predicted, gain, best.removesuffix(NAMED), means[named] / means[best] - 1.0


E8 = Measured(
    "Real pretrained models",
    {"LoRA specialists of Gemma 3 270M, their hidden states stored": students},
    "Students are the same base with adapters, distilled from three specialists on source code, technical prose and "
    "arithmetic; nats per held-out token, by domain. The record of another name is of a cache of likeliest entries.",
)
