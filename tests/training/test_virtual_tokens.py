"""Adapters that put virtual tokens before a row: the loss is about the row's own tokens."""

import pytest
import torch
from models import llama
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from runs import trainer as made_by

from polydistill.objective import ForwardKL
from polydistill.training.student import of_the_tokens

KINDS = (PromptTuningConfig, PromptEncoderConfig, PrefixTuningConfig)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_adapted_model_s_own(tmp_path, kind):
    torch.manual_seed(0)
    student = get_peft_model(llama(7), kind(task_type="CAUSAL_LM", num_virtual_tokens=5))
    trainer = made_by(tmp_path, student=student, made={"objective": ForwardKL(ce=1.0)})
    trainer.model.eval()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    batch = trainer.batch_of(inputs)
    with torch.no_grad():
        loss = trainer.compute_loss(trainer.model, inputs)
        logits = trainer.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    own = logits[:, -batch.input_ids.shape[1] :][:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(own, batch.labels[:, 1:].flatten(), ignore_index=-100)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_hidden_states_of_another_length_are_refused():
    with pytest.raises(ValueError, match="made 9 hidden states for rows of 7 tokens"):
        of_the_tokens(torch.zeros(1, 9, 4), torch.zeros(1, 7), llama())
