import math

import pytest
import reference
import torch
from cases import head, hidden, outputs, positions
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from twins import ALL, STACK, agree, both, pipeline, rows_per_chunk, trained

from polydistill.logprobs import Head, HiddenStates, Positions
from polydistill.objective import ForwardKL, NonFiniteError, ReverseKL, distil
from polydistill.objective.kernels import release
from polydistill.pipeline import Pipeline
from polydistill.safety import Tilt
from polydistill.simplex import normalise
from polydistill.weighting import PrefixPosterior, Softmax, TaskPrior, Uniform
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, StudentGap


def scene(n, v, widths, d=5, **where):
    """A student, its head, teachers of these widths, and positions."""
    return hidden(n, d, seed=1), head(v, d, seed=2), outputs(n, v, widths), positions(n, v, **where)


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True},
        {"scale": 0.25},
        {"softcap": 3.0},
        {"padded": 7},
        {"bias": True, "scale": 1.5, "softcap": 2.0, "padded": 5},
    ],
    ids=lambda o: " ".join(o) or "plain",
)
def test_every_kind_of_head_agrees_with_the_twin(divergence, options):
    n, v = 150, 41
    fast, slow = both(
        hidden(n, 8, seed=1),
        head(v, 8, seed=2, **options),
        outputs(n, v, [5, 8, 13], **options),
        positions(n, v, loss_share=0.6, documents=3),
        pipeline(3),
        divergence(ce=0.2),
        rows_per_chunk(v, 3, 128),
    )
    agree(fast, slow, 2e-6)


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize("ce", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("squared", [False, True])
def test_temperature_and_labels_agree_with_the_twin(divergence, temperature, ce, squared):
    objective = divergence(temperature=temperature, ce=ce, temperature_squared=squared)
    agree(*both(*scene(40, 23, [6, 6], 6, loss_share=0.8), pipeline(2), objective), 2e-6)


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
@pytest.mark.parametrize("teachers", [1, 2, 3, 5, 8, 16])
def test_any_number_of_teachers_of_mixed_widths_agrees_with_the_twin(divergence, teachers):
    widths = [3 + (5 * k) % 11 for k in range(teachers)]
    agree(*both(*scene(30, 19, widths, 7), pipeline(teachers), divergence()), 2e-6)


def naive(student, own, heard, log_w, where, divergence):
    """Full logits as the models make them, then softmax and sums in their precision: loss and gradients."""
    h, top = trained(student, own)
    teachers = [t.head.logits(t.hidden) for t in heard]
    loss, _, _ = reference.objective(
        top.logits(h), teachers, log_w, where, reverse=isinstance(divergence, ReverseKL), ce=divergence.ce
    )
    loss.backward()
    return [loss.detach(), h.grad, top.weight.grad]


def adds_no_more_error(student, own, heard, log_w, where, divergence, tolerance):
    """`|fused - truth| <= |naive - truth| + tolerance` for loss and gradients, under fixed weights."""
    h, top = trained(student, own)
    distil_bytes = rows_per_chunk(own.weight.shape[0], len(heard), 128)
    out = distil(h, top, heard, where, lambda s, c: (log_w, c), divergence, loss_bytes=distil_bytes)
    out.loss.backward()
    double = [HiddenStates(t.hidden.double(), Head(t.head.weight.double())) for t in heard]
    truth = naive(student.double(), Head(own.weight.double()), double, log_w.double(), where, divergence)
    rival = naive(student, own, heard, log_w, where, divergence)
    for fused, plain, exact in zip([out.loss.detach(), h.grad, top.weight.grad], rival, truth, strict=True):
        assert torch.isfinite(fused).all()
        limit = (plain.double() - exact).abs().max() + tolerance * exact.abs().max()
        assert (fused.double() - exact).abs().max() <= limit


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.2), ReverseKL(ce=0.2)])
def test_half_precision_inputs_add_no_more_than_one_rounding_to_the_naive_error(divergence):
    n, v = 120, 31
    options = {"dtype": torch.bfloat16, "size": 0.5}
    student, own = hidden(n, 16, seed=1, dtype=torch.bfloat16), head(v, 16, seed=2, **options)
    log_w = normalise(torch.randn(n, 2))
    heard = outputs(n, v, [16, 8], **options)
    adds_no_more_error(student, own, heard, log_w, positions(n, v, loss_share=0.7), divergence, 2**-8)


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.1), ReverseKL(ce=0.1)])
@pytest.mark.parametrize("size", [1.0, 30.0, 1e3, 1e4])
def test_extreme_logits_add_no_more_error_than_the_naive_path(divergence, size):
    n, v = 100, 17
    heard = [HiddenStates(t.hidden, Head(t.head.weight * size)) for t in outputs(n, v, [4, 4])]
    log_w = normalise(torch.randn(n, 2))
    adds_no_more_error(hidden(n, 4, seed=1), head(v, 4, seed=2), heard, log_w, positions(n, v), divergence, 1e-6)


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.1), ReverseKL(ce=0.1)])
def test_with_every_signal_extreme_logits_stay_finite(divergence):
    n, v = 100, 17
    heard = [HiddenStates(t.hidden, Head(t.head.weight * 1e4)) for t in outputs(n, v, [4, 4])]
    stack = STACK * Softmax(1.0)(Consensus()) * Softmax(1.0)(Margin()) * Softmax(1.0)(StudentGap())
    out, d_hidden, d_weight = run(
        hidden(n, 4, seed=1), head(v, 4, seed=2, size=1e3), heard, positions(n, v), pipeline(2, stack), divergence
    )
    for x in (out.loss, out.log_w, d_hidden, d_weight, *(value for _, value in out.statistics.measured())):
        assert torch.isfinite(x).all()


