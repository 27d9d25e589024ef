"""Settings and folders for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# Deadlines measure the machine, not the code.
settings.register_profile("default", deadline=None)
settings.register_profile("few", deadline=None, max_examples=20)  # for `make mutation`
settings.load_profile("default")


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    return ROOT / "spec" / "golden"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    return ROOT / "tests" / "data"
