"""The fused kernel against the twin in double precision, the plain kernel, and trl."""

import os
import subprocess
import sys

import pytest
import torch
from cases import head, hidden, outputs, positions
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from twins import ALL, agree, both, pipeline, trained

from polydistill.logprobs import Dense, Head, HiddenStates, Informed, KnownStatistics, Positions
from polydistill.objective import JSD, Alpha, DivideThenPool, ForwardKL, Mixed, NonFiniteError, ReverseKL, distil
from polydistill.objective.kernels import Call, Fused, Plain, fused, kernel_for
from polydistill.simplex import NoActiveTeacherError
from polydistill.weighting import Softmax, TaskPrior
from polydistill.weighting.signals import StudentGap

# numpy, in which the interpreter computes, remarks on `0 * inf` where a mask drops the result.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """So that a row of some tens of entries is several blocks, the last one not full."""
    monkeypatch.setattr(fused, "LISTEN", (32, 4))
    monkeypatch.setattr(fused, "PULL", (16, 4))


def call(**changes):
    given = {"device": CPU, "dtype": torch.float32, "rows": 8, "vocabulary": 5, "teachers": 2, "positions": 8}
    given |= {"divergence": ForwardKL(), "needs": frozenset(), "with_gradient": True}
    return Call(**{**given, **changes})


def test_it_takes_what_it_supports_and_leaves_the_rest_to_the_plain_one():
    assert isinstance(kernel_for(call()), Fused)
    assert isinstance(kernel_for(call(divergence=Mixed())), Fused)
    assert isinstance(kernel_for(call(dtype=torch.float64)), Plain)
    assert isinstance(kernel_for(call(teachers=fused.MOST_TEACHERS + 1)), Plain)
    lacking = Head(torch.zeros(4, 3), visible=5, masked=torch.tensor([4]))
    assert isinstance(kernel_for(call(heads=(Head(torch.zeros(5, 3)), lacking, Head(torch.zeros(5, 3))))), Plain)


def test_without_triton_or_a_card_the_reason_is_told(monkeypatch):
    ask = fused.missing.__wrapped__
    monkeypatch.setenv(fused.SWITCH, "0")
    assert ask(CPU) == "POLYDISTILL_TRITON=0 keeps Triton out"
    monkeypatch.delenv(fused.SWITCH)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "polydistill.objective.kernels.triton_passes")
    monkeypatch.delattr("polydistill.objective.kernels.triton_passes")
    assert "Triton cannot be imported" in ask(CPU)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    for kind in ("cpu", "mps", "xpu"):
        assert ask(torch.device(kind)) == "they are written for NVIDIA's GPUs"


@pytest.mark.parametrize("divergence", [ForwardKL, ReverseKL])
@pytest.mark.parametrize(
    ("v", "n", "k", "temperature", "options"),
    [
        (41, 9, 3, 1.0, {}),
        (16, 1, 1, 1.0, {}),
        (8, 3, 9, 2.0, {}),
        (2, 2, 2, 1.0, {}),
        (41, 5, 2, 0.5, {"bias": True, "padded": 7}),
        (33, 5, 3, 2.0, {"scale": -0.5}),
        (33, 4, 2, 1.0, {"softcap": 3.0}),
        (41, 5, 3, 0.5, {"bias": True, "scale": 1.5, "softcap": 2.0, "padded": 5}),
    ],
)
def test_loss_gradients_and_statistics_are_the_twins(divergence, v, n, k, temperature, options):
    fast, slow = both(
        hidden(n, 8, seed=1), head(v, 8, seed=2, **options), outputs(n, v, [5, 8, 13] * 3, **options)[:k],
        positions(n, v, loss_share=0.7, documents=2), pipeline(k), divergence(temperature=temperature, ce=0.2),
        needs=ALL,
    )  # fmt: skip
    agree(fast, slow, 4e-6)