@pytest.mark.slow
@given(
    n=st.integers(1, 300),
    v=st.integers(2, 40),
    widths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    loss_share=st.sampled_from([0.0, 0.2, 1.0]),
    documents=st.integers(1, 3),
    seed=st.integers(0, 99),
    reverse=st.booleans(),
)
@settings(max_examples=25)
def test_random_shapes_masks_and_documents_agree_with_the_twin(n, v, widths, loss_share, documents, seed, reverse):
    documents = min(documents, n)
    fast, slow = both(
        hidden(n, 5, seed=seed),
        head(v, 5, seed=seed + 1),
        outputs(n, v, widths, seed=seed),
        positions(n, v, seed=seed, loss_share=loss_share, documents=documents, tasks=2, teachers=len(widths)),
        pipeline(len(widths), floor=0.1, safety=Tilt({"a": 1.0}, strength=2.0)),
        (ReverseKL if reverse else ForwardKL)(ce=0.1),
        rows_per_chunk(v, len(widths), 128),
    )
    agree(fast, slow, 1e-5)


@pytest.mark.parametrize("loss_share", [0.5, 1.0])
def test_every_statistic_agrees_with_the_twin(loss_share):
    given = scene(140, 29, [6, 3, 9], 6, loss_share=loss_share)
    fast, slow = both(*given, pipeline(3), ForwardKL(), needs=ALL)
    agree(fast, slow, 3e-6)
    assert {name for name, _ in fast[0].statistics.measured()} == ALL


@pytest.mark.parametrize("divergence", [ForwardKL(temperature=2.0), ReverseKL(temperature=0.5)])
def test_comparisons_are_of_untempered_distributions(divergence):
    fast, slow = both(*scene(40, 29, [6, 3, 9], 6), pipeline(3), divergence, needs=ALL)
    for name in ("distance_to_pool", "student_gap"):
        got, want = getattr(fast[0].statistics, name), getattr(slow[4], name)
        assert want.max() > 0.01
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


def test_only_the_statistics_that_were_asked_for_are_measured():
    out = distil(*scene(10, 12, [4], 4), pipeline(1, Uniform()).decide, ForwardKL(), needs=frozenset({"margin"}))
    assert {name for name, _ in out.statistics.measured()} == {"label_log_prob", "margin"}


class Passes(TorchDispatchMode):
    """Counts the operations on tensors whose rows are that long."""

    def __init__(self, width):
        super().__init__()
        self.width, self.count = width, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        wide = [x for x in (*args, made) if isinstance(x, torch.Tensor) and x.shape[-1:] == (self.width,)]
        self.count += bool(wide) and not function.is_view
        return made


