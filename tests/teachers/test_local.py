import shutil

import models
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from polydistill.teachers import (
    LocalTeacher,
    TeacherUnavailableError,
    VocabularyMismatchError,
    head_of,
    named_teachers,
)


def test_a_padded_head_speaks_of_its_visible_rows_only():
    model = models.llama(rows=320).eval()
    head = head_of(model, visible=300)
    assert (head.vocabulary, head.visible) == (300, 300)
    assert head.logits(torch.zeros(2, 32)).shape == (2, 300)
    assert head_of(model, visible=320).visible is None


def test_an_adapter_on_the_head_is_refused_and_one_elsewhere_is_not():
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"])
    with pytest.raises(TypeError, match="head of LlamaForCausalLM carries a Linear adapter"):
        head_of(get_peft_model(models.llama(), config).get_base_model())
    elsewhere = get_peft_model(models.llama(), LoraConfig(r=2, target_modules=["q_proj"])).get_base_model()
    assert head_of(elsewhere).vocabulary == 300


def test_a_model_without_a_head_is_refused():
    with pytest.raises(TypeError, match="LlamaModel has no linear language-model head"):
        head_of(models.llama().model)


def batch():
    ids = torch.randint(4, 300, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask, torch.tensor([0, 3, 7, 9])


def test_a_teacher_speaks_about_the_rows_that_it_is_asked_about_without_gradient():
    teacher = LocalTeacher("a", models.llama(3, dropout=0.5).train())
    ids, mask, rows = batch()
    outputs = teacher.speak(ids, mask, rows)
    with torch.no_grad():
        expected = teacher.model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1)[rows]
    torch.testing.assert_close(outputs.head.logits(outputs.hidden), expected)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not outputs.hidden.requires_grad


def test_a_teacher_keeps_its_dtype_under_the_autocast_of_the_student():
    ids, mask, rows = batch()
    full, half = LocalTeacher("a", models.llama(3)), LocalTeacher("b", models.llama(3).bfloat16())
    alone = full.speak(ids, mask, rows).hidden
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(full.speak(ids, mask, rows).hidden, alone)
        assert half.speak(ids, mask, rows).hidden.dtype == torch.bfloat16


def test_a_teacher_with_a_padded_tail_says_so_and_hides_it(tokenizer):
    teacher = LocalTeacher("a", models.llama(3, rows=320), tokenizer)
    assert teacher.agree_with(tokenizer, 300) == (
        "teacher 'a' has 320 output rows for 300 tokens; the padded tail of 20 is masked"
    )
    assert teacher.speak(*batch()).head.vocabulary == 300


def test_a_teacher_of_another_vocabulary_is_refused(tokenizer):
    other = models.tokenizer().train_new_from_iterator(["quick brown foxes jump over lazy dogs"] * 3, 300)
    with pytest.raises(VocabularyMismatchError, match=r"teacher 'a' has another vocabulary .* id 260 is "):
        LocalTeacher("a", models.llama(), other).agree_with(tokenizer, 300)
    with pytest.raises(VocabularyMismatchError, match="teacher 'a' has 290 output rows but its tokenizer has 300"):
        LocalTeacher("a", models.llama(rows=290)).agree_with(tokenizer, 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return models.saved(tmp_path_factory.mktemp("teacher"), 5)


def test_a_teacher_loads_from_a_folder_with_its_tokenizer_in_its_own_dtype(folder, tokenizer, tmp_path):
    teacher = LocalTeacher.load("a", str(folder))
    assert teacher.model.dtype == torch.float32
    assert teacher.agree_with(tokenizer, 300) is None
    assert LocalTeacher.load("a", str(folder), dtype=torch.bfloat16).model.dtype == torch.bfloat16
    models.llama().bfloat16().save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    assert LocalTeacher.load("a", str(tmp_path)).model.dtype == torch.bfloat16


def truncate(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def without_head(folder):
    weights = folder / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if "lm_head" not in name}
    save_file(kept, weights, metadata={"format": "pt"})


def other_shape(folder):
    weights = folder / "model.safetensors"
    save_file({**load_file(weights), "lm_head.weight": torch.zeros(299, 32)}, weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "could not be loaded: Error while deserializing header"),
        (without_head, "lacks 1 of the weights that its config asks for, the first being lm_head.weight"),
        (other_shape, "could not be loaded"),
        (lambda folder: (folder / "model.safetensors").unlink(), "could not be loaded: Error no file named"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "could not be loaded: there is no tokenizer with it"),
        (lambda folder: (folder / "config.json").write_text("{"), "could not be loaded: .*not a valid JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "wizard"}'), "model type `wizard`"),
    ],
    ids=["truncated", "without head", "other shape", "no weights", "no tokenizer", "broken config", "unknown family"],
)
def test_a_damaged_folder_is_refused_naming_teacher_folder_and_reason(folder, tmp_path, damage, sentence):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    damage(broken)
    with pytest.raises(TeacherUnavailableError, match=rf"(?s)teacher 'a': .*broken.*{sentence}"):
        LocalTeacher.load("a", str(broken))


def test_a_folder_that_does_not_exist_is_refused_as_such():
    with pytest.raises(TeacherUnavailableError, match=r"teacher 'a': 'no/where' .*neither a local folder nor a model"):
        LocalTeacher.load("a", "no/where")


def test_a_folder_called_as_the_first_part_of_a_hub_id_is_in_nobodys_way(folder, tmp_path, monkeypatch):
    (tmp_path / "no").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TeacherUnavailableError, match="neither a local folder nor a model"):
        LocalTeacher.load("a", "no/where", revision="main")
    monkeypatch.setattr("polydistill.teachers.local.try_to_load_from_cache", lambda *_: str(folder / "config.json"))
    with pytest.raises(TeacherUnavailableError, match="neither a local folder nor a model"):
        LocalTeacher.load("a", "no/where")


@pytest.mark.parametrize(
    "source", ["./code", "../teachers/code", "/teachers/code", "~/code", "a/b/code", "teachers/code"]
)
def test_what_can_only_be_a_path_is_not_asked_for_at_the_hub(source, tmp_path, monkeypatch):
    (tmp_path / "teachers").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("polydistill.teachers.local.AutoTokenizer", None)  # which asks
    with pytest.raises(TeacherUnavailableError, match=f"^teacher 'a': '{source}' is not there, and .*correct the path"):
        LocalTeacher.load("a", source)


def test_teachers_are_named_by_the_dictionary_or_after_their_folders(folder):
    model = models.llama(1)
    assert [t.name for t in named_teachers({"x": model, "y": str(folder)})] == ["x", "y"]
    assert [t.name for t in named_teachers([str(folder) + "/"])] == [folder.name]
    assert [t.name for t in named_teachers([LocalTeacher("z", model)])] == ["z"]
    assert named_teachers({"x": LocalTeacher("z", model)})[0].name == "x"


def test_a_model_that_came_from_a_folder_brings_the_tokenizer_of_that_folder(folder):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert named_teachers({"x": loaded})[0].tokenizer.get_vocab() == models.tokenizer().get_vocab()
    assert named_teachers({"x": models.llama()})[0].tokenizer is None


@pytest.mark.parametrize("nobody", [{}, []])
def test_no_teachers_are_refused(nobody):
    with pytest.raises(ValueError, match="at least one teacher is needed"):
        named_teachers(nobody)


def test_two_teachers_of_one_name_are_refused(folder):
    with pytest.raises(ValueError, match="must have different names"):
        named_teachers([str(folder), str(folder)])
