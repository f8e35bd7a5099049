"""The on-policy demo's exercises are right, its judge is strict, and it runs small from beginning to end."""

import pytest
from rich.console import Console

from polydistill.demo.on_policy import Settings, judge, learn, mean, run_demo
from polydistill.demo.on_policy_tasks import TASKS, as_dataset, as_ids, byte_tokenizer, exercises, held_out
from polydistill.demo.teachers import ModelSize, small_llama

TINY = Settings(
    teacher=ModelSize(16, 1, 2, 32),
    student=ModelSize(16, 1, 2, 32),
    teacher_exercises=16,
    teacher_steps=3,
    teacher_batch=4,
    solved=8,
    warm_steps=2,
    steps=2,
    batch=4,
    prompts=32,
    judged=8,
)


def test_answers_are_what_python_says():
    for one in exercises(TASKS, 400, 0):
        expression = one.prompt.removeprefix(">>> ").rstrip("= ")
        assert str(eval(expression)) == one.answer


def test_judged_prompts_are_never_trained_on_and_each_comes_once():
    judged = [one.prompt for one in exercises(TASKS, 200, 1, judged=True)]
    trained = [one.prompt for one in exercises(TASKS, 2000, 2)]
    assert len(set(judged)) == len(judged)
    assert all(map(held_out, judged))
    assert not any(map(held_out, trained))


def test_an_exercise_is_bytes_and_ends():
    tokenizer = byte_tokenizer()
    rows = exercises(TASKS, 6, 0)
    for row, ids in zip(rows, as_ids(rows, tokenizer).tolist(), strict=True):
        assert tokenizer.eos_token_id in ids
        assert tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)]) == row.prompt + row.answer
    assert as_dataset(rows)["completion"][0] == rows[0].answer


@pytest.mark.slow
def test_exact_match_is_exact():
    tokenizer = byte_tokenizer()
    model = small_llama(ModelSize(32, 1, 2, 64), tokenizer, 40, 0)
    rows = exercises(["arithmetic"], 2, 0)
    learn(model, tokenizer, rows, 150, 2, 1e-2, 0)
    assert judge(model, tokenizer, rows)["arithmetic"] == 1.0
    wrong = [type(row)(row.prompt, row.answer + "0", row.task) for row in rows]
    assert judge(model, tokenizer, wrong)["arithmetic"] == 0.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
def test_the_whole_demo_small(tmp_path, monkeypatch):
    monkeypatch.setenv("POLYDISTILL_CACHE", str(tmp_path / "cache"))
    found = run_demo(tmp_path / "run", 0, Console(quiet=True), TINY)
    assert set(found["teachers"]) == set(TASKS)
    assert found["tokens"]["off_policy"] > 0
    assert found["gain"] == pytest.approx(mean(found["on_policy"]) - mean(found["before"]))
