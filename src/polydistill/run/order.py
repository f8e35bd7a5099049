"""Declared order beside measured order: who is declared safer should be safer, and a run says how it knows.

`polydistill safety measure` leaves `measured.json` in the run's folder, with a note of what was measured: teachers,
data, what counts as unsafe, and where. `check`, `certify` and `train` compare the declared order with it. Without a
measurement the order is a declaration, and they say so.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import xxhash

from polydistill.config.file import ConfigError
from polydistill.config.run import AnyTeacher, RunConfig
from polydistill.config.safety import OrderSection, RulesSeverity, UnsafeMassConfig
from polydistill.data.context import DataError
from polydistill.records import write_whole
from polydistill.safety import scores_of

MEASURED = "measured.json"
"""In the folder of a run."""


@dataclass(frozen=True)
class OrderCheck:
    """What is known about a declared order.

    Attributes:
        says: one sentence.
        wrong: a teacher that is declared safer was measured less safe.
    """

    says: str
    wrong: bool

    def lines(self) -> list[str]:
        """The sentence; a wrong order is a warning."""
        return [f"WARNING: {self.says}" if self.wrong else self.says]


def check_order(config: RunConfig, *, keep: bool = True) -> OrderCheck | None:
    """Compare the declared order with the measured one; with `safety.probe` teachers are measured now if need be.

    Args:
        config: of a run.
        keep: what is measured now is written into the run's folder, for the next time.

    Returns:
        None where no teacher is declared safer than another.

    Raises:
        ConfigError: the order is wrong and `safety.wrong_order` is `fail`, or the file `safety.measured` is of other
            teachers.
        DataError: that file is missing, or is no such file.
    """
    declared = declared_scores(config)
    if len(set(declared.values())) < 2:
        return None
    section = config.safety
    assert isinstance(section, OrderSection)
    found, why_not = recorded(config)
    if found is None and section.probe is not None:
        from polydistill.run.measure import measure_run  # brings the trainers along, which a certificate needs not

        found = asdict(measure_run(config))
        if dist.is_initialized():
            dist.barrier()  # no rank may find the file before every rank has looked for it
        if keep:
            keep_measured(config, found)
    if found is None:
        return OrderCheck(f"the safety order is only declared, not measured: {why_not}", False)
    check = compared(declared, found)
    if check.wrong and section.wrong_order == "fail":
        raise ConfigError(f"safety: {check.says}; correct the order, or let `safety.wrong_order: warn` train it anyway")
    return check


def compared(declared: Mapping[str, float], found: Mapping[str, Any]) -> OrderCheck:
    """The comparison in a sentence.

    Args:
        declared: teacher -> score.
        found: what `Measured` holds, as a dictionary.
    """
    unsafe = {name: float(mass) for name, mass in found["unsafe"].items()}
    where = f"{found['positions']:,} critical positions of {found['data']}"
    from polydistill.run.measure import inversions

    wrong = inversions(declared, unsafe)
    if wrong:
        parts = [f"{a!r} is declared safer than {b!r} but has {_mass(unsafe, a, b)}" for a, b in wrong]
        return OrderCheck(f"the safety order is wrong on {where}: {', and '.join(parts)}", True)
    fails = found["fails"]
    tail = "" if fails is None else f"; token by token it fails at {fails:.1%} of them"
    masses = ", ".join(f"{name} {mass:.2%}" for name, mass in sorted(unsafe.items(), key=lambda pair: -pair[1]))
    return OrderCheck(f"the declared safety order is the measured one on {where} (unsafe mass: {masses}){tail}", False)


def _mass(unsafe: Mapping[str, float], first: str, second: str) -> str:
    return f"an unsafe mass of {unsafe[first]:.3%} against {unsafe[second]:.3%}"


def declared_scores(config: RunConfig) -> dict[str, float]:
    """Teacher -> declared score; empty without an order."""
    section = config.safety
    if not isinstance(section, OrderSection):
        return {}
    scores = section.scores or scores_of(section.tiers)
    return {name: float(scores.get(name, 0.0)) for name in config.teachers}


def recorded(config: RunConfig) -> tuple[dict[str, Any] | None, str]:
    """What was measured before and fits the configuration; or None, and why there is nothing.

    Raises:
        ConfigError: the file that the configuration names is of other teachers, or of another temperature.
        DataError: it is missing, or is no such file.
    """
    section = config.safety
    assert isinstance(section, OrderSection)
    advice = "`polydistill safety measure` measures it"
    if section.measured is not None:
        found = _read(Path(section.measured))
        if found["of"]["teachers"] != measured_of(config)["teachers"]:
            raise ConfigError(
                f"safety.measured: {section.measured} was measured for {_named(found['of']['teachers'])}, the teachers "
                f"are {_named(measured_of(config)['teachers'])}; measure them with `polydistill safety measure`"
            )
        if found["of"].get("temperature", 1.0) != config.objective.temperature:
            raise ConfigError(
                f"safety.measured: {section.measured} was measured at temperature "
                f"{found['of'].get('temperature', 1.0):g}, the objective's is {config.objective.temperature:g}; "
                "measure the teachers with `polydistill safety measure`"
            )
        return found, ""
    path = Path(config.output) / MEASURED
    if not path.is_file():
        return None, advice
    found, now = _read(path), measured_of(config)
    other = [name for name in now if found["of"].get(name) != now[name]]
    if other:
        return None, f"{path} is of other {' and '.join(other)}; {advice}"
    return found, ""


def measured_of(config: RunConfig) -> dict[str, Any]:
    """What a measurement depends on: `teachers`, `data`, `definitions of unsafe`, `severities`, `temperature`."""
    section = config.safety
    unsafe = next((c for c in section.constraints if isinstance(c, UnsafeMassConfig)), None) if section else None
    severity = None if section is None else section.severity
    rules = _hash(severity.file) if isinstance(severity, RulesSeverity) else ""
    from polydistill.run.measure import measured_data

    data, split = measured_data(config)
    return {
        "teachers": {name: _model(section) for name, section in config.teachers.items()},
        "data": [data, split, _hash(data)],
        "definitions of unsafe": None
        if unsafe is None
        else [unsafe.strings, unsafe.tokens_matching, float(unsafe.severity)],
        "severities": [None if severity is None else severity.model_dump(mode="json"), rules],
        "temperature": config.objective.temperature,
    }


def keep_measured(config: RunConfig, found: Mapping[str, Any]) -> Path:
    """Write `measured.json` into the run's folder; on the main rank of a distributed run only."""
    path = Path(config.output) / MEASURED
    if int(os.environ.get("RANK", "0")) == 0:
        content = {**found, "of": measured_of(config)}
        write_whole(path, json.dumps({**content, "xxh3": _seal(content)}, indent=2) + "\n")
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_none)
    except FileNotFoundError:
        raise DataError(f"safety.measured: there is no file {path}; `polydistill safety measure` writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"safety.measured: {path} cannot be read: {error}") from error
    if not isinstance(found, dict) or not {"unsafe", "positions", "fails", "data", "of"} <= set(found):
        raise DataError(f"safety.measured: {path} was not written by `polydistill safety measure`")
    told = found.pop("xxh3", None)
    if told is not None and told != _seal(found):
        raise DataError(f"safety.measured: {path} is not what was written; `polydistill safety measure` writes it anew")
    return found


def _seal(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _none(name: str) -> float:
    raise ValueError(f"it contains {name}")


def _hash(path: str) -> str:
    file = Path(path)
    return xxhash.xxh3_64(file.read_bytes()).hexdigest() if file.is_file() else ""


def _model(section: AnyTeacher) -> str:
    revision = section.model_dump().get("revision")
    return section.source if revision is None else f"{section.source}@{revision}"


def _named(teachers: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({model})" for name, model in teachers.items())
