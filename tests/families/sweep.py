"""What one family does in every place where a model stands: read from a folder, heard, trained, written with."""

import contextlib
import copy
import tempfile
from typing import Any

import tiny_models
import torch
from datasets import Dataset
from models import SMALL, llama, tokenizer
from trl import DistillationConfig, SFTConfig

from polydistill.objective import ForwardKL
from polydistill.teachers import LocalTeacher, ModelRefusedError, TeacherUnavailableError
from polydistill.teachers.local import NotLoadedError, load_model
from polydistill.training.batch import IGNORED
from polydistill.training.off_policy import PolyDistillTrainer
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer
from polydistill.weighting import Uniform

WHERE = ("loads", "off-policy step", "on-policy step", "teaches")
"""What is tried of each; the sweep's columns."""

RIGHT = "right"
CLOSE = 2e-3
"""Nats: as far as the loss that was trained on may be from that of the model's own logits, text by text."""

TEXTS = ["def add(a, b): return a + b", "nine", "a list keeps its order and a set does not", "the sum of two is two"]


def look(name: str) -> dict[str, str]:
    """Place -> `right`, or why it is not: the sentence of a refusal, or what differs."""
    found = dict.fromkeys(WHERE, "")
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        try:
            tiny_models.build(name).save_pretrained("model")
            tokenizer().save_pretrained("model")
        except Exception as error:  # whatever a family raises
            return dict.fromkeys(WHERE, f"no tiny model of it is made: {_line(error)}")
        tries = (_loads, _off_policy, _on_policy, _teaches)
        for where, what in zip(WHERE, tries, strict=True):
            try:
                far = what()
                found[where] = RIGHT if far <= CLOSE else f"DIFFERS by {far:.2g} nats"
            except (NotLoadedError, ModelRefusedError, TeacherUnavailableError) as error:
                found[where] = f"refused: {_line(error)}"
            except Exception as error:
                found[where] = f"FAILS: {type(error).__name__}: {_line(error)}"
    return found


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _student() -> Any:
    return load_model("model", torch.float32)[0]


def _loads() -> float:
    """Loaded from its folder it says what it said."""
    loaded, ids = _student().eval(), torch.arange(3, 12)[None]
    again = LocalTeacher.load("a", "model").model
    with torch.no_grad():
        return float((loaded(input_ids=ids).logits - again(input_ids=ids).logits).abs().max())


class _Seen:
    """An observer that compares each text's loss with what a model says of that text alone."""

    def __init__(self, model: Any, teacher: bool = False) -> None:
        # A copy, since some (RWKV) change their weights when they are evaluated.
        self.model, self.teacher, self.far = copy.deepcopy(model).eval(), teacher, float("nan")

    def __call__(self, done: Any, trainer: Any) -> dict[str, float]:
        batch, outcome, far = done.batch, done.outcome, 0.0
        got = -outcome.statistics.label_log_prob[:, 0] if self.teacher else outcome.cross_entropy
        text, has_loss = done.rows // batch.input_ids.shape[1], done.positions.has_loss
        for row in range(len(batch.input_ids)):
            real = batch.attention_mask[row].bool()
            labels = batch.labels[row][real]
            if int((labels[1:] != IGNORED).sum()) == 0:
                continue
            with torch.no_grad():
                logits = self.model(input_ids=batch.input_ids[row][real][None]).logits[0].float()
            logits = logits[:, : trainer.visible]
            expected = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORED)
            far = max(far, abs(float(got[(text == row) & has_loss].mean() - expected)))
        self.far = far
        return {}


def _off_policy(student: Any = None, teacher: Any = None) -> float:
    student = _student() if student is None else student
    seen = _Seen(student if teacher is None else teacher, teacher is not None)
    PolyDistillTrainer(
        student,
        {"a": llama(1) if teacher is None else teacher},
        Uniform(),
        args=SFTConfig("off", max_steps=1, save_strategy="no", **SMALL),
        objective=ForwardKL(),
        observers=[seen],
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=tokenizer(),
    ).train()
    return seen.far


def _on_policy() -> float:
    student = _student()
    seen = _Seen(student)
    OnPolicyPolyDistillTrainer(
        student,
        {"a": llama(1)},
        Uniform(),
        args=DistillationConfig("on", max_steps=1, max_completion_length=6, save_strategy="no", **SMALL),
        observers=[seen],
        train_dataset=Dataset.from_dict({"prompt": TEXTS}),
        processing_class=tokenizer(),
    ).train()
    return seen.far


def _teaches() -> float:
    return _off_policy(llama(0), LocalTeacher.load("a", "model").model)
