"""The objects that the pickle program of a state dict creates.

A tensor becomes a `View` of a `Storage`, without its elements.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vbfmt.tensors import BITS

STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
"""PyTorch's storage class → PyTorch's name of its dtype."""

LARGEST = 1 << 63
"""Sizes, offsets and strides must be below this, to fit into int64."""
_MOST_DIMENSIONS = 64  # numpy's limit, and PyTorch's


class Ordered(dict[str, Any]):
    """An `OrderedDict` that the program creates."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class StorageType:
    """A storage class of PyTorch, identified by the safetensors name of its dtype."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A storage that the file claims to contain.

    Attributes:
        key: its key in the file.
        dtype: safetensors name of its dtype.
        elements: its number of elements.
    """

    key: str
    dtype: str
    elements: int

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self.elements * BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class View:
    """A tensor as a view of a storage.

    Attributes:
        storage: the storage of its elements.
        offset: position of its first element in the storage, in elements.
        shape: its shape.
        stride: its strides, in elements.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _tensor(
    storage: Any,
    offset: Any,
    shape: Any,
    stride: Any,
    gradient: Any,
    hooks: Any,
    metadata: Any = None,
) -> View:
    """Check the arguments of PyTorch's `_rebuild_tensor_v2`, and return the view."""
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("an invalid description of a tensor")
    sizes = (offset, *shape, *stride)
    if len(shape) != len(stride) or len(shape) > _MOST_DIMENSIONS or not all(map(_is_size, sizes)):
        raise ValueError("an invalid description of a tensor")
    if metadata:
        raise ValueError("unsupported: a tensor that is stored negated or conjugated")
    _require_plain(storage, gradient, hooks)
    view = View(storage, offset, shape, stride)
    last = offset
    if 0 not in shape:
        last += 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if last > storage.elements:
        raise ValueError(f"a tensor past the end of its storage {storage.key[:40]!r}")
    return view


def _parameter(view: Any, gradient: Any, hooks: Any) -> View:
    """Check the arguments of PyTorch's `_rebuild_parameter`, and return the view."""
    if type(view) is not View:
        raise ValueError("a parameter that is not a tensor")
    _require_plain(view.storage, gradient, hooks)
    return view


def _require_plain(storage: Storage, gradient: Any, hooks: Any) -> None:
    """Refuse gradients of tensors that are not floating-point, and any hooks."""
    integer = "F" not in storage.dtype
    if type(gradient) is not bool or (gradient and integer) or type(hooks) is not Ordered or hooks:
        raise ValueError("an invalid description of a tensor")


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


CALLABLE: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): Ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}
"""(module, name) of a function that a program may call → the function that is called instead."""
ARGUMENTS: dict[Callable[..., Any], tuple[int, int]] = {
    Ordered: (0, 0),
    _tensor: (6, 7),
    _parameter: (3, 3),
}
"""Function → its smallest and its largest number of arguments."""
