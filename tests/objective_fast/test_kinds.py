import math
import os

import forked
import pytest
import torch
from cases import head, hidden, outputs, positions
from hypothesis import given, settings
from hypothesis import strategies as st
from system import need

from polydistill.logprobs import STATISTICS, Dense, Head, HiddenStates, Sparse
from polydistill.objective import ForwardKL, NonFiniteError, ReverseKL, distil
from polydistill.objective.kernels import Call, Plain, kernel_for, tiled
from polydistill.objective.kernels.tiled import SWITCH
from polydistill.objective.kernels.tiles import Tiles
from polydistill.pipeline import Pipeline
from polydistill.weighting import PrefixPosterior, Softmax
from polydistill.weighting.signals import Entropy

N, V = 150, 37


def run(heard, divergence=None, n=N, v=V, loss_bytes=None, **where):
    names = [f"t{k}" for k in range(len(heard))]
    bound = Pipeline.of(PrefixPosterior(0.05) * Softmax(2.0)(Entropy(spread=4)), names)
    student, weight = hidden(n, 6, seed=1).requires_grad_(), head(v, 6, seed=2).weight.requires_grad_()
    out = distil(
        student, Head(weight), heard, positions(n, v, **where), bound.decide, divergence or ForwardKL(ce=0.1),
        needs=frozenset(STATISTICS), loss_bytes=loss_bytes,
    )  # fmt: skip
    out.loss.backward()
    return out, student.grad, weight.grad


def same(one, other, tolerance=2e-5):
    for a, b in zip(one[1:], other[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one[0].loss, other[0].loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(one[0].log_w, other[0].log_w, rtol=tolerance, atol=tolerance)
    for (_, a), (_, b) in zip(one[0].statistics.measured(), other[0].statistics.measured(), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=5 * tolerance)


def dense(teacher):
    return Dense(teacher.head.logits(teacher.hidden).log_softmax(-1))


def completed(sparse):
    """The distribution that a truncated one stands for, entry by entry."""
    n, s = sparse.ids.shape
    rest = sparse.log_tail - math.log(sparse.vocabulary - s)
    full = rest[:, None].repeat(1, sparse.vocabulary)
    for i in range(n):
        full[i, sparse.ids[i]] = sparse.log_p[i]
    return Dense(full)


@pytest.mark.slow
@settings(max_examples=20)
@given(
    kinds=st.lists(st.sampled_from(["outputs", "dense", "sparse"]), min_size=1, max_size=16),
    stored=st.integers(1, V - 1),
    loss_share=st.sampled_from([0.0, 0.4, 1.0]),
    reverse=st.booleans(),
    seed=st.integers(0, 100),
)
def test_kinds_of_teachers_mix_in_one_call(kinds, stored, loss_share, reverse, seed):
    mixed, plain = [], []
    for kind, teacher in zip(kinds, outputs(N, V, [5] * len(kinds), seed=seed), strict=True):
        known = dense(teacher)
        best = known.log_p.topk(stored, -1)
        truncated = Sparse.of(best.indices, best.values, V)
        mixed.append({"outputs": teacher, "dense": known, "sparse": truncated}[kind])
        plain.append(completed(truncated) if kind == "sparse" else known)
    divergence = ReverseKL() if reverse else ForwardKL(ce=0.1)
    where = {"loss_share": loss_share, "documents": 3, "seed": seed}
    same(run(mixed, divergence, loss_bytes=1, **where), run(plain, divergence, **where), tolerance=5e-4)


def test_the_tail_of_a_truncated_teacher_keeps_its_mass():
    known = dense(outputs(N, V, [5])[0])
    best = known.log_p.topk(5, -1)
    out = torch.empty(N, V)
    Sparse.of(best.indices, best.values, V).write(slice(0, N), out)
    torch.testing.assert_close(out.exp().sum(-1), torch.ones(N))
    torch.testing.assert_close(out.gather(1, best.indices), best.values)


def test_a_truncated_teacher_without_a_tail_stays_finite():
    ids = torch.arange(3).repeat(N, 1)
    sure = Sparse(ids, torch.full((N, 3), 1 / 3).log(), torch.full((N,), -math.inf), V)
    out, gradient, _ = run([sure, outputs(N, V, [5])[0]], ReverseKL())
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient).all()


def test_a_truncated_teacher_cannot_be_tempered():
    ids = torch.arange(3).repeat(N, 1)
    with pytest.raises(ValueError, match="cannot be tempered exactly"):
        run([Sparse.of(ids, torch.full((N, 3), 0.3).log(), V)], ForwardKL(temperature=2.0))


def test_minus_infinity_in_a_dense_teacher_is_named():
    known = dense(outputs(N, V, [5])[0]).log_p.clone()
    known[7, 3] = -math.inf
    with pytest.raises(NonFiniteError, match="teacher 0 is not finite at row 7"):
        run([Dense(known)])


def test_half_precision_log_probabilities_are_read_as_they_are():
    known = dense(outputs(N, V, [5])[0]).log_p.bfloat16()
    same(run([Dense(known)]), run([Dense(known.float())]))


@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 96, 150])
@pytest.mark.parametrize("tiles", [Tiles(7), Tiles(7, (32,)), Tiles(200), Tiles(3, (1,)), Tiles(5, (64, 8))])
def test_tiles_cover_every_row_once(rows, tiles):
    found = list(tiles.of(rows))
    assert [i for tile in found for i in range(rows)[tile.new]] == list(range(rows))
    for tile in found:
        assert tile.rows.stop == tile.new.stop
        assert 0 <= tile.rows.start <= tile.new.start
        size = tile.rows.stop - tile.rows.start
        assert size <= tiles.reach
        assert size in tiles.compiled if tile.compiled else tile.rows == tile.new
    (double,) = tiles.over(rows, lambda tile: (2 * torch.arange(rows)[tile.rows],))
    assert double.tolist() == [2 * i for i in range(rows)]


