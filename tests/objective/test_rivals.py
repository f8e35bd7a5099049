"""The same numbers as the single-teacher divergence of trl, and far less memory than full logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import head, hidden, outputs, positions
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

from polydistill.logprobs import Head
from polydistill.objective import ForwardKL, ReverseKL, distil
from polydistill.objective.kernels import release


def constant(s, carry):
    return torch.zeros(len(s.positions), 1), carry


@pytest.mark.parametrize(("divergence", "beta"), [(ForwardKL, 0.0), (ReverseKL, 1.0)])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"scale": 0.5, "softcap": 5.0}], ids=lambda o: " ".join(o))
def test_one_teacher_equals_the_divergence_of_trl(divergence, beta, temperature, options):
    n, v = 300, 97
    student, own = hidden(n, 12, seed=1), head(v, 12, seed=2, size=0.4, **options)
    (teacher,) = outputs(n, v, [20], size=0.4, **options)
    where = positions(n, v)

    def leaves():
        made = [student.clone(), own.weight.clone(), torch.zeros(v) if own.bias is None else own.bias.clone()]
        return [x.requires_grad_() for x in made]

    h, weight, bias = leaves()
    top = Head(weight, bias, own.scale, own.softcap)
    distil(h, top, [teacher], where, constant, divergence(temperature)).loss.backward()
    ours = distil(h, top, [teacher], where, constant, divergence(temperature)).divergence

    h2, weight2, bias2 = leaves()
    t = teacher.head
    theirs, _ = ChunkedDivergenceFunction.apply(
        *(h2, weight2, bias2),
        *(teacher.hidden, t.weight, t.bias),
        *(beta, temperature),
        *(own.scale, own.softcap, t.scale, t.softcap),
    )
    theirs.sum().backward()
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=4e-6)
    torch.testing.assert_close(h.grad, h2.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight.grad, weight2.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, bias2.grad, rtol=1e-5, atol=1e-5)


MEASURE = """
import json, sys
sys.path.insert(0, sys.argv[2])
import torch
from cases import head, hidden, positions, outputs
from reference import objective
from polydistill.objective import ForwardKL, distil
torch.set_num_threads(1)
def peak():  # of this program; getrusage would tell that of the test process that it was forked from, if larger
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
def run(n, v, d=16, k=4):
    teachers, where = outputs(n, v, [d] * k), positions(n, v)
    student, own = hidden(n, d, seed=1).requires_grad_(), head(v, d, seed=2)
    weight = own.weight.requires_grad_()
    log_w = torch.full((n, k), 1 / k).log()
    before = peak()
    if sys.argv[1] == "fused":
        decide = lambda s, c: (log_w[: len(s.positions)], c)
        loss = distil(student, own, teachers, where, decide, ForwardKL(), loss_bytes=1).loss
    else:
        loss = objective(student @ weight.T, [t.hidden @ t.head.weight.T for t in teachers], log_w, where)[0]
    loss.backward()
    return (peak() - before) * 1024, loss.item()
run(300, 40)  # what is loaded at first use, and the threads of a backward pass, would count, too
n, v = 4096, 4000
extra, loss = run(n, v)
print(json.dumps({"extra": extra, "loss": loss, "one": n * v * 4}))
"""


def measure(which):
    tests = str(Path(__file__).parents[1])
    # Without a compiler, which would count, too, and with blocks that malloc gives back once they are freed.
    plain = {**os.environ, "POLYDISTILL_COMPILE": "0", "MALLOC_MMAP_THRESHOLD_": "131072"}
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, which, tests], env=plain, capture_output=True, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.long  # two processes with imports of their own
def test_full_logits_never_exist_so_that_the_peak_is_a_small_share_of_the_naive_one():
    fused, naive = measure("fused"), measure("naive")
    assert fused["loss"] == pytest.approx(naive["loss"], rel=1e-5)
    assert fused["extra"] < 0.6 * fused["one"], "less than one [N, V]"
    assert fused["extra"] < 0.06 * naive["extra"]


def test_no_tensor_of_all_positions_by_the_vocabulary_is_ever_made():
    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, torch.Tensor):
                    Watch.largest = max(Watch.largest, x.numel())
            return out

    n, v, k = 1024, 300, 3
    student, own = hidden(n, 4, seed=1).requires_grad_(), head(v, 4, seed=2)
    heard, where = outputs(n, v, [4] * k), positions(n, v, loss_share=0.8)

    def even(s, carry):
        return torch.zeros(len(s.positions), k) - 1.0986, carry

    release()  # what earlier, larger calls left to be used again is not this call's
    with Watch():
        distil(student, own, heard, where, even, ForwardKL(ce=0.1), loss_bytes=1).loss.backward()
    assert 128 * v <= Watch.largest <= (k + 3) * 128 * v < n * v
