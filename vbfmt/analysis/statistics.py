"""What an adapter has learned, as numbers: which vectors it selects, how much, and how far it goes.

Everything is counted from the triplet of Sec. 3.4. Only the norms of ΔW need the factors, and they
too never ΔW itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.admixture import all_weights
from vbfmt.adapter import Adapter

_ROWS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Balance:
    """How evenly the vectors of the bank are used (paper, A.2, "Load balancing").

    Attributes:
        unused: vectors that no sub-vector selects.
        least, most: times that the least and the most used vector is selected.
        mean: N·k / h.
        spread: standard deviation of the times selected.
        chance: the same, were every sub-vector's k vectors drawn at random: √(N·p·(1 − p)) with
            p = k / h.
        effective: e^entropy of the shares of selections: h if all are used alike, 1 if one is
            used alone.
        most_used: up to five (vector, times), most used first.
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
    """Bank and sub-vectors in the plane of the bank's two principal components (cf. Fig. 9).

    The projection is linear, so that a sub-vector stays on the edge (k = 2) or in the simplex that
    its vectors span.

    Attributes:
        vectors: (h, 2) float64.
        subvectors: (N, 2) float64.
        explained: the share of the bank's variance along either axis.
    """

    vectors: NDArray[np.float64]
    subvectors: NDArray[np.float64]
    explained: tuple[float, float]


def usage(adapter: Adapter) -> NDArray[np.int64]:
    """How many sub-vectors select each vector: (h,), in all N·k."""
    counts = np.zeros(adapter.h, dtype=np.int64)
    for rows in _blocks(adapter):  # of its argument, bincount makes a copy in 64 bits
        counts += np.bincount(adapter.indices[rows].reshape(-1), minlength=adapter.h)
    return counts


def balance(adapter: Adapter) -> Balance:
    """The load balance of an adapter."""
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
    """w₀ of every sub-vector, its largest admixture weight: (N,), from 1/k to 1."""
    largest = np.empty(adapter.N, dtype=np.float32)
    for rows in _blocks(adapter):
        largest[rows] = all_weights(adapter.weights[rows])[:, 0]
    return largest


def _blocks(adapter: Adapter) -> Iterator[slice]:
    """The rows, some at a time."""
    for start in range(0, adapter.N, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)


def rows_by_module(adapter: Adapter) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Of every row, its module's number in the table, and whether it belongs to B: (N,) both."""
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
) -> NDArray[np.float64]:
    """The sum of the admixture weights that each vector gets from each group of sub-vectors, as in
    the paper's Figs. 6 and 7.

    Args:
        groups: (N,) below `count`.
        vectors: (N, k) indices in place of the adapter's own.

    Returns:
        (count, h) float64, N in all.
    """
    cells = groups[:, None] * adapter.h + (adapter.indices if vectors is None else vectors)
    weights = all_weights(adapter.weights).astype(np.float64)
    sums = np.zeros(count * adapter.h)
    sums += np.bincount(cells.reshape(-1), weights.reshape(-1), minlength=len(sums))
    return sums.reshape(count, adapter.h)


def weight_sum_spread(
    adapter: Adapter, groups: NDArray[np.intp], count: int, sizes: NDArray[np.intp]
) -> NDArray[np.float64]:
    """The standard deviation of `weight_sums`, added over bins of vectors, were every sub-vector
    to keep its weights and draw its k vectors at random.

    Of a sub-vector with q = Σ wᵢ² and a bin of m of the h vectors it is the root of
    q·m/h + (1 − q)·m(m − 1)/(h(h − 1)) − (m/h)²; sub-vectors are independent.

    Args:
        groups: (N,) below `count`.
        sizes: (bins,) vectors in each bin.

    Returns:
        (count, bins) float64; 0 for a group without sub-vectors and for a bin of all vectors.
    """
    h, m = adapter.h, sizes.astype(np.float64)
    squares = (all_weights(adapter.weights).astype(np.float64) ** 2).sum(axis=1)
    rows = np.bincount(groups, minlength=count)[:, None].astype(np.float64)
    q = np.bincount(groups, squares, minlength=count)[:, None]
    pairs = m * (m - 1) / (h * max(h - 1, 1))
    variance: NDArray[np.float64] = q * m / h + (rows - q) * pairs - rows * (m / h) ** 2
    # A difference that is 0 up to rounding may be negative: no square root of it.
    return np.sqrt(np.where(variance > 1e-9 * rows, variance, 0.0))


def drawn_at_random(adapter: Adapter, seed: int) -> NDArray[np.int64]:
    """For every sub-vector k different vectors of the bank, each choice and order as likely as any
    other (R. Floyd's sampling): (N, k)."""
    rng = np.random.default_rng(seed)
    drawn = np.empty((adapter.N, adapter.k), dtype=np.int64)
    for position in range(adapter.k):
        last = adapter.h - adapter.k + position
        found = rng.integers(0, last + 1, adapter.N)
        taken = (drawn[:, :position] == found[:, None]).any(axis=1)
        drawn[:, position] = np.where(taken, last, found)
    return rng.permuted(drawn, axis=1)


def selections(
    vectors: NDArray[np.unsignedinteger[Any]], h: int, size: tuple[int, int]
) -> NDArray[np.int64]:
    """How often each vector is selected, over sub-vectors and vectors in bins of equal number.

    Args:
        vectors: (N, k) indices, sub-vectors in the order wanted.
        size: bins of vectors, bins of sub-vectors; at most h and N.

    Returns:
        `size` int64, N·k in all.
    """
    n, k = vectors.shape
    across = np.repeat(np.arange(n, dtype=np.int64) * size[1] // n, k)
    down = vectors.reshape(-1).astype(np.int64) * size[0] // h
    return np.bincount(down * size[1] + across, minlength=size[0] * size[1]).reshape(size)


def bank_norms(adapter: Adapter) -> NDArray[np.float64]:
    """The Euclidean norm of every vector: (h,)."""
    squares: NDArray[np.float64] = np.einsum(
        "ij,ij->i", adapter.bank, adapter.bank, dtype=np.float64
    )
    return np.sqrt(squares)


def delta_norms(adapter: Adapter) -> NDArray[np.float64]:
    """‖ΔW‖ (Frobenius) of every module: (M,).

    ‖B·A‖² = Σ (BᵀB ∘ AAᵀ): two r × r matrices, whatever the layer's size.
    """
    norms = np.empty(len(adapter))
    for position, (_, a, b) in enumerate(adapter.iter_factors()):
        wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
        squared = float(((wide_b.T @ wide_b) * (wide_a @ wide_a.T)).sum())
        norms[position] = np.sqrt(max(squared, 0.0))
    return norms


def project(adapter: Adapter) -> Projection:
    """Bank and sub-vectors in two dimensions, by principal component analysis of the bank."""
    centred = adapter.bank.astype(np.float64)
    centred -= centred.mean(axis=0)
    plane, variances = _principal(centred)
    vectors = centred @ plane
    weights = all_weights(adapter.weights).astype(np.float64)
    subvectors = np.einsum("nk,nkd->nd", weights, vectors[adapter.indices])
    total = float((centred**2).sum()) or 1.0
    return Projection(vectors, subvectors, (variances[0] / total, variances[1] / total))


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], list[float]]:
    """Two orthonormal directions of the largest variance, (b, 2), and n times that variance.

    From the smaller of the two Gram matrices. Each direction's largest element is positive, so
    that the picture does not depend on a library's choice of sign.
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
