"""The subset of msgpack that a header may use: few types, and one encoding for each value."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from vbfmt.errors import HeaderError

DEEPEST = 8
"""Largest number of levels of nested arrays and maps, including the outer map."""


def pack(value: object) -> bytes:
    """Return the canonical encoding: every number, string and length in its shortest form."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


@dataclass(frozen=True)
class Document:
    """A canonical map. Each of its values is decoded only on request.

    Attributes:
        data: the bytes of the map.
        starts: offsets of the first key, its value, the second key, and so on, and of the data's
            end.
        containers: number of arrays and maps in each value, including the value itself. A map
            counts as `_A_MAP`.
    """

    data: bytes
    starts: array[int]
    containers: array[int]

    def __len__(self) -> int:
        return len(self.containers)

    def keys(self) -> Iterator[str]:
        """Yield the keys in order."""
        for position in range(len(self)):
            start, stop = self.starts[2 * position : 2 * position + 2]
            yield msgpack.unpackb(self.data[start:stop])

    def span(self, position: int) -> tuple[int, int]:
        """Return the offsets where the value at a position begins and ends."""
        start, stop = self.starts[2 * position + 1 : 2 * position + 3]
        return start, stop

    def value(self, position: int) -> Any:
        """Decode the value at a position.

        Raises:
            HeaderError: the value has so many arrays and maps that they would take far more memory
                than its bytes. A valid table has fewer, because each row takes at least seven
                bytes.
        """
        start, stop = self.span(position)
        most = _FEW + (stop - start) // 3
        if self.containers[position] > most:
            raise HeaderError(
                "too many arrays and maps",
                part="header",
                found=f"{self.containers[position]} in {stop - start} bytes",
                expected=f"at most {most}",
            )
        return msgpack.unpackb(self.data[start:stop])


def read(data: bytes) -> Document:
    """Return the map that `data` encodes, after checking that the encoding is canonical.

    Types that are not allowed, deep nesting and counts beyond the end of `data` are refused before
    anything is decoded, because the decoder would allocate memory for every count that it reads.

    Raises:
        HeaderError: `data` is not msgpack, is not a map, or is not canonical: it has a type that is
            not allowed, nesting that is too deep, a value in a longer form than the shortest, or a
            duplicate key.
    """
    if data and data[0] not in _MAPS and _SHAPES[data[0]][0]:
        raise HeaderError("the header is not a map", part="header", found=f"byte 0x{data[0]:02x}")
    document = Document(data, array("I"), array("I"))
    starts, containers = document.starts, document.containers
    position, left = 0, [1]
    keys: list[set[bytes] | None] = [None]  # the keys of each open map; None for an array
    while left:
        if not left[-1]:
            left.pop()
            keys.pop()
            continue
        if len(left) == 2:
            starts.append(position)
            if left[-1] % 2:
                containers.append(0)
        start = position
        code, position, items = _value(data, start)
        within = keys[-1]
        if within is not None and left[-1] % 2 == 0:
            _require_new_key(within, code, data[start:position])
        left[-1] -= 1
        if code in _CONTAINERS:
            _require_depth(len(left))
            if containers:
                containers[-1] += _A_MAP if code in _MAPS else 1
            left.append(items)
            keys.append(set() if items and code in _MAPS else None)
    if position != len(data):
        raise _not_msgpack("bytes after the map")
    starts.append(position)
    return document


_FEW = 16
"""Number of arrays and maps that even a very short value may have."""

_A_MAP = 4
"""A map takes as much memory as this number of arrays. Tables contain no maps."""


def _value(data: bytes, start: int) -> tuple[int, int, int]:
    """Return the first byte of the value at `start`, where it ends, and how many items follow it if
    it is an array or a map.

    Raises:
        HeaderError: the item has a type that is not allowed, is not in the shortest form, is text
            that is not UTF-8, or is truncated.
    """
    if start >= len(data):
        raise _not_msgpack("the end within a value")
    code = data[start]
    size, length_bytes, items = _SHAPES[code]
    if code in _NUMBERS:
        number = _number(data, start, length_bytes or size - 1)
        if length_bytes:
            size, items = (size, items * number) if items else (size + number, 0)
    if not size:
        raise _foreign(code)
    stop = start + size
    if stop + items > len(data):
        raise _not_msgpack("the end within a value")
    if code in _TEXTS:
        _require_utf8(data, start + 1 + length_bytes, stop)
    return code, stop, items


