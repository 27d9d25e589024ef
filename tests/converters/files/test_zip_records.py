import io
import struct
import zipfile

import pytest

from vbfmt.converters._files import zip_records

_END, _ENTRY, _LOCAL = 22, 46, 30
"""Lengths of the archive's structures, without names."""


def archive(**records: bytes) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        for name, content in (records or {"one": b"first", "two": b"second"}).items():
            written.writestr(name, content)
    return bytearray(file.getvalue())


def directory(data: bytearray) -> int:
    return struct.unpack_from("<I", data, len(data) - 6)[0]


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        zip_records.read(memoryview(data))
    return str(caught.value)


def test_records_are_found_at_their_offsets():
    data = archive()
    found = zip_records.read(memoryview(data))
    assert {name: bytes(data[a:b]) for name, (a, b) in found.items()} == {
        "one": b"first",
        "two": b"second",
    }


@pytest.mark.parametrize("length", [0, 1, _END - 1])
def test_a_file_that_is_too_short_is_refused(length):
    assert refusal(bytes(length)) == "not a zip archive"


def test_every_truncation_is_refused():
    data = archive()
    for length in range(len(data)):
        assert refusal(data[:length])


def test_a_comment_is_refused():
    data = archive()
    data[-2] = 1
    assert "truncated?" in refusal(data)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (4, 1, "contradicts itself"),  # this disk
        (6, 1, "contradicts itself"),  # the directory's disk
        (8, 1, "contradicts itself"),  # records on this disk
        (12, 1, "contradicts itself"),  # the directory's length
        (16, 0, "contradicts itself"),  # its start
    ],
)
def test_the_end_of_the_directory_must_be_consistent(field, value, message):
    data = archive()
    data[len(data) - _END + field] = value
    assert message in refusal(data)


def test_more_records_than_the_directory_can_hold_are_refused_unread():
    data = archive()
    struct.pack_into("<2H", data, len(data) - _END + 8, 60_000, 60_000)
    assert refusal(data) == "a zip archive of 60000 records"


def test_fewer_records_than_the_directory_holds_are_refused():
    data = archive()
    struct.pack_into("<2H", data, len(data) - _END + 8, 1, 1)
    assert refusal(data) == "the zip archive's directory is too long"


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"XX", "contradicts itself"),  # the entry's magic
        (8, b"\x01\x00", "is encrypted"),
        (10, b"\x08\x00", "is compressed"),
        (24, b"\x06\x00\x00\x00", "is compressed"),  # size above the stored size
        (30, b"\xff\xff", "contradicts itself"),  # an extra field beyond the directory
        (34, b"\x01\x00", "contradicts itself"),  # on another disk
        (38, b"\x10\x00\x00\x00", "is a folder"),
    ],
)
def test_an_entry_that_does_not_describe_a_stored_record_is_refused(offset, value, message):
    data = archive()
    start = directory(data) + offset
    data[start : start + len(value)] = value
    assert message in refusal(data)


def test_two_records_with_one_name_are_refused():
    data = archive(one=b"first", two=b"second")
    for name in (_LOCAL + len("one") + len(b"first") + _LOCAL, directory(data) + 2 * _ENTRY + 3):
        assert data[name : name + 3] == b"two"
        data[name : name + 3] = b"one"
    assert refusal(data) == "two records 'one'"


def test_records_that_overlap_are_refused():
    inner = archive(in_it=b"content")
    local = bytes(inner[: directory(inner)])
    data = archive(outer=local, in_it=b"content")
    entry = directory(data) + _ENTRY + len("outer")
    struct.pack_into("<I", data, entry + 42, _LOCAL + len("outer"))
    assert refusal(data) == "records overlap"


@pytest.mark.parametrize(
    "extra",
    [
        b"\x07\x00\x05",  # truncated
        b"\x07\x00\xff\xff",  # beyond the end
        b"\x01\x00\x08\x00" + bytes(8),  # a 64-bit size that no field needs
        2 * (b"\x01\x00\x00\x00"),  # twice
    ],
)
def test_an_unreadable_extra_field_is_refused(extra):
    data = archive()
    entry = directory(data) + _ENTRY + len("one")
    struct.pack_into("<H", data, entry + 30, len(extra))
    at = entry + _ENTRY + len("two")
    data[at:at] = extra
    end = len(data) - _END
    struct.pack_into("<I", data, end + 12, end - directory(data))
    assert refusal(data) == "unreadable extra field in a zip archive"


def test_a_record_that_is_longer_than_the_file_is_refused():
    data = archive()
    for field in (20, 24):  # stored size and size
        struct.pack_into("<I", data, directory(data) + field, 10_000)
    assert refusal(data) == "record 'one' is longer than the file"


def test_a_directory_that_ends_before_its_last_entry_is_refused():
    data = archive(**{"a" * 60: b"first", "b": b"second"})
    struct.pack_into("<2H", data, len(data) - _END + 8, 3, 3)
    assert refusal(data) == "the zip archive's directory is too short"