def test_blocks_of_the_size_that_a_card_takes(monkeypatch):
    monkeypatch.undo()
    n, v = 3, fused.LISTEN[0] + 77
    own, heard = head(v, 8, seed=2), outputs(n, v, [5, 8])
    agree(*both(hidden(n, 8, seed=1), own, heard, positions(n, v), pipeline(2), ForwardKL(), needs=ALL), 4e-6)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(), ForwardKL(temperature=0.5, ce=0.3)])
def test_gaps_of_sixty_nats_stay_finite_and_right(divergence):
    n, v = 6, 41
    sharp = outputs(n, v, [5, 8], size=12.0)
    logits = torch.stack([t.head.logits(t.hidden) for t in sharp])
    assert float((logits.amax(-1) - logits.amin(-1)).min()) > 60.0
    given = hidden(n, 8, seed=1, size=6.0), head(v, 8, seed=2), sharp, positions(n, v), pipeline(2), divergence
    agree(*both(*given, needs=ALL), 1e-5)


@pytest.mark.parametrize("loss_share", [0.0, 1.0])
@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.1), ReverseKL(), DivideThenPool(pair=JSD())], ids=repr)
def test_positions_with_and_without_loss(loss_share, divergence):
    n, v = 7, 21
    h, top = trained(hidden(n, 8, seed=1), head(v, 8, seed=2))
    out = distil(h, top, outputs(n, v, [5, 8]), positions(n, v, loss_share=loss_share), pipeline(2).decide, divergence,
                 needs=pipeline(2).stack.needs)  # fmt: skip
    out.loss.backward()
    assert (out.count == 0) == (loss_share == 0.0) == (float(out.loss.detach()) == 0.0) == (not h.grad.any())
    assert out.statistics.label_log_prob.all()


@pytest.mark.parametrize(
    "divergence", [DivideThenPool(pair=JSD(0.3)), Alpha(), Mixed(temperature=2.0, ce=0.2)], ids=repr
)
@pytest.mark.parametrize("options", [{}, {"bias": True, "scale": 1.5, "softcap": 2.0}], ids=lambda o: " ".join(o))
def test_other_divergences_run_through_the_plain_passes(divergence, options, monkeypatch):
    n, v = 7, 41
    found = []
    for supported in (True, False):
        monkeypatch.setattr(fused, "supports", lambda _, supported=supported: supported)
        monkeypatch.setattr(fused, "PLAIN_BYTES", 4 * v * 7 * 3)  # three rows at a time
        h, top = trained(hidden(n, 8, seed=1), head(v, 8, seed=2, **options))
        given = outputs(n, v, [5, 8, 13], **options), positions(n, v, loss_share=0.8), pipeline(3).decide, divergence
        out = distil(h, top, *given, needs=ALL)
        out.loss.backward()
        found.append((out.loss.detach(), out.divergence, out.cross_entropy, out.log_w, h.grad, top.weight.grad))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-5, atol=2e-5)


