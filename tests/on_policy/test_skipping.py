"""Teachers without weight do not run, and the target says so exactly."""

import pytest
import torch
from models import llama
from scenes import completed, ours, prompts, two

from polydistill.objective import ForwardKL
from polydistill.teachers import LocalTeacher
from polydistill.weighting import Hedge, Softmax, TaskPrior, TeacherRouter
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
HARD = TaskPrior({"code": {"a": 0.0, "b": 1.0}, "maths": {"a": 1.0, "b": 0.0}})


class Counting(LocalTeacher):
    """Counts the sequences that it is asked about."""

    def __init__(self, name, model):
        super().__init__(name, model)
        self.asked = []

    def speak(self, input_ids, attention_mask, rows):
        self.asked.append(len(input_ids))
        return super().speak(input_ids, attention_mask, rows)


def _teachers():
    return {"a": Counting("a", llama(1)), "b": Counting("b", llama(2))}


def _loss(made, batch):
    loss = made.compute_loss(made.model, batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in made.model.parameters()])
    made.model.zero_grad()
    return float(loss.detach()), gradient


@pytest.mark.parametrize("weighting", [TeacherRouter(float("inf")), HARD])
@pytest.mark.parametrize("forward", [False, True])
def test_a_hard_route_runs_every_teacher_on_its_own_rows_only_with_the_same_result(tmp_path, weighting, forward):
    options = {"objective": ForwardKL(), "skip_below": 0.05} if forward else {}
    made = ours(tmp_path, weighting, _teachers(), **options)
    batch = completed(made, prompts())
    loss, gradient = _loss(made, batch)
    asked = [teacher.asked[-1] for teacher in made.teachers]
    assert sum(asked) == 4
    assert float(made.last_step.runs.float().mean()) == 0.5
    made.skip_below = None
    full, all_gradient = _loss(made, batch)
    assert [teacher.asked[-1] for teacher in made.teachers] == [4, 4]
    assert loss == pytest.approx(full, abs=1e-6)
    assert torch.allclose(gradient, all_gradient, atol=1e-6)


def test_a_veto_beside_entropy_weights_skips_too(tmp_path):
    made = ours(tmp_path, HARD * Softmax(1.0)(Entropy()), _teachers())
    made.compute_loss(made.model, completed(made, prompts()))
    assert sum(teacher.asked[-1] for teacher in made.teachers) == 4


@pytest.mark.parametrize(
    ("weighting", "floor"),
    [
        (TaskPrior({"code": {"a": 0.01, "b": 0.99}}), 0.0),
        (HARD * Softmax(1.0)(Consensus()), 0.0),  # measured among all
        (TeacherRouter(4.0), 0.0),
    ],
)
def test_where_every_teacher_matters_all_run(tmp_path, weighting, floor):
    made = ours(tmp_path, weighting, _teachers(), floor=floor)
    made.compute_loss(made.model, completed(made, prompts()))
    assert [teacher.asked[-1] for teacher in made.teachers] == [4, 4]


@pytest.mark.parametrize(
    ("weighting", "options", "says"),
    [
        (HARD, {"skip_below": 0.05}, "only exact zeros may be skipped"),
        (HARD, {"skip_below": 1.5, "objective": ForwardKL()}, r"must lie in \[0, 1\)"),
        (HARD, {"beta": 0.5}, "use objective= instead"),
        (HARD, {"fixed_share": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        (HARD, {"objective": ForwardKL(ce=0.1)}, "cross-entropy on labels, which generated text does not have"),
        (Softmax(1.0)(LabelLikelihood()) * HARD, {}, "LabelLikelihood.* needs labels"),
        (Hedge()(LabelLikelihood()), {}, "Hedge.*LabelLikelihood.* needs labels"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, weighting, options, says):
    with pytest.raises(ValueError, match=says):
        ours(tmp_path, weighting, two(), **options)


def test_tools_answers_are_read_but_not_learned(tmp_path):
    made = ours(tmp_path)
    batch = completed(made, prompts())
    tools = torch.ones_like(batch["completion_mask"])
    tools[:, 2:4] = 0
    mine = made.batch_of({**batch, "tool_mask": tools})
    rows, positions = mine.positions(reads_prefix=True)
    width = mine.input_ids.shape[1]
    places = rows % width + 1 - batch["prompt_mask"].sum(1)[rows // width]  # of the completion's tokens
    assert not set(places[positions.has_loss].tolist()) & {2, 3}
    assert set(places.tolist()) >= {2, 3}
