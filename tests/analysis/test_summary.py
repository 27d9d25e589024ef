"""The summary of an adapter: its bytes, and how it uses its bank."""

from __future__ import annotations

import pytest
from hypothesis import given

from tests.strategies import adapters
from vbfmt import dumps
from vbfmt.analysis.summary import summarize


@given(adapters())
def test_everything_is_counted_once(adapter):
    length = len(dumps(adapter))
    found = summarize(adapter, length)
    sizes = found.sizes
    parts = sizes.bank + sizes.indices + sizes.weights + sizes.tensors + sizes.rest
    assert parts == sizes.file == length
    assert sizes.rest > 0
    assert sum(group.rows for group in found.groups) == adapter.N
    assert sum(group.modules for group in found.groups) == len(adapter)
    assert sum(found.usage.counts) == adapter.h
    assert sum(found.largest_weights.counts) == adapter.N
    assert 1 / adapter.k - 1e-6 <= found.mean_largest_weight <= 1
    for group in found.groups:
        assert 1 <= group.vectors <= adapter.h
    mean = sum(group.rows * group.largest_weight for group in found.groups) / adapter.N
    assert mean == pytest.approx(found.mean_largest_weight, rel=1e-6)


@given(adapters())
def test_the_histogram_of_usage_covers_the_range_of_counts(adapter):
    found = summarize(adapter, 1)
    assert found.usage.edges[0] == found.balance.least
    assert found.usage.edges[-1] > found.balance.most
    assert len(found.usage.counts) <= 8
