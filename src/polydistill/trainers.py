"""The trainers as Python has them: `train()` leaves in its folder what `polydistill train` leaves in a run's.

Metrics while it trains, a certificate of the weights before and after, the student with its model card, held-out
losses, a summary and `report.html`. `polydistill report`, `compare` and `doctor` read such a folder; `eval` and `try`
do where teachers and weighting can be written down, and `config.yaml` there says what cannot. The trainers of
`polydistill.training` are the same and write nothing but checkpoints.
"""

import shlex
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel

from polydistill.config.run import CompletionsConfig
from polydistill.promises import says
from polydistill.records import BENCHMARKS, SUMMARY
from polydistill.records.seal import SEAL
from polydistill.report import write_report
from polydistill.run.certificates import NOT_TRAINED, certify_learned, write_certificate
from polydistill.run.completions import Completions
from polydistill.run.described import describe
from polydistill.run.devices import main_alone
from polydistill.run.evaluate import evaluate_trainer
from polydistill.run.recorder import Recorder
from polydistill.run.says import with_held_out
from polydistill.run.student import as_saved, few_logits, save_student, whole_student
from polydistill.run.train import STUDENT, leave_behind, locked, summarised
from polydistill.teachers import LocalTeacher
from polydistill.training import off_policy, on_policy
from polydistill.training.checkpoint import replace_whole
from polydistill.training.taught import Taught


class _Recorded(Taught):
    """A trainer that writes down what it does; to be mixed in before one of `polydistill.training`'s."""

    def train(self, resume_from_checkpoint: str | Path | bool | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """As `Trainer.train`; then the student is saved and measured, and the folder tells of the run.

        With adapters, the student that is saved has them merged; the model goes on with them.

        Raises:
            LockedError: another process works in `args.output_dir`.
            CheckpointError: the checkpoint that was asked for is damaged, or all of them are.
        """
        started, folder = datetime.now(UTC), self._folder
        with locked(folder):
            recorder = Recorder(folder)
            recorder.trainer = self
            writing = Completions(folder, CompletionsConfig(), self)
            self.observers.append(recorder)
            self.add_callback(recorder)
            self.add_callback(writing)
            if self.is_world_process_zero():
                for name in (SUMMARY, SEAL, BENCHMARKS):  # what they speak of is about to change
                    (folder / name).unlink(missing_ok=True)
                describe(self, self._base, folder)
                write_certificate(folder, self.pipeline, says(self.promises()), NOT_TRAINED)
            try:
                output = super().train(resume_from_checkpoint, **kwargs)
            finally:
                self.observers.remove(recorder)
                self.remove_callback(recorder)
                self.remove_callback(writing)
            self._leave(recorder, writing, started)
        return output

    def report(self) -> Path:
        """Write `report.html` into the folder anew, from what is there so far; returns its path."""
        return write_report(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def _base(self) -> str:
        """Where the student came from."""
        student: Any = self.accelerator.unwrap_model(self.model)
        return getattr(student.config, "_name_or_path", "") or type(student).__name__

    def _leave(self, recorder: Recorder, writing: Completions, started: datetime) -> None:
        student = whole_student(self)
        virtual = isinstance(student, PeftModel) and student.active_peft_config.is_prompt_learning
        if student is not None and self.is_world_process_zero():
            if virtual:
                self.data_says.append("the student's virtual tokens are no weights: saved is the adapter, not measured")
                replace_whole(self._folder / STUDENT, student.save_pretrained)
            else:
                trained = few_logits(student)
                with as_saved(student, self.flags) as saved:
                    replace_whole(self._folder / STUDENT, partial(save_student, saved, self.processing_class, trained))
            certify_learned(self._folder, self.pipeline, says(self.promises()))
        with main_alone(self.is_world_process_zero()):
            evaluation = None if virtual else evaluate_trainer(self, student)
            if self.is_world_process_zero():
                writing.write(student, self.state.global_step)
                command = shlex.join(["python", *sys.argv])
                summary = with_held_out(summarised(self, evaluation, recorder, command, started), evaluation)
                leave_behind(self, evaluation, summary, self._base, {t.name: _source(t) for t in self.given})
                self.report()


def _source(teacher: Any) -> str:
    if isinstance(teacher, LocalTeacher):
        return str((teacher.source or {}).get("model") or teacher.model.name_or_path or type(teacher.model).__name__)
    return str(teacher.describe())


class PolyDistillTrainer(_Recorded, off_policy.PolyDistillTrainer):  # noqa: D101
    __doc__ = off_policy.PolyDistillTrainer.__doc__


class OnPolicyPolyDistillTrainer(_Recorded, on_policy.OnPolicyPolyDistillTrainer):  # noqa: D101
    __doc__ = on_policy.OnPolicyPolyDistillTrainer.__doc__


__all__ = ["OnPolicyPolyDistillTrainer", "PolyDistillTrainer"]
