"""What the loop over chunks asks of a GPU: launches are counted, and a wait for the device fails.

The device is a made-up one, whose tensors have shapes and no numbers: to look at a number is an error there, and so is
to make a tensor from a list, to index by a mask, or to mix devices. The same is counted under Triton's interpreter.
"""

import math
from collections import Counter
from dataclasses import replace

import pytest
import stacks
import torch
from cases import head, hidden, outputs, positions
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from polydistill.logprobs import STATISTICS, Head, HiddenStates, Informed, KnownStatistics, Positions
from polydistill.objective import ForwardKL, ReverseKL, deciding, distil, loop
from polydistill.objective.distil import _beside
from polydistill.objective.kernels import Fused, fused, triton_passes
from polydistill.safety import tiers
from polydistill.simplex import nothing_is_asked

# numpy, in which the interpreter computes, remarks on `0 * inf` where a mask drops the result.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
MOST = 60
"""Launches per chunk, of four teachers."""

# fmt: off
NO_LAUNCH = frozenset((
    "view", "_unsafe_view", "_reshape_alias", "reshape", "expand", "unsqueeze", "squeeze", "select", "slice", "t",
    "transpose", "permute", "detach", "alias", "as_strided", "split", "split_with_sizes", "unbind", "diagonal",
    "view_as", "empty", "new_empty", "empty_like", "empty_strided", "device",
))
# fmt: on
WAITS = frozenset(("_local_scalar_dense", "nonzero", "masked_select", "unique2", "equal", "is_nonzero", "lift_fresh"))
N, V, D, K, ROWS = 512, 211, 16, len(stacks.TEACHERS), 128


@pytest.fixture(scope="module")
def card():
    _setup_privateuseone_for_python_backend("card")
    return torch.device("card:0")


class Launches(TorchDispatchMode):
    """Operations by name while `on`; a move between devices counts as a wait."""

    def __init__(self):
        super().__init__()
        self.found, self.on = Counter(), False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if self.on and name not in NO_LAUNCH:
            moved = name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device)
            masked = name.startswith("index") and any(
                isinstance(x, torch.Tensor) and x.dtype == torch.bool for x in args[1] if not isinstance(args[1], int)
            )
            if name in WAITS or moved or masked:
                raise AssertionError(f"{name} waits for the device")
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    """Counts in the loop: passes and graphs as one launch each."""
    counted, run, loop_of = Launches(), triton_passes.launch, loop._all_chunks

    def launch(kernel, grid, *arguments, **settings):
        counted.found["pass"] += counted.on
        on, counted.on = counted.on, False
        if all(isinstance(x, int | float) or x.device.type == "cpu" for x in arguments):
            run(kernel, grid, *arguments, **settings)
        counted.on = on

    def graph(decide, statistics, carry):
        counted.found["graph"] += 1
        on, counted.on = counted.on, False
        found = decide(statistics, carry)
        counted.on = on
        return found

    def chunks(*arguments):
        counted.on = True
        loop_of(*arguments)
        counted.on = False

    monkeypatch.setattr(triton_passes, "launch", launch)
    monkeypatch.setattr(loop, "_all_chunks", chunks)
    monkeypatch.setattr(deciding, "_compiled", lambda: graph)
    monkeypatch.setattr(loop, "_adds_wider", lambda device, dtype: device.type == "card")
    monkeypatch.setattr(tiers, "_kept", lambda x, dtype, device: torch.zeros(len(x), dtype=dtype, device=device))
    return counted


def on_card(pipeline, card, divergence, needs, known=False):
    """A task whose every tensor is on the card; of the second teacher some statistics may be known."""
    for module in pipeline.stack.modules():
        for kind in (module._buffers, module._parameters):
            for name, value in kind.items():
                kind[name] = torch.empty(value.shape, dtype=value.dtype, device=card)
    half = {"dtype": torch.bfloat16, "device": card}
    kinds = (torch.long, torch.bool, torch.bool, torch.bool, torch.long, torch.long, torch.float32)
    where = Positions(*(torch.zeros(N, dtype=kind, device=card) for kind in kinds))
    teachers = [HiddenStates(torch.empty(N, D, **half), Head(torch.empty(V, D, **half))) for _ in range(K)]
    if known:
        number = torch.empty(N, device=card)
        teachers[1] = Informed(teachers[1], KnownStatistics(label_log_prob=number, entropy=number))
    student, own = torch.empty(N, D, **half), Head(torch.empty(V, D, **half))
    return loop.Task(student, own, teachers, where, pipeline.decide, divergence, needs)


def cut(task, silent, card):
    """Chunks; some positions of each without loss."""
    found = []
    for start in range(0, N, ROWS):
        rows, index = slice(start, start + ROWS), torch.empty(ROWS - silent, dtype=torch.long, device=card)
        quiet = torch.empty(silent, dtype=torch.long, device=card)
        found.append(loop.Chunk(rows, task.positions.at(rows), index, index if silent else rows, quiet))
    return found


