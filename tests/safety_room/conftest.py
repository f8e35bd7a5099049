"""Fixtures of the safety room."""

from pathlib import Path

import pytest
from harm import write_classifier


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A folder with a tiny text classifier that has learned to tell some words."""
    return write_classifier(tmp_path_factory.mktemp("classifier"))
