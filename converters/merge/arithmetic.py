"""Compute W + B·A block by block in a wider dtype, and round the result once to nearest even."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import pages
from vbfmt.converters.merge import rounding
from vbfmt.tensors import SMALLEST_NORMAL, Tensor, numpy_dtype

FLOATS = ("F32", "BF16", "F16", "F64")


@dataclass(frozen=True)
class Piece:
    """Consecutive bytes of an output tensor that have not been computed yet.

    Attributes:
        size: number of bytes, at most `PIECE_BYTES`.
        fill: a function that computes the bytes into an array (size,) uint8. Any thread may call
            it.
        source: the part of the base's tensor that `fill` reads, or None.
        name: the tensor's name, for messages.
    """

    size: int
    fill: Callable[[NDArray[np.uint8]], None]
    source: NDArray[Any] | None = None
    name: str = ""

    def compute(self, data: NDArray[np.uint8]) -> None:
        """Read `source` from the disk, and then compute the piece into `data`, (size,) uint8.

        Raises:
            StorageError: the base can no longer be read.
            TargetError: a weight becomes too large for the output's dtype.
        """
        if self.source is not None:
            pages.fetch(self.source, self.name)
        self.fill(data)


PIECE_BYTES = 1 << 22
_BLOCK_ELEMENTS = 1 << 18
"""About the number of elements that fit into a core's cache together with their sums. With smaller
blocks or pieces, threads would wait longer for the interpreter's lock."""
_PRODUCTS = 1 << 18
"""Largest number of multiplications in one matrix product. For larger products, OpenBLAS starts its
own threads (interface/gemm.c), which compete with ours for the cores."""
_GATHERED = 1 << 18
"""Largest number of values of a factor that are gathered at a time to recompute single elements."""
_FEW = 32
"""If more than one element in `_FEW` must be recomputed, it is faster to compute all of them in
float64."""


