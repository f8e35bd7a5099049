import inspect
import math

import pytest
import torch
from cases import statistics

from polydistill.pipeline import Pipeline, as_operator
from polydistill.promises import Terms, at_least, at_most, promises
from polydistill.safety import Ordered, Tilt
from polydistill.simplex import mix, normalise
from polydistill.target import Pool
from polydistill.weighting import Custom, Fixed, PrefixPosterior, Softmax, TaskPrior, UnboundOperatorError, Uniform
from polydistill.weighting.signals import Entropy, LabelLikelihood

NAMES = ("a", "b", "c")
STACK = PrefixPosterior(0.1) * Softmax(0.5)(Entropy(spread=4))


def test_it_composes_then_floors_then_enforces_and_nothing_after():
    safety = Tilt({"a": 1.0, "b": 0.5}, 3.0)
    bound = Pipeline.of(STACK, NAMES, floor=0.2, safety=safety)
    noticed = statistics(6, 3)
    got, _ = bound.decide(noticed, None)
    by_hand, _ = STACK.bind(NAMES)(noticed)
    by_hand = safety.bind(NAMES).enforce(mix(by_hand, 0.2), noticed.positions.severity)
    assert torch.equal(got, by_hand)
    safest_floor = mix(safety.bind(NAMES).enforce(STACK.bind(NAMES)(noticed)[0], noticed.positions.severity), 0.2)
    assert (got - safest_floor).abs().max() > 0.05


def test_the_carry_continues_the_stack_where_the_chunk_before_ended():
    bound = Pipeline.of(STACK, NAMES, floor=0.1)
    noticed = statistics(10, 3)
    whole, last = bound.decide(noticed, None)
    first, carry = bound.decide(noticed.at(slice(0, 4)), None)
    second, end = bound.decide(noticed.at(slice(4, 10)), carry)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(end[0], last[0], rtol=0, atol=1e-9)


def test_without_floor_and_safety_it_is_the_stack():
    bound = Pipeline.of(Uniform(), NAMES)
    got, _ = bound.decide(statistics(4, 3), None)
    torch.testing.assert_close(got, torch.full((4, 3), -math.log(3), dtype=torch.float64))
    assert bound.guarantee() == bound.before_safety() == bound.stack.guarantee()
    assert bound.ordered_from() is None


def test_a_function_from_evidence_to_weights_is_a_weighting_of_entropy():
    def sharpest(e):
        return torch.softmax(5 * e, -1)

    bound = Pipeline.of(sharpest, NAMES)
    noticed = statistics(4, 3)
    got, _ = bound.decide(noticed, None)
    torch.testing.assert_close(got, normalise(5 * Entropy()(noticed)), rtol=0, atol=1e-6)
    assert bound.stack.needs == {"entropy"}
    assert bound.guarantee().range == math.inf
    assert Pipeline.of(sharpest, NAMES, floor=0.3).guarantee().floor == pytest.approx(0.1)
    other = Pipeline.of(Custom(sharpest)(LabelLikelihood()), NAMES)
    torch.testing.assert_close(other.decide(noticed, None)[0], normalise(5 * noticed.label_log_prob))


@pytest.mark.parametrize(
    ("thing", "sentence"),
    [
        (Softmax(2.0), "is a weighting without a signal"),
        (Entropy(), "is a signal; apply a weighting to it"),
        (3, "is not an operator"),
        ("uniform", "is not an operator"),
    ],
)
def test_what_is_not_an_operator_is_refused_with_what_to_write_instead(thing, sentence):
    with pytest.raises(TypeError, match=sentence):
        inspect.unwrap(as_operator)(thing)  # as users call it, whose annotations nobody checks


@pytest.mark.parametrize("floor", [-0.1, 1.1, math.nan])
def test_a_floor_outside_zero_and_one_is_refused(floor):
    with pytest.raises(ValueError, match=r"floor must lie in \[0, 1\]"):
        Pipeline.of(Uniform(), NAMES, floor=floor)


def test_a_name_that_no_teacher_has_is_refused_at_binding():
    with pytest.raises(ValueError, match="names the teacher 'z'"):
        Pipeline.of(TaskPrior({"t": {"z": 1.0}}), NAMES, ["t"])
    with pytest.raises(ValueError, match="Tilt names the teacher 'z'"):
        Pipeline.of(Uniform(), NAMES, safety=Tilt({"z": 1.0}))
    with pytest.raises(ValueError, match="must have different names"):
        Pipeline.of(Uniform(), ("a", "a"))
    with pytest.raises(ValueError, match="at least one teacher"):
        Pipeline.of(Uniform(), ())


def test_an_unbound_stack_does_not_run():
    with pytest.raises(UnboundOperatorError, match="not bound to teachers"):
        Pipeline(STACK).decide(statistics(4, 3), None)


def test_a_stack_refuses_statistics_of_another_number_of_teachers():
    with pytest.raises(ValueError, match="bound to 3 teachers, the statistics are of 2"):
        Pipeline.of(STACK, NAMES).decide(statistics(4, 2), None)


def test_it_knows_its_teachers_and_tasks():
    bound = Pipeline.of(Uniform(), NAMES, ["t", "u"])
    assert (bound.teachers, bound.tasks) == (NAMES, ("t", "u"))


def test_promises_say_in_words_what_the_guarantee_says_in_numbers():
    bound = Pipeline.of(STACK, NAMES, floor=0.1, safety=Tilt({"a": 1.0}, 3.0))
    g = bound.guarantee()
    words = {promise.name: promise.says for promise in promises(bound, Terms(Pool.LINEAR))}
    assert words["weights"] == f"no teacher ever weighs less than {at_least(g.floor)}"
    assert f"at most {at_most(g.weight_shift(0.1))}" in words["evidence"]
    sustained = at_most(g.weight_shift(0.1, sustained=True))
    assert (
        f"every token of the prefix wrong by at most 0.1 nat moves a target by at most {sustained}"
        in words["sustained"]
    )
    assert "no severity is high enough" in words["nothing"]
    strong = Pipeline.of(Uniform(), NAMES, safety=Ordered({"a": 1.0}, 0.4))
    order = next(promise.says for promise in promises(strong) if promise.name == "order")
    assert order.startswith("from severity 0.40 on a safer teacher")


def test_a_number_in_a_promise_is_rounded_to_the_side_on_which_it_is_true():
    assert (at_most(0.0731), at_most(0.07321), at_least(0.07329)) == ("7.31%", "7.33%", "7.32%")
    assert (at_most(0.25), at_least(1e-5), at_most(1.01e-5)) == ("25%", "0.0010%", "0.0011%")
    assert (at_most(0.123401), at_most(1.0), at_most(0.0)) == ("12.4%", "100%", "0%")


@pytest.mark.parametrize("stack", [Fixed({"code": 1.0}), Fixed({"code": 3.0, "maths": 1.0}) * PrefixPosterior(0.05)])
def test_no_floor_is_promised_to_a_teacher_whose_constant_weight_is_0(stack):
    pipe = Pipeline.of(stack, ("code", "maths", "safe"), floor=0.1)
    guarantee = pipe.guarantee()
    assert (guarantee.floor, guarantee.ceiling) == (0.0, 1.0)
    assert not any("ever weighs" in promise.says for promise in promises(pipe))
