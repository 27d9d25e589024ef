"""Logits → canonical rows."""

from __future__ import annotations

import hashlib

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import logits
from vbfmt import admixture
from vbfmt.admixture import (
    all_weights,
    canonical_rows,
    out_of_order,
    repeats,
    rows_from_selection,
)
from vbfmt.selection import select_top_k

GOLDEN_ROWS = "bb0bec46bb80b2c0c374461fdbdccc7204caaa632160f4a4e5afdc11f7f77ee8"


@given(logits(n=st.integers(1, 20), h=st.integers(1, 40)), st.data())
@settings(max_examples=300)
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
def test_equal_weights_leave_the_largest_the_largest(k):
    """Rounded to nearest, 1/3 twice leaves less than 1/3."""
    rows = canonical_rows(np.arange(k)[None], np.full((1, k), 1 / k), k)
    full = all_weights(rows.weights)
    assert full[0, 0] >= full[0, 1]
    assert np.abs(full - 1 / k).max() <= k * 2.0**-24 / k


def test_logits_that_differ_less_than_weights_can_say_are_ordered_by_index():
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
    """Golden: computed once; a change of any bit here is a change of what `pack` writes."""
    rng = np.random.default_rng(20240515)
    block = rng.integers(-(2**20), 2**20, (2000, 64)).astype(np.float64) / 2**17
    rows = rows_from_selection(select_top_k({"x": block}, 3), 64)
    found = hashlib.sha256(rows.indices.tobytes() + rows.weights.tobytes()).hexdigest()
    assert found == GOLDEN_ROWS
