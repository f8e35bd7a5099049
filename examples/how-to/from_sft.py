"""An SFT script of trl with teachers: the arguments stay, `teachers` and `weighting` come."""

from datasets import Dataset
from trl import SFTConfig

from polydistill import PolyDistillTrainer, PrefixPosterior

data = Dataset.from_list([{"text": "two and three make five"}, {"text": "def add(a, b): return a + b"}] * 4)

trainer = PolyDistillTrainer(  # was: SFTTrainer
    model="student",
    args=SFTConfig("run", max_steps=2, learning_rate=1e-4, bf16=False, use_cpu=True, report_to=[]),
    train_dataset=data,
    teachers={"code": "code", "maths": "maths"},
    weighting=PrefixPosterior(share=0.02),
)
trainer.train()
trainer.save_model("distilled")
