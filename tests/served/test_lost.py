"""A step without a teacher that is out: the others are pooled as if it had never been there, within the bound of T5."""

import models
import pytest
import torch

from polydistill import Entropy, ForwardKL, LocalTeacher, Pipeline, Softmax
from polydistill.logprobs import logits_of
from polydistill.teachers import TeacherUnavailableError, head_of
from polydistill.teachers.served import TeacherLostError
from polydistill.training.batch import Batch
from polydistill.training.hearing import Method, hear, listen_to
from polydistill.training.step import step


class Out:
    """A source that is out, and counts what goes on without it."""

    def __init__(self, name: str) -> None:
        self.name, self.lost = name, 0

    def count(self, positions: int) -> None:
        self.lost += positions

    def speak(self, input_ids, attention_mask, rows):
        raise TeacherLostError(f"teacher {self.name!r} is out", 300, self.count)


@pytest.fixture(scope="module")
def scene():
    teachers = {name: LocalTeacher(name, models.llama(seed)) for seed, name in enumerate("abc", 1)}
    for teacher in teachers.values():
        teacher.agree_with(models.tokenizer(), 300)
    ids = torch.randint(4, 300, (3, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids), ids)
    student = models.llama(0)
    with torch.no_grad():
        hidden = student.model(input_ids=ids).last_hidden_state
    return teachers, batch, hidden, head_of(student, 300)


def stepped(scene, teachers, floor=0.0):
    _, batch, hidden, head = scene
    stack = Softmax(2.0)(Entropy(spread=4))
    pipeline = Pipeline.of(stack, [t.name for t in teachers], (), floor=floor)
    method = Method(teachers, pipeline, ForwardKL(ce=0.0))
    heard = hear(method, batch)
    return step(heard.of(hidden, head), heard, method)


def test_the_others_share_what_it_would_have_had(scene):
    a, _, c = scene[0].values()
    out = Out("b")
    with_lost, alone = stepped(scene, [a, out, c]), stepped(scene, [a, c])
    torch.testing.assert_close(with_lost.loss, alone.loss)
    w = with_lost.outcome.log_w.exp()
    assert float(w[:, 1].abs().max()) == 0.0
    torch.testing.assert_close(w[:, [0, 2]], alone.outcome.log_w.exp())
    assert out.lost == len(w)


def test_the_target_moves_by_at_most_its_weight(scene):
    """T5: total variation between the pools with and without it, position by position."""
    a, b, c = scene[0].values()
    whole, without = stepped(scene, [a, b, c]), stepped(scene, [a, Out("b"), c])
    rows = torch.arange(len(whole.rows))
    p = torch.stack(
        [logits_of(t.speak(scene[1].input_ids, scene[1].attention_mask, whole.rows), rows) for t in (a, b, c)]
    )
    p = p.softmax(-1)
    pools = [torch.einsum("nk,knv->nv", done.outcome.log_w.exp(), p) for done in (whole, without)]
    moved = 0.5 * (pools[0] - pools[1]).abs().sum(-1)
    assert bool((moved <= whole.outcome.log_w.exp()[:, 1] + 1e-6).all())
    assert float(moved.max()) > 0.1


def test_nobody_left_is_an_error(scene):
    with pytest.raises(TeacherUnavailableError, match="every teacher is out"):
        stepped(scene, [Out("a"), Out("b")])


def test_whoever_cannot_take_it_out_of_the_weights_gets_the_error(scene):
    a, *_ = scene[0].values()
    out = Out("b")
    with pytest.raises(TeacherLostError, match="'b' is out"):
        listen_to([a, out], scene[1], torch.tensor([0, 1]))
    assert out.lost == 0
