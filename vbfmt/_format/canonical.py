"""The subset of msgpack that a header may use: few types, one encoding of each value."""

from __future__ import annotations

from typing import Any

import msgpack

from vbfmt.errors import HeaderError

DEEPEST = 8
"""Levels of nested arrays and maps, counting the outer map."""


def pack(value: object) -> bytes:
    """Return the canonical encoding: every number, string and length in its shortest form."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes) -> dict[str, Any]:
    """Return the map that `data` encodes.

    Raises:
        HeaderError: not msgpack, not a map, or not the canonical encoding of that map.
    """
    _require_well_formed(data)
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, object_pairs_hook=_pairs)
    except HeaderError:
        raise
    except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
        raise _not_msgpack(str(error)) from None
    if not isinstance(value, dict):
        raise HeaderError("the header is not a map", part="header", found=type(value).__name__)
    if pack(value) != data:
        raise HeaderError(
            "the header is not in canonical msgpack",
            part="header",
            expected="shortest integers, strings and lengths",
        )
    return value


def _require_well_formed(data: bytes) -> None:
    """Refuse other types, deep nesting and counts that are larger than the rest of `data`.

    This is done before decoding, because the decoder allocates memory for every count that it
    reads, at all levels of nesting.
    """
    position, left = 0, [1]
    while left:
        if not left[-1]:
            left.pop()
            continue
        left[-1] -= 1
        if position >= len(data):
            raise _not_msgpack("the end within a value")
        code = data[position]
        size, length_bytes, items = _SHAPES[code]
        if length_bytes:
            count = int.from_bytes(data[position + 1 : position + 1 + length_bytes], "big")
            size, items = (size, items * count) if items else (size + count, 0)
        if not size:
            raise HeaderError(
                _FOREIGN[code],
                part="header",
                found=f"byte 0x{code:02x}",
                expected="nil, booleans, integers from 0, strings, arrays and maps",
            )
        position += size
        if position + items > len(data):
            raise _not_msgpack("the end within a value")
        if code in _CONTAINERS:
            if len(left) > DEEPEST:
                raise HeaderError(
                    "nesting is too deep", part="header", expected=f"at most {DEEPEST}"
                )
            left.append(items)
    if position != len(data):
        raise _not_msgpack("bytes after the map")


def _pairs(pairs: list[tuple[object, object]]) -> dict[object, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise HeaderError("duplicate key", part="header")
    if not all(isinstance(key, str) for key in result):
        raise HeaderError("a key is not a string", part="header")
    return result


def _not_msgpack(found: str) -> HeaderError:
    return HeaderError("the header is not msgpack", part="header", found=found)


def _shapes() -> list[tuple[int, int, int]]:
    """Return how a value is laid out, for each first byte.

    The first number is the value's size in bytes, without the content whose length is counted; 0
    for a type that is not allowed. The second is the size of the count that follows the first byte.
    The third is the number of items for each unit of that count, or the number of items if the
    first byte itself holds the count.
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
_CONTAINERS = frozenset([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_FOREIGN = {
    0xC1: "the byte that msgpack never uses",
    **dict.fromkeys((*range(0xD0, 0xD4), *range(0xE0, 0x100)), "a negative number"),
    **dict.fromkeys((0xCA, 0xCB), "a float"),
    **dict.fromkeys((*range(0xC7, 0xCA), *range(0xD4, 0xD9)), "extension type"),
}
