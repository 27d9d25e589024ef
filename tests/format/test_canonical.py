"""The canonical encoding of headers, tested without whole files."""

from __future__ import annotations

import random

import msgpack
import pytest

from vbfmt._format import canonical
from vbfmt.errors import HeaderError


def decoded(data):
    """Return the map with all of its values decoded."""
    document = canonical.read(data)
    return {key: document.value(position) for position, key in enumerate(document.keys())}


def test_lengths_of_values_are_those_that_msgpack_reads():
    """For each first byte, followed by a count of 2: the bytes of the value and the number of its
    items."""
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


def test_negative_numbers_floats_and_extensions_are_refused():
    values = [-1, -32, -33, -(2**7) - 1, -(2**15) - 1, -(2**31) - 1, 0.5]
    packed = [msgpack.packb(value) for value in values]
    packed += [msgpack.packb(0.5, use_single_float=True), b"\xc1"]
    packed += [msgpack.packb(msgpack.ExtType(1, bytes(n))) for n in (1, 2, 4, 8, 16, 3, 300, 70000)]
    assert {data[0] for data in packed} <= set(canonical._FOREIGN)
    for data in packed:
        with pytest.raises(HeaderError):
            decoded(b"\x81\xa1a" + data)


def nested(depth):
    """Return a map that nests this number of arrays and maps, itself included."""
    value = 0
    for level in range(depth - 1):
        value = [value] if level % 2 else {"a": value}
    return {"a": value}


def test_nesting_is_at_most_eight_deep():
    assert decoded(canonical.pack(nested(8))) == nested(8)
    with pytest.raises(HeaderError, match="nesting is too deep: header: expected at most 8"):
        decoded(canonical.pack(nested(9)))


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
def test_every_size_of_length_field_round_trips(value):
    data = canonical.pack(value)
    assert decoded(data) == value
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
        (b"\x81\xa1a\xcd\x01", "the end within a value"),
        (b"\x81\xa1a\xcd\x01\x00\x00", "bytes after the map"),
        (b"\x80\x00", "bytes after the map"),
    ],
    ids=["nothing", "no value", "no byte", "string", "array32", "array", "number", "next", "more"],
)
def test_counts_are_compared_with_the_remaining_bytes(data, found):
    with pytest.raises(HeaderError) as error:
        decoded(data)
    assert str(error.value) == f"the header is not msgpack: header: found {found}"


def encoded_again(data):
    """Check as the specification does: parse, encode in shortest forms, compare."""
    try:
        value = msgpack.unpackb(data, object_pairs_hook=pairs)
    except (ValueError, msgpack.exceptions.UnpackException):
        return None
    return value if isinstance(value, dict) and msgpack.packb(value) == data else None


def pairs(found):
    result = dict(found)
    if len(result) != len(found) or not all(isinstance(key, str) for key in result):
        raise ValueError
    return result


def test_a_map_is_accepted_if_it_encodes_to_the_same_bytes():
    """Maps with one to three changed bytes are tested with both checks."""
    rng = random.Random(4)
    whole = canonical.pack(
        {
            "a": [None, True, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32],
            "b": {"": "x" * 31, "c": "y" * 32, "d": "ä", "e": bytes(3)},
            "f": [[], {}, [0] * 16, {str(n): n for n in range(16)}],
            "g": "z" * 256,
        }
    )
    accepted = 0
    for _ in range(20_000):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 1, 2))] = rng.choice(
                (bytes([data[at]]), rng.randbytes(1), bytes([rng.choice(_CODES)]))
            )
        expected = encoded_again(bytes(data))
        try:
            found = decoded(bytes(data))
        except HeaderError as error:
            own = error.what in (*canonical._FOREIGN.values(), "nesting is too deep")
            assert expected is None or own, bytes(data)
            continue
        assert found == expected, bytes(data)
        accepted += 1
    assert accepted > 2000


_CODES = [0x00, 0x7F, 0x80, 0x81, 0x90, 0x91, 0xA0, 0xA1, *range(0xC0, 0xE0)]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x90", "the header is not a map"),
        (b"\x05", "the header is not a map"),
        (b"\x81\x01\x02", "a key is not a string"),
        (b"\x81\xc4\x01a\x02", "a key is not a string"),
        (b"\x82\xa1a\x01\xa1a\x02", "duplicate key"),
        (b"\x81\xa1a\x82\xa1b\x01\xa1b\x01", "duplicate key"),
        (b"\x81\xa1a\xcc\x7f", "the header is not in canonical msgpack"),
    ],
)
def test_keys_of_maps_are_distinct_strings_in_shortest_form(data, what):
    with pytest.raises(HeaderError) as error:
        decoded(data)
    assert error.value.what == what


def test_a_value_with_too_many_arrays_is_not_decoded():
    """An empty array takes one byte in the file and 72 in memory."""
    rows = [["m", 1, 1, 1, False]] * 1000
    assert decoded(canonical.pack({"a": rows}))["a"] == rows
    tensors = [["t", "U8", []]] * 1000
    assert decoded(canonical.pack({"a": tensors}))["a"] == tensors
    document = canonical.read(canonical.pack({"a": [[]] * 1000, "b": 1}))
    assert document.value(1) == 1
    with pytest.raises(HeaderError, match="too many arrays and maps: header: found 1001 in 1003"):
        document.value(0)


def test_a_value_may_have_16_arrays_and_one_for_every_three_bytes():
    document = canonical.read(canonical.pack({"a": [[]] * 24, "b": [[]] * 25}))
    assert document.value(0) == [[]] * 24
    with pytest.raises(HeaderError, match="found 26 in 28 bytes, expected at most 25$"):
        document.value(1)


def test_values_are_decoded_only_on_request():
    document = canonical.read(canonical.pack({"a": [1, {"b": []}], "c": "x"}))
    assert list(document.keys()) == ["a", "c"]
    assert len(document) == 2
    assert list(document.containers) == [2 + canonical._A_MAP, 0]
    assert [document.data[slice(*document.span(n))] for n in (0, 1)] == [
        canonical.pack([1, {"b": []}]),
        canonical.pack("x"),
    ]
