"""Read the metadata and the tensors' shapes of a GGUF file, in one pass.

The gguf package is not used for this. It creates an object for every element of every array, and
does not check counts, so an array of 2⁴⁰ elements in a file of 100 bytes exhausts the memory. Here,
every count is compared with the bytes that follow, and long arrays are skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from vbfmt._files import PathLike, storage
from vbfmt.errors import SourceError

MOST_TENSORS = 100_000
"""Largest number of tensors in a file."""

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Type of a value → its size in bytes (gguf.md in ggml: GGUF metadata value types)."""

_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 10: "Q", 11: "q"}
"""Type of an integer → its format character in `struct`."""

_STRING, _ARRAY = 8, 9
_DEEPEST = 8
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_LONGEST_TEXT = 1024
_LONGEST_ARRAY = 4096
"""Largest number of elements of an array that is read and not skipped. The arrays that are needed
have one number for each layer."""
_BEGIN = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata entries
_VERSIONS = (2, 3)


@dataclass(frozen=True)
class Metadata:
    """Metadata and shapes from a GGUF file.

    Attributes:
        fields: strings, integers and short arrays of integers, by key.
        shapes: shapes of the tensors, by name. The length of a row is last; in GGUF, it is first.
    """

    fields: Mapping[str, str | int | list[int]]
    shapes: Mapping[str, tuple[int, ...]]


def read(path: PathLike, wanted: tuple[str, ...]) -> Metadata:
    """Read the fields whose keys end in one of `wanted`, and the shapes of all tensors.

    Raises:
        SourceError: the file is not little-endian GGUF of version 2 or 3, a count exceeds the bytes
            that follow, or a key or a tensor's name occurs twice.
        StorageError: the file cannot be read.
    """
    data = storage.read(path, mmap=True)
    if len(data) < _BEGIN.size:
        raise _unreadable(f"{len(data)} bytes")
    magic, version, tensors, entries = _BEGIN.unpack_from(data)
    if magic != b"GGUF" or version not in _VERSIONS:
        raise _unreadable(f"{magic!r}, version {version}")
    walk = _Walk(data, _BEGIN.size)
    fields: dict[str, str | int | list[int]] = {}
    for _ in range(walk.count(entries, 8 + 4 + 1)):
        key = walk.text()
        value = walk.value(walk.number("<I"))
        if key is None or not key.endswith(wanted):
            continue
        if key in fields:
            raise _unreadable(f"{key[:80]!r} twice")
        fields[key] = "" if value is None else value
    shapes: dict[str, tuple[int, ...]] = {}
    if tensors > MOST_TENSORS:
        raise _unreadable(f"{tensors} tensors")
    for _ in range(walk.count(tensors, 8 + 4 + 4 + 8)):
        name = walk.text()
        dimensions = walk.number("<I")
        if name is None or name in shapes or dimensions > _MOST_DIMENSIONS:
            raise _unreadable(f"a tensor {str(name)[:80]!r} of {dimensions} dimensions")
        shapes[name] = tuple(reversed([walk.number("<Q") for _ in range(dimensions)]))
        walk.skip(4 + 8)
    return Metadata(fields, shapes)


class _Walk:
    """A position in a file that moves forward over values, but never beyond the end."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self._position = position

    def skip(self, size: int) -> None:
        """Move forward by `size` bytes."""
        if size > len(self._data) - self._position:
            raise _unreadable(f"{size} bytes at {self._position} of {len(self._data)}")
        self._position += size

    def number(self, form: str) -> int:
        """Read a number in the format of `struct`."""
        start = self._position
        self.skip(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self._data, start)
        return int(value)

    def count(self, announced: int, least: int) -> int:
        """Check that `announced` entries of at least `least` bytes each fit into the rest of the
        file. Return `announced`."""
        if announced * least > len(self._data) - self._position:
            raise _unreadable(f"{announced} entries at {self._position} of {len(self._data)}")
        return announced

    def text(self) -> str | None:
        """Read a string. Return None if it is too long or not UTF-8."""
        size = self.number("<Q")
        start = self._position
        self.skip(size)
        if size > _LONGEST_TEXT:
            return None
        try:
            return str(self._data[start : start + size], "utf-8")
        except UnicodeDecodeError:
            return None

    def value(self, kind: int, depth: int = 0) -> str | int | list[int] | None:
        """Read a string, an integer or a short array of integers. Skip a value of another type.

        The value is nested in `depth` arrays.
        """
        if kind == _STRING:
            return self.text()
        if kind in _INTEGERS:
            return self.number(f"<{_INTEGERS[kind]}")
        if kind == _ARRAY:
            return self._array(depth + 1)
        if kind not in _SIZES:
            raise _unreadable(f"a value of type {kind}")
        self.skip(_SIZES[kind])
        return None

    def _array(self, depth: int) -> list[int] | None:
        kind, length = self.number("<I"), self.number("<Q")
        if kind in _INTEGERS and length <= _LONGEST_ARRAY:
            return [self.number(f"<{_INTEGERS[kind]}") for _ in range(length)]
        if kind in _SIZES:
            self.skip(_SIZES[kind] * length)
            return None
        if depth > _DEEPEST:
            raise _unreadable(f"arrays nested {depth} deep")
        for _ in range(self.count(length, 8)):
            self.value(kind, depth)
        return None


def _unreadable(found: str) -> SourceError:
    return SourceError(
        "not a readable GGUF file",
        found=found,
        expected="a complete little-endian GGUF file of version 2 or 3",
    )