def rounded(n, v, k):
    student, own = hidden(n, 16, seed=1, dtype=torch.bfloat16), head(v, 16, seed=2, dtype=torch.bfloat16, size=0.5)
    return student, own, outputs(n, v, [16] * k, dtype=torch.bfloat16, size=0.5)


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.1), ReverseKL()], ids=repr)
def test_in_bfloat16_errors_are_at_most_those_of_full_logits(divergence, monkeypatch):
    """Both are compared with double precision on the products as bfloat16 leaves them.

    The interpreter cuts a number off where it becomes bfloat16 and a card rounds it, so the full logits' slope is cut
    off as well.
    """
    monkeypatch.undo()
    n, v = 8, 200
    student, own, heard = rounded(n, v, 3)
    where, weights = positions(n, v), torch.tensor([0.5, 0.3, 0.2])

    def constant(s, carry):
        return weights.log().expand(len(s.positions), 3), carry

    h, top = trained(student, own)
    out = distil(h, top, heard, where, constant, divergence)
    out.loss.backward()

    def definition(z, log_p):
        log_q, w = z.log_softmax(-1), weights.to(z.dtype)
        each = [(log_q.exp() * (log_q - p)).sum(-1) if isinstance(divergence, ReverseKL)
                else (p.exp() * (p - log_q)).sum(-1) for p in log_p]  # fmt: skip
        point = (torch.stack(each, -1) @ w).sum()
        return (1 - divergence.ce) * point - divergence.ce * log_q.gather(1, where.target[:, None]).sum()

    products = [t.hidden @ t.head.weight.T for t in heard]
    found = []
    for exact in (torch.float64, torch.float32):
        h2, top2 = trained(student, own)
        z = h2 @ top2.weight.T
        kept = z.detach().to(exact).requires_grad_()
        loss = definition(kept, [p.to(exact).log_softmax(-1) for p in products])
        (slope,) = torch.autograd.grad(loss, kept)
        given = exact if exact == torch.float64 else torch.bfloat16
        if given == torch.bfloat16:
            slope = (slope.view(torch.int32) & -65536).view(torch.float32)
        slope, weight, states = slope.to(given), own.weight.to(given), student.to(given)
        found.append((loss.detach(), slope @ weight, slope.T @ states))
    truth, full = found
    for ours, best, other in zip((out.loss.detach(), h.grad, top.weight.grad), truth, full, strict=True):
        off, allowed = (float((x.detach().double() - best).abs().max()) for x in (ours, other))
        assert off <= 1.05 * allowed + 1e-6 * float(best.abs().max())


