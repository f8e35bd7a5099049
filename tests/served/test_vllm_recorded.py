"""What real vLLM servers answered (their versions are the names of the files) is what their model says."""

import models
import pytest
import recordings
import torch

from polydistill.logprobs import logits_of
from polydistill.teachers import LocalTeacher


@pytest.mark.parametrize("name", sorted(path.name for path in recordings.FOLDER.glob("vllm-*.json")))
def test_what_vllm_answered_is_what_its_model_says(name):
    with recordings.replayed(name).running() as url:
        teacher, heard = recordings.asked(url)
    assert teacher.probed.longest == 63, "vLLM counts the token that it must be let write"
    model = LocalTeacher("model", models.llama(1, width=recordings.WIDTH), models.tokenizer())
    said = model.speak(recordings.IDS, recordings.MASK, recordings.ROWS)
    true = logits_of(said, torch.arange(len(recordings.ROWS))).log_softmax(-1)
    ids, log_p = heard.says.ids[:, :5], heard.says.log_p[:, :5]  # the sixth is the label, where it is not among them
    torch.testing.assert_close(log_p, true.gather(1, ids), atol=1e-4, rtol=0)
    labels = recordings.IDS.flatten()[recordings.ROWS + 1]
    torch.testing.assert_close(heard.known.label_log_prob, true.gather(1, labels[:, None])[:, 0], atol=1e-4, rtol=0)


def test_there_is_a_recording():
    assert list(recordings.FOLDER.glob("vllm-*.json"))
