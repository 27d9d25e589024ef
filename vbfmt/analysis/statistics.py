"""Compute statistics of an adapter: its selections, its weights and the norms of ΔW.

They are computed from the bank, the indices and the weights. Only the norms of ΔW need the factors.
ΔW itself is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.admixture import all_weights
from vbfmt._math.composition import subvectors
from vbfmt.adapter import Adapter

_ROWS_AT_ONCE = 1 << 18
_ELEMENTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class Balance:
    """How evenly the vectors of the bank are used (paper, A.2, "Load balancing").

    Attributes:
        unused: number of vectors that no sub-vector selects.
        least, most: number of selections of the least used and of the most used vector.
        mean: mean number of selections of a vector, N·k / h.
        spread: standard deviation of the number of selections.
        chance: the spread if every sub-vector selected k vectors at random: √(N·p·(1 − p)) with p =
            k / h.
        effective: effective number of vectors, e^entropy of their shares of all selections. It is h
            if all are selected equally often, and 1 if only one is selected.
        most_used: up to five (vector, number of selections), most used first.
    """

    unused: int
    least: int
    most: int
    mean: float
    spread: float
    chance: float
    effective: float
    most_used: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Projection:
    """The bank and the sub-vectors, projected onto the bank's two principal components (cf. Fig.
    9).

    The projection is linear, so a sub-vector is on the line between its vectors (k = 2), or in the
    simplex that they span.

    Attributes:
        vectors: (h, 2) float64.
        subvectors: (N, 2) float64.
        explained: the shares of the bank's variance along the two axes.
    """

    vectors: NDArray[np.float64]
    subvectors: NDArray[np.float64]
    explained: tuple[float, float]


def usage(adapter: Adapter) -> NDArray[np.int64]:
    """Return how many sub-vectors select each vector: (h,) int64, with sum N·k."""
    counts = np.zeros(adapter.h, dtype=np.int64)
    for rows in _blocks(adapter):  # in blocks, because bincount copies its argument to int64
        counts += np.bincount(adapter.indices[rows].reshape(-1), minlength=adapter.h)
    return counts


def balance(adapter: Adapter) -> Balance:
    """Return the load balance of an adapter."""
    counts = usage(adapter)
    shares = counts[counts > 0] / counts.sum()
    p = adapter.k / adapter.h
    top = np.argsort(-counts, kind="stable")[:5]
    return Balance(
        unused=int((counts == 0).sum()),
        least=int(counts.min()),
        most=int(counts.max()),
        mean=adapter.N * p,
        spread=float(counts.std()),
        chance=float(np.sqrt(adapter.N * p * (1 - p))),
        effective=float(np.exp(-(shares * np.log(shares)).sum())),
        most_used=tuple((int(vector), int(counts[vector])) for vector in top if counts[vector]),
    )


def largest_weights(adapter: Adapter) -> NDArray[np.float32]:
    """Return w₀, the largest admixture weight, of every sub-vector: (N,) float32."""
    largest = np.empty(adapter.N, dtype=np.float32)
    for rows in _blocks(adapter):
        largest[rows] = all_weights(adapter.weights[rows])[:, 0]
    return largest


def _blocks(adapter: Adapter) -> Iterator[slice]:
    """Yield slices of rows, at most `_ROWS_AT_ONCE` in each."""
    for start in range(0, adapter.N, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)


def rows_by_module(adapter: Adapter) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Return the module of each row, (N,) intp, and whether the row belongs to B, (N,) bool."""
    lengths = np.array(
        [
            m.rank * features // adapter.b
            for m in adapter
            for features in (m.in_features, m.out_features)
        ],
        dtype=np.intp,
    )
    part = np.repeat(np.arange(len(lengths), dtype=np.intp), lengths)
    return part // 2, part % 2 == 1


