"""Where teachers with tokenizers of their own count: `positions: all | bound | strict`."""

import math
from copy import deepcopy

import made
import pytest
import torch
from test_foreign import model, trainer

from polydistill import Entropy, Fixed, ForwardKL, LocalTeacher, Pipeline, Softmax, Tilt, Uniform, certify
from polydistill.cli.certify import _pipeline_of
from polydistill.config.run import RunConfig
from polydistill.logprobs import Dense, Head, Positions, Statistics
from polydistill.objective import distil
from polydistill.promises import Terms, promises, says
from polydistill.run.described import factors_of
from polydistill.simplex import NoActiveTeacherError
from polydistill.target import Pool
from polydistill.teachers import ForeignTeacher
from polydistill.weighting.token import EXACT, ByFidelity, positioned

NAMES = ("plain", "code", "prose")


def weights(fidelity, **kinds):
    rows = torch.tensor(fidelity, dtype=torch.float64)
    positions = Positions.of(torch.zeros(len(rows), dtype=torch.long), torch.ones(len(rows), dtype=torch.bool))
    stack = ByFidelity(kinds.get("bound", ()), kinds.get("strict", ())).bind(NAMES)
    return stack(Statistics(positions, torch.zeros_like(rows), fidelity=rows))[0].exp()


def test_weights_are_multiplied_by_the_fidelity_of_those_who_asked_for_it():
    found = weights([[1.0, 0.5, 0.1], [1.0, 1.0, 1.0]], bound=["code"])
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.2, 0.4], [1 / 3] * 3], dtype=torch.float64))


def test_strict_is_the_limit_of_powers_of_bound_and_weights_sum_to_one():
    fidelity = [[1.0, 0.9, 1.0 - EXACT / 2], [1.0, 1.0, 0.0], [1.0, 0.2, 0.3]]
    strict = weights(fidelity, strict=["code", "prose"])
    expected = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(strict, expected / expected.sum(-1, keepdim=True))
    raised = weights([[f**1000 for f in row] for row in fidelity], bound=["code", "prose"])
    torch.testing.assert_close(raised, strict, atol=1e-3, rtol=0.0)  # but for the clip of the evidence


def test_where_strict_teachers_are_all_there_are_and_all_are_off_weights_are_as_if_all_were_in():
    found = weights([[0.5, 0.1, 0.2]], strict=NAMES)
    torch.testing.assert_close(found, torch.full((1, 3), 1 / 3, dtype=torch.float64))


def test_bound_is_certified_and_of_strict_nothing_is_promised_that_zeros_would_break():
    bound = Pipeline.of(ByFidelity(["code"], []), NAMES, floor=0.02)
    assert not certify(bound, effort=0.05).refuted
    assert bound.guarantee().floor > 0.0
    strict = Pipeline.of(ByFidelity([], ["code"]), NAMES, floor=0.02).guarantee()
    assert (strict.range, strict.floor, strict.ceiling) == (math.inf, 0.0, 1.0)


def test_a_configuration_is_certified_with_the_positions_that_its_teachers_ask_for(tmp_path):
    teachers = "a: {model: x, tokenizer: own, positions: strict}, b: {cache: y, positions: bound}, c: z"
    rest = "output: o\nstudent: s\ndata: {train: d}\nweighting: [{kind: uniform}]\n"
    (tmp_path / "run.yaml").write_text(f"{rest}teachers: {{{teachers}}}\n")
    stack = _pipeline_of(str(tmp_path / "run.yaml")).stack
    assert repr(stack) == "Uniform() * ByFidelity(bound=['b'], strict=['a'])"


def own(name, positions, tokenizer=None):
    tokenizer = tokenizer or made.tiktoken_like()
    return ForeignTeacher(name, model(tokenizer), tokenizer, positions=positions)


def test_labels_are_what_remains_where_no_strict_teacher_is_left(tmp_path):
    run = trainer(tmp_path, {"a": own("a", "strict")}, Uniform(), objective=ForwardKL(ce=0.25))
    run.train()
    done = run.last_step
    exact = done.outcome.statistics.fidelity[:, 0] >= 1.0 - EXACT
    assert not bool((done.unheard & exact).any())
    assert bool(done.unheard.any())
    assert bool((done.outcome.divergence[done.unheard] == 0.0).all())
    loss = 0.75 * done.outcome.divergence.sum() + 0.25 * done.outcome.cross_entropy.sum()
    assert float(done.loss.detach()) == pytest.approx(float(loss), rel=1e-5)
    assert done.outcome.count == int((done.unheard | done.positions.has_loss).sum())
    assert bool((done.off[done.positions.has_loss] <= EXACT).all())
    line = run.state.log_history[0]
    assert line["distil/translated/unheard"] == pytest.approx(float(done.unheard.sum()) / done.outcome.count)


