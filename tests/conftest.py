"""Settings and folders for all tests."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from vbfmt.errors import VbfmtWarning

ROOT = Path(__file__).parents[1]

# In a process that a shell starts in the background, SIGINT is ignored, and processes that tests
# interrupt would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines would depend on the load of the machine.
settings.register_profile("default", deadline=None)
settings.register_profile("few", deadline=None, max_examples=20)  # for `make mutation`
settings.load_profile("default")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return ROOT / "spec" / "golden"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return ROOT / "tests" / "data"


@pytest.fixture
def unmeasured(monkeypatch):
    """Do not measure the coverage of child processes: this imports packages and writes a file
    there."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@contextmanager
def warned() -> Iterator[list[str]]:
    """Yield a list that holds the messages of the library's warnings after the block."""
    messages: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield messages
    messages += [str(w.message) for w in caught if issubclass(w.category, VbfmtWarning)]
