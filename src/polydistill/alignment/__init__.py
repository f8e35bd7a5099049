"""Teachers with other tokenizers: their distributions over the student's vocabulary, with the error of each."""

from polydistill.alignment.aligned import Aligned
from polydistill.alignment.branches import Branches, branch, joined
from polydistill.alignment.likelihood import Evidence, evidence
from polydistill.alignment.packed import TERMS, Layout, Packed, lay, pack
from polydistill.alignment.pair import Pair
from polydistill.alignment.path import NoCounterpartError, Path, Place, Reading, read, walk
from polydistill.alignment.reader import Reader
from polydistill.alignment.spelling import NoBytesError, Spelling
from polydistill.alignment.stated import Stated
from polydistill.alignment.turns import Turns

__all__ = [
    "TERMS",
    "Aligned",
    "Branches",
    "Evidence",
    "Layout",
    "NoBytesError",
    "NoCounterpartError",
    "Packed",
    "Pair",
    "Path",
    "Place",
    "Reader",
    "Reading",
    "Spelling",
    "Stated",
    "Turns",
    "branch",
    "evidence",
    "joined",
    "lay",
    "pack",
    "read",
    "walk",
]