def test_labels_are_what_remains_where_the_stack_wants_none_but_a_strict_teacher_that_is_off(tmp_path):
    plain = LocalTeacher("plain", model(made.byte_level(300)), made.byte_level(300))
    teachers = {"a": own("a", "strict"), "plain": plain}
    run = trainer(tmp_path, teachers, Fixed({"a": 1}), objective=ForwardKL(ce=0.25), floor=0.02)
    run.train()
    done = run.last_step
    off = done.outcome.statistics.fidelity[:, 0] < 1.0 - EXACT
    assert bool(off.any())
    assert torch.equal(done.unheard, off & (done.unheard | done.positions.has_loss))
    run.certificate()


def test_a_stack_that_wants_nobody_is_refused_beside_a_strict_teacher_too():
    stack = positioned(Fixed({"code": 1}) * Fixed({"prose": 1}), {"code": "strict", "prose": "all"}).bind(NAMES)
    positions = Positions.of(torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.bool))
    with pytest.raises(NoActiveTeacherError, match="no active teacher"):
        stack(Statistics(positions, torch.zeros(1, 3), fidelity=torch.zeros(1, 3)))


def silent(name, tokenizer=None):
    """A teacher that is sure of a special token which no student has."""
    tokenizer = deepcopy(tokenizer or made.tiktoken_like())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|x|>"]})
    teacher = ForeignTeacher(name, model(tokenizer), tokenizer)
    said = torch.full((1, len(tokenizer)), -60.0)
    said[0, -1] = 0.0
    teacher._says = lambda texts: Dense(said.repeat(sum(len(text.tokens) for text, _, _ in texts), 1))
    return teacher


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cannot read the text", "is sure of what no student has"])
def test_a_teacher_of_whom_nothing_can_be_translated_weighs_nothing_and_the_others_share_its_weight(tmp_path, kind):
    mute = own("a", "all", made.word_level()) if kind == "cannot read the text" else silent("a")
    plain = LocalTeacher("plain", model(made.byte_level(300), 5), made.byte_level(300))
    stack = Softmax(1.0)(Entropy())
    run = trainer(tmp_path, {"a": mute, "plain": plain, "b": own("b", "all")}, stack, floor=0.1)
    run.train()
    done = run.last_step
    out = (done.outcome.statistics.fidelity[:, 0] == 0.0) & done.positions.has_loss
    assert bool(out.any())
    assert bool((done.outcome.statistics.fidelity[:, 1:] > 0.0)[done.positions.has_loss].all())
    weights = done.outcome.log_w.exp()
    assert bool((weights[out][:, 0] == 0.0).all())
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights)))
    # As if it were not there: where it says nothing all the time, its evidence moves nobody's weight.
    if kind == "is sure of what no student has":
        both = trainer(tmp_path, {"plain": plain, "b": own("b", "all")}, stack, floor=0.1)
        both.train()
        torch.testing.assert_close(weights[out][:, 1:], both.last_step.outcome.log_w.exp()[out], atol=1e-5, rtol=1e-4)
    assert "where nothing that one says can be translated it weighs nothing" in run.certificate()


@pytest.mark.slow
@pytest.mark.parametrize("ce", [0.0, 0.25])
def test_where_nothing_at_all_can_be_translated_labels_count_alone_or_not_at_all(tmp_path, ce):
    run = trainer(tmp_path, {"a": silent("a"), "b": silent("b", made.unigram())}, Uniform(), objective=ForwardKL(ce=ce))
    run.train()
    done, line = run.last_step, run.state.log_history[0]
    nothing = (done.outcome.statistics.fidelity == 0.0).all(-1)
    assert torch.equal(done.unheard, nothing & (done.unheard | done.positions.has_loss))
    assert bool(done.unheard.any())
    assert bool((done.outcome.divergence[done.unheard] == 0.0).all())
    loss = (1 - ce) * done.outcome.divergence.sum() + ce * done.outcome.cross_entropy.sum()
    assert float(done.loss.detach()) == pytest.approx(float(loss), rel=1e-5)
    assert line["distil/translated/unheard"] == pytest.approx(float(done.unheard.sum()) / done.outcome.count)


