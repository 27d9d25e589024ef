"""Results of a merge rounded to their dtype, once and to nearest even."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt.errors import TargetError
from vbfmt.tensors import numpy_dtype

NEAR_OVERFLOW = 1e38
"""Of float32 and bfloat16, whose greatest value is 3.4e38."""
INFINITE = {"F16": 2 * 0x7C00, "BF16": 2 * 0x7F80}
"""`magnitudes` of infinity; those of NaN are greater."""


def into(out: NDArray[Any], values: NDArray[Any], old: NDArray[Any], name: str, dtype: str) -> None:
    """Round float32 or float64 into `out`; where `old` is not finite, neither may the result be.

    Raises:
        TargetError: as `require_range`.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        narrow = _to_odd(values) if values.dtype == np.float64 and dtype == "BF16" else values
        np.copyto(out, narrow, casting="unsafe")
        # Two passes over what is in the cache are cheaper than to look at every result.
        near = not (
            values.max(initial=0) < NEAR_OVERFLOW and values.min(initial=0) > -NEAR_OVERFLOW
        )
    if near or dtype == "F16":
        require_range(out, old, name, dtype)


def _to_odd(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32 that rounds on to bfloat16 as the float64 itself would: inexact ones made odd.

    (ml_dtypes rounds float64 twice, to float32 and then on.)
    """
    narrow = values.astype(np.float32)
    beyond = np.abs(narrow.astype(np.float64)) > np.abs(values)
    towards_zero = np.where(beyond, np.nextafter(narrow, np.float32(0)), narrow)
    inexact = (towards_zero.astype(np.float64) != values) & np.isfinite(values)
    odd: NDArray[np.float32] = (towards_zero.view(np.uint32) | inexact).view(np.float32)
    return odd


def require_range(out: NDArray[Any], old: NDArray[Any], name: str, dtype: str) -> None:
    """Nothing in `out` became infinite that was finite in `old`.

    Raises:
        TargetError: a value is too large for `dtype`; `name` is the tensor's.
    """
    with np.errstate(invalid="ignore"):  # some NaN signal when they are converted
        finite, before = (
            np.isfinite(values.astype(np.float32) if values.dtype.itemsize == 2 else values)
            for values in (out, old)
        )
    if not finite.all() and not np.array_equal(finite, before):
        word = {"F16": "float16", "F32": "float32", "BF16": "bfloat16", "F64": "float64"}[dtype]
        raise TargetError(
            f"a value too large for {word}",
            part=name,
            advice="give `dtype=bfloat16` or float32" if dtype == "F16" else None,
        )


def above(value: float, dtype: str) -> int:
    """Above `magnitudes` of all that is smaller than `value`, before it was rounded."""
    if value == 0:
        return 0
    with np.errstate(over="ignore"):
        bits = np.array([value], np.float32).astype(numpy_dtype(dtype)).view("<u2")
    return 2 * (int(bits[0]) + 1)


def magnitudes(data: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Twice the bits of values of sixteen, without their signs: in the order of their magnitudes.

    Of whatever dtype, they are compared as whole numbers of half the size.
    """
    bits = data.view("<u2")
    doubled: NDArray[np.uint16] = bits + bits
    return doubled