def _number(data: bytes, start: int, length: int) -> int:
    """Return the number or count in the bytes after a value's first byte.

    Raises:
        HeaderError: the bytes end too early, or a shorter form could hold the number.
    """
    if start + length >= len(data):
        raise _not_msgpack("the end within a value")
    number = int.from_bytes(data[start + 1 : start + 1 + length], "big")
    if number < _NUMBERS[data[start]]:
        raise HeaderError(
            "the header is not in canonical msgpack",
            part="header",
            expected="shortest integers, strings and lengths",
        )
    return number


def _require_utf8(data: bytes, start: int, stop: int) -> None:
    try:
        data[start:stop].decode()
    except UnicodeDecodeError as error:
        raise _not_msgpack(str(error)) from None


def _require_depth(depth: int) -> None:
    if depth > DEEPEST:
        raise HeaderError("nesting is too deep", part="header", expected=f"at most {DEEPEST}")


def _require_new_key(keys: set[bytes], code: int, key: bytes) -> None:
    if code not in _TEXTS:
        raise HeaderError("a key is not a string", part="header")
    if key in keys:
        raise HeaderError("duplicate key", part="header")
    keys.add(key)


def _foreign(code: int) -> HeaderError:
    return HeaderError(
        _FOREIGN[code],
        part="header",
        found=f"byte 0x{code:02x}",
        expected="nil, booleans, integers from 0, strings, arrays and maps",
    )


def _not_msgpack(found: str) -> HeaderError:
    return HeaderError("the header is not msgpack", part="header", found=found)


def _shapes() -> list[tuple[int, int, int]]:
    """Return the layout of a value for each possible first byte.

    The first number is the value's size in bytes, without the content that a count describes; 0 for
    a type that is not allowed. The second number is the size of the count after the first byte. The
    third number is the number of items per unit of that count, or the number of items if the first
    byte itself contains the count.
    """
    shapes = [(0, 0, 0)] * 256
    shapes[0x00:0x80] = [(1, 0, 0)] * 128
    shapes[0x80:0x90] = [(1, 0, 2 * count) for count in range(16)]
    shapes[0x90:0xA0] = [(1, 0, count) for count in range(16)]
    shapes[0xA0:0xC0] = [(1 + count, 0, 0) for count in range(32)]
    for code in (0xC0, 0xC2, 0xC3):
        shapes[code] = (1, 0, 0)
    for step, size in enumerate((1, 2, 4, 8)):
        shapes[0xCC + step] = (1 + size, 0, 0)
    for step, size in enumerate((1, 2, 4)):
        shapes[0xC4 + step] = shapes[0xD9 + step] = (1 + size, size, 0)
    for step, size in enumerate((2, 4)):
        shapes[0xDC + step] = (1 + size, size, 1)
        shapes[0xDE + step] = (1 + size, size, 2)
    return shapes


_SHAPES = _shapes()
_MAPS = frozenset([*range(0x80, 0x90), 0xDE, 0xDF])
_CONTAINERS = _MAPS | {*range(0x90, 0xA0), 0xDC, 0xDD}
_TEXTS = frozenset([*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB])
_NUMBERS = {
    **dict(zip(range(0xC4, 0xC7), (0, 1 << 8, 1 << 16), strict=True)),  # lengths of bytes
    **dict(zip(range(0xCC, 0xD0), (1 << 7, 1 << 8, 1 << 16, 1 << 32), strict=True)),
    **dict(zip(range(0xD9, 0xDC), (1 << 5, 1 << 8, 1 << 16), strict=True)),  # of strings
    **dict(zip(range(0xDC, 0xE0), (1 << 4, 1 << 16) * 2, strict=True)),  # of arrays, of maps
}
"""First byte of a value with a number or count → smallest number that has no shorter form."""
_FOREIGN = {
    0xC1: "the byte that msgpack never uses",
    **dict.fromkeys((*range(0xD0, 0xD4), *range(0xE0, 0x100)), "a negative number"),
    **dict.fromkeys((0xCA, 0xCB), "a float"),
    **dict.fromkeys((*range(0xC7, 0xCA), *range(0xD4, 0xD9)), "extension type"),
}
