"""TopK: which vectors a row of logits selects."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import FLOATS, logits
from vbfmt._math.selection import _by_partition, _by_passes, select_top_k
from vbfmt.errors import ContentError


def by_sorting(block, k):
    values = block.astype(np.float64)
    order = np.lexsort((np.broadcast_to(np.arange(values.shape[1]), values.shape), -values))
    return order[:, :k]


@given(logits(n=st.integers(1, 30), h=st.integers(1, 40)), st.data())
def test_selects_the_largest_logits_and_the_lowest_index_of_equal_ones(block, data):
    k = data.draw(st.integers(1, block.shape[1]))
    selection = select_top_k({"x": block}, k)
    expected = by_sorting(block, k)
    np.testing.assert_array_equal(selection.indices, expected)
    np.testing.assert_array_equal(
        selection.logits, np.take_along_axis(block.astype(np.float64), expected, axis=1)
    )


@given(logits(n=st.integers(1, 30), h=st.integers(2, 40)), st.data())
def test_counts_rows_with_ties_at_the_kth_place(block, data):
    k = data.draw(st.integers(1, block.shape[1] - 1))
    ordered = -np.sort(-block.astype(np.float64), axis=1)
    tied = (ordered[:, k - 1] == ordered[:, k]) & np.isfinite(ordered[:, k])
    assert select_top_k({"x": block}, k).ties == tied.sum()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", [2, 9])
def test_the_result_does_not_depend_on_blocks_and_threads(dtype, k):
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((5000, 1000)).astype(dtype)
    parts = {str(start): whole[start : start + 700] for start in range(0, 5000, 700)}
    selection = select_top_k(parts, k)
    np.testing.assert_array_equal(selection.indices, by_sorting(whole, k))


@pytest.mark.parametrize("k", [1, 2, 9, 12])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_refuses_nan_and_infinity_and_names_the_row(k, bad):
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


def test_k_is_checked_before_memory_is_allocated():
    """Earlier, with k = 2⁴⁰ in a config, NumPy tried to allocate 64 TiB."""
    with pytest.raises(ContentError, match="k is out of range"):
        select_top_k({"x": np.zeros((8, 4), np.float32)}, 1 << 40)


@pytest.mark.parametrize(("k", "h"), [(0, 4), (5, 4), (13, 12)])
def test_the_block_whose_k_is_out_of_range_is_named(k, h):
    blocks = {"fits": np.zeros((1, 20)), "here": np.zeros((1, h))}
    with pytest.raises(ContentError) as error:
        select_top_k(blocks, k)
    part = "here" if k else "fits"
    assert str(error.value) == (
        f"k is out of range: {part}: found {k}, expected 1 to {h if k else 20} (h)"
    )


def test_ties_of_all_pieces_are_counted_together():
    """1100 rows are two pieces of work with several blocks each."""
    assert (
        select_top_k({"a": np.zeros((1100, 700), np.float32), "b": np.ones((3, 5))}, 1).ties == 1103
    )


def test_bfloat16_logits_are_read_as_they_are():
    block = np.array([[1.0, 1.0078125, 0.5]], dtype=ml_dtypes.bfloat16)
    np.testing.assert_array_equal(select_top_k({"x": block}, 2).logits, [[1.0078125, 1.0]])


@pytest.mark.parametrize("row", [0, 1023, 1024, 2047, 2500, 2999])
@pytest.mark.parametrize("h", [3, 700])
def test_the_refused_row_is_numbered_across_blocks(row, h):
    """A piece of work has 1024 rows, which are read in blocks of a megabyte."""
    block = np.zeros((3000, h), dtype=np.float32)
    block[row, h - 1] = np.nan
    with pytest.raises(ContentError) as error:
        select_top_k({"before": np.zeros((5, h), np.float32), "here": block}, 1)
    assert str(error.value) == (
        f"logits are not usable: here, row {row}: found NaN, expected finite logits; "
        "the training run that wrote this checkpoint diverged or the file is damaged"
    )


@pytest.mark.parametrize("k", [1, 9])
def test_float64_is_compared_as_float64(k):
    block = np.zeros((1, 20))
    block[0, 7] = 2.0**-60
    selection = select_top_k({"x": block}, k)
    assert selection.indices[0, 0] == 7
    assert selection.logits[0, 0] == 2.0**-60
    assert selection.ties == (1 if k == 9 else 0)


def test_blocks_may_differ_in_width_and_dtype():
    """Scratch memory is reused for the next block only if width and dtype are the same."""
    rng = np.random.default_rng(0)
    blocks = {
        "a": rng.standard_normal((3, 20)),
        "b": rng.standard_normal((4, 30)),
        "c": rng.standard_normal((5, 20)).astype(np.float32),
        "d": rng.standard_normal((0, 20)),
        "e": rng.standard_normal((6, 20)).astype(np.float16),
    }
    for k in (2, 10):
        selection = select_top_k(blocks, k)
        expected = np.concatenate([by_sorting(block, k) for block in blocks.values()])
        np.testing.assert_array_equal(selection.indices, expected)


@pytest.mark.parametrize("k", range(1, 13))
def test_both_ways_of_selecting_agree(k):
    """Small k uses passes, large k a partition. The rows have ties at and around the k-th place."""
    rng = np.random.default_rng(k)
    block = rng.integers(0, 6, (400, 12)).astype(np.float64)
    passes = _by_passes(block.copy(), k)
    partition = _by_partition(block.copy(), k)
    for one, other in zip(passes, partition, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(passes[0], by_sorting(block, k))
    ordered = -np.sort(-block, axis=1)
    if k < 12:
        np.testing.assert_array_equal(passes[2], ordered[:, k - 1] == ordered[:, k])


@pytest.mark.parametrize("k", [1, 8, 9, 12])
def test_a_nan_is_the_largest_in_both_ways_of_selecting(k):
    block = np.zeros((3, 12))
    block[1, 4] = np.nan
    for way in (_by_passes, _by_partition):
        assert np.isnan(way(block.copy(), k)[1][:, 0]).tolist() == [False, True, False]


def test_no_blocks_give_no_rows():
    found = select_top_k({}, 2)
    assert (found.indices.shape, found.logits.shape, found.ties) == ((0, 2), (0, 2), 0)


@pytest.mark.parametrize("k", [2, 9])
def test_rows_with_too_few_finite_logits_take_the_lowest_of_the_others(k):
    block = np.full((2, 12), -np.inf, np.float32)
    block[0, 5], block[1, [11, 3]] = 1, 2
    found = select_top_k({"x": block}, k)
    assert found.indices[0].tolist() == [5, 0, 1, 2, 3, 4, 6, 7, 8][:k]
    assert found.indices[1].tolist() == [3, 11, 0, 1, 2, 4, 5, 6, 7][:k]
    assert np.isneginf(found.logits[0, 1:]).all()
    assert found.ties == 0
    assert (found.indices.dtype, found.logits.dtype) == (np.intp, np.float64)
