"""The container format: preamble, aligned sections and digests. It knows nothing about VB-LoRA."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from vbfmt.errors import (
    ChecksumError,
    LayoutError,
    LengthError,
    MagicError,
    VbfmtError,
    VersionError,
)

Bytes: TypeAlias = "bytes | bytearray | memoryview"

MAGIC = bytes.fromhex("8956424C0D0A1A0A")
MAJOR, MINOR = 1, 0
ALIGNMENT = 64
LONGEST_HEADER = 16 << 20

_LONGEST_FILE = 2**64 - 1

_FIELDS = struct.Struct("<8sHHIQI")
_CRC = struct.Struct("<I")
PREAMBLE_LENGTH = _FIELDS.size + _CRC.size


@dataclass(frozen=True)
class Preamble:
    """The fields of a file's first 32 bytes, without magic, reserved bytes and CRC."""

    major: int
    minor: int
    header_length: int
    file_length: int

    @property
    def header_end(self) -> int:
        """End of the header, in bytes from the start of the file."""
        return PREAMBLE_LENGTH + self.header_length


@dataclass(frozen=True)
class Section:
    """The position and hash of a section.

    Attributes:
        offset: bytes from the start of the data, which begins at the first multiple of 64 at or
            after the header's end.
        length: number of bytes.
        sha256: SHA-256 of those bytes, 32 bytes.
        external: whether the bytes are in another file and take no space in this one.
    """

    offset: int
    length: int
    sha256: bytes
    external: bool = False

    @property
    def end(self) -> int:
        """End of the section's bytes in this file, counted like `offset`."""
        return self.offset if self.external else self.offset + self.length


def align(position: int) -> int:
    """Return the first multiple of 64 at or after `position`."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def offsets(lengths: Sequence[int]) -> list[int]:
    """Return the offsets of consecutive aligned sections of these lengths."""
    result, position = [], 0
    for length in lengths:
        result.append(align(position))
        position = result[-1] + length
    return result


def sections_of(contents: Sequence[Bytes]) -> tuple[Section, ...]:
    """Return the sections for these contents, in order."""
    lengths = [len(content) for content in contents]
    return tuple(
        Section(offset, length, hashlib.sha256(content).digest())
        for offset, length, content in zip(offsets(lengths), lengths, contents, strict=True)
    )


def front(header: bytes, data_length: int | None = None, *, minor: int = MINOR) -> bytes:
    """Return the front of a file: its preamble and header.

    Args:
        data_length: bytes from the start of the data to the end of the file; None if there are no
            sections.

    Raises:
        LengthError: the header or the file is longer than the format allows.
    """
    if len(header) > LONGEST_HEADER:
        raise LengthError(
            "the header is too long",
            found=f"{len(header)} bytes",
            expected=f"at most {LONGEST_HEADER}",
            advice="names, config and metadata must be shorter",
        )
    end = PREAMBLE_LENGTH + len(header)
    if data_length is not None:
        end = align(end) + data_length
    require_length(end)
    fields = _FIELDS.pack(MAGIC, MAJOR, minor, len(header), end, 0)
    return fields + _CRC.pack(zlib.crc32(header, zlib.crc32(fields))) + header


def require_length(length: int) -> None:
    """Check that a file may have `length` bytes.

    Raises:
        LengthError: the file would be longer than the format allows.
    """
    if length > _LONGEST_FILE:
        raise LengthError(
            "the file would be too long",
            found=f"{length} bytes",
            expected=f"at most {_LONGEST_FILE}",
        )


def minor_of(start: Bytes) -> int:
    """Return the minor version in a preamble."""
    minor: int = _FIELDS.unpack_from(start)[2]
    return minor


def pieces(start: Bytes, contents: Sequence[Bytes]) -> Iterator[Bytes]:
    """Yield the whole file in pieces: the front, padding and the sections' contents."""
    yield start
    position = len(start)
    for content in contents:
        yield bytes(align(position) - position)
        yield content
        position = align(position) + len(content)


def digest(start: Bytes) -> str:
    """Return the adapter's digest: the SHA-256 of its front, which contains the sections'
    hashes."""
    return "sha256:" + hashlib.sha256(start).hexdigest()


