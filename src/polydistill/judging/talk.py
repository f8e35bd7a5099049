"""Talk to a finished student, and look at what it and its teachers would have said."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from polydistill.config.file import ConfigError, load_config
from polydistill.config.run import CachedTeacherConfig
from polydistill.data.pieces import inner_pieces, pieces
from polydistill.logprobs import HiddenStates, logits_of
from polydistill.objective import ForwardKL
from polydistill.records import CONFIG
from polydistill.run.build import build_trainer
from polydistill.run.identity import STUDENT
from polydistill.teachers import head_of, last_hidden_state
from polydistill.teachers.writing import Sampling, write
from polydistill.training.batch import Batch
from polydistill.training.hearing import Method, hear
from polydistill.training.step import distilled
from polydistill.weighting import Hedge, TaskPrior, TaskRouter

BEST = 5
"""Candidates that are shown."""


@dataclass(frozen=True)
class Choice:
    """Who would have written what at one place.

    Attributes:
        token: what stands there.
        before: the text up to it.
        weights: teacher -> weight with which the run trusted it there.
        candidates: who -> the likeliest tokens with their probabilities, none of one who says nothing there; `student`
            first.
        tasks: that the weights depend on; a text of none has others.
    """

    token: str
    before: str
    weights: dict[str, float]
    candidates: dict[str, list[tuple[str, float]]]
    tasks: tuple[str, ...]


class Talk:
    """The student of a finished run.

    Raises:
        ConfigError: it is not a finished run.
    """

    def __init__(self, run: Path) -> None:
        self.run, folder = run, run / STUDENT
        if not (folder / "config.json").is_file() or not (run / CONFIG).is_file():
            raise ConfigError(f"{run} is not a finished run: it needs {CONFIG} and the folder {STUDENT}")
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()

    def ids(self, prompt: str, chat: bool) -> Tensor:
        """Token ids `[1, T]` of a prompt, or of a user's turn.

        Raises:
            ConfigError: there is nothing to start from, or no chat template.
        """
        if chat and getattr(self.tokenizer, "chat_template", None) is None:
            raise ConfigError(f"{self.run / STUDENT} has no chat template; leave --chat out")
        if chat:
            turn = [{"role": "user", "content": prompt}]
            found = self.tokenizer.apply_chat_template(
                turn, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            found = self.tokenizer(prompt, return_tensors="pt")
        ids: Tensor = found["input_ids"]
        if not ids.shape[1]:
            raise ConfigError("the prompt has no token; write at least one character")
        return ids

    def answer(self, ids: Tensor, tokens: int, temperature: float, seed: int = 0) -> Tensor:
        """What the student writes, `[1, N]`: the likeliest token each time at temperature 0, else a sample."""
        how = Sampling(tokens, temperature, seed=seed)
        return torch.tensor([write(self.model, self.tokenizer, ids[0].tolist(), how)], dtype=torch.long)

    def text(self, ids: Tensor) -> str:
        """Ids as text, without special tokens."""
        said: str = self.tokenizer.decode(ids.flatten().tolist(), skip_special_tokens=True)
        return said

    @torch.no_grad()
    def choice(self, ids: Tensor, answer: Tensor, at: int | None, task: str | None = None) -> Choice:
        """Student and teachers at one token of the answer; where the teachers disagree most when `at` is None.

        Raises:
            ConfigError: the answer has no such token, the run no such task, or a teacher is none that can be asked.
        """
        config = load_config(self.run / CONFIG, to_measure=True)
        if stored := [name for name, section in config.teachers.items() if isinstance(section, CachedTeacherConfig)]:
            raise ConfigError(
                f"--teachers: {stored[0]!r} is read from a cache, which holds nothing of what the student writes now; "
                "leave --teachers out, or look at a run whose teachers are models or servers"
            )
        student = config.student.model_copy(update={"model": str(self.run / STUDENT), "lora": None, "revision": None})
        trainer = build_trainer(config.model_copy(update={"student": student}))
        whole = torch.cat([ids, answer], 1)
        labels = whole.masked_fill(torch.arange(whole.shape[1]) < ids.shape[1], -100)
        tasks = trainer.pipeline.tasks
        if task is not None and task not in tasks:
            raise ConfigError(f"--task: the run has no task {task!r}; it has {', '.join(tasks) or 'none'}")
        of = None if task is None else torch.full_like(whole, tasks.index(task))
        batch = Batch(whole, torch.ones_like(whole), labels, of, sampled=(labels >= 0).long())
        method = Method(trainer.teachers, trainer.pipeline, ForwardKL())
        heard = hear(method, batch)
        hidden = last_hidden_state(self.model, input_ids=whole, attention_mask=batch.attention_mask)
        own: HiddenStates = heard.of(hidden, head_of(self.model, trainer.visible))
        found = distilled(own, heard, method)
        here = heard.positions.has_loss.nonzero().squeeze(1)
        if not len(here) or (at is not None and not 0 <= at < len(here)):
            raise ConfigError(f"the answer has {len(here)} tokens, counted from 0; there is no token {at}")
        outputs = {"student": own, **dict(zip(trainer.pipeline.teachers, heard.outputs, strict=True))}
        probable = {name: logits_of(says, here).softmax(-1) for name, says in outputs.items()}
        names, fidelity = trainer.pipeline.teachers, found.statistics.fidelity
        silent = torch.zeros(len(here), len(names)).bool() if fidelity is None else fidelity[here] == 0.0
        if at is None:
            teachers = torch.stack([probable[name] for name in names])
            apart = (teachers - teachers.mean(0)).abs().sum(-1).mean(0)
            at = int((apart - 2.0 * silent.sum(-1)).argmax())  # where all say something, if they do anywhere
        mute = {name for name, out in zip(names, silent[at].tolist(), strict=True) if out}
        candidates = {name: [] if name in mute else self._likeliest(p[at]) for name, p in probable.items()}
        weights = dict(zip(names, found.weights[here[at]].tolist(), strict=True))
        cut = pieces(self.tokenizer, whole[0].tolist())
        place = ids.shape[1] + at
        by_task = any(isinstance(module, TaskPrior | TaskRouter | Hedge) for module in trainer.pipeline.stack.modules())
        return Choice(cut[place], "".join(cut[:place]), weights, candidates, tasks if by_task else ())

    def _likeliest(self, p: Tensor) -> list[tuple[str, float]]:
        top = p.topk(min(BEST, len(p)))
        return list(zip(inner_pieces(self.tokenizer, top.indices.tolist()), top.values.tolist(), strict=True))
