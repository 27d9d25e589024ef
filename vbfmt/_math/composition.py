"""Compose sub-vectors u = Σ wᵢ α_i (Eq. 3.3) from rows, and the factors A and B from sub-vectors.

Each element is a float64 sum of exact products, added to +0 in the order w₀ … w₍ₖ₋₁₎ and rounded
once to float32. The result does not depend on block sizes or on the machine.
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
"""Number of elements of a block, so few that its buffers stay in a core's cache.

One step on such a block takes about 10 µs, which is too short for another thread to get the
interpreter's lock. So one thread does all the work. With larger blocks, two threads would run, each
at half the speed.
"""


def subvectors(
    bank: NDArray[np.float32],
    indices: NDArray[np.unsignedinteger[Any]],
    weights: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the sub-vectors of rows: (n, b) float32.

    Args:
        bank: (h, b) float32.
        indices: (n, k), below h.
        weights: (n, k − 1) float32.
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
    """Return A (rank, in_features) and B (out_features, rank) of each module, float32, C order.

    They are views of one array. Allocating 10,000 small arrays would take longer than composing
    them.

    Args:
        bank: (h, b) float32.
        indices: (n, k), below h: the rows of all `modules`, one after another.
        weights: (n, k − 1) float32.
    """
    b = bank.shape[1]
    memory = np.empty(len(indices) * b, dtype=np.float32)
    found: list[Factors] = []
    blocks: list[_Block] = []
    run = start = 0  # `memory[run:start]` is in the order of the rows
    for module in modules:
        middle = start + module.rank * module.in_features
        stop = middle + module.rank * module.out_features
        a = memory[start:middle].reshape(module.rank, module.in_features)
        transposed_b = memory[middle:stop].reshape(module.out_features, module.rank)
        found.append((a, transposed_b))
        if module.rank > 1:
            blocks += _blocks(run // b, memory[run:middle].reshape(1, -1), b)
            blocks += _blocks(middle // b, transposed_b.T, b)
            run = stop
        start = stop
    blocks += _blocks(run // b, memory[run:].reshape(1, -1), b)
    _compose(bank, indices, weights, blocks)
    return found


class _Block(NamedTuple):
    """Some rows of a factor, and the array to compose them into.

    Attributes:
        first: index of the first of these rows.
        out: a part of the factor, (components, features), with any strides.
    """

    first: int
    out: NDArray[np.float32]


def _blocks(first: int, out: NDArray[np.float32], b: int) -> Iterator[_Block]:
    """Yield a factor in blocks, each of several components or of a part of one component.

    Args:
        first: index of the factor's first row.
                out: the factor, (components, features).
    """
    components, features = out.shape
    most = _rows_per_block(b)
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


def _rows_per_block(b: int) -> int:
    return max(1, _BLOCK_ELEMENTS // b)


class _Space(NamedTuple):
    """Buffers for one block."""

    narrow: NDArray[np.float32]
    wide: NDArray[np.float64]
    total: NDArray[np.float64]


def _compose(
    bank: NDArray[np.float32],
    indices: NDArray[np.unsignedinteger[Any]],
    weights: NDArray[np.float32],
    blocks: Iterable[_Block],
) -> None:
    """Compose the rows of all blocks, each into its `out`."""
    b, k = bank.shape[1], indices.shape[1]
    chosen = indices.astype(np.intp)
    shares = all_weights(weights).astype(np.float64)
    most = min(_rows_per_block(b), len(indices))

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
    """Return the sub-vectors of rows before rounding: (n, b) float64, a view of `space`."""
    n = len(indices)
    narrow, wide, total = space.narrow[:n], space.wide[:n], space.total[:n]
    if indices.shape[1] == 2:
        _widened(bank, indices, narrow, wide)
        # Products of float32 numbers are exact in float64. So the sum of two products is rounded
        # once, however matmul orders or fuses the operations.
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
    """Gather vectors into `narrow`, and convert them to float64 in `wide`.

    Gathering in float32 moves half as many bytes.
    """
    # mode="clip" fills `out` in place; indices are known to be below h.
    bank.take(indices, axis=0, out=narrow, mode="clip")
    np.copyto(wide, narrow)
