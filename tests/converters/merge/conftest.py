"""Fixtures of the merge tests."""

from __future__ import annotations

import pytest

from tests.converters.merge.folders import (
    save_base,
    weights_of,
)


@pytest.fixture
def base(tmp_path):
    return save_base(tmp_path / "base", weights_of())


@pytest.fixture
def sharded(tmp_path):
    """A base whose weights are in two files."""
    return save_base(tmp_path / "base", weights_of(), shards=2)
