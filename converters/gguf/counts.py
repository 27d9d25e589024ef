"""The counts of a GGUF file, held against its length before the gguf package believes them: an
array of 2⁴⁰ elements in a file of 100 bytes keeps that busy until the memory is gone."""

from __future__ import annotations

import os
import struct

from vbfmt._files import storage
from vbfmt.errors import SourceError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type (gguf.md in ggml: GGUF metadata value types)."""

_STRING, _ARRAY = 8, 9
_DEEPEST = 8
_MOST_DIMENSIONS = 4  # GGML_MAX_DIMS
_BEGIN = struct.Struct("<4sIQQ")  # magic, version, tensors, metadata entries
_VERSIONS = (2, 3)


def require(path: str | os.PathLike[str]) -> None:
    """Walk over metadata and tensor descriptions; every count must fit into the bytes that follow.

    Raises:
        SourceError: it does not, or the file is not GGUF of version 2 or 3, little-endian.
        StorageError: the file cannot be read.
    """
    data = storage.read(path, mmap=True)
    if len(data) < _BEGIN.size:
        raise _unreadable(f"{len(data)} bytes")
    magic, version, tensors, entries = _BEGIN.unpack_from(data)
    if magic != b"GGUF" or version not in _VERSIONS:
        raise _unreadable(f"{magic!r}, version {version}")
    walk = _Walk(data, _BEGIN.size)
    for _ in range(walk.count(entries, 8 + 4 + 1)):
        walk.string()
        walk.value(walk.number("<I"), 0)
    for _ in range(walk.count(tensors, 8 + 4 + 4 + 8)):
        walk.string()
        dimensions = walk.number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise _unreadable(f"a tensor of {dimensions} dimensions")
        walk.skip(8 * dimensions + 4 + 8)


class _Walk:
    """A position in a file that moves over values and never past the end."""

    def __init__(self, data: memoryview, position: int) -> None:
        self._data = data
        self._position = position

    def skip(self, size: int) -> None:
        """Move on."""
        if size > len(self._data) - self._position:
            raise _unreadable(f"{size} bytes at {self._position} of {len(self._data)}")
        self._position += size

    def number(self, form: str) -> int:
        """The number here."""
        start = self._position
        self.skip(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self._data, start)
        return int(value)

    def count(self, announced: int, least: int) -> int:
        """A number of things of at least so many bytes each, which must all fit."""
        if announced * least > len(self._data) - self._position:
            raise _unreadable(f"{announced} entries at {self._position} of {len(self._data)}")
        return announced

    def string(self) -> None:
        """Move over one."""
        self.skip(self.number("<Q"))

    def value(self, kind: int, depth: int) -> None:
        """Move over one of this type."""
        if kind == _STRING:
            self.string()
        elif kind == _ARRAY:
            self._array(depth + 1)
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise _unreadable(f"a value of type {kind}")

    def _array(self, depth: int) -> None:
        kind, length = self.number("<I"), self.number("<Q")
        if kind in _SIZES:
            self.skip(_SIZES[kind] * length)
            return
        if depth > _DEEPEST:
            raise _unreadable(f"arrays nested {depth} deep")
        for _ in range(self.count(length, 8)):
            self.value(kind, depth)


def _unreadable(found: str) -> SourceError:
    return SourceError(
        "not a readable GGUF file", found=found, expected="little-endian GGUF 2 or 3, whole"
    )
