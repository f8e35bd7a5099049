"""Cells of the tables: each is a student, kept as a line of JSON when it is finished and never trained twice."""

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from experiments import recommended
from experiments.cases import RECOMMENDED, Experiment
from experiments.learn import Data, Settings, learn, prepare
from experiments.methods import METHODS, Method

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """One finished student.

    Attributes:
        case, method, seed: which one.
        excess: nats per held-out token above the true law.
        seconds: of processor time.
        entropy: of the true law, nats per held-out token: a perfect student's loss.
        stack: what was recommended, in words; empty otherwise.
        predicted: its gain over averaging as a predictor, nats per token; 0 otherwise.
    """

    case: str
    method: str
    seed: int
    excess: float
    seconds: float
    entropy: float
    stack: str = ""
    predicted: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """What it is found by."""
        return self.case, self.method, self.seed


def kept(path: Path, settings: Settings) -> list[Cell]:
    """Finished cells that were made with these settings."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [Cell(**line["cell"]) for line in lines if line["settings"] == asdict(settings)]


def days(path: Path) -> list[str]:
    """When cells were finished."""
    return sorted({json.loads(line)["date"] for line in path.read_text().splitlines()})


def run(name: str, experiment: Experiment, settings: Settings, seeds: int, quick: bool) -> Iterator[Cell]:
    """The cells that are missing, one after the other; each is on disk before the next begins."""
    path = RESULTS / f"{name}{'-quick' if quick else ''}.jsonl"
    done = {cell.key for cell in kept(path, settings)}
    for seed in range(seeds):
        for case, build in experiment.cases.items():
            missing = experiment.missing(case, done, seed, quick)
            if not missing:
                continue
            data = prepare(build(seed), settings, seed)
            for method in missing:
                cell = _cell(case, method, seed, data, settings)
                line = {
                    "cell": asdict(cell),
                    "settings": asdict(settings),
                    "date": datetime.now(UTC).date().isoformat(),
                    "hardware": f"{platform.machine()}, {torch.get_num_threads()} threads",
                    "torch": torch.__version__,
                }
                with path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                yield cell


def _cell(case: str, method: str, seed: int, data: Data, settings: Settings) -> Cell:
    if method != RECOMMENDED:
        judged = learn(data, METHODS[method], settings, seed)
        return Cell(case, method, seed, judged.excess, judged.seconds, judged.entropy)
    found = recommended.recommendation(data, seed)
    judged = learn(data, Method(method, lambda *_: recommended.pipeline(found, data)), settings, seed)
    numbers = judged.excess, judged.seconds, judged.entropy
    named = "labels" if found.labels_are_better else found.chosen
    return Cell(case, method, seed, *numbers, named, found.best.gain.mean)


def shortened(settings: Settings) -> Settings:
    """For a look: fewer texts and steps."""
    return replace(settings, texts=128, held_out=64, steps=40)
