"""Change one thing in a packed file and correct its checksums, so that only the rule about that
thing can detect it."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import msgpack

PREAMBLE = struct.Struct("<8sHHIQI")


def parts(data: bytes) -> tuple[tuple[Any, ...], dict[str, Any], bytes]:
    """Return the preamble's fields, the header as a map, and all bytes from D on."""
    fields = PREAMBLE.unpack_from(data)
    end = 32 + fields[3]
    return fields, msgpack.unpackb(data[32:end], strict_map_key=False), data[_align(end) :]


def join(fields: tuple[Any, ...], header: bytes, data: bytes) -> bytes:
    """Return the file with these parts and with correct lengths and CRC."""
    padding = bytes(_align(32 + len(header)) - 32 - len(header))
    total = 32 + len(header) + len(padding) + len(data)
    front = PREAMBLE.pack(*fields[:3], len(header), total, fields[5])
    return (
        front + struct.pack("<I", zlib.crc32(header, zlib.crc32(front))) + header + padding + data
    )


def with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the file with its header changed by `change`."""
    fields, header, rest = parts(data)
    change(header)
    return join(fields, msgpack.packb(header, use_bin_type=True), rest)


def with_header_bytes(data: bytes, header: bytes) -> bytes:
    """Return the file with these bytes as its header."""
    fields, _, rest = parts(data)
    return join(fields, header, rest)


def with_preamble(data: bytes, **changes: int) -> bytes:
    """Return the file with preamble fields changed: major, minor, header_length, file_length,
    reserved."""
    names = ("magic", "major", "minor", "header_length", "file_length", "reserved")
    fields = dict(zip(names, PREAMBLE.unpack_from(data), strict=True)) | changes
    front = PREAMBLE.pack(*fields.values())
    header = data[32 : 32 + PREAMBLE.unpack_from(data)[3]]
    return front + struct.pack("<I", zlib.crc32(header, zlib.crc32(front))) + data[32:]


def with_section(data: bytes, number: int, change: Callable[[bytearray], object]) -> bytes:
    """Return the file with a section's bytes changed, and its hash updated."""
    fields, header, rest = parts(data)
    offset, length, _ = header["sections"][number]
    content = bytearray(rest[offset : offset + length])
    change(content)
    assert len(content) == length
    header["sections"][number][2] = hashlib.sha256(content).digest()
    rest = rest[:offset] + bytes(content) + rest[offset + length :]
    return join(fields, msgpack.packb(header, use_bin_type=True), rest)


def _align(position: int) -> int:
    return -(-position // 64) * 64


def header_of(data: bytes) -> bytes:
    """Return the header's bytes."""
    return data[32 : 32 + PREAMBLE.unpack_from(data)[3]]


def data_start(data: bytes) -> int:
    """Return D, the position of the first section."""
    return _align(32 + len(header_of(data)))