def read_preamble(data: memoryview) -> Preamble:
    """Check the preamble of a file and return it.

    Raises:
        MagicError: the file does not begin with the magic.
        LengthError: the file is truncated or extended.
        ChecksumError: the preamble or the header is damaged.
        VersionError: the file has another major version.
        LayoutError: the reserved bytes are not zero.
    """
    _require_magic(data)
    if len(data) < PREAMBLE_LENGTH:
        raise _truncated(len(data), f"at least {PREAMBLE_LENGTH} bytes")
    _, major, minor, header_length, file_length, reserved = _FIELDS.unpack_from(data)
    preamble = Preamble(major, minor, header_length, file_length)
    _require_checksum(data, preamble)
    if major != MAJOR:
        raise VersionError(
            "unsupported version of the format",
            part="preamble",
            found=f"version {major}.{minor}",
            expected=f"{MAJOR}.x",
            advice="update vbfmt" if major > MAJOR else None,
        )
    if len(data) != file_length:
        raise _truncated(len(data), f"{file_length} bytes")
    if reserved:
        raise LayoutError("reserved bytes are not zero", part="preamble", found=hex(reserved))
    return preamble


def _require_magic(data: memoryview) -> None:
    start = bytes(data[: len(MAGIC)])
    if start == MAGIC:
        return
    if not start or MAGIC.startswith(start):
        raise _truncated(len(start), f"at least {PREAMBLE_LENGTH} bytes")
    text_mode = start[1:4] == MAGIC[1:4]
    raise MagicError(
        "not a packed VB-LoRA adapter",
        part="preamble",
        found=start.hex(" "),
        expected=MAGIC.hex(" "),
        advice="the file was damaged by a transfer in text mode; fetch it again as binary"
        if text_mode
        else "make one with: vbfmt pack CHECKPOINT -o FILE.vblora",
    )


def _require_checksum(data: memoryview, preamble: Preamble) -> None:
    """Check the CRC, before anything else in the header is trusted."""
    length = preamble.header_length
    if length > LONGEST_HEADER or preamble.header_end > len(data):
        if len(data) < preamble.file_length and length <= LONGEST_HEADER:
            raise _truncated(len(data), f"{preamble.file_length} bytes")
        raise ChecksumError(
            "the header's length is impossible",
            part="preamble",
            found=f"{length} bytes",
            expected=f"at most {min(LONGEST_HEADER, len(data) - PREAMBLE_LENGTH)}",
            advice=_FETCH_AGAIN,
        )
    (stored,) = _CRC.unpack_from(data, _FIELDS.size)
    header = data[PREAMBLE_LENGTH : preamble.header_end]
    found = zlib.crc32(header, zlib.crc32(data[: _FIELDS.size]))
    if found != stored:
        raise ChecksumError(
            "damaged",
            part="preamble or header",
            found=f"CRC-32 {found:08x}",
            expected=f"{stored:08x}",
            advice=_FETCH_AGAIN,
        )


def require_layout(preamble: Preamble, sections: Sequence[Section], names: Sequence[str]) -> None:
    """Check that sections follow each other without overlap or gap and end with the file.

    Raises:
        LayoutError: the sections have other positions.
    """
    data, position = align(preamble.header_end), 0
    for name, section in zip(names, sections, strict=True):
        if section.offset != align(position):
            raise LayoutError(
                "section at the wrong offset",
                part=name,
                found=f"offset {section.offset}",
                expected=align(position),
            )
        position = section.end
    if preamble.file_length != data + position:
        raise LayoutError(
            "the sections do not end at the end of the file",
            part="sections",
            found=f"end {data + position}",
            expected=preamble.file_length,
        )


def content(data: memoryview, preamble: Preamble, section: Section) -> memoryview:
    """Return a section's bytes as a view of `data`."""
    start = align(preamble.header_end) + section.offset
    return data[start : start + section.length]


def damage(
    data: memoryview, preamble: Preamble, sections: Sequence[Section], names: Sequence[str]
) -> Iterator[VbfmtError]:
    """Yield an error for each section with a wrong hash and each padding that is not zero."""
    position = preamble.header_end
    base = align(position)
    for name, section in zip(names, sections, strict=True):
        if section.external:
            continue
        if any(data[position : base + section.offset]):
            yield LayoutError("padding is not zero", part=f"before {name}", advice=_FETCH_AGAIN)
        position = base + section.end
        found = hashlib.sha256(content(data, preamble, section)).digest()
        if found != section.sha256:
            yield ChecksumError(
                "damaged",
                part=name,
                found=f"SHA-256 {found.hex()[:16]}…",
                expected=f"{section.sha256.hex()[:16]}…",
                advice=_FETCH_AGAIN,
            )


_FETCH_AGAIN = "fetch or pack the file again"


def _truncated(found: int, expected: str) -> LengthError:
    return LengthError(
        "the file's length is wrong: it is truncated or something was appended",
        part="whole file",
        found=f"{found} bytes",
        expected=expected,
        advice=_FETCH_AGAIN,
    )