def call(vocabulary, positions):
    cpu = torch.device("cpu")
    return Call(cpu, torch.float32, 128, vocabulary, 3, positions, ForwardKL(), frozenset(), False)


def test_the_switch_and_the_size_decide_about_compiling(monkeypatch):
    small, large = call(32_000, 700), call(32_000, 800)
    monkeypatch.delenv(SWITCH, raising=False)
    assert type(kernel_for(small)) is Plain
    assert isinstance(kernel_for(large), tiled.Tiled)
    assert tiled.Tiled.cut(large).compiled == (32,)
    assert tiled.Tiled.cut(call(2048, 10**5)).compiled == (512, 64)
    monkeypatch.setenv(SWITCH, "0")
    assert type(kernel_for(large)) is Plain
    monkeypatch.setenv(SWITCH, "1")
    assert isinstance(kernel_for(call(100, 1)), tiled.Tiled)


def test_without_a_compiler_the_plain_pass_runs(monkeypatch):
    class BrokenError(Exception):
        __module__ = "torch._inductor.exc"

    def broken(*arguments):
        raise BrokenError("no compiler")

    monkeypatch.setattr(tiled, "_compiled", lambda function, dynamic: broken)
    monkeypatch.setattr(tiled._Compiler, "works", True)
    assert tiled.run(lambda x: x + 1, True, 1) == 2
    assert not tiled._Compiler.works
    monkeypatch.setattr(tiled._Compiler, "works", True)


def test_storage_is_lent_to_one_call_at_a_time():
    from polydistill.objective.kernels.storage import borrow, give_back, release

    cpu = torch.device("cpu")
    release()
    first = borrow((2, 8), torch.float32, cpu)
    second = borrow((2, 8), torch.float32, cpu)
    assert first.data_ptr() != second.data_ptr()
    give_back(first, second)
    again = borrow((4, 4), torch.float32, cpu)
    assert again.data_ptr() in (first.data_ptr(), second.data_ptr())
    assert borrow((2, 8), torch.float64, cpu).dtype == torch.float64
    release()


@pytest.mark.long  # the compiler alone takes 18 s
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.1), ReverseKL(temperature=2.0)], ids=["forward", "reverse"])
def test_compiled_passes_agree_with_plain_ones(divergence, tmp_path):
    need("compiler")
    difference, works = compiled_and_plain(divergence, tmp_path)
    assert works
    assert difference < 1e-4


