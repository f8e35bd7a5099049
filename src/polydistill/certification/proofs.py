"""The index of machine-checked theorems, and whether a derivation stands on it alone."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from polydistill.guarantee import Derivation

INDEX = "proofs_index.json"
"""The index inside the package; made from `proofs/` by `make proofs`."""


@dataclass(frozen=True)
class Proofs:
    """What the proof checker accepted.

    Attributes:
        theorems: names.
        sha256: of the index, or None when there is none.
    """

    theorems: frozenset[str]
    sha256: str | None = None

    @classmethod
    def shipped(cls) -> "Proofs":
        """The index that came with this package; empty when it came without one."""
        file = resources.files("polydistill").joinpath(INDEX)
        return cls.read(file.read_bytes()) if file.is_file() else cls(frozenset())

    @classmethod
    def read(cls, text: bytes) -> "Proofs":
        """An index: a JSON list of objects with the key `theorem`."""
        return cls(frozenset(entry["theorem"] for entry in json.loads(text)), hashlib.sha256(text).hexdigest())

    def check(self, rules: Iterable[Derivation], also: Iterable[str] = ()) -> tuple[str, ...]:
        """Names of the theorems behind all of these rules and names; empty as soon as one is missing."""
        rules = list(rules)
        names = {name for rule in rules for name in rule.theorems} | set(also)
        complete = all(rule.theorems for rule in rules) and names <= self.theorems
        return tuple(sorted(names, key=_by_number)) if complete else ()


def _by_number(name: str) -> tuple[int, str]:
    digits = name[1:].split("_", 1)[0]
    return (int(digits) if digits.isdigit() else 0, name)