def test_one_teacher_more_costs_a_product_a_gather_and_nine_passes():
    counted = []
    for teachers in (2, 3):
        bound = pipeline(teachers)
        heard, where = outputs(40, 977, [8] * teachers), positions(40, 977)
        release()
        with Passes(977) as passes:
            run(hidden(40, 8, seed=1), head(977, 8, seed=1), heard, where, bound)
        counted.append(passes.count)
    assert counted[1] - counted[0] <= 11


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_gradients_are_those_of_the_loss(divergence, temperature):
    n, v, d = 5, 7, 3
    heard = outputs(n, v, [3, 4], dtype=torch.float64)
    where = positions(n, v, loss_share=0.8)
    log_w = normalise(torch.randn(n, 2, dtype=torch.float64))

    def loss(h, weight, bias):
        top = Head(weight, bias, scale=0.7, softcap=4.0, visible=v)
        return distil(h, top, heard, where, lambda s, c: (log_w, c), divergence(temperature, ce=0.3)).loss

    inputs = (hidden(n, d, seed=1), torch.randn(v + 2, d), torch.randn(v + 2))
    inputs = tuple(x.double().requires_grad_() for x in inputs)
    assert torch.autograd.gradcheck(loss, inputs)


@pytest.mark.parametrize("leaf", ["hidden", "weight", "bias"])
def test_each_gradient_can_be_asked_for_alone(leaf):
    student, _, heard, where = scene(12, 9, [4, 4], 4)
    own = head(9, 4, seed=2, bias=True)
    h, top = trained(student, own)
    distil(h, top, heard, where, pipeline(2).decide, ForwardKL(), needs=STACK.needs).loss.backward()
    leaves = {"hidden": h, "weight": top.weight, "bias": top.bias}
    wanted = leaves[leaf].grad
    alone, top = trained(student, own)
    leaves = {"hidden": alone, "weight": top.weight, "bias": top.bias}
    for name, tensor in leaves.items():
        tensor.requires_grad_(name == leaf)
    distil(alone, top, heard, where, pipeline(2).decide, ForwardKL(), needs=STACK.needs).loss.backward()
    torch.testing.assert_close(leaves[leaf].grad, wanted)


def test_the_upstream_gradient_scales_ours():
    student, own, heard, where = scene(12, 9, [4], 4)
    grads = []
    for scale in (1.0, 0.25):
        h, top = trained(student, own)
        (scale * distil(h, top, heard, where, pipeline(1).decide, ForwardKL(), needs=STACK.needs).loss).backward()
        grads.append((h.grad, top.weight.grad))
    torch.testing.assert_close(grads[1][0], 0.25 * grads[0][0])
    torch.testing.assert_close(grads[1][1], 0.25 * grads[0][1])


def differentiable():
    student, own, heard, where = scene(12, 9, [4], 4)
    h, top = trained(student, own)
    return h, top, distil(h, top, heard, where, pipeline(1).decide, ForwardKL(ce=0.2), needs=STACK.needs).loss


def test_a_graph_that_is_kept_can_be_gone_through_again():
    h, top, loss = differentiable()
    (0.5 * loss).backward(retain_graph=True)
    first = h.grad.clone(), top.weight.grad.clone()
    (3.0 * loss).backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(h.grad, 9.0 * first[0])
    torch.testing.assert_close(top.weight.grad, 9.0 * first[1])


def test_the_gradient_is_handed_over_and_not_copied():
    _, top, loss = differentiable()
    made = loss.grad_fn.gradients[1].data_ptr()
    loss.backward()
    assert top.weight.grad.data_ptr() == made


def test_a_graph_that_is_gone_is_refused():
    _, _, loss = differentiable()
    loss.backward()
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        loss.backward()


def test_a_head_tied_to_the_embedding_gets_both_gradients():
    n, v, d = 15, 11, 4
    ids = torch.randint(v, (n,))
    heard, where = outputs(n, v, [5, 3], dtype=torch.float64), positions(n, v)
    log_w = normalise(torch.randn(n, 2, dtype=torch.float64))
    tied = torch.randn(v, d, dtype=torch.float64, requires_grad=True)
    distil(torch.tanh(tied[ids]), Head(tied), heard, where, lambda s, c: (log_w, c), ForwardKL()).loss.backward()
    twin = tied.detach().clone().requires_grad_()
    student = torch.tanh(twin[ids]) @ twin.T
    teachers = [reference.logits(t.hidden, t.head) for t in heard]
    reference.objective(student, teachers, log_w, where)[0].backward()
    torch.testing.assert_close(tied.grad, twin.grad)


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
def test_weights_are_constants_to_the_gradient(divergence):
    bound = pipeline(2, Softmax(0.5)(StudentGap(spread=6)) * Softmax(1.0)(Consensus()) * Softmax(1.0)(Margin()))
    fast, slow = both(*scene(20, 9, [4, 4], 4), bound, divergence())
    agree(fast, slow, 3e-6)
    assert not fast[0].log_w.requires_grad


