"""Teachers with other tokenizers: their distributions over the student's vocabulary, with the error of each."""

from polydistill.alignment.aligned import TERMS, Aligned, Evidence, evidence
from polydistill.alignment.pair import Pair
from polydistill.alignment.path import NoCounterpartError, Path, Place, walk
from polydistill.alignment.reader import Reader
from polydistill.alignment.spelling import NoBytesError, Spelling

__all__ = [
    "TERMS",
    "Aligned",
    "Evidence",
    "NoBytesError",
    "NoCounterpartError",
    "Pair",
    "Path",
    "Place",
    "Reader",
    "Spelling",
    "evidence",
    "walk",
]
