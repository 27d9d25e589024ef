"""The one encoding that a header may have, below the level of whole files."""

from __future__ import annotations

import msgpack
import pytest

from vbfmt._format import canonical
from vbfmt.errors import HeaderError


def test_the_shapes_of_values_are_those_that_msgpack_reads():
    """By first byte, with 2 as the count that follows: bytes of the value, items inside it."""
    shapes = canonical._shapes()
    assert shapes == canonical._SHAPES
    for code, (size, length_bytes, items) in enumerate(shapes):
        if not size:
            assert code in canonical._FOREIGN
            continue
        reader = msgpack.Unpacker(raw=True, strict_map_key=False)
        count = (2).to_bytes(length_bytes, "big") if length_bytes else b""
        reader.feed(bytes([code]) + count + bytes(64))
        if code in canonical._CONTAINERS:
            is_map = 0x80 <= code < 0x90 or code >= 0xDE
            inside = 2 * reader.read_map_header() if is_map else reader.read_array_header()
            assert inside == (2 * items if length_bytes else items), hex(code)
            assert size == 1 + length_bytes, hex(code)
        else:
            reader.skip()
            assert reader.tell() == size + (2 if length_bytes else 0), hex(code)
            assert not items, hex(code)


def test_foreign_are_negative_numbers_floats_and_extensions():
    values = [-1, -32, -33, -(2**7) - 1, -(2**15) - 1, -(2**31) - 1, 0.5]
    packed = [msgpack.packb(value) for value in values]
    packed += [msgpack.packb(0.5, use_single_float=True), b"\xc1"]
    packed += [msgpack.packb(msgpack.ExtType(1, bytes(n))) for n in (1, 2, 4, 8, 16, 3, 300, 70000)]
    assert {data[0] for data in packed} <= set(canonical._FOREIGN)
    for data in packed:
        with pytest.raises(HeaderError):
            canonical.unpack(b"\x81\xa1a" + data)


def nested(depth):
    """A map in which so many arrays and maps stand one inside another, itself counted."""
    value = 0
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


def test_nesting_is_eight_deep_at_most():
    assert canonical.unpack(canonical.pack(nested(8))) == nested(8)
    with pytest.raises(HeaderError, match="nesting is too deep: header: expected at most 8"):
        canonical.unpack(canonical.pack(nested(9)))


@pytest.mark.parametrize(
    "value",
    [
        {"": ""},
        {"a": [None, True, False]},
        {"a": [2**7 - 1, 2**7, 2**8 - 1, 2**8, 2**16 - 1, 2**16, 2**32 - 1, 2**32, 2**64 - 1]},
        {"a": ["x" * n for n in (0, 31, 32, 255, 256, 65535, 65536)]},
        {"a": [bytes(n) for n in (0, 255, 256, 65535, 65536)]},
        {"a": [[0] * n for n in (0, 15, 16, 65535, 65536)]},
        {"a": [{str(i): i for i in range(n)} for n in (0, 15, 16, 65535, 65536)]},
    ],
    ids=["empty", "constants", "integers", "strings", "bytes", "arrays", "maps"],
)
def test_every_length_of_length_comes_back(value):
    data = canonical.pack(value)
    assert canonical.unpack(data) == value
    assert data == msgpack.packb(value)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "the end within a value"),
        (b"\x81\xa1a", "the end within a value"),
        (b"\x81\xa2a", "the end within a value"),
        (b"\x81\xa1a\xa5bcd", "the end within a value"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "the end within a value"),
        (b"\x81\xa1a\x93\x00\x00", "the end within a value"),
        (b"\x80\x00", "bytes after the map"),
    ],
    ids=["nothing", "no value", "no byte", "string", "array32", "array", "more"],
)
def test_counts_are_compared_with_the_bytes_that_are_left(data, found):
    with pytest.raises(HeaderError) as error:
        canonical.unpack(data)
    assert str(error.value) == f"the header is not msgpack: header: found {found}"
