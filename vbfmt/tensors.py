"""`Tensor`: a trained bias or head, which is stored unchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vbfmt.errors import ContentError

_NUMPY = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}
BITS = {
    **{name: 8 * np.dtype(code).itemsize for name, code in _NUMPY.items()},
    **dict.fromkeys(_ML_DTYPES, 8),
    "BF16": 16,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
"""Bits per element of every safetensors dtype (safetensors 0.8, tensor.rs)."""

_NAMES = {np.dtype(code): name for name, code in _NUMPY.items()}

TORCH = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
}
"""PyTorch's name of a dtype → safetensors' name."""


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian NumPy dtype of a safetensors dtype. Some are from ml_dtypes.

    Raises:
        ContentError: `name` is unknown, or its elements are smaller than a byte.
    """
    if name in _NUMPY:
        return np.dtype(_NUMPY[name])
    if name in _ML_DTYPES:
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[name]))
        return dtype
    raise ContentError("there is no numpy dtype", found=name, expected="a dtype of whole bytes")


def byte_length(dtype: str, shape: tuple[int, ...]) -> int | None:
    """Return the length of a tensor in bytes, or None if its dtype and shape are impossible.

    They are impossible if the bits do not fill whole bytes, or if there are 2⁶³ bytes or more.
    """
    if 0 in shape:
        return 0
    bits = BITS[dtype]
    for size in shape:
        bits *= size
        if bits >> 66:  # do not multiply hundreds of large sizes, which takes long
            return None
    return bits // 8 if bits % 8 == 0 else None


SMALLEST_NORMAL = {"F64": 2.0**-1022, "F32": 2.0**-126, "BF16": 2.0**-126, "F16": 2.0**-14}
"""dtype → the smallest number that has the dtype's full precision."""

WHOLE_BYTES = "whole bytes, fewer than 2⁶³"
"""The expected value in messages if `byte_length` returns None."""


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor as bytes.

    Attributes:
        dtype: a safetensors dtype name, such as ``BF16``.
        shape: the shape, () for a scalar.
        data: the bytes, (length,) uint8, row-major and little-endian.

    Raises:
        ContentError: the dtype is unknown, a size is negative, or `data` does not fit.
    """

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.dtype not in BITS:
            raise ContentError("unknown dtype", found=self.dtype, expected="a safetensors dtype")
        if min(self.shape, default=0) < 0:
            raise ContentError("negative size", found=self.shape)
        if self.data.dtype != np.uint8 or self.data.ndim != 1:
            raise ContentError("data must be one-dimensional bytes", found=self.data.dtype)
        expected = byte_length(self.dtype, self.shape)
        if expected != self.data.size:
            raise ContentError(
                f"wrong length for {self.dtype} {list(self.shape)}",
                found=f"{self.data.size} bytes",
                expected=WHOLE_BYTES if expected is None else f"{expected} bytes",
            )

    @classmethod
    def of(cls, array: NDArray[Any]) -> Tensor:
        """Return a tensor with the values of a NumPy array. A contiguous little-endian array is not
        copied.

        Raises:
            ContentError: safetensors has no such dtype.
        """
        code = array.dtype.newbyteorder("<")
        name = _NAMES.get(code) or {v: k for k, v in _ML_DTYPES.items()}.get(array.dtype.name)
        if name is None:
            raise ContentError("no safetensors dtype", found=array.dtype)
        flat = np.ascontiguousarray(array, dtype=code if name in _NUMPY else None).reshape(-1)
        return cls(name, array.shape, flat.view(np.uint8))

    def numpy(self) -> NDArray[Any]:
        """Return the values as an array of `shape`, without copying.

        Raises:
            ContentError: elements are smaller than a byte, or numpy has no such shape (more than 64
                dimensions; no elements, but a size beyond the address space).
        """
        flat = self.data.view(numpy_dtype(self.dtype))
        try:
            return flat.reshape(self.shape)
        except (ValueError, OverflowError):
            raise ContentError("numpy has no such shape", found=list(self.shape)) from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tensor):
            return NotImplemented
        return (self.dtype, self.shape) == (other.dtype, other.shape) and np.array_equal(
            self.data, other.data
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}, {list(self.shape)})"
