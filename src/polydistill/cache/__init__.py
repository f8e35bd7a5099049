"""What they said: several teachers' distributions over a data set, stored once, read as often as students are trained.

The weights of a run are decided anew from the stored signals, so that they can be changed without running a teacher
again. `docs/cache.md` describes the files.
"""

from polydistill.cache.build import Progress, build
from polydistill.cache.foreign import CachedForeignTeacher
from polydistill.cache.labeller import Engine, Here, Labeller, Processes, ShardTask, Text
from polydistill.cache.manifest import CacheError, FingerprintError, Manifest, Plan
from polydistill.cache.says import Backed
from polydistill.cache.store import Cache, Example
from polydistill.cache.teacher import CachedTeacher

__all__ = [
    "Backed",
    "Cache",
    "CacheError",
    "CachedForeignTeacher",
    "CachedTeacher",
    "Engine",
    "Example",
    "FingerprintError",
    "Here",
    "Labeller",
    "Manifest",
    "Plan",
    "Processes",
    "Progress",
    "ShardTask",
    "Text",
    "build",
]
