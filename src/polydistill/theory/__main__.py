"""`python -m polydistill.theory [proofs/index.json] > docs/theory.md`: the page of the documentation."""

import json
import sys
from pathlib import Path

import torch

from polydistill.theory import document


def theorems(index: Path) -> list[str]:
    """Names of all theorems in the index of the proofs."""
    return [entry["theorem"] for entry in json.loads(index.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(document(theorems=theorems(Path(sys.argv[1])) if len(sys.argv) > 1 else ()))
