"""`certify` at ten times its default effort on every operator and on enforced pipelines: is anything of ours refuted?

    nice -n 19 python experiments/certify_effort.py --json experiments/results/certify_effort.json [--effort 10]

Each finished subject is written at once, and one that is in the file already is not searched again. Learned operators
are certified in a state that they could have learned. Exit code 1 when a claim was refuted.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from polydistill import __version__
from polydistill.certification import Certificate, certify
from polydistill.pipeline import Pipeline
from polydistill.safety import Ordered, Tilt, Veto
from polydistill.weighting import (
    Balanced,
    ClippedPosterior,
    CloneRobust,
    ConvexSum,
    DiscountedPosterior,
    Gate,
    GradientFactor,
    Hedge,
    Operator,
    PrefixPosterior,
    Similarity,
    Softmax,
    TaskPrior,
    TaskRouter,
    TeacherRouter,
    Uniform,
    tempered_product,
)
from polydistill.weighting.signals import Consensus, Entropy, LabelLikelihood, Margin, StudentGap

NAMES, TASKS = ("code", "maths", "safe"), ("sums", "prose")
PRIOR = {"sums": {"maths": 3.0, "code": 1.0}}
TIERS = {"safe": 1.0, "maths": 0.5}


def bound(operator: Operator) -> Operator:
    return operator.bind(NAMES, TASKS)


def hedge() -> Operator:
    made: Any = bound(Hedge(rate=1.0, share=0.05)(StudentGap()))
    made.log_state.copy_(torch.log_softmax(torch.tensor([[0.0, 1.5, 3.0], [2.0, 0.0, 1.0]]), -1))
    return made


def gate() -> Operator:
    made: Any = bound(Gate([Entropy(spread=6), Margin(spread=3)], bound=3.0, modulus=0.7))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.matrix.copy_(3.0 * torch.randn(made.matrix.shape, generator=generator))
        made.bias.copy_(torch.randn(made.bias.shape, generator=generator))
    return made


def balanced() -> Operator:
    made: Any = bound(Balanced(Softmax(1.0)(Entropy())))
    made.square.copy_(torch.tensor([1.0, 1000.0]))
    made.seen.copy_(torch.tensor([1000.0, 10.0]))
    return made


def coefficients() -> Operator:
    made: Any = bound(GradientFactor(lambda gramian, seed: torch.tensor([1.0, 0.0, 0.0]), "min-norm", share=0.05))
    made.take(torch.eye(3), 1)
    made.commit()
    return made


def similarity() -> Operator:
    embedding = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    return bound(Similarity(embedding, {name: embedding[i] for i, name in enumerate(NAMES)}))


def factors() -> Operator:
    return TaskPrior(PRIOR) * PrefixPosterior(0.02) * Softmax(2.0)(Entropy(spread=4))


def enforced(safety: Tilt | Ordered | Veto, stack: Operator | None = None) -> Pipeline:
    return Pipeline.of(factors() if stack is None else stack, NAMES, TASKS, floor=0.02, safety=safety)


SUBJECTS: dict[str, Any] = {
    "uniform": lambda: bound(Uniform()),
    "task prior": lambda: bound(TaskPrior(PRIOR)),
    "task router": lambda: bound(TaskRouter({"sums": "maths"})),
    "teacher router": lambda: bound(TeacherRouter()),
    "hedge, learned state": hedge,
    "domain similarity": similarity,
    "softmax of entropy": lambda: bound(Softmax(0.5)(Entropy())),
    "softmax of label likelihood": lambda: bound(Softmax(0.5)(LabelLikelihood())),
    "softmax of consensus": lambda: bound(Softmax(3.0)(Consensus(spread=2))),
    "softmax of student gap": lambda: bound(Softmax(1.0)(StudentGap())),
    "softmax of student gap, hard first": lambda: bound(Softmax(1.0)(StudentGap(hard_first=True))),
    "softmax of margin, squared": lambda: bound(Softmax(1.0)(Margin()) ** 2),
    "softmax of entropy to the power -1/2": lambda: bound(Softmax(1.0)(Entropy()) ** -0.5),
    "gate, learned state": gate,
    "gradient factor, a coefficient of 1": coefficients,
    "clone-robust softmax": lambda: bound(CloneRobust(1.0, {"code": {"maths": 0.8}})(Entropy())),
    "balanced softmax, learned state": balanced,
    "convex sum": lambda: bound(ConvexSum([Softmax(1.0)(Entropy()), Softmax(2.0)(Margin())], [2.0, 1.0])),
    "tempered product": lambda: bound(tempered_product(Softmax(1.0)(Entropy()), TaskPrior(PRIOR))),
    "fixed-share posterior": lambda: bound(PrefixPosterior()),
    "discounted posterior": lambda: bound(DiscountedPosterior()),
    "clipped posterior": lambda: bound(ClippedPosterior()),
    "product of three scales": lambda: bound(factors()),
    "product of two signals, floor": lambda: Pipeline.of(
        Softmax(2.0)(Entropy(spread=4)) * Softmax(1.0)(Margin(spread=3)), NAMES, floor=0.02
    ),
    "product of three scales, floor, tilt": lambda: enforced(Tilt(TIERS, strength=3)),
    "softmax, floor, tilt that orders": lambda: enforced(Tilt(TIERS, strength=12), Softmax(1.0)(Entropy())),
    "product of three scales, floor, order": lambda: enforced(Ordered(TIERS)),
    "softmax, floor, order with bounds": lambda: enforced(Ordered(TIERS, low=0.05, high=0.8), Softmax(1.0)(Entropy())),
    "softmax, floor, veto": lambda: enforced(Veto(TIERS, least=1.0), Softmax(1.0)(Entropy())),
    "product with posterior, no floor, tilt": lambda: Pipeline.of(
        DiscountedPosterior(0.5) * Softmax(1.0)(LabelLikelihood()), NAMES, TASKS, safety=Tilt({"safe": 1})
    ),
}


def row(name: str, certificate: Certificate, seconds: float) -> dict[str, Any]:
    def finite(value: float | None) -> float | str | None:
        return value if value is None or abs(value) < float("inf") else str(value)

    laws = {
        f.axiom: {
            "verdict": f.verdict,
            "basis": str(f.basis),
            "trials": f.trials,
            "bound": finite(f.bound),
            "worst": finite(f.worst),
        }
        for f in certificate.findings
    }
    refuted = {f.axiom: f.witness.says for f in certificate.refuted if f.witness is not None}
    return {
        "name": name,
        "subject": certificate.subject,
        "refuted": refuted,
        "trials": certificate.trials,
        "seconds": round(seconds, 1),
        "laws": laws,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--effort", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = {"effort": options.effort, "seed": options.seed, "version": __version__, "threads": 1}
    head |= {"hardware": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        before = json.loads(options.json.read_text())
        if {k: before[k] for k in head} != head:
            parser.error(f"{options.json} holds a search of another kind; choose another file")
        rows = before["subjects"]
    for name in options.only:
        if any(entry["name"] == name for entry in rows):
            continue
        start = time.process_time()
        certificate = certify(SUBJECTS[name](), effort=options.effort, seed=options.seed)
        rows.append(row(name, certificate, time.process_time() - start))
        print(
            f"{name}: {rows[-1]['trials']:,} trials, {rows[-1]['seconds']} s, refuted: {rows[-1]['refuted'] or 'none'}"
        )
        if options.json:
            date = time.strftime("%Y-%m-%d", time.gmtime())
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({**head, "date": date, "subjects": rows}, indent=1) + "\n")
    return int(any(entry["refuted"] for entry in rows))


if __name__ == "__main__":
    raise SystemExit(main())