def of_loop(task, silent, card, launches, trained=(True, True, False), decide=None):
    """Launches per chunk."""
    with torch.no_grad(), nothing_is_asked():
        kernel, gradients = Fused(task.call(ROWS, True)), loop.Gradients.zeros(task.hidden, task.head, trained)
        notes = loop.Notes(torch.zeros((), dtype=torch.float64, device=card))
        task, parts = replace(task, decide=decide or deciding.whole(task.decide)), cut(task, silent, card)
        loop._all_chunks(task, kernel, parts, gradients, notes)
    return {name: number / len(parts) for name, number in launches.found.items()}


@pytest.mark.parametrize("divergence", [ForwardKL(ce=0.1), ReverseKL(temperature=2.0)], ids=repr)
@pytest.mark.parametrize("silent", [0, 5])
@pytest.mark.parametrize("everything", [False, True])
def test_a_chunk_is_few_launches_and_nothing_in_it_waits(divergence, silent, everything, card, launches):
    pipeline = stacks.everything(stacks.ORDERS[2]) if everything else stacks.full()
    with FakeTensorMode(), launches:
        needs = frozenset(STATISTICS) if everything else pipeline.stack.needs
        found = of_loop(on_card(pipeline, card, divergence, needs, known=everything), silent, card, launches)
    assert found["graph"] == 1
    assert found["pass"] == 2 + bool(silent) + everything
    assert found["mm"] == K + 2 + bool(silent) * (K - everything)
    assert sum(found.values()) <= MOST + 40 * everything, sum(found.values())


def test_a_frozen_head_gets_no_product_and_no_room(card, launches):
    pipeline = stacks.full()
    with FakeTensorMode(), launches:
        task = on_card(pipeline, card, ForwardKL(), pipeline.stack.needs)
        found = of_loop(task, 0, card, launches, trained=(True, False, False))
        gradients = loop.Gradients.zeros(task.hidden, task.head, (True, False, False))
    assert gradients.weight is None
    assert found["mm"] == K + 2
    assert not any(name.startswith("addmm") for name in found)


def test_a_trained_heads_gradient_is_added_up_in_float32_without_a_temporary(card, launches):
    pipeline = stacks.full()
    with FakeTensorMode(), launches:
        task = on_card(pipeline, card, ForwardKL(), pipeline.stack.needs)
        found = of_loop(task, 0, card, launches)
        assert loop.Gradients.zeros(task.hidden, task.head, (True, True, False)).weight.dtype == torch.float32
    assert found["addmm"] == 1


@pytest.mark.parametrize("safety", stacks.ORDERS, ids=lambda x: f"{type(x).__name__} {getattr(x, 'low', '')}")
def test_no_operator_waits_where_there_is_no_compiler(safety, card, launches):
    pipeline = stacks.everything(safety)
    with FakeTensorMode(), launches:
        task = on_card(pipeline, card, ForwardKL(), pipeline.stack.needs)
        of_loop(task, 5, card, launches, decide=pipeline.decide)


def test_a_teacher_on_another_device_is_brought_beside_the_student(card):
    with FakeTensorMode():
        head = Head(torch.empty(5, 3, device=card), torch.empty(5, device=card))
        far = Informed(HiddenStates(torch.empty(4, 3, device=card), head), KnownStatistics())
        near = _beside(far, torch.empty(4, 2)).says
        assert {x.device.type for x in (near.hidden, near.head.weight, near.head.bias)} == {"cpu"}
        assert _beside(near, torch.empty(4, 2)) is near


def test_it_counts_and_sees_waits(card, launches):
    pipeline = stacks.full()
    with FakeTensorMode(), launches:
        task = on_card(pipeline, card, ForwardKL(), frozenset())
        for wait in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x.cpu(), lambda x: x + float(x.max()),
                     lambda x: torch.tensor([1.0], device=x.device)):  # fmt: skip
            with pytest.raises(Exception, match=r"waits for|_local_scalar_dense|nonzero|empty_strided"):
                of_loop(task, 0, card, launches, decide=lambda s, carry, wait=wait: wait(s.label_log_prob))


def test_the_same_is_counted_under_the_interpreter(launches, monkeypatch):
    monkeypatch.setattr(fused, "LISTEN", (64, 4))
    monkeypatch.setattr(fused, "PULL", (64, 4))
    monkeypatch.setattr(loop, "pays", lambda call: True)
    assert fused.missing(torch.device("cpu")) is None
    n, v, pipeline = 260, 61, stacks.full()
    student, own = hidden(n, 8, seed=1, dtype=torch.bfloat16), head(v, 8, seed=2, dtype=torch.bfloat16)
    teachers, where = outputs(n, v, [8] * K, dtype=torch.bfloat16), positions(n, v, tasks=2)
    with launches:
        out = distil(student.requires_grad_(), own, teachers, where, pipeline.decide, ForwardKL(ce=0.1),
                     needs=pipeline.stack.needs, loss_bytes=1)  # fmt: skip
    chunks = launches.found["graph"]
    assert chunks == math.ceil(n / 128)
    assert sum(launches.found.values()) <= MOST * chunks, launches.found
    assert torch.isfinite(out.loss)
