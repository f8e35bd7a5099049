"""Programs of the system that some tests need: without one they are skipped, or fail where nothing may be skipped."""

import os
import shutil
from collections import Counter

import pytest

EVERYTHING = "POLYDISTILL_ALL" in os.environ
"""Long tests at the length that evidence wants."""
REQUIRED = os.environ.get("POLYDISTILL_REQUIRE_ALL", "0") not in ("", "0")
MISSING = "not on this machine: "
PROGRAMS = {
    "a browser (apt-get install chromium)": ("chromium", "chromium-browser", "google-chrome"),
    "a C++ compiler (apt-get install g++)": ("c++", "g++", "clang++"),
}


def need(what: str) -> str:
    """The path of the program for `what`, a word of one of `PROGRAMS`; the test ends here if there is none."""
    (entry,) = (known for known in PROGRAMS if what in known)
    if path := next(filter(None, map(shutil.which, PROGRAMS[entry])), None):
        return path
    if REQUIRED:
        pytest.fail(MISSING + entry)
    pytest.skip(MISSING + entry)


def skipped(reports: list[pytest.TestReport]) -> str:
    """One line about the tests that were skipped for want of a program; empty if there were none."""
    reasons = [report.longrepr[2].partition(MISSING)[2] for report in reports if isinstance(report.longrepr, tuple)]
    counts = Counter(reason for reason in reasons if reason)
    return MISSING + ", ".join(f"{entry}: {n} tests skipped" for entry, n in counts.items()) if counts else ""
