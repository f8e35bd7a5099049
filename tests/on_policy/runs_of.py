"""The off-policy trainer, for comparison."""

from models import SMALL, llama
from trl import SFTConfig

from polydistill import Uniform
from polydistill.training import PolyDistillTrainer


def off_policy(folder, data, spoken):
    """On rows with a prompt and a completion."""
    return PolyDistillTrainer(
        llama(0, width=16),
        {"a": llama(1)},
        Uniform(),
        args=SFTConfig(str(folder / "off"), **SMALL),
        train_dataset=data,
        processing_class=spoken,
    )
