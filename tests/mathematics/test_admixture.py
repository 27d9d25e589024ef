"""Logits → canonical rows."""

from __future__ import annotations

import hashlib

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import logits
from vbfmt._math import admixture
from vbfmt._math.admixture import (
    all_weights,
    canonical_rows,
    index_dtype,
    out_of_order,
    repeats,
    rows_from_selection,
)
from vbfmt._math.selection import select_top_k

GOLDEN_ROWS = "bb0bec46bb80b2c0c374461fdbdccc7204caaa632160f4a4e5afdc11f7f77ee8"


@given(logits(n=st.integers(1, 20), h=st.integers(1, 40)), st.data())
@settings(max_examples=3 * settings().max_examples)
def test_rows_are_canonical(block, data):
    h = block.shape[1]
    k = data.draw(st.integers(1, h))
    rows = rows_from_selection(select_top_k({"x": block}, k), h)
    full = all_weights(rows.weights)
    assert not out_of_order(rows.indices, full).any()
    assert not repeats(rows.indices).any()
    assert not np.signbit(rows.weights).any()
    assert (full[:, 0] >= np.float32(1 / k) * (1 - 1e-6)).all()


@given(logits(n=st.integers(1, 20), h=st.integers(1, 40)), st.data())
def test_canonical_form_is_a_fixed_point_in_any_order(block, data):
    h = block.shape[1]
    k = data.draw(st.integers(1, h))
    rows = rows_from_selection(select_top_k({"x": block}, k), h)
    order = np.array(data.draw(st.permutations(range(k))))
    wide = rows.weights.astype(np.float64)
    from_zero = np.concatenate([np.zeros((len(wide), 1)), wide], axis=1)
    first = 1.0 - np.cumsum(from_zero, axis=1)[:, -1:]
    full = np.concatenate([first, wide], axis=1)
    again = canonical_rows(rows.indices[:, order], full[:, order], h)
    np.testing.assert_array_equal(again.indices, rows.indices)
    np.testing.assert_array_equal(again.weights, rows.weights)


@pytest.mark.parametrize("k", [3, 5, 6, 7, 11, 13, 100])
def test_the_first_of_equal_weights_is_not_rounded_below_the_others(k):
    """With 1/3 rounded to nearest, 1 − 2 · 1/3 is less than 1/3."""
    rows = canonical_rows(np.arange(k)[None], np.full((1, k), 1 / k), k)
    full = all_weights(rows.weights)
    assert full[0, 0] >= full[0, 1]
    assert np.abs(full - 1 / k).max() <= k * 2.0**-24 / k


def test_logits_with_equal_weights_are_ordered_by_index():
    block = np.array([[0.0, 1e-12, 2e-12]], dtype=np.float64)
    rows = rows_from_selection(select_top_k({"x": block}, 2), 3)
    np.testing.assert_array_equal(rows.indices, [[1, 2]])
    np.testing.assert_array_equal(rows.weights, [[0.5]])


@given(st.lists(st.floats(-800, 0), min_size=1, max_size=50))
def test_exp_is_within_an_ulp_of_the_exact_value(xs):
    ours = admixture._exp_of_non_positive(np.array(xs))
    mpmath.mp.prec = 200
    for x, y in zip(xs, ours, strict=True):
        exact = mpmath.exp(mpmath.mpf(x))
        assert abs(mpmath.mpf(float(y)) - exact) <= 1.5 * np.spacing(float(exact))


def test_exp_of_minus_infinity_is_zero_and_of_zero_one():
    np.testing.assert_array_equal(
        admixture._exp_of_non_positive(np.array([-np.inf, 0.0, -1e300])), [0.0, 1.0, 0.0]
    )


def test_the_same_logits_give_the_same_bytes_on_every_machine():
    """The expected bytes were computed once. If any bit changes, `pack` writes different files."""
    rng = np.random.default_rng(20240515)
    block = rng.integers(-(2**20), 2**20, (2000, 64)).astype(np.float64) / 2**17
    rows = rows_from_selection(select_top_k({"x": block}, 3), 64)
    found = hashlib.sha256(rows.indices.tobytes() + rows.weights.tobytes()).hexdigest()
    assert found == GOLDEN_ROWS


@pytest.mark.parametrize(("h", "dtype"), [(1, "u1"), (256, "u1"), (257, "<u2"), (65536, "<u2")])
def test_indices_are_as_narrow_as_the_bank_allows(h, dtype):
    assert index_dtype(h) == np.dtype(dtype)


def test_rows_in_canonical_order_and_in_other_orders():
    indices = np.array([[0, 1, 2], [2, 1, 0], [0, 2, 1], [1, 0, 2], [0, 1, 1], [5, 6, 7]])
    weights = np.array(
        [[0.5, 0.25, 0.25], [0.5, 0.3, 0.2], [0.5, 0.25, 0.25], [0.4, 0.4, 0.2],
         [0.4, 0.3, 0.3], [0.2, 0.3, 0.5]]
    )  # fmt: skip
    assert out_of_order(indices, weights).tolist() == [False, False, True, True, True, True]
    assert repeats(indices).tolist() == [False, False, False, False, True, False]
    assert repeats(np.array([[3, 1, 3], [3, 1, 2]])).tolist() == [True, False]
    one = np.zeros((2, 1), int)
    assert out_of_order(one, np.ones((2, 1))).tolist() == repeats(one).tolist() == [False, False]


