"""Counts and norms, compared with the simplest way to compute them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import adapters
from vbfmt import Adapter, Module, Rows
from vbfmt._math.admixture import all_weights, canonical_rows
from vbfmt.analysis import statistics as s


def small() -> Adapter:
    """Return an adapter with two modules, four vectors of two elements, and five sub-vectors."""
    bank = np.array([[1, 0], [0, 1], [3, 4], [0, 0]], "f4")
    indices = np.array([[0, 1], [0, 2], [0, 1], [2, 1], [0, 2]], "u1")
    weights = np.array([[0.5], [0.25], [0.0], [0.25], [0.5]], "f4")
    x, y = Module("x", 2, 4, 1), Module("y", 2, 2, 1)
    return Adapter.from_rows(
        bank, {x: Rows(indices[:3], weights[:3]), y: Rows(indices[3:], weights[3:])}
    )


def test_usage_of_a_small_example():
    assert s.usage(small()).tolist() == [4, 3, 3, 0]


def test_balance_of_a_small_example():
    found = s.balance(small())
    assert (found.unused, found.least, found.most, found.mean) == (1, 0, 4, 2.5)
    assert found.spread == pytest.approx(1.5)
    assert found.chance == pytest.approx((5 * 0.5 * 0.5) ** 0.5)
    p = np.array([4, 3, 3]) / 10
    assert found.effective == pytest.approx(float(np.prod(p**-p)))
    assert found.most_used == ((0, 4), (1, 3), (2, 3))


def test_rows_belong_to_modules_and_factors():
    module, in_b = s.rows_by_module(small())
    assert module.tolist() == [0, 0, 0, 1, 1]
    assert in_b.tolist() == [False, True, True, False, True]


def test_the_chance_level_is_that_of_random_selection():
    rng = np.random.default_rng(0)
    h, k, n = 40, 3, 2000
    indices = np.sort(np.argsort(rng.random((n, h)), axis=1)[:, :k], axis=1).astype("u1")
    rows = Rows(indices, np.full((n, k - 1), 0.25, "f4"))
    adapter = Adapter.from_rows(np.ones((h, 1), "f4"), {Module("m", n - 1, 1, 1): rows})
    found = s.balance(adapter)
    assert found.spread == pytest.approx(found.chance, rel=0.3)


@given(adapters())
def test_counts_add_up(adapter):
    assert s.usage(adapter).sum() == adapter.N * adapter.k
    found = s.balance(adapter)
    assert 1 - 1e-9 <= found.effective <= adapter.h + 1e-9
    assert found.least <= found.mean <= found.most


@given(adapters(), st.data())
def test_weight_sums_are_the_sums_of_weights(adapter, data):
    count = data.draw(st.integers(1, 4))
    groups = np.array(
        data.draw(st.lists(st.integers(0, count - 1), min_size=adapter.N, max_size=adapter.N))
    )
    expected = np.zeros((count, adapter.h))
    weights = all_weights(adapter.weights)
    for row in range(adapter.N):
        for vector, weight in zip(adapter.indices[row], weights[row], strict=True):
            expected[groups[row], vector] += weight
    found = s.weight_sums(adapter, groups, count)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


@given(adapters(), st.data())
def test_selections_in_bins(adapter, data):
    size = data.draw(st.integers(1, adapter.h)), data.draw(st.integers(1, adapter.N))
    expected = np.zeros(size, int)
    for row in range(adapter.N):
        for vector in adapter.indices[row].tolist():
            expected[vector * size[0] // adapter.h, row * size[1] // adapter.N] += 1
    assert np.array_equal(s.selections(adapter.indices, adapter.h, size), expected)


@given(adapters())
def test_norms_of_delta_are_computed_without_delta(adapter):
    found = s.delta_norms(adapter)
    for norm, module in zip(found, adapter, strict=True):
        a, b = (factor.astype(float) for factor in adapter.factors(module.name))
        exact = float(((b @ a) ** 2).sum())
        # The sum has r² products of two sums, each with an error of a few ulp.
        room = 1e-13 * float((a**2).sum()) * float((b**2).sum())
        assert abs(norm**2 - exact) <= room + 1e-300


@given(adapters())
def test_norms_of_the_bank(adapter):
    expected = np.linalg.norm(adapter.bank.astype(float), axis=1)
    np.testing.assert_allclose(s.bank_norms(adapter), expected, rtol=1e-12)


@given(adapters())
def test_projection_is_that_of_the_composed_sub_vectors(adapter):
    found = s.project(adapter)
    largest = float(np.abs(adapter.bank).max())
    assert np.isfinite(found.vectors).all()
    assert 0 <= found.explained[1] <= found.explained[0] <= 1 + 1e-9
    # A sub-vector lies within the bounding box of the vectors that compose it.
    corners = found.vectors[adapter.indices]
    room = 1e-6 * largest * adapter.b
    assert (found.subvectors >= corners.min(axis=1) - room).all()
    assert (found.subvectors <= corners.max(axis=1) + room).all()


def test_projection_finds_the_plane_that_the_bank_lies_in():
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((30, 2)) * (5, 1)
    plane = np.linalg.qr(rng.standard_normal((12, 2)))[0]
    bank = (flat @ plane.T + 7).astype("f4")
    indices = np.array([[0, 1]] * 2, "u1")
    adapter = Adapter.from_rows(
        bank, {Module("m", 12, 12, 1): Rows(indices, np.full((2, 1), 0.25, "f4"))}
    )
    found = s.project(adapter)
    assert sum(found.explained) == pytest.approx(1, abs=1e-6)
    distances = np.linalg.norm(found.vectors[:, None] - found.vectors[None], axis=2)
    expected = np.linalg.norm(flat[:, None] - flat[None], axis=2)
    np.testing.assert_allclose(distances, expected, atol=1e-4)
    on_the_edge = 0.75 * found.vectors[0] + 0.25 * found.vectors[1]
    np.testing.assert_allclose(found.subvectors[0], on_the_edge, atol=1e-6)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5)])
def test_both_ways_to_compute_the_components_agree(shape):
    bank = np.random.default_rng(1).standard_normal(shape).astype("f4")
    rows = Rows(np.zeros((2, 1), "u1"), np.zeros((2, 0), "f4"))
    found = s.project(Adapter.from_rows(bank, {Module("m", shape[1], shape[1], 1): rows}))
    centred = bank.astype(float) - bank.astype(float).mean(axis=0)
    _, values, axes = np.linalg.svd(centred)
    np.testing.assert_allclose(np.abs(found.vectors), np.abs(centred @ axes[:2].T), atol=1e-9)
    assert found.explained[0] == pytest.approx(values[0] ** 2 / (values**2).sum())


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_spread_of_weight_sums_is_that_of_all_possible_draws(k):
    h, module = 5, Module("m", 3, 2, 1)
    rng = np.random.default_rng(k)
    indices = np.argsort(rng.random((5, h)), axis=1)[:, :k]
    rows = canonical_rows(indices, rng.dirichlet(np.ones(k), 5), h)
    adapter = Adapter.from_rows(np.ones((h, 1), "f4"), {module: rows})
    groups, bins = np.array([0, 0, 2, 2, 2]), [[0, 1, 2], [3], [4]]
    expected = np.zeros((3, 3))
    for row, group in enumerate(groups):
        weights = all_weights(adapter.weights)[row].astype(float)
        for position, members in enumerate(bins):
            sums = [
                sum(w for vector, w in zip(draw, weights, strict=True) if vector in members)
                for draw in itertools.permutations(range(h), k)
            ]
            expected[group, position] += np.var(sums)
    found = s.weight_sum_spread(adapter, groups, 3, np.array([3, 1, 1]))
    np.testing.assert_allclose(found, np.sqrt(expected), atol=1e-7)


def test_random_selection_draws_k_distinct_vectors_with_equal_probability():
    h, k, n = 7, 3, 20001
    bank = np.ones((h, 1), "f4")
    rows = Rows(np.tile(np.arange(k, dtype="u1"), (n, 1)), np.full((n, k - 1), 0.25, "f4"))
    adapter = Adapter.from_rows(bank, {Module("m", n - 1, 1, 1): rows})
    drawn = s.drawn_at_random(adapter, 0)
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    for column in drawn.T:
        counts = np.bincount(column, minlength=h)
        assert len(counts) == h
        assert np.abs(counts - n / h).max() < 5 * (n / h) ** 0.5
    assert np.array_equal(drawn, s.drawn_at_random(adapter, 0))
    assert not np.array_equal(drawn, s.drawn_at_random(adapter, 1))
