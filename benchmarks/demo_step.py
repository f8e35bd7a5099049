"""Where a training step of the demo goes: the models' own forward and backward passes, and everything else.

    python benchmarks/demo_step.py [--threads 2] [--clock wall|cpu] [--json FILE]

One student of the demo's size, its three teachers, its stack and its batch; weights and tokens are random, which costs
the same. A model's own work is its layers and its output projection, with their gradients; the projections are timed
alone, as the matrix products that they are. "Everything else" is what the method adds: normalisers, signals, weights,
pooling, the loss, and the copies between them.
"""

import copy
import json
import statistics
from collections.abc import Callable
from itertools import pairwise

import torch
from measure import CLOCKS, hardware, table, timing_options
from random_models import llama
from rivals import Case, Workload, floor
from transformers import LlamaForCausalLM

from polydistill import ForwardKL, LocalTeacher
from polydistill.demo.students import STACK, StudentSettings
from polydistill.demo.teachers import ModelSize, TeacherSettings, adamw, update
from polydistill.logprobs import HiddenStates
from polydistill.objective import distil
from polydistill.teachers import head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.hearing import listen_to

PARTS = ("teachers", "student forward", "objective", "student backward", "optimizer")


def of_size(seed: int, size: ModelSize, settings: TeacherSettings) -> LlamaForCausalLM:
    """A model of the demo's shape."""
    more = {"intermediate_size": size.intermediate, "max_position_embeddings": 4 * settings.length}
    return llama(seed, settings.vocabulary, size.hidden, size.layers, size.heads, **more)


def prepare(clock: Callable[[], float]) -> tuple[Callable[[], dict[str, float]], Callable[[], float]]:
    """One step, which says how long each part took, and the projections of the same step alone."""
    told, learned = TeacherSettings(), StudentSettings()
    teachers = [LocalTeacher(name, of_size(i + 1, told.size, told)) for i, name in enumerate(STACK.teachers)]
    student = of_size(0, learned.size, told).train()
    optimizer, pipeline, divergence = adamw(student), copy.deepcopy(STACK), ForwardKL(ce=learned.ce)
    ids = torch.randint(told.vocabulary, (learned.batch, told.length), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids), ids)
    rows, positions = batch.positions(reads_prefix=True)

    def call() -> dict[str, float]:
        marks = [clock()]
        outputs = listen_to(teachers, batch, rows)
        marks.append(clock())
        hidden = last_hidden_state(student, input_ids=ids)
        marks.append(clock())
        out = distil(
            hidden.flatten(0, 1)[rows],
            head_of(student),
            outputs,
            positions,
            pipeline.decide,
            divergence,
            needs=pipeline.stack.needs,
        )
        pipeline.stack.observe(out.statistics)
        pipeline.stack.commit()
        marks.append(clock())
        (out.loss / out.count).backward()
        marks.append(clock())
        update(student, optimizer, 1e-4)
        marks.append(clock())
        return dict(zip(PARTS, (b - a for a, b in pairwise(marks)), strict=True))

    heard = listen_to(teachers, batch, rows)
    outputs = [said for said in heard if isinstance(said, HiddenStates)]
    case = Case(len(rows), told.vocabulary, learned.size.hidden, len(teachers))
    hidden = last_hidden_state(student, input_ids=ids).flatten(0, 1)[rows].detach()
    products = floor(Workload(case, hidden, head_of(student).weight.detach(), outputs, positions, pipeline))

    def projections() -> float:
        started = clock()
        products()
        return clock() - started

    return call, projections


def main() -> None:
    """Time both in turn; shares are of the median step."""
    arguments = timing_options(__doc__, threads=2, clock="wall", repeats=30).parse_args()
    torch.set_num_threads(arguments.threads)
    call, projections = prepare(CLOCKS[arguments.clock])
    for _ in range(3):
        call(), projections()
    rounds = [call() | {"projections": projections()} for _ in range(arguments.repeats)]
    parts = {name: statistics.median(row[name] for row in rounds) for name in (*PARTS, "projections")}
    step = statistics.median(sum(row[name] for name in PARTS) for row in rounds)
    rest = statistics.median(row["objective"] - row["projections"] for row in rounds)
    report = {"hardware": hardware("cpu"), "clock": arguments.clock, "step": step, **parts, "everything else": rest}
    print(report["hardware"], "\n")
    lines = [[name, f"{1e3 * report[name]:.1f}", f"{report[name] / step:.1%}"] for name in (*PARTS, "step")]
    lines += [
        [f"of the objective: {n}", f"{1e3 * report[n]:.1f}", f"{report[n] / step:.1%}"] for n in list(report)[-2:]
    ]
    print(table(["part", "ms", "share of the step"], lines))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
