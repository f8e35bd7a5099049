"""A key that a section once had is answered with what takes its place, in a file and on the command line."""

from pathlib import Path

import pytest

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

GONE = [
    ("cache.draws=50", "is gone: entries are chosen, not drawn"),
    ("safety.dual.augmentation=1", "is gone: multipliers rise by"),
]


@pytest.mark.parametrize(("override", "sentence"), GONE)
def test_a_key_that_went_says_what_takes_its_place(tmp_path: Path, override: str, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"command line: '{key}' {sentence}"):
        load_config(path, [override])


def test_the_line_is_named_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(RUN + "cache:\n  draws: 0\n")
    with pytest.raises(ConfigError, match=r"run.yaml, line 10: 'cache.draws' is gone"):
        load_config(path)
