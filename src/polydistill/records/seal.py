"""`checksums.json` of a finished run: what its files were when it ended; whoever reads them can ask."""

import json
from collections.abc import Iterable
from pathlib import Path

import xxhash

from polydistill.records.files import (
    BEFORE,
    CERTIFICATE,
    COMPLETIONS,
    CONFIG,
    METRICS,
    RIBBONS,
    SUMMARY,
    RecordError,
    write_whole,
)

SEAL = "checksums.json"
RECORDS = (METRICS, RIBBONS, COMPLETIONS, SUMMARY, CERTIFICATE, BEFORE, CONFIG)
SEALED = (*RECORDS, "identity.json")


def seal(run: Path, student: str) -> None:
    """Write down the length and xxh3_128 of records and student, as the last thing that a run does.

    Args:
        run: its folder.
        student: folder in it; the model card there is the user's to edit and left out.
    """
    files = [name for name in SEALED if (run / name).is_file()]
    files += sorted(f"{student}/{path.name}" for path in (run / student).iterdir() if path.name != "README.md")
    entries = {name: [(run / name).stat().st_size, _hash(run / name)] for name in files}
    write_whole(run / SEAL, json.dumps(entries, indent=1))


def broken(run: Path, names: Iterable[str] | None = None) -> dict[str, str] | None:
    """What has changed since a run ended: file -> what is wrong with it; None for a run without checksums.

    Args:
        run: its folder.
        names: files or folders to look at; all when None.

    Raises:
        RecordError: the checksums themselves cannot be read.
    """
    try:
        entries = json.loads((run / SEAL).read_bytes())
        kept = {str(name): (int(size), str(digest)) for name, (size, digest) in entries.items()}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RecordError(f"{run / SEAL} cannot be read; remove it, or restore it from a copy") from error
    found = {}
    for name, (size, digest) in kept.items():
        if names is not None and not any(name == one or name.startswith(f"{one}/") for one in names):
            continue
        path = run / name
        if not path.is_file():
            found[name] = "is missing"
        elif path.stat().st_size != size:
            found[name] = f"has {path.stat().st_size:,} bytes instead of {size:,}"
        elif _hash(path) != digest:
            found[name] = "is not what was written: its hash differs"
    return found


def refuse_broken(run: Path, names: Iterable[str]) -> None:
    """Files of a finished run are read as they were written, or not at all.

    Raises:
        RecordError: one has changed.
    """
    for name, what in (broken(run, names) or {}).items():
        raise RecordError(f"{run / name} {what}; `polydistill doctor {run}` says how to mend it")


def _hash(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
