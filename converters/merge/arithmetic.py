"""W + B·A in blocks: computed with bits to spare and rounded once to nearest even."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import pages
from vbfmt.converters.merge import rounding
from vbfmt.tensors import Tensor, numpy_dtype

FLOATS = ("F32", "BF16", "F16", "F64")


@dataclass(frozen=True)
class Piece:
    """The next bytes of a tensor, to be computed.

    Attributes:
        size: how many; at most `PIECE_BYTES`.
        fill: computes them into an array (size,) uint8; any thread may call it.
        source: the base's tensor that is read for it.
        name: of the tensor.
    """

    size: int
    fill: Callable[[NDArray[np.uint8]], None]
    source: NDArray[Any] | None = None
    name: str = ""

    def compute(self, data: NDArray[np.uint8]) -> None:
        """Fetch the source and fill the piece.

        Raises:
            StorageError: the base cannot be read any more.
            TargetError: as `merged` says.
        """
        if self.source is not None:
            pages.fetch(self.source, self.name)
        self.fill(data)


PIECE_BYTES = 1 << 22
_BLOCK_ELEMENTS = 1 << 18
"""About as many as a core's own cache holds with what is computed from them. The smaller a block or
a piece, the longer do threads wait for each other's turn at the interpreter."""
_PRODUCTS = 1 << 18
"""Matrix products of more make OpenBLAS start threads of its own (interface/gemm.c), which then
stand in the way of ours."""
_GATHERED = 1 << 18
"""Values of each factor that are gathered to compute single elements again."""
_FEW = 32
"""Where one in so many or more are computed again, float64 throughout is faster."""


