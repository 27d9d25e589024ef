"""The admixture module of the paper: logits → canonical rows.

A row is one sub-vector's selection: k indices into the vector bank and the k − 1 smaller of its k
admixture weights. The largest weight, w₀, is not stored: w₀ = 1 − Σ wᵢ.

A row is canonical when its k weights as float32, w₀ included, descend, equal weights stand by
ascending index, the indices are distinct, and no weight is negative (or −0). Every adapter has
exactly one canonical form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.selection import Selection

LARGEST_BANK = 65536
"""The largest h that the format holds: indices are at most 16 bits."""


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
    """The dtype of indices into a bank of h vectors (paper, Sec. 3.4)."""
    return np.dtype("u1" if h <= 256 else "<u2")


def rows_from_selection(selection: Selection, h: int) -> Rows:
    """Softmax over the selected logits, in float64, rounded once: Eq. 3.3.

    No math library is involved, so that the same logits give the same bytes on every machine.
    """
    logits = selection.logits
    with np.errstate(over="ignore"):  # differences beyond float64 are −∞: no share at all
        below = logits - logits[:, :1]
    shares = _exp_of_non_positive(below)
    shares /= _sum_in_order(shares)[:, None]
    return canonical_rows(selection.indices, shares, h)


def canonical_rows(indices: NDArray[np.integer[Any]], weights: NDArray[np.float64], h: int) -> Rows:
    """The canonical form of rows in any order.

    Args:
        indices: (N, k), distinct within a row.
        weights: (N, k) float64, ≥ 0, each row summing to 1 but for float64 rounding.
        h: vectors in the bank.

    The stored weights are rounded to nearest. Only where that would leave w₀ below w₁ (k ≥ 3, all
    but equal weights) the row's weights are rounded down instead.
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
    """The k weights of every row, (N, k) float32, from the k − 1 stored ones.

    w₀ = 1 − Σ wᵢ, summed in float64 from left to right, rounded once to float32.
    """
    first = 1.0 - _sum_in_order(weights)
    return np.concatenate([first.astype("<f4")[:, None], weights], axis=1)


def out_of_order(indices: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.bool_]:
    """Which rows do not descend by weight, equal weights by ascending index.

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
    """Which rows name a vector of the bank more than once: (N,) bool."""
    ordered = np.sort(indices, axis=1)
    again: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return again


def _sort_rows(indices: NDArray[Any], weights: NDArray[Any]) -> None:
    """Bring the rows that need it into order, in place."""
    bad = np.flatnonzero(out_of_order(indices, weights))
    if bad.size:
        order = np.lexsort((indices[bad], -weights[bad]), axis=-1)
        indices[bad] = np.take_along_axis(indices[bad], order, axis=1)
        weights[bad] = np.take_along_axis(weights[bad], order, axis=1)


def _keep_first_largest(stored: NDArray[np.float32], exact: NDArray[np.float64]) -> None:
    """Lower, in place, the stored weights of rows whose w₀ came out below w₁."""
    if not stored.shape[1]:
        return
    bad = np.flatnonzero(all_weights(stored)[:, 0] < stored[:, 0])
    stored[bad] = np.where(
        stored[bad] > exact[bad], np.nextafter(stored[bad], np.float32(0)), stored[bad]
    )
    while (bad := bad[all_weights(stored[bad])[:, 0] < stored[bad, 0]]).size:
        stored[bad] = np.nextafter(stored[bad], np.float32(0))


def _sum_in_order(values: NDArray[Any]) -> NDArray[np.float64]:
    """Row sums in float64, strictly from left to right (numpy's own sum pairs its terms)."""
    total = np.zeros(len(values), dtype=np.float64)
    for column in values.T:
        total += column
    return total


_LOG2_E = float.fromhex("0x1.71547652b82fep+0")
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")  # the first 33 bits of ln 2: n · this is exact
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
_TERMS = 14


def _exp_of_non_positive(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(x) for x ≤ 0 (−∞ too) to about 1 ulp, from IEEE additions and products alone.

    numpy's exp differs in the last bit between processors; two such bits in a million weights
    would be enough for two machines to pack the same checkpoint into different bytes.
    """
    x = np.maximum(x, -800.0)  # exp(−800) is 0 in float64 already
    n = np.rint(x * _LOG2_E)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    series = np.ones_like(r)
    for term in range(_TERMS, 0, -1):  # Horner's scheme for Σ rᵗ/t!
        series = 1.0 + series * r / term
    return np.ldexp(series, n.astype(np.int32))
