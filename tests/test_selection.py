"""TopK: which vectors a row of logits selects."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import FLOATS, logits
from vbfmt.errors import ContentError
from vbfmt.selection import select_top_k


def by_sorting(block, k):
    values = block.astype(np.float64)
    order = np.lexsort((np.broadcast_to(np.arange(values.shape[1]), values.shape), -values))
    return order[:, :k]


@given(logits(n=st.integers(1, 30), h=st.integers(1, 40)), st.data())
def test_selects_the_largest_and_of_equals_the_lowest_index(block, data):
    k = data.draw(st.integers(1, block.shape[1]))
    selection = select_top_k({"x": block}, k)
    expected = by_sorting(block, k)
    np.testing.assert_array_equal(selection.indices, expected)
    np.testing.assert_array_equal(
        selection.logits, np.take_along_axis(block.astype(np.float64), expected, axis=1)
    )


@given(logits(n=st.integers(1, 30), h=st.integers(2, 40)), st.data())
def test_counts_rows_whose_kth_place_is_shared(block, data):
    k = data.draw(st.integers(1, block.shape[1] - 1))
    ordered = -np.sort(-block.astype(np.float64), axis=1)
    tied = (ordered[:, k - 1] == ordered[:, k]) & np.isfinite(ordered[:, k])
    assert select_top_k({"x": block}, k).ties == tied.sum()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 9])
def test_blocks_and_threads_do_not_show(dtype, k):
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((5000, 1000)).astype(dtype)
    parts = {str(start): whole[start : start + 700] for start in range(0, 5000, 700)}
    selection = select_top_k(parts, k)
    np.testing.assert_array_equal(selection.indices, by_sorting(whole, k))


@pytest.mark.parametrize("k", [1, 2, 9, 12])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_what_is_not_finite_and_says_where(k, bad):
    block = np.zeros((300, 12), dtype=np.float32)
    block[217, 5] = bad
    with pytest.raises(ContentError) as error:
        select_top_k({"first": np.zeros((2, 12), np.float32), "second": block}, k)
    assert error.value.part == "second, row 217"


@pytest.mark.parametrize("k", [1, 3, 9])
def test_refuses_a_row_without_a_finite_logit(k):
    block = np.full((1, 12), -np.inf, dtype=np.float32)
    with pytest.raises(ContentError, match="row 0: found minus infinity alone"):
        select_top_k({"x": block}, k)


@pytest.mark.parametrize("k", [0, 5])
def test_refuses_k_out_of_range(k):
    with pytest.raises(ContentError, match="expected 1 to 4"):
        select_top_k({"x": np.zeros((1, 4), np.float32)}, k)


def test_k_is_checked_before_room_is_made_for_it():
    """2⁴⁰ as k, out of a config, made numpy ask for 64 TiB."""
    with pytest.raises(ContentError, match="k is out of range"):
        select_top_k({"x": np.zeros((8, 4), np.float32)}, 1 << 40)


def test_bfloat16_logits_are_read_as_they_are():
    block = np.array([[1.0, 1.0078125, 0.5]], dtype=ml_dtypes.bfloat16)
    np.testing.assert_array_equal(select_top_k({"x": block}, 2).logits, [[1.0078125, 1.0]])
