"""The certificates of a run: of the weights as they start, and as they are once they have learned."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from polydistill.certification import Certificate, certify
from polydistill.pipeline import Pipeline
from polydistill.records import BEFORE, CERTIFICATE, write_whole

EFFORT = 0.25
"""Of the search behind a run's certificate: three seconds; `polydistill certify` looks harder."""

NOT_TRAINED = "before training, in the state that the run started from"
TRAINED = "after training, in the state that was learned"
FIXED = "before training; these weights have no state that training could change"


def write_certificate(folder: Path, pipeline: Pipeline, promised: Sequence[str], state: str = "") -> None:
    """What the weights promise, derived and searched.

    Args:
        folder: of the run.
        pipeline: with its state, which is certified as it is.
        promised: sentences that are true of the run.
        state: what state that is, in words.
    """
    certificate = replace(certify(pipeline, effort=EFFORT), consequences=tuple(promised), state=state)
    write_whole(folder / CERTIFICATE, certificate.to_json() + "\n")


def certify_learned(folder: Path, pipeline: Pipeline, promised: Sequence[str]) -> None:
    """The certificate of after training; the first one stays beside it, or is the only one where nothing learns."""
    if pipeline.stack.state_dict():
        os.replace(folder / CERTIFICATE, folder / BEFORE)
        write_certificate(folder, pipeline, promised, TRAINED)
        return
    first = Certificate.from_json((folder / CERTIFICATE).read_text(encoding="utf-8"))
    learned = replace(first, consequences=tuple(promised), state=FIXED)
    write_whole(folder / CERTIFICATE, learned.to_json() + "\n")
