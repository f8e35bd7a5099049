"""Overrides reach every name, and what is printed for pasting comes back as it was."""

import shlex

import pytest

from polydistill.config.file import ConfigError, key_of, load_config
from polydistill.run.cache import refuse_uncachable

NAMES = ("qwen2.5", "llama-3.1-8b", "it's", "a=b", "two words", "plain")


@pytest.fixture
def run(tmp_path):
    teachers = "".join(f'  "{name}": folder of {name}\n' for name in NAMES)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"output: out\nstudent: s\nteachers:\n{teachers}data: {{train: d.jsonl}}\n"
        "weighting: [{kind: prefix_posterior}]\n"
    )
    return path


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_of_any_name_is_reached_and_the_others_stay(run, name):
    printed = shlex.join(
        [f"{key_of('teachers', name)}={{cache: there}}", f"{key_of('teachers', name, 'verify')}=touched"]
    )
    config = load_config(run, shlex.split(printed))
    assert list(config.teachers) == list(NAMES)
    assert config.teachers[name].cache == "there"
    assert config.teachers[name].verify == "touched"
    assert all(config.teachers[other].model == f"folder of {other}" for other in NAMES if other != name)


def test_the_longest_name_that_is_there_is_meant(run):
    assert load_config(run, ["teachers.qwen2.5.dtype=float16"]).teachers["qwen2.5"].dtype == "float16"
    assert load_config(run, ["teachers.llama-3.1-8b=other"]).teachers["llama-3.1-8b"].model == "other"
    assert "gpt4.1" in load_config(run, ['teachers."gpt4.1"=new']).teachers
    assert load_config(run, ["weighting.0.share=0.5"]).weighting[0].share == 0.5


def test_a_stream_needs_an_end(run):
    with pytest.raises(ConfigError, match=r"run.yaml: data\.streaming: a stream has no length; say with training\.max"):
        load_config(run, ["data.streaming=true"])
    config = load_config(run, ["data.streaming=true", "training.max_steps=3"])
    with pytest.raises(ConfigError, match="a cache stores every text"):
        refuse_uncachable(config)


@pytest.mark.parametrize("override", ["data..train=x", ".data=x", "data.=x", "=x", "data", 'teachers."a=x'])
def test_a_key_that_cannot_be_read_is_refused(run, override):
    with pytest.raises(ConfigError, match=r"an override reads key\.path=value"):
        load_config(run, [override])


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"is a folder; give the YAML file of a run, e.g. .*config.yaml"):
        load_config(tmp_path)


def test_numbers_of_a_configuration_are_plain_so_that_a_checkpoint_with_them_can_be_read(run):
    run.write_text(run.read_text() + "\ntraining: {extra: {adam_beta2: 9.5e-1, adam_epsilon: 1e-9}}\n")
    extra = load_config(run).training.extra
    assert [type(value) for value in extra.values()] == [float, float]
