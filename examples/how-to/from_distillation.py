"""An on-policy script of trl's DistillationTrainer with two teachers instead of one."""

from datasets import Dataset
from trl import DistillationConfig

from polydistill import PrefixPosterior
from polydistill.training.on_policy import OnPolicyPolyDistillTrainer

prompts = Dataset.from_list([{"prompt": "two and three"}, {"prompt": "def add("}] * 4)

trainer = OnPolicyPolyDistillTrainer(  # was: DistillationTrainer(model, teacher_model, ...)
    model="student",
    teachers={"code": "code", "maths": "maths"},
    weighting=PrefixPosterior(share=0.02),
    args=DistillationConfig(
        "run",
        max_steps=1,
        max_completion_length=8,
        per_device_train_batch_size=2,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
    ),
    train_dataset=prompts,
)
trainer.train()
