"""Rows → sub-vectors → the factors A and B."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import reference
from tests.strategies import banks, logits
from vbfmt import Module
from vbfmt._math import composition
from vbfmt._math.admixture import Rows, all_weights, rows_from_selection
from vbfmt._math.selection import select_top_k


def some_rows(n: int, h: int, k: int, seed: int = 0) -> Rows:
    block = np.random.default_rng(seed).standard_normal((n, h))
    return rows_from_selection(select_top_k({"x": block}, k), h)


def in_order_of_the_spec(bank, rows: Rows) -> np.ndarray:
    """Compose as section 8 of the specification says, one element at a time, with Python's
    floats."""
    elements = []
    for indices, shares in zip(
        rows.indices.tolist(), all_weights(rows.weights).tolist(), strict=True
    ):
        for vectors in bank[indices].T.tolist():
            total = 0.0
            for share, element in zip(shares, vectors, strict=True):
                total += share * element
            elements.append(total)
    return np.array(elements).astype(np.float32).reshape(-1, bank.shape[1])


@given(st.data(), st.integers(1, 40), st.integers(1, 8))
@settings(max_examples=300)
def test_every_element_is_within_k_plus_1_units_of_the_float64_value(data, h, b):
    block = data.draw(logits(n=st.integers(1, 10), h=st.just(h)))
    k = data.draw(st.integers(1, h))
    bank = data.draw(banks(h, b))
    rows = rows_from_selection(select_top_k({"x": block}, k), h)
    ours = composition.subvectors(bank, rows.indices, rows.weights)
    exact = reference.subvectors(block, bank, k)
    assert np.abs(ours - exact).max() <= reference.bound(bank, k)


@given(st.data(), st.integers(4, 20), st.integers(1, 4), st.integers(1, 9))
@settings(max_examples=200)
def test_every_bit_is_that_of_the_specification(data, h, k, b):
    bank = data.draw(banks(h, b))
    bank[data.draw(st.lists(st.integers(0, h - 1)))] = -0.0
    rows = some_rows(data.draw(st.integers(1, 30)), h, k)
    ours = composition.subvectors(bank, rows.indices, rows.weights)
    np.testing.assert_array_equal(
        ours.view(np.uint32), in_order_of_the_spec(bank, rows).view(np.uint32)
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
def test_two_products_are_added_with_one_rounding_to_float64(seed, b):
    """Products of very different size are compared with exact fractions."""
    rng = np.random.default_rng(seed)
    bank = (rng.standard_normal((6, b)) * 2.0 ** rng.integers(-40, 40, (6, b))).astype(np.float32)
    rows = some_rows(2, 6, 2, seed)
    ours = composition.subvectors(bank, rows.indices, rows.weights)
    shares = all_weights(rows.weights)
    for row, element in zip(*np.unravel_index(rng.integers(0, 2 * b, 5), (2, b)), strict=True):
        exact = sum(
            Fraction(float(share)) * Fraction(float(bank[index, element]))
            for share, index in zip(shares[row], rows.indices[row], strict=True)
        )
        assert ours[row, element] == np.float32(float(exact))


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(("b", "n"), [(1, 5000), (7, 2500), (300, 5000), (20000, 100)])
def test_the_result_does_not_depend_on_blocks_and_threads(b, n, k):
    rows = some_rows(n, 50, k)
    bank = np.random.default_rng(1).standard_normal((50, b)).astype(np.float32)
    whole = composition.subvectors(bank, rows.indices, rows.weights)
    for i in (0, n // 2, n - 1):
        here = slice(i, i + 1)
        one = composition.subvectors(bank, rows.indices[here], rows.weights[here])
        np.testing.assert_array_equal(whole[here], one)


@pytest.mark.parametrize(
    ("b", "sizes"),
    [
        (1, [(3, 5, 2), (1, 1, 1)]),
        (4, [(8, 4, 3)] * 3),
        (4, [(4, 8, 3), (12, 8, 1)]),
        (16, [(160_000, 32, 2), (32, 48, 40)]),
    ],
)
def test_factors_consist_of_subvectors_by_component_and_tile(b, sizes):
    modules = [Module(str(i), *size) for i, size in enumerate(sizes)]
    n = sum(module.rows(b) for module in modules)
    rows = some_rows(n, 30, 2)
    bank = np.random.default_rng(1).standard_normal((30, b)).astype(np.float32)
    flat = composition.subvectors(bank, rows.indices, rows.weights).reshape(-1)
    found = composition.factors(bank, rows.indices, rows.weights, modules)
    for module, (a, right) in zip(modules, found, strict=True):
        first, flat = np.split(flat, [module.rank * module.in_features])
        second, flat = np.split(flat, [module.rank * module.out_features])
        np.testing.assert_array_equal(a, first.reshape(module.rank, -1))
        np.testing.assert_array_equal(right, second.reshape(module.rank, -1).T)
        assert a.flags.c_contiguous
        assert right.flags.c_contiguous
    assert flat.size == 0


@pytest.mark.parametrize("elements", [1, 8, 20, 64])
def test_factors_do_not_depend_on_the_number_of_blocks(elements, monkeypatch):
    """Blocks of whole components, a shorter last block, and blocks that are part of one
    component."""
    modules = [Module("a", 12, 4, 7), Module("b", 40, 8, 3), Module("c", 4, 8, 1)]
    rows = some_rows(sum(module.rows(4) for module in modules), 30, 2)
    bank = np.random.default_rng(1).standard_normal((30, 4)).astype(np.float32)
    at_once = composition.factors(bank, rows.indices, rows.weights, modules)
    monkeypatch.setattr(composition, "_BLOCK_ELEMENTS", elements)
    cut = composition.factors(bank, rows.indices, rows.weights, modules)
    for one, other in zip(at_once, cut, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_factors_of_a_small_example():
    bank = np.array([[1.0, 2.0], [4.0, 8.0], [16.0, 32.0]], "f4")
    indices = np.array([[0, 1, 2], [2, 0, 1]], "u1")
    weights = np.array([[0.25, 0.125], [0.0, 0.0]], "<f4")
    found = composition.subvectors(bank, indices, weights)
    assert found.dtype == np.float32
    assert found.tolist() == [[0.625 + 1 + 2, 1.25 + 2 + 4], [16, 32]]


@pytest.mark.parametrize("b", [1, 3, 70_000])
def test_blocks_of_any_size(b):
    """One row may be larger than the block that is meant to hold several."""
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((4, b)).astype("f4")
    indices = rng.integers(0, 4, (5, 1)).astype("u1")
    found = composition.subvectors(bank, indices, np.empty((5, 0), "<f4"))
    np.testing.assert_array_equal(found, bank[indices[:, 0]])


def test_no_rows_give_no_subvectors():
    """Earlier, the size of a block was computed with a division by zero."""
    indices = np.empty((0, 2), "u1")
    assert composition.subvectors(
        np.ones((3, 4), "f4"), indices, indices.astype("<f4")[:, 1:]
    ).shape == (0, 4)


def test_unverified_indices_read_nothing_past_the_bank():
    bank = np.array([[1.0], [2.0]], "f4")
    indices = np.array([[9, 200], [0, 200]], "u1")
    assert composition.subvectors(bank, indices, np.array([[0.25], [0.5]], "<f4")).tolist() == [
        [2],
        [1.5],
    ]


def test_the_bound_needs_its_second_term_for_subnormal_banks():
    """Half a unit of a subnormal number is 2⁻¹⁵⁰, which is more than (k + 1) · 2⁻²⁴ · max|bank|."""
    bank = np.array([[2.0**-149], [3 * 2.0**-149]], np.float32)
    rows = Rows(np.array([[0, 1]], "u1"), np.array([[0.25]], "<f4"))
    exact = 0.75 * 2.0**-149 + 0.25 * 3 * 2.0**-149
    found = float(composition.subvectors(bank, rows.indices, rows.weights)[0, 0])
    assert abs(found - exact) > 3 * 2.0**-24 * 3 * 2.0**-149
    assert abs(found - exact) <= 3 * 2.0**-24 * 3 * 2.0**-149 + 2.0**-150
