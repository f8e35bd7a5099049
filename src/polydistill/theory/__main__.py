"""`python -m polydistill.theory [proofs/index.json] > docs/theory.md`: the page of the documentation."""

import json
import sys
from pathlib import Path

import torch

from polydistill.theory import document


def theorems(index: Path) -> list[str]:
    """Names of all theorems in the index of the proofs."""

    def names(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["name"]] if isinstance(node.get("name"), str) else []
            return own + [name for value in node.values() for name in names(value)]
        return [name for value in node for name in names(value)] if isinstance(node, list) else []

    return sorted(set(names(json.loads(index.read_text(encoding="utf-8")))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(document(theorems=theorems(Path(sys.argv[1])) if len(sys.argv) > 1 else ()))
