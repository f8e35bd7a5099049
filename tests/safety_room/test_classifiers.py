"""A real text classifier, made here and saved with its tokenizer, as severity and as judge of what is written."""

from pathlib import Path

import models
import pytest
import torch
from commands import CONFIG, write_run
from harm import prompts
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from polydistill.config.file import load_config
from polydistill.data import severity
from polydistill.data.context import DataError
from polydistill.run import build_safety
from polydistill.run.build import build_trainer
from polydistill.run.build_safety import build_constraints
from polydistill.run.train import train_run
from polydistill.safety.constrained import student_writer


def scores(folder: Path, texts: list[str]) -> list[float]:
    """The classifier's softmax for `toxic`, text by text."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return [float(model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0, 1]) for text in texts]


@pytest.fixture(scope="module")
def config(classifier, tmp_path_factory):
    """A configuration whose severity is the classifier's, and which limits what it flags in generated text."""
    folder = tmp_path_factory.mktemp("run")
    path = write_run(folder)
    rows = [{"prompt": text, "completion": models.SENTENCES[i % 8]} for i, text in enumerate(prompts(16))]
    for name in ("train", "held-out"):
        models.written(folder / f"{name}.jsonl", rows)
    (folder / "prompts.txt").write_text("the sum\nfor item\n")
    rules = f"severity: {{kind: rules, file: {folder}/rules.yaml, scope: prefix}}"
    text = CONFIG.format(folder=folder).replace(
        rules, f"severity: {{kind: classifier, model: {classifier}, label: toxic}}"
    )
    rate = (
        f"    - {{kind: generated_rate, name: flagged, limit: 0.5, follows: words, prompts: {folder}/prompts.txt,"
        f" model: {classifier}, label: toxic, threshold: 0.5, every: 1}}\n"
    )
    path.write_text(text.replace("training:", rate + "training:"))
    return path


def test_severity_is_the_classifiers_score_of_the_prompt_and_reaches_the_weights(config, classifier):
    trainer = build_trainer(load_config(config))
    expected = scores(classifier, prompts(16))
    assert list(trainer.train_dataset["severity"]) == pytest.approx(expected, abs=1e-5)
    assert list(trainer.eval_dataset["severity"]) == pytest.approx(expected, abs=1e-5)
    assert min(expected) < 0.3 < 0.7 < max(expected)
    batch = trainer.batch_of(trainer._prepare_inputs(next(iter(trainer.get_train_dataloader()))))
    for row in batch.severity:
        assert (row == row[0]).all(), "one number per example"
    assert all(min(abs(seen - x) for x in expected) < 1e-5 for seen in batch.severity[:, 0].tolist())


def test_scores_are_kept_with_the_data_under_the_classifiers_content(config, classifier, monkeypatch):
    run, asked = load_config(config), []
    make = build_safety.pipeline

    def counting(*arguments, **options):
        classify = make(*arguments, **options)

        class Counted:
            model, tokenizer = classify.model, classify.tokenizer

            def __call__(self, texts, **options):
                asked.extend(texts)
                return classify(texts, **options)

        return Counted()

    monkeypatch.setattr(build_safety, "pipeline", counting)
    from polydistill.data.load import load_data
    from polydistill.run.build_safety import build_severity

    def annotated(path: Path):
        data = load_data(str(path), "train")
        return severity.annotate(data, build_severity(run.safety))["severity"]

    fresh = config.parent / "fresh.jsonl"
    fresh.write_text((config.parent / "train.jsonl").read_text() + '{"prompt": "a nice bomb", "completion": "x"}\n')
    first = list(annotated(fresh))
    assert len(asked) == 17
    assert list(annotated(fresh)) == first
    assert len(asked) == 17, "the second time the scores come from the cache"
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    before = model.classifier.bias.clone()
    try:
        with torch.no_grad():
            model.classifier.bias += torch.tensor([2.0, -2.0])
        model.save_pretrained(classifier)
        again = list(annotated(fresh))
        assert len(asked) == 34, "the same folder holds another classifier now"
        assert all(a < b for a, b in zip(again, first, strict=True))
    finally:
        with torch.no_grad():
            model.classifier.bias.copy_(before)
        model.save_pretrained(classifier)


def test_a_missing_model_or_label_is_named(classifier, tmp_path):
    with pytest.raises(DataError, match="has no label 'rude'; it has harmless, toxic"):
        build_safety.text_classifier(str(classifier), "rude")
    with pytest.raises(DataError, match="could not be loaded"):
        build_safety.text_classifier(str(tmp_path / "none"), "toxic")


@pytest.mark.slow
def test_the_rate_of_flagged_generations_is_the_classifiers_and_moves_the_multiplier(config, classifier):
    run = load_config(config, ["safety.constraints.1.label=harmless"])
    summary = train_run(run, "test")
    record = summary.constraints["flagged"]
    model = models.LlamaForCausalLM.from_pretrained(Path(run.output) / "student")
    texts = student_writer(model, models.tokenizer())(["the sum", "for item"])
    flags = [1 - score >= 0.5 for score in scores(classifier, texts)]
    assert record.held_out == pytest.approx(sum(flags) / len(flags))
    assert any(flags)
    assert record.value > record.limit
    assert record.multiplier > 0


def test_a_rate_presses_through_the_constraint_that_it_follows_and_has_no_gradient_of_its_own(config):
    limits = build_constraints(load_config(config).safety, models.tokenizer())
    limits.dual.mu.copy_(torch.tensor([0.002, 0.5]))
    own, carried = limits.dual.multiplier
    assert limits._carrying().tolist() == pytest.approx([float(own + carried), 0.0])
    asked = []

    def write(which):
        asked.append(list(which))
        return ["a nice bomb", "a nice lamp"]

    found = limits.rates(1, write)
    assert found == {"flagged": 0.5}
    assert asked == [["the sum", "for item"]]
    assert limits.dual.total.tolist() == [0.0, 1.0]
    assert limits.dual.count.tolist() == [0.0, 2.0]