@pytest.mark.long  # the compiler's
@pytest.mark.parametrize("device", ["cpu", "as on a GPU"])
def test_compiled_passes_are_one_graph_for_batches_of_all_lengths(device, tmp_path):
    need("compiler")
    script = tmp_path / "lengths.py"
    script.write_text(("" if device == "cpu" else CHUNKS) + LENGTHS)
    done = forked.run([script], env={**os.environ, "POLYDISTILL_COMPILE": "1"})
    assert done.returncode == 0, done.stderr
    first, second, *later = map(int, done.stdout.split())
    assert 0 < first <= second
    assert set(later) == {second}
    assert device != "cpu" or first == second


@pytest.mark.slow
def test_a_machine_without_a_compiler_and_a_home_computes_plainly(tmp_path):
    bare = {"PATH": str(tmp_path), "HOME": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    difference, works = compiled_and_plain(ForwardKL(ce=0.1), tmp_path, **bare)
    assert not works
    assert difference == 0.0


def compiled_and_plain(divergence, folder, **environment):
    """How far compiled passes are from plain ones in a process of their own, and whether there was a compiler."""
    script = folder / "both.py"
    script.write_text(COMPILED.format(rule=repr(divergence)))
    env = {**{k: v for k, v in os.environ.items() if k not in ("CC", "CXX")}, **environment} if environment else None
    done = forked.run([script], env=env)
    assert done.returncode == 0, done.stderr
    difference, works = done.stdout.split()[-2:]
    return float(difference), works == "True"


CHUNKS = """
from polydistill.objective.kernels import tiled
from polydistill.objective.kernels.tiles import Tiles
tiled.Tiled.cut = staticmethod(lambda call: Tiles(call.rows, (call.rows,)))
tiled.Tiled.run = lambda self, function, tile, *given: tiled.run(function, tile.compiled, *given, any_length=True)
"""

LENGTHS = """
import torch
from torch._dynamo.utils import counters
from polydistill.logprobs import Head, HiddenStates, Positions
from polydistill.objective import ForwardKL, distil
v, heads = 64, [Head(torch.randn(64, 8)) for _ in range(3)]
for n in (700, 733, 801, 650):
    h, every = torch.randn(n, 8).requires_grad_(), torch.ones(n, dtype=torch.bool)
    where = Positions.of(torch.randint(v, (n,)), every, has_target=every)
    log_w = torch.randn(n, 2).log_softmax(-1)
    heard = [HiddenStates(torch.randn(n, 8), head) for head in heads[1:]]
    distil(h, heads[0], heard, where, lambda s, c: (log_w[: len(s.positions)], c), ForwardKL(ce=0.1))
    print(counters["stats"]["unique_graphs"])
"""

COMPILED = """
import os, torch
from polydistill.logprobs import Head, Positions, HiddenStates
from polydistill.objective import ForwardKL, ReverseKL, distil
from polydistill.objective.kernels import tiled
torch.manual_seed(0)
n, v = 165, 64
h, w = torch.randn(n, 8), torch.randn(v, 8)
heard = [HiddenStates(torch.randn(n, 8), Head(torch.randn(v, 8))) for _ in range(3)]
where = Positions.of(torch.randint(v, (n,)), torch.rand(n) < 0.8, has_target=torch.ones(n, dtype=torch.bool))
log_w = torch.randn(n, 3).log_softmax(-1)
found = []
for switch in "01":
    os.environ["POLYDISTILL_COMPILE"] = switch
    a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
    out = distil(a, Head(b, None, 1.0, 4.0), heard, where, lambda s, c: (log_w[: len(s.positions)], c), {rule})
    out.loss.backward()
    found.append(torch.cat([out.loss.detach()[None] / n, a.grad.flatten(), b.grad.flatten()]))
print(float((found[0] - found[1]).abs().max()), tiled._Compiler.works)
"""


def test_a_head_of_another_width_and_dtype_is_a_teacher_too():
    wide = outputs(N, V, [9], dtype=torch.bfloat16)[0]
    same(run([wide]), run([Dense(wide.head.logits(wide.hidden))]))
    assert HiddenStates(wide.hidden, wide.head).vocabulary == V
