"""The demo and every control, over several seeds of students, data order and passages.

    python experiments/demo_seeds.py --seeds 0 1 2 --json experiments/results/demo_seeds.json

Beside the demo's six students: the best single teacher, static weights tuned by expectation-maximisation on the
students' own training text, static weights drawn at random, each scale left out, and the other ways to bound (or not)
the posterior.
All have the same objective, steps, batches and temperature. The teachers are trained once, whatever the seed.
"""

import argparse
import json
import math
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from scipy import stats

from polydistill.demo.corpus import DOMAINS
from polydistill.demo.run import Setup, prepare, run_demo
from polydistill.demo.students import StudentSettings, context_scale, controls, task_scale, token_scale, untold
from polydistill.demo.teachers import TeacherSettings
from polydistill.training import Batch
from polydistill.training.hearing import listen_to
from polydistill.weighting import ClippedPosterior, DiscountedPosterior, Fixed
from polydistill.worth import tuned


def fixed(weights: list[float]) -> Fixed:
    """The same weights everywhere, in the order of the domains."""
    return Fixed(dict(zip(DOMAINS, weights, strict=True)))


@torch.no_grad()
def label_log_probs(setup: Setup) -> torch.Tensor:
    """`log p_k(y)` of every training position, `[N, K]`."""
    found, teachers = [], setup.remembered()
    for part in setup.training.batches(16):
        batch = Batch(part.ids, torch.ones_like(part.ids), part.ids)
        rows, positions = batch.positions(reads_prefix=True)
        outputs = listen_to(teachers, batch, rows)
        columns = [
            s.head.logits(s.hidden).log_softmax(-1).gather(1, positions.target[:, None]).squeeze(1) for s in outputs
        ]
        found.append(torch.stack(columns, -1).double())
    return torch.cat(found)


def further(log_p: torch.Tensor, seed: int) -> dict:
    """Everything that the demo itself does not show."""
    best = int(log_p.mean(0).argmax())
    generator = torch.Generator().manual_seed(seed)
    drawn = -torch.rand(len(DOMAINS), generator=generator).log()  # Dirichlet(1, 1, 1), normalised by the operator
    return {
        "best_single": untold(fixed([float(k == best) for k in range(len(DOMAINS))]), floor=0.0),
        "tuned_static": untold(fixed(tuned(log_p).exp().tolist()), floor=0.0),
        "random_static": untold(fixed(drawn.tolist()), floor=0.0),
        "without_task": untold(context_scale() * token_scale()),
        "without_context": untold(task_scale() * token_scale()),
        "without_token": untold(task_scale() * context_scale()),
        "posterior_without_forgetting": untold(task_scale() * ClippedPosterior(math.inf) * token_scale()),
        "posterior_discounted": untold(task_scale() * DiscountedPosterior(0.8) * token_scale()),
        "posterior_clipped": untold(task_scale() * ClippedPosterior(8.0) * token_scale()),
    }


def interval(values: list[float]) -> dict[str, float]:
    """Mean and half width of the 95% t-interval."""
    n = len(values)
    mean = sum(values) / n
    if n == 1:
        return {"mean": mean, "half_width": math.nan}
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return {"mean": mean, "half_width": float(stats.t.ppf(0.975, n - 1)) * deviation / math.sqrt(n)}


def one_seed(seed: int, console: Console) -> dict:
    """Scores of every student of the demo, with more controls beside it."""
    setup = prepare(TeacherSettings(), StudentSettings(), seed, console)
    others = {**controls(), **further(label_log_probs(setup), seed)}
    with TemporaryDirectory() as folder:
        result = run_demo(Path(folder), seed, console, others=others)
    return {
        "seed": seed,
        "seconds": result.seconds,
        "gap_closed": result.gap_closed,
        "scores": {name: asdict(score) for name, score in result.students.items()},
    }


def summary(runs: list[dict]) -> dict:
    """Means, and paired differences to the adaptive stack (positive: adaptive is better), with 95% intervals."""
    names = list(runs[0]["scores"])
    kinds = ("mean", "whole", "mixed")
    return {
        "gap_closed": interval([run["gap_closed"] for run in runs]),
        "nats_per_token": {
            name: {kind: interval([run["scores"][name][kind] for run in runs]) for kind in kinds} for name in names
        },
        "adaptive_is_better_by": {
            name: {
                kind: interval([run["scores"][name][kind] - run["scores"]["adaptive"][kind] for run in runs])
                for kind in kinds
            }
            for name in names
            if name != "adaptive"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--merge", type=Path, nargs="+", help="results of single seeds, run side by side before")
    parser.add_argument("--json", type=Path, default=Path("experiments/results/demo_seeds.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console()
    runs = [run for path in arguments.merge or () for run in json.loads(path.read_text())["runs"]]
    for seed in [None] if arguments.merge else arguments.seeds:
        if seed is not None:
            runs.append(one_seed(seed, console))
        result = {
            "command": f"python experiments/demo_seeds.py --seeds {' '.join(str(run['seed']) for run in runs)}",
            "date": datetime.now(UTC).date().isoformat(),
            "hardware": f"{platform.machine()}, {arguments.threads} threads",
            "torch": torch.__version__,
            "summary": summary(runs),
            "runs": runs,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    table = Table("student", "mean", "whole", "mixed", "adaptive better by (mean)")
    for name, kinds in result["summary"]["nats_per_token"].items():
        cells = [f"{kinds[k]['mean']:.3f} ± {kinds[k]['half_width']:.3f}" for k in ("mean", "whole", "mixed")]
        lead = result["summary"]["adaptive_is_better_by"].get(name)
        shown = "" if lead is None else f"{lead['mean']['mean']:.3f} ± {lead['mean']['half_width']:.3f}"
        table.add_row(name, *cells, shown)
    console.print(table)
    closed = result["summary"]["gap_closed"]
    console.print(f"gap closed: {closed['mean']:.1%} ± {closed['half_width']:.1%} over {len(runs)} seeds")


if __name__ == "__main__":
    main()
