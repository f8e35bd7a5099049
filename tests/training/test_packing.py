"""Packed and padding-free rows learn what rows by themselves do: losses, gradients, weights and their evidence."""

from itertools import pairwise

import models
import pytest
import runs
import torch
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from transformers import BloomConfig, BloomForCausalLM

from polydistill import PrefixPosterior, TeacherRouter
from polydistill.run.cache import texts_of
from polydistill.teachers import LocalTeacher, ModelRefusedError
from polydistill.training.watch import probe_of

LINES = [f"{line} and {line}" if i % 3 else line for i, line in enumerate(models.SENTENCES)]
ROUTED = TeacherRouter(float("inf")) * PrefixPosterior(0.05)


def documents() -> Dataset:
    tasks = ["code" if "def" in line or "item" in line else None for line in LINES]
    severities = [i / 10 for i in range(len(LINES))]
    teachers = ["a" if i % 2 else "b" for i in range(len(LINES))]
    return Dataset.from_dict({"text": LINES, "task": tasks, "severity": severities, "teacher_id": teachers})


def loss_of(trainer, rows) -> tuple[float, dict, torch.Tensor]:
    """Mean loss over the tokens of all rows at once, its gradients, and its positions' context."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(list(rows)))
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, trainer.last_step


def agree(packed, plain) -> None:
    loss, gradients, done = loss_of(plain, plain.train_dataset)
    again, others, also = loss_of(packed, packed.train_dataset)
    assert also.outcome.count == done.outcome.count
    assert abs(again - loss) <= 1e-5
    for name, value in gradients.items():
        assert (others[name] - value).abs().max() <= 1e-5
    for read in ("severity", "task", "teacher"):
        assert sorted(getattr(also.positions, read).tolist()) == sorted(getattr(done.positions, read).tolist())
    assert also.positions.document_start.sum() == done.positions.document_start.sum()
    if done.runs is not None:
        assert also.runs.sum() == done.runs.sum()


@pytest.mark.parametrize(
    ("weighting", "options"),
    [(runs.LEARNING, {"packing": True}), (ROUTED, {"packing": True}), (runs.LEARNING, {"padding_free": True})],
    ids=["bfd", "bfd-routed", "padding-free"],
)
def test_losses_and_gradients_are_those_of_the_documents_by_themselves(tmp_path, weighting, options):
    plain = runs.trainer(tmp_path, data=documents(), weighting=weighting)
    packed = runs.trainer(tmp_path, data=documents(), weighting=weighting, **options)
    assert (len(packed.train_dataset) < len(LINES)) is ("packing" in options)
    agree(packed, plain)


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
def test_a_document_that_goes_on_in_another_row_begins_anew_there(tmp_path, strategy):
    ids = [models.tokenizer()(line)["input_ids"] for line in LINES]
    ids = [[*line, models.tokenizer().eos_token_id] for line in ids]
    cuts, at = [], 0
    for line in ids:
        before = at if strategy == "wrapped" else 0
        borders = [0, *(i for i in range(1, len(line)) if (before + i) % 32 == 0), len(line)]
        cuts += [line[a:b] for a, b in pairwise(borders)]
        at += len(line)
    pieces = Dataset.from_dict({"input_ids": [piece for piece in cuts if len(piece) > 1]})
    options = {"max_length": 32, "packing": True, "packing_strategy": strategy}
    packed = runs.trainer(tmp_path, data=Dataset.from_dict({"text": LINES}), **options)
    assert {len(row) for row in packed.train_dataset["input_ids"][:-1]} <= set(range(33))
    agree_on_loss(packed, runs.trainer(tmp_path, data=pieces))


def agree_on_loss(packed, plain) -> None:
    loss, _, done = loss_of(plain, plain.train_dataset)
    again, _, also = loss_of(packed, packed.train_dataset)
    assert also.outcome.count == done.outcome.count
    assert abs(again - loss) <= 1e-5


class Elsewhere:
    """A teacher that is no model of this process: it knows whole documents only, as a cache and a server do."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.local, self.asked = name, LocalTeacher(name, models.llama(seed)), []

    def speak(self, input_ids, attention_mask, rows):
        self.asked += [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
        return self.local.speak(input_ids, attention_mask, rows)

    def agree_with(self, tokenizer, visible):
        return self.local.agree_with(tokenizer, visible)

    def describe(self) -> str:
        return "elsewhere"


def test_a_teacher_that_lives_elsewhere_is_asked_about_whole_documents(tmp_path):
    teachers = {"a": models.llama(1), "b": Elsewhere("b", 2)}
    plain = runs.trainer(tmp_path, data=documents(), teachers={"a": models.llama(1), "b": models.llama(2)})
    packed = runs.trainer(tmp_path, data=documents(), teachers=teachers, packing=True)
    agree(packed, plain)
    assert sorted(teachers["b"].asked) == sorted(plain.train_dataset["input_ids"])


def test_a_cache_has_the_documents_of_packed_rows(tmp_path):
    plain, packed = (runs.trainer(tmp_path, data=documents(), packing=packing) for packing in (False, True))
    texts, tasks = texts_of(packed)
    expected, same = texts_of(plain)
    assert tasks == same
    assert {(*text.tokens.tolist(), text.task) for text in texts} == {(*t.tokens.tolist(), t.task) for t in expected}


@pytest.mark.slow
def test_held_out_rows_and_the_probe_are_documents_by_themselves(tmp_path):
    packed = runs.trainer(tmp_path, data=documents(), packing=True, made={"eval_dataset": documents()})
    assert len(packed.eval_dataset) == len(LINES)
    figures = packed.evaluate()
    plain = runs.trainer(tmp_path, data=documents(), made={"eval_dataset": documents()})
    assert figures["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], abs=1e-6)
    batch = packed.batch_of(packed.data_collator(list(packed.train_dataset)))
    few = probe_of(batch)
    assert few is not None
    assert few.document_start is None
    shown = {tuple(row[mask.bool()].tolist()) for row, mask in zip(few.input_ids, few.attention_mask, strict=True)}
    assert shown <= {tuple(row) for row in plain.train_dataset["input_ids"]}
    packed.train()
    assert packed.state.global_step == 3


def test_a_model_that_reads_across_documents_is_refused_by_name(tmp_path):
    size = {"vocab_size": len(models.tokenizer()), "hidden_size": 32}
    bloom = BloomForCausalLM(BloomConfig(**size, n_layer=1, n_head=2))
    with pytest.raises(ModelRefusedError, match=r"would read each other in the student \(BloomForCausalLM"):
        runs.trainer(tmp_path, student=bloom, packing=True)
    teachers = {"a": models.llama(1), "b": bloom}
    with pytest.raises(ModelRefusedError, match="would read each other in teacher 'b'"):
        runs.trainer(tmp_path, teachers=teachers, padding_free=True)
    student = get_peft_model(models.llama(0), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelRefusedError, match="virtual tokens"):
        runs.trainer(tmp_path, student=student, packing=True)


def test_options_of_packing_that_cannot_be_are_refused(tmp_path):
    for options, said in (
        ({"packing": True, "packing_strategy": "worst"}, "packing_strategy must be one of bfd, bfd_split, wrapped"),
        ({"packing": True, "max_length": None}, "say how long rows are"),
        ({"eval_packing": True}, "held-out rows are measured one by one"),
    ):
        with pytest.raises(ValueError, match=said):
            runs.trainer(tmp_path, **options)
