"""The admixture module of the paper: logits → canonical rows.

A row is one sub-vector's selection: k indices into the vector bank and the k − 1 smaller of its k
admixture weights. The largest weight, w₀, is not stored: w₀ = 1 − Σ wᵢ.

A row is canonical if its k weights (float32, with w₀) are in descending order, equal weights are in
ascending order of their indices, the indices are distinct, and no weight is negative or −0. Every
adapter has exactly one canonical form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.selection import Selection

LARGEST_BANK = 65536
"""The largest h of the format: indices have at most 16 bits."""


@dataclass(frozen=True)
class Rows:
    """Canonical rows.

    Attributes:
        indices: (N, k) uint8 if h ≤ 256, else uint16, little-endian.
        weights: (N, k − 1) float32, little-endian.
    """

    indices: NDArray[np.unsignedinteger[Any]]
    weights: NDArray[np.float32]


def index_dtype(h: int) -> np.dtype[Any]:
    """Return the dtype of indices into a bank of h vectors (paper, Sec. 3.4)."""
    return np.dtype("u1" if h <= 256 else "<u2")


def rows_from_selection(selection: Selection, h: int) -> Rows:
    """Return rows with the softmax of the selected logits (Eq. 3.3), in float64, rounded once.

    No mathematical library is used, so that the same logits give the same bytes on every machine.
    """
    logits = selection.logits
    with np.errstate(over="ignore"):  # a difference of −∞ gives weight 0
        below = logits - logits[:, :1]
    shares = _exp_of_non_positive(below)
    shares /= _sum_in_order(shares)[:, None]
    return canonical_rows(selection.indices, shares, h)


def canonical_rows(indices: NDArray[np.integer[Any]], weights: NDArray[np.float64], h: int) -> Rows:
    """Return the canonical form of rows whose vectors are in any order.

    The stored weights are rounded to nearest. If that makes w₀ less than w₁ (possible for k ≥ 3 and
    nearly equal weights), the row's weights are rounded down instead.

    Args:
        indices: (N, k) integers, distinct within a row.
        weights: (N, k) float64, ≥ 0. Each row sums to 1 up to float64 rounding.
        h: number of vectors in the bank.
    """
    chosen: NDArray[np.unsignedinteger[Any]] = np.array(indices, dtype=index_dtype(h), order="C")
    weights = np.array(weights, dtype=np.float64, order="C")
    _sort_rows(chosen, weights)
    stored = weights[:, 1:].astype("<f4")
    stored += 0  # turns −0 into 0
    _keep_first_largest(stored, weights[:, 1:])
    _sort_rows(chosen, all_weights(stored))
    return Rows(chosen, stored)


def all_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the k weights of every row, (N, k) float32, given the k − 1 stored ones.

    w₀ = 1 − Σ wᵢ is summed in float64 from left to right and rounded once to float32.
    """
    first = 1.0 - _sum_in_order(weights)
    return np.concatenate([first.astype("<f4")[:, None], weights], axis=1)


def out_of_order(indices: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows are not in canonical order.

    In canonical order, weights descend, and the indices of equal weights ascend.

    Args:
        indices, weights: (N, k).

    Returns:
        (N,) bool.
    """
    falls = weights[:, :-1] > weights[:, 1:]
    level = (weights[:, :-1] == weights[:, 1:]) & (indices[:, :-1] < indices[:, 1:])
    in_order: NDArray[np.bool_] = (falls | level).all(axis=1)
    return ~in_order


def repeats(indices: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows select a vector more than once: (N,) bool."""
    ordered = np.sort(indices, axis=1)
    again: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return again


def _sort_rows(indices: NDArray[Any], weights: NDArray[Any]) -> None:
    """Sort the rows that are out of order, in place."""
    bad = np.flatnonzero(out_of_order(indices, weights))
    if bad.size:
        order = np.lexsort((indices[bad], -weights[bad]), axis=-1)
        indices[bad] = np.take_along_axis(indices[bad], order, axis=1)
        weights[bad] = np.take_along_axis(weights[bad], order, axis=1)


def _keep_first_largest(stored: NDArray[np.float32], exact: NDArray[np.float64]) -> None:
    """Lower the stored weights of rows whose w₀ is less than w₁, in place."""
    if not stored.shape[1]:
        return
    bad = np.flatnonzero(all_weights(stored)[:, 0] < stored[:, 0])
    stored[bad] = np.where(
        stored[bad] > exact[bad], np.nextafter(stored[bad], np.float32(0)), stored[bad]
    )
    while (bad := bad[all_weights(stored[bad])[:, 0] < stored[bad, 0]]).size:
        stored[bad] = np.nextafter(stored[bad], np.float32(0))


def _sum_in_order(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return row sums in float64, added strictly from left to right, unlike numpy's sum."""
    total = np.zeros(len(values), dtype=np.float64)
    for column in values.T:
        total += column
    return total


_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH = float.fromhex(
    "0x1.62e42fee00000p-1"
)  # the first 33 bits of ln 2, so that n · _LN2_HIGH is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_TERMS = 14


def _exp_of_non_positive(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return exp(x) for x ≤ 0, including −∞, to about 1 ulp, with only basic IEEE arithmetic.

    NumPy's exp differs in the last bit between processors. One such bit in a million weights would
    make two machines pack the same checkpoint to different bytes.
    """
    x = np.maximum(x, -800.0)  # exp(−800) is 0 in float64
    n = np.rint(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = np.ones_like(r)
    for term in range(_TERMS, 0, -1):  # Horner's scheme for Σ rᵗ/t!
        series = 1.0 + series * r / term
    return np.ldexp(series, n.astype(np.int32))