def merged(
    name: str,
    weight: Tensor,
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    dtype: str,
    *,
    transposed: bool,
) -> Iterator[Piece]:
    """The bytes of W + B·A, piece by piece, in order.

    Computed in float32 for a result in sixteen bits, where W and B·A cancel out in float64; else
    (and for a W of float64) all in float64.

    Args:
        name: of the tensor, for messages.
        weight: W, (out_features, in_features), or (in_features, out_features) if `transposed`.
        factors: A (rank, in_features) and B (out_features, rank).
        dtype: safetensors name of the result's.

    To fill a piece raises TargetError where a finite weight leaves the range of `dtype`.
    """
    a, b = factors
    left, right = (a.T, b.T) if transposed else (b, a)
    values, itemsize = weight.numpy(), numpy_dtype(dtype).itemsize
    doubtful = np.inf
    if itemsize == 2 and values.dtype != np.float64:
        doubtful = _doubtful(left, right, dtype)
    # In float64 too where float32 may overflow.
    working = np.float32 if doubtful < np.inf else np.float64
    left, right = (np.ascontiguousarray(side, dtype=working) for side in (left, right))
    most = PIECE_BYTES // itemsize
    rows = max(1, most // max(1, values.shape[1]))
    for top in range(0, len(values), rows):
        for side in range(0, values.shape[1], most):  # more than once in a very long row alone
            here, there = slice(top, top + rows), slice(side, side + most)
            part = _Part(name, values[here, there], left[here], right[:, there], dtype)
            yield part.piece(doubtful)


def converted(name: str, tensor: Tensor, dtype: str) -> Iterator[Piece]:
    """The bytes of a tensor in another dtype, rounded once, piece by piece.

    To fill a piece raises TargetError as with `merged`.
    """
    values = tensor.numpy().reshape(-1)
    step = PIECE_BYTES // numpy_dtype(dtype).itemsize
    for start in range(0, len(values), step):
        yield _converted_values(name, values[start : start + step], dtype)


@dataclass(frozen=True)
class _Part:
    """Some rows and columns of W + B·A.

    Attributes:
        name: of the tensor, for messages.
        weight: of W (rows, columns).
        left, right: (rows, rank) and (rank, columns), whose product is added: float32 or float64.
        dtype: safetensors name of the result's.
    """

    name: str
    weight: NDArray[Any]
    left: NDArray[Any]
    right: NDArray[Any]
    dtype: str

    def piece(self, doubtful: float) -> Piece:
        """Compute the part, as bytes. `doubtful`: result of `_doubtful` for float32 factors."""
        size = self.weight.size * numpy_dtype(self.dtype).itemsize
        if self.left.dtype == np.float64:
            return Piece(size, self._in_float64, self.weight, self.name)
        limit = rounding.above(doubtful, self.dtype)
        return Piece(size, lambda data: self._in_float32(data, limit), self.weight, self.name)

    def _in_float64(self, data: NDArray[np.uint8]) -> None:
        out = self._out(data)
        with np.errstate(over="ignore", invalid="ignore"):  # `rounding.into` looks
            for here, total in self._sums():
                rounding.into(out[here], total, self.weight[here], self.name, self.dtype)

    def _in_float32(self, data: NDArray[np.uint8], limit: int) -> None:
        """For sixteen bits; what comes out below `limit` is computed again in float64, and so is
        the whole part where that is much of it, or where something became infinite."""
        out = self._out(data)
        with np.errstate(over="ignore", invalid="ignore"):
            for here, total in self._sums():
                np.copyto(out[here], total, casting="unsafe")
        magnitude = rounding.magnitudes(data)
        low = np.flatnonzero(magnitude < limit)
        infinite = magnitude.max(initial=0) >= rounding.INFINITE[self.dtype]
        if infinite or len(low) > len(magnitude) // _FEW:
            self._widened()._in_float64(data)
        else:
            self._again(out, low)

    def _widened(self) -> _Part:
        return replace(self, left=self.left.astype(np.float64), right=self.right.astype(np.float64))

    def _sums(self) -> Iterator[tuple[tuple[slice, slice], NDArray[Any]]]:
        """(where, W + B·A there) block by block; each stays until the next one is asked for."""
        rows, columns = self.weight.shape
        high, wide = _block_shape(rows, columns)
        memory = np.empty(high * wide, self.left.dtype)
        for top in range(0, rows, high):
            for side in range(0, columns, wide):
                here = slice(top, top + high), slice(side, side + wide)
                old = self.weight[here]
                total = memory[: old.size].reshape(old.shape)
                _multiply(self.left[here[0]], self.right[:, here[1]], total)
                np.add(total, old, out=total)
                yield here, total

    def _again(self, out: NDArray[Any], chosen: NDArray[np.intp]) -> None:
        """Compute the chosen elements of W + B·A once more, in float64."""
        at_once = max(1, _GATHERED // max(1, self.left.shape[1]))
        for start in range(0, len(chosen), at_once):
            positions = np.divmod(chosen[start : start + at_once], out.shape[1])
            sides = self.left[positions[0]], self.right[:, positions[1]]
            delta = np.einsum("ij,ji->i", *sides, dtype=np.float64)
            old = self.weight[positions]
            new = np.empty(len(old), out.dtype)
            rounding.into(new, old.astype(np.float64) + delta, old, self.name, self.dtype)
            out[positions] = new

    def _out(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        return data.view(numpy_dtype(self.dtype)).reshape(self.weight.shape)


def _doubtful(left: NDArray[np.float32], right: NDArray[np.float32], dtype: str) -> float:
    """Sums in float32 nearer to zero than this may be off by half a unit of sixteen bits or more.

    The product's error is about (rank + 1) · 2⁻²⁴ · Σ|left·right| at most, and that is at most the
    product of two norms; half a unit of float16 is at least 2⁻¹² of the value, of bfloat16 2⁻⁹.
    (The last addition's error, 2⁻²⁴ of the sum, is nothing beside that; and only an error of a
    whole unit could lead further than to the nearest neighbour.) Infinite where float32 may have
    overflowed.
    """
    half_unit = {"F16": 2.0**-12, "BF16": 2.0**-9}[dtype]
    # In float64: the squares of small values are zero in float32.
    longest = (
        np.einsum("ij,ij->i", left, left, dtype=np.float64).max(initial=0),
        np.einsum("ij,ij->j", right, right, dtype=np.float64).max(initial=0),
    )
    product = math.sqrt(longest[0]) * math.sqrt(longest[1])
    if not product < rounding.NEAR_OVERFLOW:
        return np.inf
    return (len(right) + 1) * 2.0**-24 / half_unit * product


def _converted_values(name: str, values: NDArray[Any], dtype: str) -> Piece:
    def fill(data: NDArray[np.uint8]) -> None:
        out = data.view(numpy_dtype(dtype))
        wide = np.float64 if values.dtype == np.float64 else np.float32
        for start in range(0, len(values), _BLOCK_ELEMENTS):
            here = slice(start, start + _BLOCK_ELEMENTS)
            rounding.into(out[here], values[here].astype(wide), values[here], name, dtype)

    return Piece(len(values) * numpy_dtype(dtype).itemsize, fill, values, name)


def _block_shape(rows: int, columns: int) -> tuple[int, int]:
    wide = min(columns, _BLOCK_ELEMENTS)
    return min(rows, max(1, _BLOCK_ELEMENTS // max(1, wide))), wide


def _multiply(left: NDArray[Any], right: NDArray[Any], out: NDArray[Any]) -> None:
    """``left @ right`` in products of at most `_PRODUCTS` multiplications, of several rows each:
    of one row, OpenBLAS starts threads much sooner."""
    rank, columns = right.shape
    wide = max(1, min(columns, _PRODUCTS // (32 * max(1, rank))))
    high = max(1, _PRODUCTS // max(1, rank * wide))
    for top in range(0, len(left), high):
        for side in range(0, columns, wide):
            here = slice(top, top + high), slice(side, side + wide)
            np.matmul(left[here[0]], right[:, here[1]], out=out[here])
