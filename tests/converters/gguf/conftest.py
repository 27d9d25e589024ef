"""The adapter of the GGUF tests."""

from __future__ import annotations

import pytest

from tests.converters.gguf.random_adapter import random_adapter


@pytest.fixture(scope="module")
def adapter():
    return random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8)
