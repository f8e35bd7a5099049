"""Every family of causal language models: what is learned from is what the model says, or the class is refused."""

import pytest
import sweep
import tiny_models
import torch
from models import llama

from polydistill.teachers import LocalTeacher, ModelRefusedError, TeacherUnavailableError, examine
from polydistill.teachers.examine import keeps_apart
from polydistill.teachers.head import PARTS, last_hidden_state
from polydistill.training.student import teach_forward

LOADED_OTHERWISE = {"emu3", "mllama", "gemma3n", "gemma4_assistant", "musicgen", "musicgen_melody", "dots3_note"}
"""No tiny model of these is made: other loaders, draft models, codes of sound, what needs Pillow."""

REFUSED = {
    "blt": "bytes, not tokens",
    "gemma4_unified_assistant": "a draft model that reads another model's states",
    "cpmant": "reads padding on the right",
    "dory": "a learned scale per token inside the head",
    "prophetnet": "several streams before the head",
}
"""Families whose classes are refused, and why."""

SHORT = ("bert", "cohere", "electra", "gpt2", "gemma2", "inkling_text", "llama4_text", "modernbert-decoder", "mpt")
SHORT += ("granite", "hyperclovax", "phi", "recurrent_gemma")
"""Of every kind one: a transform, scales and soft caps by their names, positions, a bias, no body of its own, a setting
that is ignored."""

NAMES = [
    pytest.param(name, marks=() if name in SHORT else pytest.mark.long)
    for name in tiny_models.NAMES
    if name not in LOADED_OTHERWISE
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES, scope="module")  # one family after the other: each has modules to import
def test_a_teacher_of_every_family_says_what_its_model_says_or_is_refused_by_name(name):
    model = tiny_models.build(name)
    if name in REFUSED:
        with pytest.raises(TeacherUnavailableError, match=f"teacher 'a': {type(model).__name__} "):
            LocalTeacher("a", model)
        return
    teacher = LocalTeacher("a", model)
    ids = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    rows = torch.arange(9)
    outputs = teacher.speak(ids, mask, torch.cat([rows, 9 + rows[4:]]))
    with torch.no_grad():
        expected = torch.cat([model(input_ids=row).logits[0] for row in (ids[:1], ids[1:, 4:])])
    got = outputs.head.logits(outputs.hidden)[:, : expected.shape[1]]
    torch.testing.assert_close(got, expected.float(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


STUDENTS = {"emu3", "mllama", "reformer"} | set(REFUSED)
"""Families that are refused somewhere: docs/families.md argues each."""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", [*(param.values[0] for param in NAMES), "emu3", "mllama"], scope="module")
def test_a_family_is_right_wherever_it_stands_or_refused_there(name):
    found = sweep.look(name)
    wrong = {where: said for where, said in found.items() if said != sweep.RIGHT}
    assert all(said.startswith("refused: ") for said in wrong.values()), wrong
    assert bool(wrong) == (name in STUDENTS)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES, scope="module")  # one family after the other: each has modules to import
def test_documents_that_share_a_row_are_read_apart_or_the_class_is_refused_for_packing(name):
    if name in REFUSED:
        return
    model = tiny_models.build(name).eval()
    examine(model)
    if not keeps_apart(model):
        return
    dice = torch.Generator().manual_seed(1)
    rows = [torch.randint(3, 290, (1, length), generator=dice) for length in (21, 1, 5, 14)]
    places = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    with torch.no_grad():
        alone = [last_hidden_state(model, input_ids=row, attention_mask=torch.ones_like(row)) for row in rows]
        packed = last_hidden_state(model, input_ids=torch.cat(rows, 1), position_ids=places)
    expected = torch.cat(alone, 1)
    torch.testing.assert_close(packed, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bert", "inkling_text", "llama4_text"])
def test_a_student_whose_head_reads_something_else_than_its_body_learns_by_its_own_logits(name):
    model = tiny_models.build(name)
    examine(model)
    ids = torch.randint(3, 290, (2, 9), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = torch.nn.functional.cross_entropy(model(**inputs).logits.flatten(0, 1), ids.flatten())
    wanted = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    teach_forward(model, 300)
    loss = model(
        **inputs,
        distil=lambda hidden, head: torch.nn.functional.cross_entropy(head.logits(hidden.flatten(0, 1)), ids.flatten()),
    )["loss"]
    torch.testing.assert_close(loss, expected)
    got = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    for mine, theirs in zip(got, wanted, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options"),
    [("granitemoehybrid", {"num_local_experts": 0}), ("doge", {}), ("mixtral", {})],
)
def test_a_family_with_experts_gets_its_own_balance_and_one_without_them_none(name, options):
    config = tiny_models.tiny(name)
    for key, value in options.items():
        setattr(config, key, value)
    config.output_router_logits = True
    model = tiny_models.build(name, config)
    examine(model)
    teach_forward(model, 300)
    ids = torch.arange(3, 12)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    balance = model(**inputs, distil=lambda hidden, head: hidden.sum())["aux_loss"]
    if model.config.output_router_logits:
        torch.testing.assert_close(balance, model(**inputs).aux_loss)
    else:
        assert balance is None
    assert model.config.output_router_logits == (name == "mixtral")


@pytest.mark.filterwarnings("ignore")
def test_experts_that_are_chosen_by_other_tokens_are_refused():
    config = tiny_models.tiny("doge")
    config.is_moe = True
    with pytest.raises(ModelRefusedError, match="DogeForCausalLM reads padding on the right of a row"):
        examine(tiny_models.build("doge", config))


def test_a_look_at_a_model_changes_neither_mode_nor_random_numbers():
    model = llama(dropout=0.5).train()
    state = torch.random.get_rng_state()
    examine(model)
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model in PARTS


def test_a_class_with_code_of_its_own_behind_the_head_is_refused_by_name():
    class Louder(type(llama())):
        def forward(self, *args, **kwargs):
            said = super().forward(*args, **kwargs)
            said.logits = said.logits * torch.linspace(1, 3, said.logits.shape[-1])
            return said

    with pytest.raises(ModelRefusedError, match="Louder does not make its logits from hidden states and one matrix"):
        examine(Louder(llama().config))


def test_weights_on_no_device_are_refused():
    with torch.device("meta"):
        model = llama()
    with pytest.raises(ModelRefusedError, match="LlamaForCausalLM has weights that are on no device"):
        examine(model)
