"""What runs promise: README's stack, the starter, from a cache too, the safety examples, an on-policy run.

    python benchmarks/promises.py

Each is checked with small teachers. Prints, for each, the lines of `polydistill check`, and for every bound the bound,
what the worst case on the run's own probe reaches, the average, and their ratio. Teachers are tiny models, trained for
a moment on a topic each, so that the measured numbers are those of a toy; bounds are those of the stacks. Needs no
network. Kept in `benchmarks/results/promises.md`.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import models

from polydistill.certification import certify
from polydistill.cli.starter import STARTER
from polydistill.config.run import RunConfig
from polydistill.promises import Terms, at_most
from polydistill.promises.made import TIGHT, _off_bound
from polydistill.run.build import build_trainer
from polydistill.run.cache import build_cache

EXAMPLES = Path(__file__).parents[1] / "examples" / "safety"
CODE, SUMS = models.SENTENCES[1::2], models.SENTENCES[::2]
TOPICS = ((*CODE, *SUMS), CODE, SUMS, CODE + SUMS)
STEPS = 60
FROM_CACHE = "starter, from a cache"


def taught(folder: Path, seed: int, topic: tuple[str, ...]) -> None:
    """A model that has seen a topic."""
    model, tokenizer = models.llama(seed, width=48), models.tokenizer()
    batch = tokenizer(list(topic), return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    steps = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(STEPS):
        steps.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        steps.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trees() -> dict[str, dict[str, Any]]:
    """The configurations as they are shipped."""
    starter = yaml.safe_load(STARTER.format(path="run.yaml"))
    readme = {
        **starter,
        "tasks": ["code", "maths"],
        "teachers": dict.fromkeys(("code", "maths", "safe")),
        "weighting": [
            {"kind": "task_prior", "table": {"maths": {"maths": 3, "code": 1, "safe": 1}}},
            {"kind": "prefix_posterior", "share": 0.02},
            {"kind": "softmax", "signal": "entropy", "temperature": 2.0, "spread": 4.0},
        ],
        "floor": 0.02,
        "safety": {
            "kind": "tilt",
            "scores": {"safe": 1},
            "strength": 8,
            "severity": {"kind": "column", "name": "risk"},
        },
        "objective": {"kind": "forward_kl", "ce": 0.1},
    }
    on_policy = {**starter, "training": {**starter["training"], "mode": "on_policy", "completion_length": 12}}
    del on_policy["objective"]
    examples = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in sorted(EXAMPLES.glob("*.yaml"))}
    return {"README": readme, "starter": starter, FROM_CACHE: starter, **examples, "on-policy": on_policy}


def fitted(tree: dict[str, Any], folder: Path) -> RunConfig:
    """The same stack, objective and safety over small models and data."""
    folder.mkdir(exist_ok=True)
    tasks = tree.get("tasks", ["other"])
    models_of = [folder.parent / f"model{k}" for k in range(4)]
    rows = []
    for i in range(24):
        prompt, answer = models.SENTENCES[i % 8], " ".join(models.SENTENCES[(i + j) % 8] for j in range(2))
        own = {"task": tasks[i % len(tasks)], "risk": (i % 5) / 4}
        rows.append({"prompt": prompt, "completion": f" {answer} sk-{i}", **own})
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    safety = tree.get("safety")
    if safety and safety.get("severity", {}).get("kind") == "classifier":  # its flags come as a column here
        safety = {**safety, "severity": {"kind": "column", "name": "risk"}}
    mode = {k: v for k, v in tree["training"].items() if k in ("mode", "completion_length")}
    return RunConfig.model_validate(
        {
            **tree,
            "output": str(folder / "run"),
            "student": str(models_of[0]),
            "teachers": {name: str(models_of[k + 1]) for k, name in enumerate(tree["teachers"])},
            "data": {"train": str(data), "max_length": 64},
            **({"safety": safety} if safety else {}),
            "training": {**mode, "max_steps": 1, "batch_size": 8, "cpu": True},
        }
    )


def from_cache(config: RunConfig) -> RunConfig:
    """The same run, its teachers read from a cache."""
    folder = str(Path(config.output).parent / "cache")
    build_cache(config, folder)
    tree = config.model_dump(by_alias=True)
    return RunConfig.model_validate(tree | {"teachers": {name: {"cache": folder} for name in config.teachers}})


def looked_at(config: RunConfig) -> tuple[list[str], list[str]]:
    """Lines of the promises, and a row for every bound."""
    trainer = build_trainer(config)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model, inputs)
    done = trainer.last_step
    assert done is not None
    assert done.batch is not None
    trainer.probe(done.batch)
    terms = trainer.terms or Terms()
    rows = []
    if terms.probe is not None:
        guarantee = trainer.pipeline.guarantee()
        bounds = {"losing a teacher": (guarantee.target_shift_if_corrupted(), terms.probe.lost)}
        if terms.off:
            bounds[f"stored within {terms.off:g} nat"] = _off_bound(trainer.pipeline, terms), terms.probe.off
        for name, (bound, seen) in bounds.items():
            ratio = bound / max(seen.worst, 1e-12)
            told = "printed" if bound <= 0.98 and ratio <= TIGHT else "not printed"
            bound_said = "none" if bound >= 1.0 else at_most(bound)
            shown = [name, bound_said, at_most(seen.worst), at_most(seen.average), f"{ratio:.2g}", told]
            rows.append(f"| {' | '.join(shown)} |")
        reached = certify(trainer.pipeline, effort=0.1).finding("B")
        if reached.bound and reached.worst:
            ratio = reached.bound / reached.worst
            shown = ["range, nats", f"{reached.bound:.2f}", f"{reached.worst:.2f} (search)", "", f"{ratio:.2f}"]
            rows.append(f"| {' | '.join(shown)} | as the least weight |")
    return [promise.line for promise in trainer.promises()], rows


def main() -> None:
    """The page."""
    torch.set_num_threads(1)
    print(f"# What runs promise\n\n{(__doc__ or '').strip()}\n")
    with TemporaryDirectory() as folder:
        for k, topic in enumerate(TOPICS):
            taught(Path(folder) / f"model{k}", k, topic)
        for name, tree in trees().items():
            config = fitted(tree, Path(folder) / name)
            lines, rows = looked_at(from_cache(config) if name == FROM_CACHE else config)
            print(f"## {name}\n\n" + "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1)) + "\n")
            if rows:
                print("| bound | promised | worst on the probe | average | ratio | |\n|---|---|---|---|---|---|")
                print("\n".join(rows) + "\n", flush=True)


if __name__ == "__main__":
    main()