def weight_sums(
    adapter: Adapter,
    groups: NDArray[np.intp],
    count: int,
    vectors: NDArray[np.integer[Any]] | None = None,
    bins: NDArray[np.intp] | None = None,
) -> NDArray[np.float64]:
    """Return the sum of the admixture weights that each group of sub-vectors has on each vector.

    These are the sums of the paper's Figs. 6 and 7.

    Args:
        groups: (N,) group of each sub-vector, below `count`.
        count: number of groups.
        vectors: (N, k) indices to use instead of the adapter's own.
        bins: (h,) bin of each vector, to sum over bins. The last bin must not be empty.

    Returns:
        (count, h) or (count, bins) float64, with sum N.
    """
    selected, columns = adapter.indices if vectors is None else vectors, adapter.h
    if bins is not None:
        selected, columns = bins[selected], int(bins.max()) + 1
    cells = groups[:, None] * columns + selected
    weights = all_weights(adapter.weights).astype(np.float64)
    sums = np.zeros(count * columns)
    sums += np.bincount(cells.reshape(-1), weights.reshape(-1), minlength=len(sums))
    return sums.reshape(count, columns)


def weight_sum_spread(
    adapter: Adapter, groups: NDArray[np.intp], count: int, sizes: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return the standard deviation of binned `weight_sums` for random selection.

    That is, if every sub-vector kept its weights and selected its k vectors at random. In a bin of
    m of the h vectors, a sub-vector with q = Σ wᵢ² has the variance q·m/h + (1 − q)·m(m − 1)/(h(h −
    1)) − (m/h)². Sub-vectors are independent, so their variances add up.

    Args:
        groups: (N,) group of each sub-vector, below `count`.
        count: number of groups.
        sizes: (bins,) number of vectors in each bin.

    Returns:
        (count, bins) float64. It is 0 for a group without sub-vectors and for a bin with all
        vectors.
    """
    h, m = adapter.h, sizes.astype(np.float64)
    squares = (all_weights(adapter.weights).astype(np.float64) ** 2).sum(axis=1)
    rows = np.bincount(groups, minlength=count)[:, None].astype(np.float64)
    q = np.bincount(groups, squares, minlength=count)[:, None]
    pairs = m * (m - 1) / (h * max(h - 1, 1))
    variance: NDArray[np.float64] = q * m / h + (rows - q) * pairs - rows * (m / h) ** 2
    # Rounding can make a variance of 0 negative.
    return np.sqrt(np.where(variance > 1e-9 * rows, variance, 0.0))


def drawn_at_random(adapter: Adapter, seed: int) -> NDArray[np.int64]:
    """Draw k different vectors uniformly at random for every sub-vector: (N, k) int64.

    The method is R. Floyd's sampling, followed by a random permutation.
    """
    rng = np.random.default_rng(seed)
    drawn = np.empty((adapter.N, adapter.k), dtype=np.int64)
    for position in range(adapter.k):
        last = adapter.h - adapter.k + position
        found = rng.integers(0, last + 1, adapter.N)
        taken = (drawn[:, :position] == found[:, None]).any(axis=1)
        drawn[:, position] = np.where(taken, last, found)
    return rng.permuted(drawn, axis=1)


def selections(
    vectors: NDArray[np.unsignedinteger[Any]],
    h: int,
    size: tuple[int, int],
    among: NDArray[np.bool_] | None = None,
) -> NDArray[np.int64]:
    """Count the selections in a grid of bins of vectors and bins of sub-vectors.

    Args:
        vectors: (N, k) indices. Each bin of sub-vectors is a range of these rows.
        h: number of vectors in the bank.
        size: number of bins of vectors (at most h) and of bins of sub-vectors (at most N).
        among: (N, k), which selections to count; by default, all.

    Returns:
        int64 array of shape `size`, with the number of these selections as sum.
    """
    n, k = vectors.shape
    across = np.repeat(np.arange(n, dtype=np.int64) * size[1] // n, k)
    down = vectors.reshape(-1).astype(np.int64) * size[0] // h
    cells = down * size[1] + across
    counted = cells if among is None else cells[among.reshape(-1)]
    return np.bincount(counted, minlength=size[0] * size[1]).reshape(size)


def bank_norms(adapter: Adapter) -> NDArray[np.float64]:
    """Return the Euclidean norm of every vector: (h,) float64."""
    squares: NDArray[np.float64] = np.einsum(
        "ij,ij->i", adapter.bank, adapter.bank, dtype=np.float64
    )
    return np.sqrt(squares)


def delta_norms(adapter: Adapter) -> NDArray[np.float64]:
    """Return the Frobenius norm ‖ΔW‖ of every module: (M,) float64.

    ‖B·A‖² = Σ (BᵀB ∘ AAᵀ) needs only two r × r matrices, whatever the layer's size.
    """
    squares = [_squared_norms(*pair) for pair in _stacked(adapter)]
    norms: NDArray[np.float64] = np.sqrt(np.maximum(np.concatenate(squares), 0.0))
    return norms


def _squared_norms(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return ‖B·A‖² of n pairs of factors, A (n, r, in) and Bᵀ (n, r, out): (n,) float64."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    products = (wide_b @ wide_b.transpose(0, 2, 1)) * (wide_a @ wide_a.transpose(0, 2, 1))
    found: NDArray[np.float64] = products.sum(axis=(1, 2))
    return found


def _stacked(adapter: Adapter) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Yield all factors in order, A and Bᵀ. Neighbouring small modules of one shape are in one
    array."""
    first = 0
    shapes = groupby(adapter, key=attrgetter("rank", "in_features", "out_features"))
    for (rank, columns, rows), modules in shapes:
        of_a, of_both = rank * columns // adapter.b, rank * (columns + rows) // adapter.b
        at_once = max(1, _ELEMENTS_AT_ONCE // (rank * (columns + rows)))
        while count := sum(1 for _ in islice(modules, at_once)):
            these = slice(first, first + count * of_both)
            found = subvectors(adapter.bank, adapter.indices[these], adapter.weights[these])
            found = found.reshape(count, of_both, adapter.b)
            yield (
                found[:, :of_a].reshape(count, rank, columns),
                found[:, of_a:].reshape(count, rank, rows),
            )
            first = these.stop


def project(adapter: Adapter) -> Projection:
    """Project bank and sub-vectors onto the bank's two principal components."""
    centred = adapter.bank.astype(np.float64)
    centred -= centred.mean(axis=0)
    plane, variances = _principal(centred)
    vectors = centred @ plane
    weights = all_weights(adapter.weights).astype(np.float64)
    subvectors = np.einsum("nk,nkd->nd", weights, vectors[adapter.indices])
    total = float((centred**2).sum()) or 1.0
    return Projection(vectors, subvectors, (variances[0] / total, variances[1] / total))


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[float]]:
    """Return the two orthonormal directions with the largest variance, (b, 2), and h times their
    variances.

    They are computed from the smaller of the two Gram matrices. Each direction's largest element is
    made positive, so that the picture does not depend on a library's choice of sign.
    """
    h, b = centred.shape
    if b <= h:
        values, found = np.linalg.eigh(centred.T @ centred)
        directions = found[:, ::-1][:, :2]
    else:
        values, found = np.linalg.eigh(centred @ centred.T)
        directions = centred.T @ found[:, ::-1][:, :2]
        directions /= np.maximum(np.linalg.norm(directions, axis=0), np.finfo(np.float64).tiny)
    plane = np.zeros((b, 2))
    plane[:, : directions.shape[1]] = directions
    largest = np.abs(plane).argmax(axis=0)
    plane *= np.where(plane[largest, [0, 1]] < 0, -1.0, 1.0)
    two = [max(float(value), 0.0) for value in values[::-1][:2]]
    return plane, [*two, 0.0][:2]
