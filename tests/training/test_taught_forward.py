"""A student that was taught `distil` is still a model: copied, pickled, unwrapped, taught again."""

import copy
import inspect
import pickle
import types

import models
import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32, extract_model_from_parallel
from trl.trainer.utils import add_fused_lm_head

from polydistill.training.student import teach_forward

IDS = torch.arange(5, 12)[None]


def zero(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@pytest.fixture
def taught():
    model = models.llama(0).eval()
    add_fused_lm_head(model)  # as trl's trainer does before ours
    teach_forward(model, 300)
    return model


def size(model) -> float:
    return float(model(input_ids=IDS).logits.detach().abs().max())


def learned(model) -> float:
    said = model(
        input_ids=IDS, attention_mask=torch.ones_like(IDS), distil=lambda h, head: head.logits(h[0]).abs().max()
    )
    return float(said["loss"].detach())


def test_a_copy_speaks_with_its_own_weights(taught):
    again = zero(copy.deepcopy(taught))
    assert size(again) == learned(again) == 0.0
    assert size(taught) == pytest.approx(learned(taught))
    assert size(taught) > 1.0


def test_a_pickle_is_the_plain_model(taught):
    again = pickle.loads(pickle.dumps(taught))
    assert "forward" not in vars(again) or vars(again)["forward"].__func__ is type(again).forward
    assert size(again) == size(taught)


def test_unwrapped_from_mixed_precision_it_runs(taught):
    # As `Accelerator.prepare_model` wraps it; its state is one for the whole process.
    taught._original_forward = taught.forward
    rounded = torch.autocast("cpu", torch.bfloat16)(taught.forward.__func__)
    taught.forward = types.MethodType(convert_outputs_to_fp32(rounded), taught)
    plain = extract_model_from_parallel(taught, keep_fp32_wrapper=False)
    assert size(plain) == pytest.approx(learned(plain))


def test_it_can_be_taught_again_and_generates(taught):
    teach_forward(taught, 290)
    assert size(taught) >= learned(taught)
    assert "input_ids" in inspect.signature(taught.forward).parameters
    assert taught.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 9)
