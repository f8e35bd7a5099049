"""A key that a section once had is answered with what takes its place, in a file and on the command line."""

from pathlib import Path

import pytest

from polydistill.config.cache import CacheConfig
from polydistill.config.file import ConfigError, load_config

RUN = """\
output: run
student: s
teachers:
  a: a
  served: {url: "http://127.0.0.1:8000/v1", model: m}
data: {train: t.jsonl}
weighting: [{kind: prefix_posterior}]
safety: {kind: tilt, scores: {a: 1}}
"""

CODING = ("mass", "cap", "least", "step", "signal_step", "backgrounds", "forms", "calibration")
GONE = [
    ("cache.draws", "is gone: entries are chosen, not drawn"),
    ("safety.expert.augmentation", "is gone: multipliers rise by"),
    (
        "training.drop_teachers",
        "is gone: teachers whose weight is known before they speak are left out by `skip_below`",
    ),
    ("safety.dual", "is now safety.expert, with the same keys"),
    ("teachers.served.patience", "is now teachers.NAME.expert, with the same keys"),
    ("gradient.sample", "is now gradient.expert.sample"),
    *((f"cache.{key}", f"is now cache.expert.{key}") for key in CODING),
]


@pytest.mark.parametrize(("key", "sentence"), GONE)
def test_a_key_that_went_says_what_takes_its_place(tmp_path: Path, key: str, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    with pytest.raises(ConfigError, match=f"^command line: '{key}' {sentence}"):
        load_config(path, [f"{key}=1"])


def test_the_line_is_named_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + "cache:\n  draws: 0\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 10: 'cache.draws' is gone"):
        load_config(path)


def test_keys_of_expert_take_the_place_of_what_the_quality_says() -> None:
    standard, small, exact = (CacheConfig(quality=quality).coding() for quality in ("standard", "small", "exact"))
    assert standard == CacheConfig().coding()
    assert set(standard) == set(CODING) - {"forms"}
    assert small["least"] > standard["least"] > exact["least"]
    given = CacheConfig.model_validate({"quality": "small", "expert": {"least": 0.25, "forms": {"a": "hidden4"}}})
    assert given.coding() == small | {"least": 0.25}
    assert [given.form(name, local=True) for name in "ab"] == ["hidden4", "entries"]


def test_exact_stores_hidden_states_of_every_teacher_that_has_them() -> None:
    exact = CacheConfig.model_validate({"quality": "exact", "expert": {"forms": {"a": "entries"}}})
    assert [exact.form("a", local=True), exact.form("b", local=True)] == ["entries", "hidden8"]
    assert exact.form("served", local=False) == "entries"