def test_the_largest_weight_is_1_minus_the_others_from_left_to_right():
    """Four weights of 2⁻⁵⁵ are lost if they are added to 0.5 one at a time, but not if they are
    summed first."""
    weights = np.array([[0.5, 0.25], [0.25, 0.125]], "<f4")
    assert all_weights(weights).tolist() == [[0.25, 0.5, 0.25], [0.625, 0.25, 0.125]]
    small = np.array([[0.5] + [2.0**-55] * 4], "<f4")
    assert admixture._sum_in_order(small)[0] == 0.5
    assert admixture._sum_in_order(small[:, ::-1])[0] == 0.5 + 2.0**-53
    assert all_weights(np.empty((2, 0), "<f4")).tolist() == [[1.0], [1.0]]
    assert all_weights(weights).dtype == np.float32


def test_canonical_rows_of_rows_in_any_order():
    rows = canonical_rows(
        np.array([[4, 2, 9], [7, 3, 1], [300, 0, 5]]),
        np.array([[0.25, 0.5, 0.25], [0.0, 1.0, -0.0], [0.125, 0.125, 0.75]]),
        301,
    )
    assert rows.indices.dtype == np.dtype("<u2")
    assert rows.weights.dtype == np.dtype("<f4")
    assert rows.indices.tolist() == [[2, 4, 9], [3, 1, 7], [5, 0, 300]]
    assert rows.weights.tolist() == [[0.25, 0.25], [0, 0], [0.125, 0.125]]
    assert not np.signbit(rows.weights).any()


def test_arguments_are_not_changed():
    indices, weights = np.array([[1, 0]], "u1"), np.array([[0.25, 0.75]])
    canonical_rows(indices, weights, 2)
    assert indices.tolist() == [[1, 0]]
    assert weights.tolist() == [[0.25, 0.75]]


def test_only_rows_whose_first_weight_would_be_smaller_are_rounded_down():
    """1/3 is rounded up in float32, so the first of three weights would be smaller. 1/7 is rounded
    down."""
    thirds = canonical_rows(np.array([[0, 1, 2]]), np.full((1, 3), 1 / 3), 3)
    below = np.nextafter(np.float32(1 / 3), np.float32(0))
    assert thirds.weights.tolist() == [[below, below]]
    both = canonical_rows(
        np.array([[0, 1, 2], [0, 1, 2]]), np.array([[1 / 3] * 3, [0.7, 0.2, 0.1]]), 3
    )
    assert both.weights[1].tolist() == [np.float32(0.2), np.float32(0.1)]


def test_only_weights_that_were_rounded_up_are_rounded_down():
    """3/128 is exact and does not change."""
    exact = (1 - 3 / 128) / 3
    assert float(np.float32(exact)) > exact
    rows = canonical_rows(np.arange(4)[None], np.array([[exact, exact, exact, 3 / 128]]), 4)
    below = float(np.nextafter(np.float32(exact), np.float32(0)))
    assert rows.weights.tolist() == [[below, below, 3 / 128]]


def test_weights_are_lowered_until_the_first_is_the_largest():
    """Sums of tens of thousands of weights may exceed 1 by this much."""
    step = 2.0**-25
    stored = np.array([[0.25 + 2 * step] * 3, [0.25] * 3, [0.25 + step] * 3], "<f4")
    admixture._keep_first_largest(stored, stored.astype(np.float64))
    assert stored.tolist() == [[0.25] * 3] * 3
    none = np.empty((2, 0), "<f4")
    admixture._keep_first_largest(none, none.astype(np.float64))


def test_rows_are_contiguous_for_any_memory_layout():
    indices = np.asfortranarray([[4, 2, 1], [7, 3, 0], [0, 5, 6]])
    weights = np.asfortranarray([[0.25, 0.625, 0.125], [1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
    rows = canonical_rows(indices, weights, 8)
    assert rows.indices.flags.c_contiguous
    assert rows.weights.flags.c_contiguous
    assert rows.indices.tolist() == [[2, 4, 1], [7, 0, 3], [0, 5, 6]]
    assert rows.weights.tolist() == [[0.25, 0.125], [0, 0], [0.25, 0.25]]


def test_differences_of_logits_beyond_float64_give_a_weight_of_zero():
    block = np.array([[1.7e308, -1.7e308, 0.0]])
    with np.errstate(over="raise", invalid="raise"):
        rows = rows_from_selection(select_top_k({"x": block}, 2), 3)
    assert rows.indices.tolist() == [[0, 2]]
    assert rows.weights.tolist() == [[0.0]]
    with np.errstate(over="raise", invalid="raise"):
        rows = rows_from_selection(select_top_k({"x": block[:, :2]}, 2), 3)
    assert rows.indices.tolist() == [[0, 1]]
    assert rows.weights.tolist() == [[0.0]]
