"""What is trained, what teaches and what is saved are what the user thinks they are."""

import json

import models
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from runs import trainer
from transformers import AutoModelForCausalLM, AutoTokenizer, GemmaTokenizer, GPT2Config, GPT2LMHeadModel

from polydistill.cli.faults import code_of
from polydistill.config.file import ConfigError
from polydistill.config.run import RunConfig, StudentConfig
from polydistill.data.context import DataError
from polydistill.run.build import sft_config
from polydistill.run.student import StudentDiffersError, build_student, few_logits, merged, save_student
from polydistill.run.train import refuse_place
from polydistill.teachers import LocalTeacher, adapters_on
from polydistill.training.placement import Offloaded
from polydistill.training.seated import refuse_coarse
from polydistill.training.student import flags_of

LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings"),
]
PLAIN = Dataset.from_dict({"text": ["a b c d"] * 4})


def test_a_teacher_that_shares_weights_with_the_student_is_refused(tmp_path):
    base = models.llama(0)
    student = get_peft_model(base, LoraConfig(**LORA))
    with pytest.raises(ValueError, match="teacher 'w' shares weights with the student"):
        trainer(tmp_path, student=student, teachers={"w": base}, data=PLAIN)
    get_peft_model(models.llama(0), LoraConfig(**LORA)).save_pretrained(tmp_path / "adapter")
    shared = models.llama(0)
    taught = adapters_on(shared, {"w": tmp_path / "adapter"})
    with pytest.raises(ValueError, match="teacher 'w' shares weights with the student"):
        trainer(tmp_path, student=get_peft_model(shared, LoraConfig(**LORA)), teachers=taught, data=PLAIN)


def test_a_student_that_nothing_would_be_trained_of_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing of the student would be trained"):
        trainer(tmp_path, student=models.llama(0).requires_grad_(False))


def test_an_adapter_on_an_embedding_that_is_the_head_too_is_refused(tmp_path):
    adapter = LoraConfig(**{**LORA, "target_modules": ["q_proj", "embed_tokens"]})
    with pytest.raises(ValueError, match="whose matrix is the student's head as well"):
        trainer(tmp_path, student=models.llama(0, tied=True), made={"peft_config": adapter})
    trainer(tmp_path, student=models.llama(0), made={"peft_config": adapter})


def test_rows_are_compared_with_the_positions_of_every_model(tmp_path):
    long = Dataset.from_dict({"text": [" ".join(models.SENTENCES * 3)]})
    made = trainer(tmp_path, data=long, max_length=200)
    assert any(said.startswith("the student was made for 128 tokens; the longest row has 200") for said in made.masked)
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=32, n_layer=1, n_head=2, bos_token_id=None)
    with pytest.raises(DataError, match="teacher 'w' has positions for 32 tokens, and the longest row has 64; use"):
        trainer(tmp_path, data=long, teachers={"w": GPT2LMHeadModel(config)})


def test_a_student_is_float32_where_it_is_trained_in_full(tmp_path):
    folder = models.saved(tmp_path / "half")
    models.llama(0).to(torch.bfloat16).save_pretrained(folder)
    assert build_student(StudentConfig(model=str(folder)))[0].dtype == torch.float32
    assert build_student(StudentConfig(model=str(folder), lora={}))[0].dtype == torch.bfloat16
    assert build_student(StudentConfig(model=str(folder), dtype="bfloat16"))[0].dtype == torch.bfloat16