def run(student, own, heard, where, bound, divergence=None, loss_bytes=None):
    h, top = trained(student, own)
    divergence = ForwardKL(ce=0.1) if divergence is None else divergence
    out = distil(h, top, heard, where, bound.decide, divergence, needs=bound.stack.needs, loss_bytes=loss_bytes)
    out.loss.backward()
    return out, h.grad, top.weight.grad


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(temperature=1.5)])
def test_permuting_teachers_permutes_their_weights_and_nothing_else(divergence):
    student, own, heard, where = scene(140, 21, [5, 3, 7], loss_share=0.6, tasks=2)
    prior = TaskPrior({"t": {"a": 3, "b": 1, "c": 2}})
    safety = Tilt({"a": 1.0, "c": 0.5})
    order = [2, 0, 1]
    straight = Pipeline.of(prior * STACK, ["a", "b", "c"], ["t", "u"], floor=0.05, safety=safety)
    turned = Pipeline.of(prior * STACK, ["c", "a", "b"], ["t", "u"], floor=0.05, safety=safety)
    one, d_hidden, d_weight = run(student, own, heard, where, straight, divergence)
    two, d_hidden2, d_weight2 = run(student, own, [heard[k] for k in order], where, turned, divergence)
    torch.testing.assert_close(two.log_w, one.log_w[:, order], rtol=0, atol=2e-6)
    torch.testing.assert_close(two.loss, one.loss)
    torch.testing.assert_close(two.divergence, one.divergence, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(d_hidden2, d_hidden, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d_weight2, d_weight, rtol=1e-4, atol=1e-5)


def test_permuting_positions_permutes_what_is_decided_at_each_of_them():
    n, v = 150, 21
    bound = pipeline(2, Softmax(2.0)(Entropy(spread=3)) * Softmax(3.0)(LabelLikelihood(spread=4)))
    student, own, heard, where = scene(n, v, [5, 3], loss_share=0.6)
    order = torch.randperm(n)
    small = rows_per_chunk(v, 2, 128)
    one, d_hidden, d_weight = run(student, own, heard, where, bound, loss_bytes=small)
    moved = [HiddenStates(t.hidden[order], t.head) for t in heard]
    two, d_hidden2, d_weight2 = run(student[order], own, moved, where.at(order), bound, loss_bytes=small)
    torch.testing.assert_close(two.log_w, one.log_w[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(two.divergence, one.divergence[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(two.loss, one.loss)
    torch.testing.assert_close(d_hidden2, d_hidden[order], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d_weight2, d_weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [128, 129, 200, 257, 500])
def test_the_split_into_chunks_changes_nothing(rows):
    given = scene(513, 13, [5, 3], loss_share=0.5, documents=4)
    whole, d_hidden, d_weight = run(*given, pipeline(2))
    parts, d_hidden2, d_weight2 = run(*given, pipeline(2), loss_bytes=rows_per_chunk(13, 2, rows))
    torch.testing.assert_close(parts.log_w, whole.log_w, rtol=0, atol=2e-6)
    torch.testing.assert_close(parts.loss, whole.loss)
    torch.testing.assert_close(d_hidden2, d_hidden, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d_weight2, d_weight, rtol=1e-4, atol=1e-5)


def test_chunks_never_have_fewer_rows_than_matrix_products_like():
    seen = []

    def decide(noticed, carry):
        seen.append(len(noticed.positions))
        return torch.zeros(seen[-1], 1), carry

    distil(*scene(300, 13, [4], 4), decide, ForwardKL(), loss_bytes=1)
    assert seen == [128, 128, 44]


def of_labels(heard, where):
    log_p = [reference.logits(t.hidden, t.head).log_softmax(-1) for t in heard]
    return torch.stack([x.gather(1, where.target[:, None])[:, 0] for x in log_p], -1)


def test_prompts_carry_evidence_but_no_loss():
    n, v = 60, 13
    student, own, heard = hidden(n, 5, seed=1), head(v, 5, seed=2), outputs(n, v, [5, 3], size=2.0)
    has_loss = torch.arange(n) >= 40
    full = Positions.of(torch.randint(v, (n,)), has_loss, has_target=torch.ones(n, dtype=torch.bool))
    out, d_hidden, _ = run(student, own, heard, full, pipeline(2, PrefixPosterior(0.05)))
    assert out.count == 20
    assert (out.divergence[:40] == 0).all()
    assert (out.cross_entropy[:40] == 0).all()
    assert (d_hidden[:40] == 0).all()
    log_p = of_labels(heard, full)
    expected = reference.fixed_share(log_p, full.document_start.tolist(), 0.05)
    torch.testing.assert_close(out.log_w.double(), expected, rtol=0, atol=1e-5)
    blind = reference.fixed_share(log_p[40:], [True] + [False] * 19, 0.05)
    assert (out.log_w[40:].double() - blind).abs().max() > 0.1


@pytest.mark.parametrize("rows", [128, 150])
def test_the_posterior_is_carried_across_chunks_and_starts_anew_at_each_document(rows):
    n, v = 400, 13
    student, own, heard = hidden(n, 5, seed=1), head(v, 5, seed=2), outputs(n, v, [5, 3], size=2.0)
    start = torch.zeros(n, dtype=torch.bool)
    start[[0, 5, 127, 128, 129, 256, 300]] = True
    where = Positions.of(
        torch.randint(v, (n,)), torch.rand(n) < 0.5, has_target=torch.ones(n, dtype=torch.bool), document_start=start
    )
    out, _, _ = run(
        student, own, heard, where, pipeline(2, PrefixPosterior(0.02)), loss_bytes=rows_per_chunk(v, 2, rows)
    )
    expected = reference.fixed_share(of_labels(heard, where), start.tolist(), 0.02)
    torch.testing.assert_close(out.log_w.double(), expected, rtol=0, atol=1e-5)
    assert (out.log_w[start] == out.log_w[start][:, :1]).all()


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.2), ReverseKL(temperature=2.0)])
@pytest.mark.parametrize("stack", [STACK, Uniform(), Softmax(0.1)(StudentGap())], ids=repr)
def test_identical_teachers_equal_one_teacher(divergence, stack):
    n, v = 140, 21
    student, own, (teacher,), where = scene(n, v, [6], loss_share=0.7)
    one, d_hidden, d_weight = run(student, own, [teacher], where, pipeline(1, stack), divergence)
    three, d_hidden3, d_weight3 = run(student, own, [teacher] * 3, where, pipeline(3, stack), divergence)
    torch.testing.assert_close(three.loss, one.loss)
    torch.testing.assert_close(three.divergence, one.divergence, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(d_hidden3, d_hidden, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(d_weight3, d_weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(three.log_w.exp(), torch.full((n, 3), 1 / 3), rtol=0, atol=1e-6)


def test_a_teacher_that_equals_the_student_costs_nothing():
    n, v = 50, 21
    student, own = hidden(n, 5, seed=1).double(), head(v, 5, seed=2, dtype=torch.float64)
    out, d_hidden, _ = run(student, own, [HiddenStates(student, own)], positions(n, v), pipeline(1), ForwardKL())
    assert abs(out.loss.item()) < 1e-9
    assert d_hidden.abs().max() < 1e-12


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where_bad", [3, 131, 199])
@pytest.mark.parametrize("loss_share", [0.0, 0.5, 1.0])
def test_a_teacher_that_is_not_finite_is_named_with_its_row(bad, where_bad, loss_share):
    student, own, heard, where = scene(200, 21, [5, 3], loss_share=loss_share)
    heard[1].hidden[where_bad, 0] = bad
    with pytest.raises(NonFiniteError) as caught:
        run(student, own, heard, where, pipeline(2), loss_bytes=rows_per_chunk(21, 2, 128))
    assert (caught.value.teacher, caught.value.row) == (1, where_bad)
    assert "teacher 1" in str(caught.value)


def test_one_logit_of_minus_infinity_is_not_passed_over():
    student, own, (heard,), where = scene(10, 21, [5])
    bias = torch.zeros(21)
    bias[4] = -math.inf
    with pytest.raises(NonFiniteError) as caught:
        run(student, own, [HiddenStates(heard.hidden, Head(heard.head.weight, bias))], where, pipeline(1))
    assert (caught.value.teacher, caught.value.row) == (0, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_student_that_is_not_finite_is_named_with_its_row(bad):
    student, *others = scene(200, 21, [5])
    student[150, 2] = bad
    with pytest.raises(NonFiniteError, match="the student is not finite at row 150") as caught:
        run(student, *others, pipeline(1), loss_bytes=1)
    assert (caught.value.teacher, caught.value.row) == (None, 150)


@pytest.mark.parametrize("n", [0, 10])
@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.5), ReverseKL()])
def test_a_batch_without_loss_costs_nothing_and_gives_zero_gradients(n, divergence):
    v = 21
    student, own, heard = hidden(n, 5, seed=1), head(v, 5, seed=2, bias=True), outputs(n, v, [5, 5])
    out, d_hidden, d_weight = run(
        student, own, heard, positions(n, v, loss_share=0.0, documents=min(n, 1)), pipeline(2), divergence
    )
    assert (out.loss.item(), out.count, len(out.log_w)) == (0.0, 0, n)
    assert (d_hidden == 0).all()
    assert (d_weight == 0).all()
    assert out.statistics.entropy.shape == (n, 2)


def test_padded_rows_of_the_head_get_no_gradient():
    n, v = 20, 11
    student, own = hidden(n, 5, seed=1), head(v, 5, seed=2, padded=6, bias=True)
    h, top = trained(student, own)
    distil(
        h, top, outputs(n, v, [5], padded=3), positions(n, v), pipeline(1).decide, ForwardKL(), needs=STACK.needs
    ).loss.backward()
    assert (top.weight.grad[v:] == 0).all()
    assert (top.bias.grad[v:] == 0).all()
    assert (top.weight.grad[:v] != 0).any()


def test_without_gradients_the_loss_is_the_same_and_inputs_stay_as_they_were():
    student, own, heard, where = scene(140, 21, [5, 5])
    before = [student.clone(), own.weight.clone(), *(t.hidden.clone() for t in heard)]
    with_gradient, _, _ = run(student, own, heard, where, pipeline(2))
    without = distil(student, own, heard, where, pipeline(2).decide, ForwardKL(ce=0.1), needs=STACK.needs)
    assert with_gradient.loss.item() == without.loss.item()
    assert not without.loss.requires_grad
    for old, new in zip(before, [student, own.weight, *(t.hidden for t in heard)], strict=True):
        assert (old == new).all()


class Converted(TorchDispatchMode):
    """How often something of a shape is converted."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.times = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten._to_copy:
            self.times += args[0].shape == self.shape
        return function(*args, **(kwargs or {}))


def test_under_autocast_the_head_is_converted_once_and_not_once_a_chunk():
    n, v = 700, 33
    h, top = trained(hidden(n, 8, seed=1), head(v, 8, seed=2))
    with torch.autocast("cpu", torch.bfloat16), Converted(top.weight.shape) as seen:
        given = outputs(n, v, [5]), positions(n, v), pipeline(1).decide, ForwardKL()
        out = distil(h, top, *given, needs=ALL, loss_bytes=1)
    assert seen.times == 1
    out.loss.backward()
    assert top.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.2), ReverseKL()])
def test_autocast_halves_the_matrix_products_and_not_the_sums(divergence):
    n, v = 200, 31
    student, own = hidden(n, 8, seed=1), head(v, 8, seed=2, size=0.5)
    heard, where, bound = outputs(n, v, [8, 5], size=0.5), positions(n, v), pipeline(2)
    with torch.autocast("cpu", torch.bfloat16):
        cast, _, _ = run(student, own, heard, where, bound, divergence)
    rounded = [student.bfloat16(), Head(own.weight.bfloat16())]
    alone, _, _ = run(*rounded, heard, where, bound, divergence)
    torch.testing.assert_close(cast.loss, alone.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(cast.statistics.entropy, alone.statistics.entropy, rtol=0, atol=1e-6)
    truth = reference.statistics(
        torch.zeros(n, v), [reference.logits(t.hidden, t.head) for t in heard], where, frozenset({"entropy"})
    )
    torch.testing.assert_close(cast.statistics.entropy.double(), truth.entropy, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"heard": []}, "at least one teacher"),
        ({"heard": outputs(11, 21, [5])}, "teacher 0 speaks of 11 positions, the student of 10"),
        ({"heard": outputs(10, 20, [5])}, "teacher 0 has 20 vocabulary entries, the student 21"),
        ({"where": positions(9, 21)}, "9 positions are described, the student has 10"),
        ({"needs": frozenset({"charm"})}, r"unknown statistics \['charm'\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, sentence):
    student, own, heard, where = scene(10, 21, [5])
    heard, where, needs = ({"heard": heard, "where": where, "needs": STACK.needs} | change).values()
    with pytest.raises(ValueError, match=sentence):
        distil(student, own, heard, where, pipeline(1).decide, ForwardKL(), needs=needs)


@pytest.mark.parametrize("bad", [{"temperature": 0.0}, {"temperature": -1.0}, {"ce": -0.1}, {"ce": 1.5}])
@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
def test_settings_out_of_range_are_refused(divergence, bad):
    with pytest.raises(ValueError, match=r"must be > 0|must lie in"):
        divergence(**bad)
