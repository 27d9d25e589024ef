"""Round the results of a merge to their dtype, once and to nearest even."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt._files import pages
from vbfmt.errors import TargetError
from vbfmt.tensors import SMALLEST_NORMAL, Tensor, numpy_dtype

NEAR_OVERFLOW = 1e38
"""Values below this cannot overflow float32 or bfloat16, whose largest value is 3.4e38."""
_AT_FIRST, _AT_ONCE = 1 << 10, 1 << 18
_WORDS = {"F16": "float16", "F32": "float32", "BF16": "bfloat16", "F64": "float64"}
_ADVICE = {"F16": "give `dtype=bfloat16` or float32", "BF16": "give `dtype=float32`"}
INFINITE = {"F16": 2 * 0x7C00, "BF16": 2 * 0x7F80}
"""dtype → the result of `magnitudes` for infinity. For NaN, `magnitudes` gives larger numbers."""


def round_into(
    out: NDArray[Any], values: NDArray[Any], old: NDArray[Any], name: str, dtype: str
) -> None:
    """Round `values` to the dtype of `out`, and check that no finite value of the base became
    infinite.

    Args:
        out: array for the result, of any shape, with the dtype that `dtype` names.
        values: float32 or float64, of the same shape.
        old: the base's values at the same positions.
        name: the tensor's name, for messages.
        dtype: safetensors name of the result's dtype.

    Raises:
        TargetError: a value is too large for `dtype`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = _to_odd(values) if values.dtype == np.float64 and dtype == "BF16" else values
        np.copyto(out, narrow, casting="unsafe")
        # The maximum and minimum are cheap, because `values` is in the cache. They usually make a
        # check of every result unnecessary.
        near = not (
            values.max(initial=0) < NEAR_OVERFLOW and values.min(initial=0) > -NEAR_OVERFLOW
        )
    if near or dtype == "F16":
        require_range(out, old, name, dtype)


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """Round float64 to float32 by rounding to odd, so that rounding the result to bfloat16 gives
    the nearest value.

    ml_dtypes would round twice to nearest, first to float32 and then to bfloat16. The result may
    then not be the nearest bfloat16 value.
    """
    narrow = values.astype(np.float32)
    beyond = np.abs(narrow.astype(np.float64)) > np.abs(values)
    towards_zero = np.where(beyond, np.nextafter(narrow, np.float32(0)), narrow)
    inexact = (towards_zero.astype(np.float64) != values) & np.isfinite(values)
    odd: NDArray[np.float32] = (towards_zero.view(np.uint32) | inexact).view(np.float32)
    return odd


def require_range(out: NDArray[Any], old: NDArray[Any], name: str, dtype: str) -> None:
    """Refuse a result that has an infinity where the base has a finite value.

    Args:
        out: the result.
        old: the base's values, of the same shape.
        name: the tensor's name, for messages.
        dtype: safetensors name of the result's dtype.

    Raises:
        TargetError: a value is too large for `dtype`.
    """
    with np.errstate(invalid="ignore"):  # converting a signalling NaN would warn
        finite, before = (
            np.isfinite(values.astype(np.float32) if values.dtype.itemsize == 2 else values)
            for values in (out, old)
        )
    if not finite.all() and not np.array_equal(finite, before):
        raise TargetError(
            f"a value is too large for {_WORDS[dtype]}",
            part=name,
            advice=_ADVICE["F16"] if dtype == "F16" else None,
        )


def require_kept(tensor: Tensor, name: str, dtype: str) -> None:
    """Refuse to convert a matrix if all of its values are too small for the full precision of a
    dtype.

    Args:
        tensor: the tensor. Only floating-point matrices and stacks of matrices are checked.
        name: its name, for messages.
        dtype: safetensors name of the result's dtype.

    Raises:
        TargetError: all values are too small for `dtype`.
        StorageError: the tensor can no longer be read.
    """
    if tensor.dtype in _WORDS and tensor.dtype != dtype and len(tensor.shape) > 1:
        require_magnitude(largest(tensor.numpy(), name, dtype), name, dtype)


def largest(values: NDArray[Any], name: str, dtype: str) -> float:
    """Return the largest magnitude of a contiguous array.

    After the first value that has the full precision of `dtype`, the rest is not read.

    Raises:
        StorageError: the values can no longer be read.
    """
    flat, found = values.reshape(-1), 0.0
    start, count = 0, _AT_FIRST
    while start < len(flat) and found < SMALLEST_NORMAL[dtype]:
        block = flat[start : start + count]
        pages.fetch(block, name)
        with np.errstate(invalid="ignore"):  # a signalling NaN would warn
            found = max(found, float(np.abs(block).max()))
        start, count = start + count, _AT_ONCE
    return found


def require_magnitude(magnitude: float, name: str, dtype: str) -> None:
    """Refuse a matrix by the largest magnitude of its values; see `require_kept`."""
    least = SMALLEST_NORMAL[dtype]
    if 0 < magnitude < least:
        raise TargetError(
            f"all values are too small for {_WORDS[dtype]}",
            part=name,
            found=f"at most {magnitude:.3g}",
            expected=f"at least {least:.3g}",
            advice=_ADVICE.get(dtype),
        )


def magnitude_bound(value: float, dtype: str) -> int:
    """Return an upper bound for `magnitudes` of small values.

    If the magnitude of a number is below `value`, and the number is then rounded to `dtype` (F16 or
    BF16), its `magnitudes` is below the bound.
    """
    if value == 0:
        return 0
    with np.errstate(over="ignore"):
        bits = np.array([value], np.float32).astype(numpy_dtype(dtype)).view("<u2")
    return 2 * (int(bits[0]) + 1)


def magnitudes(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Return uint16 numbers that have the same order as the magnitudes of 16-bit floats.

    Each is twice the value's bits, which drops the sign bit. This works for float16 and for
    bfloat16.

    Args:
        data: the bytes of n values, (2 · n,) uint8.
    """
    bits = data.view("<u2")
    doubled: NDArray[np.uint16] = bits + bits
    return doubled
