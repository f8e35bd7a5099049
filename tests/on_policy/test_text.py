"""The same rows make the same ids on-policy as off-policy; what the student writes is its own."""

import copy

import pytest
import torch
from datasets import Dataset
from models import SENTENCES, llama, tokenizer
from runs_of import off_policy
from scenes import ours, prompts
from tokenizers.processors import TemplateProcessing

from polydistill.data.context import DataError

TEMPLATES = {
    "plain": None,
    "thinks when asked": (
        "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|assistant|>' }}{{ m['content'] }}"
        "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>think ' }}{% endif %}"
    ),
    "ends with a line": (
        "{% if tools %}{{ tools | length }} tools{% endif %}{{ mood or '' }}"
        "{% for m in messages %}{{ '<|user|>' if m['role'] == 'user' else '<|assistant|>' }}{{ m['content'] }}"
        "{{ '<|end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    ),
}


def speaking(template=None, ends=False):
    made = copy.deepcopy(tokenizer())
    if template is not None:
        made.chat_template = template
    if ends:
        end = ("<|end|>", made.eos_token_id)
        made.backend_tokenizer.post_processor = TemplateProcessing(single="$A <|end|>", special_tokens=[end])
    return made


def chat(n=4):
    rows = []
    for i in range(n):
        prompt = [{"role": "user", "content": f"say {i}"}]
        tools = [{"type": "function", "function": {"name": "look"}}] * (i % 2)
        rows.append(
            {
                "prompt": prompt,
                "completion": [{"role": "assistant", "content": SENTENCES[i]}],
                "tools": tools,
                "chat_template_kwargs": {"mood": "kind " * i},
            }
        )
    return Dataset.from_list(rows)


def plain(n=4):
    return Dataset.from_list([{"prompt": f"say {i}", "completion": f" {SENTENCES[i]}"} for i in range(n)])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("conversation", [False, True])
def test_held_out_rows_are_the_same_ids_in_both_modes(tmp_path, template, ends, conversation):
    data, spoken = (chat() if conversation else plain()), speaking(TEMPLATES[template], ends)
    on = ours(tmp_path, dataset=prompts(), eval_dataset=data, processing_class=spoken, per_device_eval_batch_size=1)
    off = off_policy(tmp_path, data, spoken)
    for batch, row in zip(on.held_out(), off.train_dataset, strict=True):
        assert batch.input_ids[0].tolist() == row["input_ids"]
        assert batch.labels[0].tolist() == row["labels"]


def test_prompts_have_their_own_tools_and_arguments_and_no_end_token(tmp_path):
    spoken = speaking(TEMPLATES["ends with a line"], ends=True)
    made = ours(tmp_path, dataset=chat(), processing_class=spoken)
    made.rows = [chat()[i] for i in range(4)]
    ids, *_ = made._tokenize_prompts([row["prompt"] for row in made.rows])
    assert [spoken.decode(row).startswith("1 tools" if i % 2 else "kind " * i) for i, row in enumerate(ids)] == [
        True
    ] * 4
    made.rows = [{"prompt": "say so"}]
    ids, *_ = made._tokenize_prompts(["say so"])
    assert ids == [tokenizer()("say so")["input_ids"]]


def test_rows_without_an_answer_are_no_held_out_loss_and_no_fault(tmp_path):
    data = Dataset.from_dict({"prompt": ["say a", "say b"], "completion": ["so", None]})
    made = ours(tmp_path, eval_dataset=data)
    assert sum(len(batch.input_ids) for batch in made.held_out()) == 1
    with pytest.raises(DataError, match="the training data, row 2: column 'completion' is missing or empty"):
        ours(tmp_path, dataset=data, fixed_share=0.5)


def test_prompts_without_room_are_left_out_and_text_ends_at_max_length(tmp_path):
    data = Dataset.from_dict({"prompt": ["say " * 12, "a b"]})
    made = ours(tmp_path, dataset=data, max_length=12, max_completion_length=32, per_device_train_batch_size=1)
    assert len(made.train_dataset) == 1
    assert made.data_says == ["the training data: 1 of 2 prompts have max_length=12 tokens or more and are left out"]
    done = made._generate_and_score_completions([made.train_dataset[0]] * 4)
    assert (done["prompt_mask"].sum(1) + done["completion_mask"].sum(1)).max() <= 12
    assert made.longest == 12
    streamed = ours(tmp_path, dataset=data.to_iterable_dataset(), max_length=12, max_completion_length=32)
    assert [row["prompt"] for row in streamed.train_dataset] == ["a b"]
    with pytest.raises(DataError, match="no prompt is shorter than max_length=2"):
        ours(tmp_path, dataset=data.to_iterable_dataset(), max_length=2)


def test_the_student_writes_by_its_own_law(tmp_path):
    student = llama(0, width=16, rows=330, dropout=0.5)
    student.generation_config.update(no_repeat_ngram_size=1, suppress_tokens=[5], min_new_tokens=3)
    made = ours(tmp_path, student=student, max_completion_length=12, generation_kwargs={"do_sample": False})
    made.model.train()
    rows = [prompts()[i] for i in range(4)]
    done = made._generate_and_score_completions(rows)
    assert made.model.training
    assert student.generation_config.no_repeat_ngram_size == 1
    student.eval()
    for b in range(4):
        prompt = done["prompt_ids"][b][done["prompt_mask"][b].bool()]
        wrote = done["completion_ids"][b][done["completion_mask"][b].bool()]
        whole = torch.cat([prompt, wrote])
        logits = student(whole[None]).logits[0, len(prompt) - 1 : -1, : len(tokenizer())]
        assert wrote.tolist() == logits.argmax(-1).tolist()
    assert int(done["completion_ids"].max()) < len(tokenizer())
