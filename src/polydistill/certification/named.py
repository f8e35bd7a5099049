"""An object by where it stands: `module:name` or `file.py:name`."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """The object `module:name` or `file.py:name`, with the current folder importable.

    Raises:
        ValueError: there is no such module, file or name.
    """
    place, _, attribute = name.rpartition(":")
    if not place:
        raise ValueError(f"{name}: say where it stands, as module:name or file.py:name")
    try:
        thing = _of_file(Path(place)) if place.endswith(".py") else _of_module(place)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name}: there is no module {error.name!r} here or among the installed ones") from error
    except FileNotFoundError as error:
        raise ValueError(f"{name}: there is no file {place}") from error
    except Exception as error:
        raise ValueError(f"{name}: importing {place} says {type(error).__name__}: {error}") from error
    for part in attribute.split("."):
        if not hasattr(thing, part):
            raise ValueError(f"{name}: there is no {part!r} in {place}")
        thing = getattr(thing, part)
    return thing


def _of_module(place: str) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return importlib.import_module(place)


def _of_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # so that its classes know where they are from
    spec.loader.exec_module(module)
    return module
