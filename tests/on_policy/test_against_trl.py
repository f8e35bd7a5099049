"""With one teacher, or one teacher per sample, the trainer is trl's."""

import pytest
import torch
from models import llama
from scenes import completed, gradients, ours, prompts, theirs

from polydistill.objective import JSD, DivideThenPool, ForwardKL, PoolThenDivide, ReverseKL
from polydistill.teachers import LocalTeacher
from polydistill.weighting import TeacherRouter, Uniform

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
PLAIN = prompts().remove_columns("teacher_id")


def _difference(mine, other):
    worst = max(float((mine[name] - other[name]).abs().max()) for name in other)
    return worst / max(float(g.abs().max()) for g in other.values())


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        (ReverseKL(), 1.0),
        (ForwardKL(), 0.0),
        (PoolThenDivide(pair=JSD(0.5)), 0.5),
        (DivideThenPool(pair=JSD(0.2)), 0.2),
    ],
)
def test_one_teacher_gives_the_loss_and_gradients_of_trl_on_the_same_completions(tmp_path, objective, beta):
    mine = ours(tmp_path, Uniform(), {"a": LocalTeacher("a", llama(1))}, PLAIN, objective=objective)
    other = theirs(tmp_path, llama(1))
    other.beta = beta
    batch = completed(mine, PLAIN)
    own, its = mine.compute_loss(mine.model, batch), other.compute_loss(other.model, batch)
    own.backward(), its.backward()
    assert abs(float(own.detach()) - float(its.detach())) < 1e-6
    assert _difference(gradients(mine.model), gradients(other.model)) < 1e-5


def test_under_bf16_autocast_the_student_runs_in_bf16_and_agrees_with_trl_in_its_digits(tmp_path):
    mine = ours(tmp_path, Uniform(), {"a": LocalTeacher("a", llama(1))}, PLAIN, bf16=True)
    other = theirs(tmp_path, llama(1), bf16=True)
    batch = completed(mine, PLAIN)
    seen = []
    mine.model.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    own = mine.compute_loss(mine.model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # which trl's own redirection loses
        its = other.compute_loss(other.model, batch)
    own.backward(), its.backward()
    assert seen == [torch.bfloat16]
    assert abs(float(own.detach()) - float(its.detach())) < 2e-2 * float(its.detach())
    assert _difference(gradients(mine.model), gradients(other.model)) < 0.1


def test_routing_by_teacher_id_is_trl_with_each_sample_s_own_teacher(tmp_path):
    data = prompts()
    mine = ours(tmp_path, TeacherRouter(float("inf")))
    batch = completed(mine, data)
    loss = mine.compute_loss(mine.model, batch)
    loss.backward()
    count = float(batch["completion_mask"].sum())
    total, sums = 0.0, {}
    for name, seed in (("a", 1), ("b", 2)):
        rows = [i for i in range(4) if data[i]["teacher_id"] == name]
        other = theirs(tmp_path, llama(seed))
        other.model.train()
        part = {key: value[rows] for key, value in batch.items() if value.ndim}
        own = float(part["completion_mask"].sum())
        its = other.compute_loss(other.model, {**part, "num_items_in_batch": torch.tensor(own)})
        (its * own / count).backward()
        total += float(its.detach()) * own / count
        for key, value in gradients(other.model).items():
            sums[key] = sums.get(key, 0.0) + value
    assert abs(float(loss.detach()) - total) < 1e-6
    assert _difference(gradients(mine.model), sums) < 1e-5