def test_an_adapter_is_merged_into_its_whole_base(tmp_path):
    base = models.saved(tmp_path / "base", 1)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**LORA, init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "adapter")
    models.tokenizer().save_pretrained(tmp_path / "adapter")
    ids = torch.arange(8)[None]
    student, _ = build_student(StudentConfig(model=str(tmp_path / "adapter")))
    teacher = LocalTeacher.load("w", str(tmp_path / "adapter"))
    expected = tuned.eval()(ids).logits
    torch.testing.assert_close(student.eval()(ids).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(teacher.model(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in student.parameters())
    state = {k: v for k, v in models.llama(1).state_dict().items() if "down_proj" not in k}
    models.llama(1).save_pretrained(base, state_dict=state)
    with pytest.raises(ConfigError, match="lacks 1 of the weights that its config asks for"):
        build_student(StudentConfig(model=str(tmp_path / "adapter")))


def test_the_saved_student_says_what_the_trained_one_says_and_has_its_configuration(tmp_path):
    model = models.llama(0)
    flags = flags_of(model)
    model.config.use_cache = False
    trained = few_logits(model)
    save_student(merged(model, flags), models.tokenizer(), trained, tmp_path / "student")
    assert json.loads((tmp_path / "student" / "config.json").read_text())["use_cache"] is True
    tied = get_peft_model(
        models.llama(0, tied=True),
        LoraConfig(**{**LORA, "target_modules": ["embed_tokens"]}, init_lora_weights=False, lora_alpha=64),
    )
    trained = few_logits(tied)
    with pytest.raises(StudentDiffersError, match="does not say what the trained one says") as caught:
        save_student(merged(tied, {}), models.tokenizer(), trained, tmp_path / "other")
    assert code_of(caught.value) == 5


def run(**changes):
    return RunConfig.model_validate(
        {
            "output": "runs/one",
            "student": "student",
            "teachers": {"w": "w"},
            "data": {"train": "train.jsonl"},
            "weighting": [],
            "training": {"cpu": True},
            **changes,
        }
    )


def test_a_run_writes_over_no_model_that_it_reads_and_not_where_the_command_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models.saved(tmp_path / "student")
    for output, sentence in (
        (".", "is the folder where this command is run"),
        ("student", "would write over the student, which is read from student"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            refuse_place(run(output=output), tmp_path / output)
    refuse_place(run(), tmp_path / "runs/one")
    one = tmp_path / "runs/one"
    one.mkdir(parents=True)
    for name in ("measured.json", "slurm-7.out", ".gitkeep"):
        (one / name).touch()
    refuse_place(run(), one)
    (one / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"runs/one is not empty and holds no run \(README.md\); choose a folder"):
        refuse_place(run(), one)
    (one / "run.lock").touch()
    refuse_place(run(), one)
    models.saved(one / "checkpoint-2")
    with pytest.raises(ConfigError, match="would write over teacher 'w'"):
        refuse_place(run(teachers={"w": str(one / "checkpoint-2")}), one)


def test_extra_overrules_no_key_and_the_environment_no_precision(monkeypatch):
    for key, value in {"output_dir": "x", "learning_rate": 1.0, "save_only_model": True}.items():
        with pytest.raises(ValueError, match=f"{key}.*(has a key of its own|say it there|leave it out)"):
            sft_config(run(training={"cpu": True, "extra": {key: value}}))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="ACCELERATE_MIXED_PRECISION=bf16, which would win"):
        sft_config(run())


def test_a_student_whose_dtype_rounds_its_updates_away_is_said(tmp_path):
    half = models.llama(0).to(torch.bfloat16)
    made = trainer(tmp_path, student=half, data=PLAIN, teachers={"w": models.llama(1)}, learning_rate=2e-5)
    assert any(said.startswith("the student is trained in bfloat16, which rounds most updates") for said in made.masked)
    half = models.llama(0).to(torch.float16)
    made = trainer(tmp_path, student=half, data=PLAIN, teachers={"w": models.llama(1)}, learning_rate=1e-3)
    assert any(said.startswith("the student is trained in float16, in which the squares") for said in made.masked)
    made = trainer(tmp_path, data=PLAIN, teachers={"w": models.llama(1)}, learning_rate=2e-5)
    assert not any("rounds most updates" in said for said in made.masked)


def test_a_device_without_float64_is_refused_by_name(monkeypatch):
    def zeros(*_, **__):
        raise TypeError("Cannot convert a MPS Tensor to float64")

    refuse_coarse(torch.device("cpu"))
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(ValueError, match=r"device 'mps' has no float64, in which weights are formed; train on the CPU"):
        refuse_coarse(torch.device("mps"))


def test_a_device_map_is_for_teachers_that_stay_where_it_puts_them(tmp_path):
    with pytest.raises(ValueError, match=r"device_map is for teachers"):
        StudentConfig(model="s", device_map="auto")
    mapped = models.llama(1)
    mapped.hf_device_map = {"": "cpu"}
    with pytest.raises(ValueError, match=r"teacher 'w' has a device_map, and placement: offloaded moves teachers"):
        trainer(tmp_path, teachers={"w": mapped}, data=PLAIN, made={"placement": Offloaded()})


def test_a_tilde_is_the_home_of_the_user(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    made = run(output="~/runs/x", student="~/student", data={"train": "~/train.jsonl"})
    assert (made.output, made.student.model, made.data.train) == (
        "/home/me/runs/x",
        "/home/me/student",
        "/home/me/train.jsonl",
    )


def test_a_student_without_a_chat_template_takes_a_named_one(tmp_path):
    models.saved(tmp_path / "chatty")
    models.saved(tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    (tmp_path / "own.jinja").write_text("{{ messages[0]['content'] }}")
    plain = str(tmp_path / "plain")
    assert build_student(StudentConfig(model=plain))[1].chat_template is None
    for source, expected in (("chatty", models.CHAT_TEMPLATE), ("own.jinja", "{{ messages[0]['content'] }}")):
        _, tokenizer = build_student(StudentConfig(model=plain, chat_template=str(tmp_path / source)))
        assert tokenizer.chat_template == expected
    with pytest.raises(ConfigError, match="has no chat template"):
        build_student(StudentConfig(model=plain, chat_template=plain))
    with pytest.raises(ConfigError, match=r"student\.chat_template: .* cannot be read"):
        build_student(StudentConfig(model=plain, chat_template=str(tmp_path / "nowhere")))


def test_a_tokenizer_is_hashed_without_copies_of_its_vocabulary(tmp_path):
    special = {f"<{name}>": place for place, name in enumerate(("pad", "eos", "bos", "unk", "mask"))}
    GemmaTokenizer(vocab=special | {"a": 5, "b": 6, "ab": 7}, merges=[("a", "b")]).save_pretrained(tmp_path)
    models.llama().save_pretrained(tmp_path)
    _, tokenizer = build_student(StudentConfig(model=str(tmp_path)))
    assert not {"_vocab", "_merges"} & set(vars(tokenizer)), "`datasets` pickles them for every map"
    tokenizer.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again("abba").input_ids == tokenizer("abba").input_ids
