"""`python -m polydistill.theory [proofs/index.json] > docs/theory.md`: the page of the documentation."""

import json
import sys
from pathlib import Path

import torch

from polydistill.certification.published import certify_published
from polydistill.theory import document

PLACE = "<!-- published rules -->"
"""Where the table of published rules goes."""


def theorems(index: Path) -> list[str]:
    """Names of all theorems in the index of the proofs."""
    return [entry["theorem"] for entry in json.loads(index.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    torch.set_num_threads(1)
    page = document(theorems=theorems(Path(sys.argv[1])) if len(sys.argv) > 1 else ())
    sys.stdout.write(page.replace(PLACE, certify_published().to_markdown()))
