"""DeepSpeed ZeRO-2 and ZeRO-3 on two CPU processes against one plain process: losses, gradient norms, operator state.

pip install deepspeed && python experiments/deepspeed_ranks.py [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

TESTS = Path(__file__).resolve().parents[1] / "tests"


def launch(ranks: int, folder: Path, *options: str, **environment: str) -> dict:
    """What rank 0 of a run of the tests' worker saw."""
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    known = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (TESTS, TESTS / "on_policy"))), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, str(TESTS / "distributed" / "worker.py"), str(folder), *options],
        env=known | {"PYTHONWARNINGS": "ignore"} | environment,
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return json.loads((folder / "rank-0.json").read_text())


def largest_difference(one: dict, two: dict, name: str) -> float:
    """Over all steps."""
    return max(abs(one[name][step] - two[name][step]) for step in one[name])


def main() -> None:
    """Both modes, both stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=None, help="write the result here")
    options = parser.parse_args()
    rows = []
    with TemporaryDirectory() as place:
        for mode in ("off", "on"):
            one = launch(1, Path(place) / mode, f"mode={mode}")
            for stage in ("2", "3"):
                folder = Path(place) / f"{mode}{stage}"
                environment = {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}
                two = launch(2, folder, f"mode={mode}", f"zero={stage}", **environment)
                assert (two["kind"], two["ranks"]) == ("DEEPSPEED", 2), two
                row = {"mode": mode, "stage": int(stage), "steps": len(two["losses"])}
                row |= {name: largest_difference(one, two, name) for name in ("losses", "norms")}
                rows.append(row)
                print(row, flush=True)
    if options.json is not None:
        found = {"deepspeed": version("deepspeed"), "largest differences to one process": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
