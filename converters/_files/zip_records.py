"""Find the records of an uncompressed zip archive, and check them before any is read.

PyTorch writes such archives. A record is refused if it is compressed, shorter than claimed or
overlaps another: readers such as Python's ``zipfile`` disagree about what it contains.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise

MOST_RECORDS = 50_000
"""Largest number of records in an archive. PyTorch writes one for each storage."""

BEGINS = b"PK\x03\x04"
"""The first bytes of a record, and so of an archive."""

_END = struct.Struct("<4s4H2IH")
_END_64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR_64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_SIZES_64 = 1
"""Id of the extra field with 64-bit sizes."""
_DESCRIPTOR_FOLLOWS, _UTF8 = 1 << 3, 1 << 11
_FLAGS = _DESCRIPTOR_FOLLOWS | _UTF8
_FOLDER = 0x10
"""The attribute bit of folders in DOS."""


def read(data: memoryview) -> dict[str, tuple[int, int]]:
    """Return the begin and end of each record's content in `data`, by name, in the directory's
    order.

    Raises:
        ValueError: the archive's directory is not at the end of the file or contradicts the file;
            or a record is compressed, encrypted or beyond the end of the file, overlaps another, or
            has the same name as another.
    """
    start, end, count = _directory(data)
    records: dict[str, tuple[int, int]] = {}
    taken: list[tuple[int, int]] = []
    for name, offset, size in _entries(data, start, end, count):
        if name in records:
            raise ValueError(f"two records {name[:80]!r}")
        begin = _content_of(data, name, offset, start)
        if size > start - begin:
            raise ValueError(f"record {name[:80]!r} is longer than the file")
        taken.append((offset, begin + size))
        records[name] = begin, begin + size
    taken.sort()
    if any(offset < end for (_, end), (offset, _) in pairwise(taken)):
        raise ValueError("records overlap")
    return records


def _directory(data: memoryview) -> tuple[int, int, int]:
    """Return the start and end of the central directory, and its number of entries."""
    end = len(data) - _END.size
    if end < 0:
        raise ValueError("not a zip archive")
    magic, disk, first_disk, here, count, size, start, comment = _END.unpack_from(data, end)
    if magic != b"PK\x05\x06" or comment:
        raise ValueError("the file does not end with a zip archive's directory: is it truncated?")
    locator = end - _LOCATOR_64.size
    if locator >= _END_64.size and bytes(data[locator : locator + 4]) == b"PK\x06\x07":
        end = locator - _END_64.size
        _, first_disk, position, disks = _LOCATOR_64.unpack_from(data, locator)
        magic, length, _, _, disk, other_disk, here, count, size, start = _END_64.unpack_from(
            data, end
        )
        plain = (magic, length, position) == (b"PK\x06\x06", _END_64.size - 12, end)
        if not plain or other_disk or disks != 1:
            raise ValueError("the zip archive's directory contradicts itself")
    if disk or first_disk or here != count or start + size != end:
        raise ValueError("the zip archive's directory contradicts itself")
    if count > MOST_RECORDS or count * _ENTRY.size > size:
        raise ValueError(f"a zip archive of {count} records")
    return start, end, count


def _entries(
    data: memoryview, position: int, end: int, count: int
) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset of the local header, size) of all records."""
    for _ in range(count):
        if position + _ENTRY.size > end:
            raise ValueError("the zip archive's directory is too short")
        fields = _ENTRY.unpack_from(data, position)
        magic, _, _, flags, method, _, _, _, stored, size, names, extras, comments = fields[:13]
        disk, attributes, offset = fields[13], fields[15], fields[16]
        begin = position + _ENTRY.size
        position = begin + names + extras + comments
        if magic != b"PK\x01\x02" or disk or position > end:
            raise ValueError("the zip archive's directory contradicts itself")
        name = bytes(data[begin : begin + names]).decode()
        extra = data[begin + names : begin + names + extras]
        size, stored, offset = _widened(extra, size, stored, offset)
        if method or stored != size:
            raise ValueError(f"record {name[:80]!r} is compressed")
        if attributes & _FOLDER or name.endswith("/"):  # PyTorch would read uninitialized memory
            raise ValueError(f"record {name[:80]!r} is a folder")
        if flags & ~_FLAGS:
            raise ValueError(f"record {name[:80]!r} is encrypted or of an unknown kind")
        yield name, offset, size
    if position != end:
        raise ValueError("the zip archive's directory is too long")


def _widened(extra: memoryview, *fields: int) -> Iterator[int]:
    """Yield the values of 32-bit fields. If all bits of a field are set, its 64-bit value in the
    extra field is used."""
    wide = memoryview(b"")
    position, found = 0, 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == _SIZES_64:
            wide = extra[position + 4 : position + 4 + length]
            found += 1
        position += 4 + length
    if position != len(extra) or found > 1 or len(wide) != 8 * fields.count(_FULL_32):
        raise ValueError("unreadable extra field in a zip archive")
    values = iter(struct.unpack(f"<{len(wide) // 8}Q", wide))
    return (next(values) if field == _FULL_32 else field for field in fields)


def _content_of(data: memoryview, name: str, offset: int, limit: int) -> int:
    """Return the position where a record's content begins, after its local header."""
    if offset + _LOCAL.size > limit:
        raise ValueError(f"record {name[:80]!r} lies outside the file")
    magic, _, flags, method, *_, names, extras = _LOCAL.unpack_from(data, offset)
    begin: int = offset + _LOCAL.size + names + extras
    same = bytes(data[offset + _LOCAL.size :][:names]) == name.encode()
    if magic != BEGINS or method or flags & ~_FLAGS or not same or begin > limit:
        raise ValueError(f"record {name[:80]!r} is not where the directory says")
    return begin
