"""Teachers with other tokenizers: their distributions over the student's vocabulary, with the error of each."""

from polydistill.alignment.aligned import TERMS, Aligned, masses
from polydistill.alignment.pair import Pair
from polydistill.alignment.path import NoCounterpartError, Path, Place, walk
from polydistill.alignment.spelling import NoBytesError, Spelling

__all__ = [
    "TERMS",
    "Aligned",
    "NoBytesError",
    "NoCounterpartError",
    "Pair",
    "Path",
    "Place",
    "Spelling",
    "masses",
    "walk",
]
