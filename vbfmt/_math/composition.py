"""Rows → sub-vectors u = Σ wᵢ α_i (Eq. 3.3) → the factors A and B.

Each element is the float64 sum of exact products, from +0 and w₀ on to w₍ₖ₋₁₎, rounded once to
float32. The result does not depend on blocks or machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vbfmt._math.admixture import all_weights
from vbfmt.module import Module

Factors = tuple[NDArray[np.float32], NDArray[np.float32]]

_BLOCK_ELEMENTS = 1 << 15
"""What is gathered, widened and added of so many stays in a core's own cache. Blocks of that size
take some 10 µs a step, in which no other thread gets hold of the interpreter: one thread does it
all. Larger ones would let two run, each half as fast."""


def subvectors(
    bank: NDArray[np.float32],
    indices: NDArray[np.unsignedinteger[Any]],
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    """The sub-vectors of rows: (n, b) float32.

    Args:
        bank: (h, b).
        indices: (n, k), below h.
        weights: (n, k − 1).
    """
    out = np.empty((len(indices), bank.shape[1]), dtype=np.float32)
    if out.size:
        _compose(bank, indices, weights, _blocks(0, out.reshape(1, -1), bank.shape[1]))
    return out


def factors(
    bank: NDArray[np.float32],
    indices: NDArray[np.unsignedinteger[Any]],
    weights: NDArray[np.float32],
    modules: Sequence[Module],
) -> list[Factors]:
    """A (rank, in_features) and B (out_features, rank) of each module, float32, C order.

    They are parts of one array: 10,000 small ones take the system longer to hand out than it takes
    to compose them.

    Args:
        bank: (h, b).
        indices: (n, k), below h: the rows of all `modules`, one after another.
        weights: (n, k − 1).
    """
    b = bank.shape[1]
    memory = np.empty(len(indices) * b, dtype=np.float32)
    found: list[Factors] = []
    blocks: list[_Block] = []
    start = 0
    for module in modules:
        middle = start + module.rank * module.in_features
        stop = middle + module.rank * module.out_features
        a = memory[start:middle].reshape(module.rank, module.in_features)
        transposed_b = memory[middle:stop].reshape(module.out_features, module.rank)
        found.append((a, transposed_b))
        blocks += _blocks(start // b, a, b)
        blocks += _blocks(middle // b, transposed_b.T, b)
        start = stop
    _compose(bank, indices, weights, blocks)
    return found


class _Block(NamedTuple):
    """Rows and the part of a factor that they compose: (components, features), any strides."""

    first: int
    out: NDArray[np.float32]


def _blocks(first: int, out: NDArray[np.float32], b: int) -> Iterator[_Block]:
    """Cut a factor, (components, features), into some components or a part of one.

    Args:
        first: the factor's first row.
    """
    components, features = out.shape
    most = _most_rows(b)
    tiles = features // b
    if tiles > most:
        for component in range(components):
            for tile in range(0, tiles, most):
                part = out[component : component + 1, tile * b : (tile + most) * b]
                yield _Block(first + component * tiles + tile, part)
    else:
        step = most // max(1, tiles)
        for component in range(0, components, step):
            yield _Block(first + component * tiles, out[component : component + step])


def _most_rows(b: int) -> int:
    return max(1, _BLOCK_ELEMENTS // b)


class _Space(NamedTuple):
    """Memory for one block at a time."""

    narrow: NDArray[np.float32]
    wide: NDArray[np.float64]
    total: NDArray[np.float64]


def _compose(
    bank: NDArray[np.float32],
    indices: NDArray[np.unsignedinteger[Any]],
    weights: NDArray[np.float32],
    blocks: Iterable[_Block],
) -> None:
    """Fill the blocks' `out`."""
    b, k = bank.shape[1], indices.shape[1]
    chosen = indices.astype(np.intp)
    shares = all_weights(weights).astype(np.float64)
    most = min(_most_rows(b), len(indices))

    at_once = 2 if k == 2 else 1
    space = _Space(
        np.empty((most, at_once, b), np.float32),
        np.empty((most, at_once, b)),
        np.empty((most, b)),
    )
    for first, out in blocks:
        rows = slice(first, first + out.size // b)
        composed = _sums(bank, chosen[rows], shares[rows], space)
        for component, values in zip(out, composed.reshape(out.shape), strict=True):
            component[...] = values


def _sums(
    bank: NDArray[np.float32],
    indices: NDArray[np.intp],
    shares: NDArray[np.float64],
    space: _Space,
) -> NDArray[np.float64]:
    """The sums of rows before they are rounded: (n, b), a part of `space`."""
    n = len(indices)
    narrow, wide, total = space.narrow[:n], space.wide[:n], space.total[:n]
    if indices.shape[1] == 2:
        _widened(bank, indices, narrow, wide)
        # Products of float32 are exact in float64, so that of two there is one rounding, however
        # the linear algebra below orders or fuses them.
        np.matmul(shares[:, None, :], wide, out=total[:, None, :])
        return total
    total[...] = 0.0
    for i in range(indices.shape[1]):
        _widened(bank, indices[:, i : i + 1], narrow, wide)
        wide *= shares[:, i, None, None]
        total += wide[:, 0]
    return total


def _widened(
    bank: NDArray[np.float32],
    indices: NDArray[np.intp],
    narrow: NDArray[np.float32],
    wide: NDArray[np.float64],
) -> None:
    """Gather vectors of the bank into `wide`, by way of `narrow`: half the bytes to gather."""
    # mode="clip" fills `out` in place; indices are known to be below h.
    bank.take(indices, axis=0, out=narrow, mode="clip")
    np.copyto(wide, narrow)
