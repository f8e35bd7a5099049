import pytest
import torch
from models import llama
from peft import LoraConfig, get_peft_model

from polydistill.teachers import AdapterTeacher, LocalTeacher, TeacherUnavailableError, adapters_on


def adapter(folder, seed, **options):
    model = get_peft_model(llama(0), LoraConfig(target_modules=["q_proj", "v_proj"], r=4, **options))
    torch.manual_seed(100 + seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def said(teacher, rows=None):
    torch.manual_seed(5)
    ids = torch.randint(4, 300, (2, 9))
    outputs = teacher.speak(ids, torch.ones_like(ids), torch.arange(18) if rows is None else rows)
    return outputs.head.logits(outputs.hidden)


@pytest.fixture
def folders(tmp_path):
    return {name: (tmp_path / name, adapter(tmp_path / name, seed)) for seed, name in enumerate(("code", "maths"))}


def test_adapters_on_one_base_speak_like_separate_models(folders):
    teachers = adapters_on(llama(0), {name: folder for name, (folder, _) in folders.items()})
    alone = {name: said(LocalTeacher(name, model.merge_and_unload())) for name, (_, model) in folders.items()}
    for _ in range(2):  # switching back and forth leaves nothing behind
        for teacher in teachers:
            torch.testing.assert_close(said(teacher), alone[teacher.name], rtol=1e-4, atol=1e-4)
    assert (alone["code"] - alone["maths"]).abs().max() > 0.1


def test_the_base_is_loaded_once_and_nothing_learns(folders):
    teachers = adapters_on(llama(0), {name: folder for name, (folder, _) in folders.items()})
    assert teachers[0].model is teachers[1].model
    said(teachers[0])
    assert not any(weight.requires_grad for weight in teachers[0].shared.parameters())


def test_an_adapter_that_is_missing_is_named(folders, tmp_path):
    with pytest.raises(TeacherUnavailableError, match="'law'"):
        adapters_on(llama(0), {"law": tmp_path / "nowhere"})
    shared = adapters_on(llama(0), {"code": folders["code"][0]})[0].shared
    with pytest.raises(TeacherUnavailableError, match="has no adapter 'law'"):
        AdapterTeacher("x", shared, "law")


def test_an_adapter_that_changes_the_head_is_refused(tmp_path):
    adapter(tmp_path / "head", 0, modules_to_save=["lm_head"])
    with pytest.raises(TeacherUnavailableError, match="changes the language-model head"):
        adapters_on(llama(0), {"head": tmp_path / "head"})


def test_no_adapters_is_refused():
    with pytest.raises(ValueError, match="at least one adapter"):
        adapters_on(llama(0), {})