@pytest.mark.parametrize(("divergence", "beta"), [(ForwardKL, 0.0), (ReverseKL, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_teacher_equals_the_divergence_of_trl(divergence, beta, temperature):
    n, v = 12, 97
    student, own, (teacher,) = hidden(n, 12, seed=1), head(v, 12, seed=2, size=0.4), outputs(n, v, [20], size=0.4)[:1]
    h, top = trained(student, own)
    ours = distil(h, top, [teacher], positions(n, v), pipeline(1).decide, divergence(temperature), needs=ALL)
    ours.loss.backward()
    h2, top2 = trained(student, own)
    theirs, _ = ChunkedDivergenceFunction.apply(
        h2, top2.weight, None, teacher.hidden, teacher.head.weight, None, beta, temperature
    )
    theirs.sum().backward()
    torch.testing.assert_close(ours.divergence, theirs.detach(), rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(h.grad, h2.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(top.weight.grad, top2.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("divergence", [ForwardKL(), ReverseKL(temperature=2.0)], ids=repr)
@pytest.mark.parametrize("k", [1, 4])
def test_a_student_that_equals_its_teachers_is_left_alone(divergence, k):
    student, own, _ = rounded(9, 77, 1)
    h, top = trained(student, own)
    heard = [HiddenStates(student, own)] * k
    out = distil(h, top, heard, positions(9, 77), pipeline(k, floor=0.1).decide, divergence, needs=ALL)
    out.loss.backward()
    if k == 1:
        assert float(out.loss.detach()) == 0.0
        assert not h.grad.any()
        assert not top.weight.grad.any()
    assert abs(float(out.loss.detach())) <= 1e-5
    assert float(h.grad.abs().max()) <= 1e-5


def test_a_frozen_head_gets_no_gradient():
    student, own, heard = rounded(6, 33, 2)
    h = student.clone().requires_grad_()
    distil(h, own, heard, positions(6, 33), pipeline(2).decide, ForwardKL(), needs=ALL).loss.backward()
    assert h.grad.any()
    assert own.weight.grad is None


def test_kinds_of_teachers_and_what_is_known_of_them_mix():
    n, v = 8, 21
    heard = outputs(n, v, [5, 8])
    log_p = heard[1].head.logits(heard[1].hidden).log_softmax(-1)
    known = KnownStatistics(label_log_prob=torch.full((n,), -7.0), entropy=torch.full((n,), 0.25))
    where = positions(n, v, loss_share=0.5)
    mixed = [heard[0], Informed(Dense(log_p), known)]
    out = distil(hidden(n, 8, seed=1), head(v, 8, seed=2), mixed, where, pipeline(2).decide, ForwardKL(), needs=ALL)
    assert torch.equal(out.statistics.label_log_prob[:, 1], known.label_log_prob)
    assert torch.equal(out.statistics.entropy[:, 1], torch.where(where.has_loss, 0.25, 0.0))
    plain = distil(hidden(n, 8, seed=1).double(), head(v, 8, seed=2, dtype=torch.float64), mixed, where,
                   pipeline(2).decide, ForwardKL(), needs=ALL)  # fmt: skip
    torch.testing.assert_close(out.divergence.double(), plain.divergence, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("loss_share", [0.0, 1.0])
def test_what_is_not_finite_is_refused_by_name_once_per_call(bad, loss_share):
    n, v = 7, 21
    heard = outputs(n, v, [5, 8])
    log_p = heard[1].head.logits(heard[1].hidden)
    log_p[4, 3] = bad
    given = positions(n, v, loss_share=loss_share), pipeline(2).decide, ForwardKL()
    with pytest.raises(NonFiniteError, match="teacher 1 is not finite at row 4"):
        distil(hidden(n, 8, seed=1), head(v, 8, seed=2), [heard[0], Dense(log_p)], *given, needs=ALL)
    student = hidden(n, 8, seed=1)
    student[5, 0] = bad
    if loss_share:
        with pytest.raises(NonFiniteError, match="the student is not finite at row 5"):
            distil(student, head(v, 8, seed=2), heard, *given, needs=ALL)


def test_a_position_without_an_active_teacher_is_refused_in_the_same_words():
    n, v = 7, 21
    stack = TaskPrior({"t": {"a": 1.0, "b": 0.0}}) * TaskPrior({"t": {"a": 0.0, "b": 1.0}})
    where = Positions.of(torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.bool), task=torch.zeros(n).long())
    with pytest.raises(NoActiveTeacherError, match=r"no active teacher at position \[0\]"):
        distil(hidden(n, 8, seed=1), head(v, 8, seed=2), outputs(n, v, [5, 8]), where,
               pipeline(2, stack).decide, ForwardKL())  # fmt: skip


def test_a_stack_that_reads_the_student_gets_its_gap():
    bound = pipeline(2, Softmax(1.0)(StudentGap()))
    given = hidden(6, 8, seed=1), head(33, 8, seed=2), outputs(6, 33, [5, 8]), positions(6, 33), bound, ReverseKL()
    agree(*both(*given), 4e-6)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from polydistill.objective.kernels import triton_passes as passes
kinds = dict.fromkeys(["table", "bias", "scale", "cap", "log_w", "divergence", "to_mean", "to_student"], "*fp32")
kinds |= dict.fromkeys(["inverse_t", "pull_mass", "ce"], "fp32") | {"x": "*bf16", "label": "*i64"}
on, off = ({name: value for name in ("BIAS", "SCALE", "CAP")} for value in (True, False))
for capability in (80, 90):
    for kernel, settings in [
        (passes.listen, dict(on, TEMPERED=True, WITH_MARGIN=True, BLOCK=4096)),
        (passes.compare, dict(on, K=3, MEAN=True, STUDENT=True, BLOCK=2048, WIDE=4)),
        (passes.pull, dict(off, K=3, REVERSE=False, CE=False, GRADIENT=True, BLOCK=2048)),
        (passes.pull, dict(on, K=2, REVERSE=True, CE=True, GRADIENT=True, BLOCK=2048)),
    ]:
        names = {name: "constexpr" if name in settings else kinds.get(name, "i32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature={**names, "model_stride": "i64"}, constexprs=settings)
        assert compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8}).asm["cubin"]
"""


def test_the_passes_compile_for_cards_that_are_not_here():
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=environment, check=True, timeout=100)
