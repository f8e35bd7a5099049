"""Where the time of a step goes, and one that is tried before a run."""

import math

import pytest
import torch
from cases import head, hidden, outputs
from runs import trained, trainer

from polydistill.logprobs import Dense, HiddenStates
from polydistill.records.parts import MODELS, OTHERS, PRODUCTS
from polydistill.run.devices import ADAM, Sizes
from polydistill.run.fits import rehearse
from polydistill.training.clock import Clock, products


class Card:
    """A device that is behind its host: `time` has passed there."""

    time, queued = 0.0, 0.0


class Event:
    def __init__(self, device, enable_timing):
        assert enable_timing

    def record(self):
        self.at = Card.queued

    def query(self):
        return self.at <= Card.time

    def synchronize(self):
        Card.time = max(Card.time, self.at)

    def elapsed_time(self, other):
        assert max(self.at, other.at) <= Card.time, "it would wait"
        return 1e3 * (other.at - self.at)


def after(seconds):
    Card.queued += seconds


def test_a_devices_own_time_is_read_when_it_has_passed_and_products_are_taken_out_of_the_objective(monkeypatch):
    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(Card, "time", 0.0)
    monkeypatch.setattr(Card, "queued", 0.0)
    clock = Clock(torch.device("xpu"))
    clock.product = (0.01, 0.02)
    clock.begin()
    after(3.0)
    clock.mark("teachers")
    after(4.0)
    clock.mark("objective", (60, 20))
    assert clock.take() == {}, "the host is ahead, and nothing waits"
    Card.time = 5.0
    assert clock.take() == {"teachers": 3.0}
    assert clock.take(wait=True) == pytest.approx({"objective": 3.0, PRODUCTS: 1.0})
    after(100.0)  # an evaluation
    clock.on = False
    clock.mark("teachers")
    clock.on = True
    clock.begin()
    after(2.0)
    clock.mark("student")
    assert clock.take(wait=True) == {"student": 2.0}


def test_products_are_those_of_teachers_with_hidden_states_and_of_the_student():
    n, v = 400, 21
    student = HiddenStates(hidden(n, 8, seed=1).requires_grad_(), head(v, 8, seed=2))
    theirs, own, rows = products(student, [*outputs(n, v, [5, 8]), Dense(torch.zeros(n, v))])
    assert 128 <= rows <= n
    with torch.profiler.profile() as seen:
        theirs()
        own()
    found = {event.key: event.count for event in seen.key_averages()}
    assert found["aten::mm"] == 2 + 2, "a frozen head has no gradient"


def test_every_second_of_a_step_belongs_to_a_part(tmp_path):
    made = trained(tmp_path, max_steps=3)
    seen = made.clock.take()
    assert set(seen) == {"teachers", "student", PRODUCTS, "objective", "rest"} <= {*MODELS, *OTHERS}
    assert all(seconds > 0 for seconds in seen.values())
    assert sum(seen.values()) < made.state.log_history[-1]["train_runtime"]


KEPT = {"adamw_torch": ADAM, "sgd": 0, "rmsprop": 1, "adafactor": 0.045}
"""Numbers per trained parameter."""


@pytest.mark.parametrize(("optim", "numbers"), KEPT.items(), ids=KEPT)
def test_a_rehearsal_tells_the_state_of_the_runs_own_optimizer_and_moves_nothing(tmp_path, optim, numbers):
    made = trainer(tmp_path, optim=optim)
    before = [p.detach().clone() for p in made.model.parameters()]
    trained = sum(p.numel() * p.element_size() for p in before)
    tried = rehearse(made, Sizes(trained, trained, ADAM * trained, 0, {}, {}, 2**20))
    assert tried.optimizer == pytest.approx(numbers * trained, rel=0.05, abs=200)
    assert all(torch.equal(a, b) for a, b in zip(before, made.model.parameters(), strict=True))
    assert all(p.grad is None for p in made.model.parameters())
    assert math.fsum(tried.shares(1).values()) == pytest.approx(1.0)
    assert tried.update > 0
    assert tried.seconds["teachers"] > 0