def merged(
    name: str,
    weight: Tensor,
    factors: tuple[NDArray[np.float32], NDArray[np.float32]],
    dtype: str,
) -> Iterator[Piece]:
    """Yield the pieces of W + B·A in order.

    16-bit results are computed in float32, and elements where W and B·A nearly cancel out are
    recomputed in float64. Other results are computed in float64, and so are all results if W is
    float64.

    Args:
        name: the tensor's name, for messages.
        weight: W, (rows, columns).
        factors: A (rank, columns) and B (rows, rank), float32.
        dtype: safetensors name of the result's dtype.

    Raises:
        TargetError: all values of W, and of the result, are too small for the full precision of
            `dtype`. `Piece.compute` raises it, too, if a weight becomes too large for `dtype`.
        StorageError: W can no longer be read.
    """
    right, left = factors
    values, itemsize = weight.numpy(), numpy_dtype(dtype).itemsize
    threshold = np.inf
    if itemsize == 2 and values.dtype != np.float64:
        threshold = _recompute_threshold(left, right, dtype)
    working = np.float32 if threshold < np.inf else np.float64
    left, right = (np.ascontiguousarray(side, dtype=working) for side in (left, right))
    if rounding.largest(values, name, dtype) < SMALLEST_NORMAL[dtype]:
        sums = _Part(name, values, left, right, dtype).sums()
        with np.errstate(over="ignore", invalid="ignore"):  # `Piece.compute` checks the result
            largest = max((float(np.abs(total).max()) for _, total in sums), default=0.0)
        rounding.require_magnitude(largest, name, dtype)
    most = PIECE_BYTES // itemsize
    rows = max(1, most // max(1, values.shape[1]))
    for top in range(0, len(values), rows):
        for side in range(0, values.shape[1], most):  # runs once, unless a row exceeds a piece
            here, there = slice(top, top + rows), slice(side, side + most)
            part = _Part(name, values[here, there], left[here], right[:, there], dtype)
            yield part.piece(threshold)


def converted(name: str, tensor: Tensor, dtype: str) -> Iterator[Piece]:
    """Yield the pieces of a tensor that is converted to another dtype, rounded once.

    Args:
        name: the tensor's name, for messages.
        tensor: the tensor, of any shape.
        dtype: safetensors name of the result's dtype.

    `Piece.compute` raises TargetError if a value becomes too large for `dtype`.
    """
    values = tensor.numpy().reshape(-1)
    step = PIECE_BYTES // numpy_dtype(dtype).itemsize
    for start in range(0, len(values), step):
        yield _converted_values(name, values[start : start + step], dtype)


@dataclass(frozen=True)
class _Part:
    """Some rows and columns of W + B·A.

    Attributes:
        name: the tensor's name, for messages.
        weight: this part of W, (rows, columns).
        left, right: factors (rows, rank) and (rank, columns), float32 or float64. Their product is
            added.
        dtype: safetensors name of the result's dtype.
    """

    name: str
    weight: NDArray[Any]
    left: NDArray[Any]
    right: NDArray[Any]
    dtype: str

    def piece(self, threshold: float) -> Piece:
        """Return the piece that computes this part.

        Args:
            threshold: result of `_recompute_threshold`. It is not used if `left` is float64.
        """
        size = self.weight.size * numpy_dtype(self.dtype).itemsize
        if self.left.dtype == np.float64:
            return Piece(size, self._in_float64, self.weight, self.name)
        limit = rounding.magnitude_bound(threshold, self.dtype)
        return Piece(size, lambda data: self._in_float32(data, limit), self.weight, self.name)

    def _in_float64(self, data: NDArray[np.uint8]) -> None:
        out = self._out(data)
        with np.errstate(
            over="ignore", invalid="ignore"
        ):  # `rounding.round_into` checks the result
            for here, total in self.sums():
                rounding.round_into(out[here], total, self.weight[here], self.name, self.dtype)

    def _in_float32(self, data: NDArray[np.uint8], limit: int) -> None:
        """Compute a 16-bit result; recompute elements whose `rounding.magnitudes` are below
        `limit`.

        They are recomputed in float64. If there are many, or if an element became infinite, the
        whole part is recomputed in float64.
        """
        out = self._out(data)
        with np.errstate(over="ignore", invalid="ignore"):
            for here, total in self.sums():
                np.copyto(out[here], total, casting="unsafe")
        magnitude = rounding.magnitudes(data)
        low = np.flatnonzero(magnitude < limit)
        infinite = magnitude.max(initial=0) >= rounding.INFINITE[self.dtype]
        if infinite or len(low) > len(magnitude) // _FEW:
            self._with_float64_factors()._in_float64(data)
        else:
            self._recompute(out, low)

    def _with_float64_factors(self) -> _Part:
        return replace(self, left=self.left.astype(np.float64), right=self.right.astype(np.float64))

    def sums(self) -> Iterator[tuple[tuple[slice, slice], NDArray[Any]]]:
        """Yield each block's slices and its W + B·A. The next block overwrites the array."""
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

    def _recompute(self, out: NDArray[Any], chosen: NDArray[np.intp]) -> None:
        """Recompute the elements of `out` at the flat indices `chosen`, in float64."""
        at_once = max(1, _GATHERED // max(1, self.left.shape[1]))
        for start in range(0, len(chosen), at_once):
            positions = np.divmod(chosen[start : start + at_once], out.shape[1])
            sides = self.left[positions[0]], self.right[:, positions[1]]
            delta = np.einsum("ij,ji->i", *sides, dtype=np.float64)
            old = self.weight[positions]
            new = np.empty(len(old), out.dtype)
            rounding.round_into(new, old.astype(np.float64) + delta, old, self.name, self.dtype)
            out[positions] = new

    def _out(self, data: NDArray[np.uint8]) -> NDArray[Any]:
        return data.view(numpy_dtype(self.dtype)).reshape(self.weight.shape)


def _recompute_threshold(
    left: NDArray[np.float32], right: NDArray[np.float32], dtype: str
) -> float:
    """Return the magnitude below which a float32 sum must be recomputed in float64.

    Below it, the error of the float32 sum may be half a unit in the last place of `dtype` or more.
    The product's error is at most about (rank + 1) · 2⁻²⁴ · Σ|left·right|, and Σ|left·right| is at
    most the product of two norms. Half a unit is at least 2⁻¹² of the value for float16, and 2⁻⁹
    for bfloat16. The error of the last addition, 2⁻²⁴ of the sum, is negligible in comparison.
    Above the threshold, the result is one of the two nearest values, because any other value would
    need an error of a whole unit.

    Returns:
        The threshold. It is infinity if float32 may overflow: everything must then be computed in
            float64.
    """
    half_unit = {"F16": 2.0**-12, "BF16": 2.0**-9}[dtype]
    # The squares of small values are zero in float32, so the norms are computed in float64.
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
            rounding.round_into(out[here], values[here].astype(wide), values[here], name, dtype)

    return Piece(len(values) * numpy_dtype(dtype).itemsize, fill, values, name)


def _block_shape(rows: int, columns: int) -> tuple[int, int]:
    wide = min(columns, _BLOCK_ELEMENTS)
    return min(rows, max(1, _BLOCK_ELEMENTS // max(1, wide))), wide


def _multiply(left: NDArray[Any], right: NDArray[Any], out: NDArray[Any]) -> None:
    """Compute ``left @ right`` into `out`, in products of at most `_PRODUCTS` multiplications.

    Each product has several rows, because for a single row OpenBLAS starts threads much earlier.
    """
    rank, columns = right.shape
    wide = max(1, min(columns, _PRODUCTS // (32 * max(1, rank))))
    high = max(1, _PRODUCTS // max(1, rank * wide))
    for top in range(0, len(left), high):
        for side in range(0, columns, wide):
            here = slice(top, top + high), slice(side, side + wide)
            np.matmul(left[here[0]], right[:, here[1]], out=out[here])
