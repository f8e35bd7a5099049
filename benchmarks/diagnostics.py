"""What diagnostics cost: the recorder on every step, a look at the probe batch every ten, as a share of the whole step.

    python benchmarks/diagnostics.py [--threads 1] [--clock wall|cpu] [--repeats 15] [--json FILE]

The step is that of `benchmarks/step.py` (student, K teachers, objective, backward, AdamW) with a stack that reads
prefix and entropy, a floor and a tilt. `modification` is what gradients across teachers take of the objective and its
teachers (wall clock): that is the method, not a diagnostic. Shares are medians over the rounds of one run, in which
step and diagnostics take turns.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from measure import CLOCKS, hardware, table, timing_options
from step import separate, small
from transformers import LlamaForCausalLM

from polydistill import Entropy, ForwardKL, Pipeline, PrefixPosterior, Softmax, StudentGap, Tilt
from polydistill.run.recorder import Recorder
from polydistill.teachers import LocalTeacher, head_of, last_hidden_state
from polydistill.training.batch import Batch
from polydistill.training.clock import Clock
from polydistill.training.gradient.across_teachers import AcrossTeachers, factor_of
from polydistill.training.hearing import Method, hear
from polydistill.training.step import StepOutcome, step
from polydistill.training.watch import Watch

BATCH, LENGTH, EVERY = 8, 128, 10
SIZES = {"small": (2048, 4, "V = 2,048, students of 128 x 2, teachers of 256 x 4"), "wide": (32_000, 4, "V = 32,000")}


def models(size: str, k: int) -> tuple[LlamaForCausalLM, list[LocalTeacher]]:
    vocabulary = SIZES[size][0]
    return small(0, 128, 2, vocabulary), separate(k, vocabulary)


def run(size: str, reads_student: bool, across: bool, clock: Callable[[], float], repeats: int) -> dict[str, float]:
    vocabulary, k, _ = SIZES[size]
    student, teachers = models(size, k)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3)
    torch.manual_seed(0)
    ids = torch.randint(vocabulary, (BATCH, LENGTH))
    severity = torch.rand(BATCH, 1).expand(BATCH, LENGTH)
    batch = Batch(ids, torch.ones_like(ids), ids, severity=severity)
    stack = PrefixPosterior(0.02) * Softmax(2.0)(StudentGap(4) if reads_student else Entropy(spread=4))
    surgery = AcrossTeachers("upgrad")
    stack = stack * surgery.factor() if across else stack
    pipeline = Pipeline.of(stack, [t.name for t in teachers], floor=0.02, safety=Tilt({"t0": 1.0}))
    recorder, watch = Recorder(Path(tempfile.mkdtemp())), Watch(EVERY)
    trainer = SimpleNamespace(
        pipeline=pipeline,
        constraints=None,
        watch=None,
        clock=Clock(torch.device("cpu")),
        state=SimpleNamespace(global_step=0),
    )
    seconds: dict[str, list[float]] = {"step": [], "every step": [], "look": []}
    modified = []
    method = Method(teachers, pipeline, ForwardKL(ce=0.1))
    for turn in range(repeats + 1):
        start = clock()
        hidden = last_hidden_state(student, input_ids=ids, attention_mask=batch.attention_mask)
        head = head_of(student)
        heard = hear(method, batch)
        seen = heard.of(hidden, head)
        done: StepOutcome = step(seen, heard, method)
        surgeon = clock()
        if across:
            at = seen.hidden.detach()
            surgery.observe(factor_of(pipeline), pipeline, at, head, heard.outputs, done.outcome, 1.0)
        operated = clock()
        (done.loss / done.outcome.count).backward()
        optimizer.step()
        optimizer.zero_grad()
        pipeline.stack.commit()
        stepped = clock()
        recorder(done, trainer)  # type: ignore[arg-type]
        recorded = clock()
        watch.look(student, vocabulary, teachers, pipeline, batch, turn * EVERY)
        looked = clock()
        modified.append((operated - surgeon) / (operated - start))
        if turn:  # the first round warms up, and its look lets the teachers speak
            for name, spent in zip(seconds, (stepped - start, recorded - stepped, looked - recorded), strict=True):
                seconds[name].append(spent)
    shares = [
        (every + look / EVERY) / whole
        for whole, every, look in zip(seconds["step"], seconds["every step"], seconds["look"], strict=True)
    ]
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return middle | {"share": statistics.median(shares), "modification": statistics.median(modified)}


def main() -> None:
    parser = timing_options(__doc__, threads=1, clock="wall", repeats=15)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    report: dict = {"hardware": hardware("cpu"), "clock": arguments.clock, "rows": []}
    print(report["hardware"])
    for size in arguments.sizes:
        for reads_student, across in ((False, False), (True, False), (False, True)):
            found = run(size, reads_student, across, CLOCKS[arguments.clock], arguments.repeats)
            stack = "reads the student" if reads_student else "gradient across teachers" if across else "entropy"
            report["rows"].append({"size": size, "stack": stack, **found})
    names = ["size", "stack", "step", "every step", "look", "share", "modification"]
    rows = [
        [
            f"{row[n]:.2%}"
            if n in ("share", "modification")
            else f"{row[n]:.4f}"
            if isinstance(row[n], float)
            else row[n]
            for n in names
        ]
        for row in report["rows"]
    ]
    print(f"\n{arguments.clock} seconds, {arguments.threads} threads, K=4, B={BATCH}, T={LENGTH}\n")
    print(table(names, rows))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