def test_a_position_at_which_nobody_is_heard_has_no_gradient():
    generator = torch.Generator().manual_seed(0)
    hidden, said = torch.randn(6, 4, generator=generator), torch.randn(6, 9, generator=generator).log_softmax(-1)
    head, label = Head(torch.randn(9, 4, generator=generator)), torch.arange(6)
    out = torch.tensor([False, True, False, False, True, False])

    def taught(has_loss, decide):
        one = hidden.clone().requires_grad_()
        positions = Positions.of(label, has_loss)
        found = distil(one, head, [Dense(said)], positions, decide, ForwardKL(ce=0.3), needs=frozenset({"fidelity"}))
        found.loss.backward()
        return found, one.grad

    def all_heard(statistics, carry):
        return torch.zeros(len(statistics.label_log_prob), 1), carry

    def some_heard(statistics, carry):
        return torch.zeros(6, 1).masked_fill(out[:, None], -math.inf), carry

    found, gradient = taught(torch.ones(6, dtype=torch.bool), some_heard)
    less, expected = taught(~out, all_heard)
    assert torch.equal(gradient, expected)
    assert float(found.loss.detach()) == pytest.approx(float(less.loss.detach()), rel=1e-6)
    assert torch.equal(found.unheard, out)
    assert torch.equal(found.statistics.positions.has_loss, ~out)
    assert bool((found.cross_entropy[out] > 0.0).all())  # the student's, for whoever measures it


def test_a_strict_teacher_weighs_nothing_where_its_bound_is_not_zero_and_the_others_share_its_weight(tmp_path):
    plain = LocalTeacher("plain", model(made.byte_level(300)), made.byte_level(300))
    run = trainer(tmp_path, {"a": own("a", "strict"), "plain": plain, "b": own("b", "bound")}, Uniform(), floor=0.1)
    run.train()
    done = run.last_step
    assert not bool(done.unheard.any())
    assert factors_of(run.pipeline.stack) == [{"kind": "uniform"}]
    weights, fidelity = done.outcome.log_w.exp(), done.outcome.statistics.fidelity
    one, least = torch.ones(len(weights)), math.exp(-8.0)  # what the evidence is clipped to
    here = torch.stack([(fidelity[:, 0] >= 1.0 - EXACT).float(), one, fidelity[:, 2].clamp_min(least)], -1)
    here = 0.9 * here / here.sum(-1, keepdim=True) + 0.1 * (here > 0) / (here > 0).sum(-1, keepdim=True)
    torch.testing.assert_close(weights, here, atol=1e-5, rtol=0.0)
    assert "ByFidelity(bound=['b'], strict=['a'])" in run.certificate()


def test_positions_are_refused_where_they_do_nothing_or_break_what_is_promised(tmp_path):
    base = {"student": "a", "data": {"train": "b"}, "output": "c"}
    with pytest.raises(ValueError, match="`positions` is there for teachers with `tokenizer: own`"):
        RunConfig.model_validate({**base, "teachers": {"a": {"model": "a", "positions": "strict"}}})
    plain = LocalTeacher("b", model(made.byte_level(300)), made.byte_level(300))
    with pytest.raises(ValueError, match="`positions: bound` changes its weight beside others, and it is the only"):
        trainer(tmp_path, {"a": own("a", "bound")}, Uniform())
    for teachers, weighting in (({}, Uniform()), ({"b": plain}, Fixed({"a": 1}))):
        with pytest.raises(ValueError, match="and so have all others of some weight: where nobody is left only labels"):
            trainer(tmp_path, {"a": own("a", "strict"), **teachers}, weighting)
    with pytest.raises(ValueError, match="`positions: strict` takes it out at single positions, and a safety order"):
        trainer(tmp_path, {"a": own("a", "strict"), "b": plain}, Uniform(), safety=Tilt({"b": 1}))


@pytest.mark.parametrize("option", [{"positions": "bound"}, {"positions": "strict"}, {"expand": 2}])
def test_what_is_about_translating_is_refused_where_a_tokenizer_turns_out_to_be_the_students(tmp_path, option):
    tokenizer = made.byte_level(300)
    teachers = {"a": ForeignTeacher("a", model(tokenizer), tokenizer, **option), "b": own("b", "all")}
    ((name, given),) = option.items()
    with pytest.raises(ValueError, match=f"'a': .* nothing is translated and `{name}: {given}` would do nothing"):
        trainer(tmp_path, teachers, Uniform())


def test_promises_say_what_translating_adds_and_who_weighs_nothing():
    stack = Pipeline.of(ByFidelity([], ["code"]) * Softmax(2.0)(Entropy()), NAMES)
    said = "\n".join(says(promises(stack, Terms(Pool.LINEAR, translated=("code",)))))
    assert "with translated teachers (code) a target is off by at most the sum over teachers of weight times" in said
    assert "the weights are those that translated distributions give (entropy); where its bound is not 0, code" in said
    assert "nothing is promised about the least weight of a teacher" in said
