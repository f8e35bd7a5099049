"""One thread, no network, annotations that are checked, laws that are searched the same way every time."""

import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import cheaper
import hypothesis
import jaxtyping
import kept
import pytest
import torch

os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_DATASETS_DISABLE_PROGRESS_BARS="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TRL_EXPERIMENTAL_SILENCE="1",
)


class Sampled(type(jaxtyping.config)):
    """The first 500 calls of a test are checked, then one in 29: checks took more than half the time of a search."""

    asked, off = 0, False

    @property
    def jaxtyping_disable(self) -> bool:
        self.asked += 1
        return self.off or (self.asked > 500 and self.asked % 29 != 0)

    @jaxtyping_disable.setter
    def jaxtyping_disable(self, value: bool) -> None:
        self.off = value


jaxtyping.config.__class__ = Sampled
cheaper.install()
# Before the first import of the package. An int is a float, as everywhere in Python's typing (PEP 484).
jaxtyping.install_import_hook("polydistill", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "polydistill",
    deadline=None,
    derandomize=True,
    max_examples=50,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.differing_executors],
)
hypothesis.settings.load_profile("polydistill")


THIRD_PARTY_WARNINGS = [
    # trl's config sets it under its old name
    "ignore:`gradient_checkpointing` is deprecated:FutureWarning",
    # peft asks transformers under an old name
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
]


def pytest_configure(config: pytest.Config) -> None:
    for line in THIRD_PARTY_WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    if kept.FOLDER not in os.environ:  # the workers have it from the process that starts them
        os.environ[kept.FOLDER] = tempfile.mkdtemp()
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(kept.FOLDER)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    import system

    if line := system.skipped(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(scope="session", autouse=True)
def _searches_in_runs_are_short() -> None:
    """The search behind a run's certificate, more than half of a small run; `certify` has tests of its own."""
    if "trl" in sys.modules:  # otherwise no test of this process can run one
        import forked

        from polydistill.run import certificates

        cheaper.without_fingerprints()

        certificates.certify = kept.kept(certificates.certify)
        certificates.EFFORT = forked.EFFORT
    # Every run ends with a full collection (accelerate's), which went through all of torch and trl: 0.8 s each time.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    jaxtyping.config.asked = 0


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32, "a test left another default dtype behind"


@pytest.fixture(scope="session")
def tokenizer():
    """The byte-level tokenizer of `models`; do not change it."""
    import models

    return models.tokenizer()


REAL = {"url", "open_url", "finished"}
"""Fixtures that start processes of their own, so that tests with them are slow ones."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take longest come first: with two workers, none should begin when the other has nothing left."""
    longest = dict.fromkeys((item.path for item in items), 0.0)
    for item in items:
        if REAL.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        slow, timeout = item.get_closest_marker("slow"), item.get_closest_marker("timeout")
        longest[item.path] = max(longest[item.path], float(slow is not None), timeout.args[0] if timeout else 0.0)
    items.sort(key=lambda item: -longest[item.path])
