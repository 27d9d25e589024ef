"""Preamble, padding and digests."""

from __future__ import annotations

import pytest

from spec.golden.make import worked_example
from tests import forge
from vbfmt import dumps, errors, loads
from vbfmt._format import container

FILE = dumps(worked_example())


def refusal(data):
    with pytest.raises(errors.VbfmtError) as error:
        loads(data)
    return error.value


def test_text_mode_transfers_are_recognized():
    error = refusal(FILE.replace(b"\r\n", b"\n"))
    assert type(error) is errors.MagicError
    assert "text mode" in error.advice


@pytest.mark.parametrize("data", [b"", b"\x89VB"])
def test_the_beginning_of_a_file_is_a_truncated_file(data):
    assert type(refusal(data)) is errors.LengthError


@pytest.mark.parametrize("length", [2**32 - 1, container.LONGEST_HEADER + 1, len(FILE) - 31])
def test_an_impossible_header_length_is_refused_before_it_is_used(length):
    error = refusal(forge.with_preamble(FILE, header_length=length))
    assert type(error) is errors.ChecksumError
    assert error.found == f"{length} bytes"


def test_the_crc_is_checked_before_the_version():
    """Damage to the version is damage, not a new version."""
    damaged = bytearray(FILE)
    damaged[8] = 2
    assert type(refusal(bytes(damaged))) is errors.ChecksumError


def test_reserved_bytes_are_zero():
    assert type(refusal(forge.with_preamble(FILE, reserved=1))) is errors.LayoutError


@pytest.mark.parametrize(
    ("position", "before"), [(0x113, "bank"), (0x158, "indices"), (0x1BF, "weights")]
)
def test_padding_is_zero(position, before):
    damaged = bytearray(FILE)
    assert damaged[position] == 0
    damaged[position] = 1
    error = refusal(bytes(damaged))
    assert (error.what, error.part) == ("padding is not zero", f"before {before}")


def test_a_file_must_end_with_its_last_section():
    longer = forge.with_preamble(FILE + bytes(64), file_length=len(FILE) + 64)
    assert type(refusal(longer)) is errors.LayoutError


def test_a_header_that_is_too_long_is_not_written():
    with pytest.raises(errors.LengthError) as error:
        container.front(bytes(container.LONGEST_HEADER + 1))
    assert str(error.value) == (
        "the header is too long: found 16777217 bytes, expected at most 16777216; "
        "names, config and metadata must be shorter"
    )


def test_the_digest_is_that_of_preamble_and_header():
    import hashlib

    fields, _, _ = forge.parts(FILE)
    front = FILE[: 32 + fields[3]]
    assert container.digest(front) == "sha256:" + hashlib.sha256(front).hexdigest()


def test_a_file_without_sections_ends_where_its_header_does():
    start = container.front(b"header")
    assert container.read_preamble(memoryview(start)).file_length == len(start) == 38


def test_the_longest_header_is_written_and_read():
    start = container.front(bytes(container.LONGEST_HEADER))
    preamble = container.read_preamble(memoryview(start))
    assert preamble.header_length == container.LONGEST_HEADER == 16 * 2**20
    with pytest.raises(errors.LengthError, match="truncated"):
        container.read_preamble(memoryview(start)[:-1])


def test_the_shortest_file_is_a_preamble():
    start = container.front(b"")
    assert container.read_preamble(memoryview(start)) == container.Preamble(1, 0, 0, 32)


def test_sections_and_names_must_be_equal_in_number():
    contents = [b"a", b"b"]
    sections = container.sections_of(contents)
    start = container.front(b"", sections[-1].end)
    file = memoryview(b"".join(container.pieces(start, contents)))
    preamble = container.read_preamble(file)
    container.require_layout(preamble, sections, ["1", "2"])
    assert list(container.damage(file, preamble, sections, ["1", "2"])) == []
    for names in (["1"], ["1", "2", "3"]):
        with pytest.raises(ValueError, match="zip"):
            container.require_layout(preamble, sections, names)
        with pytest.raises(ValueError, match="zip"):
            list(container.damage(file, preamble, sections, names))


def test_a_length_is_at_most_what_eight_bytes_hold():
    container.require_length(2**64 - 1)
    with pytest.raises(errors.LengthError) as caught:
        container.require_length(2**64)
    assert caught.value.what == "the file would be too long"
    assert caught.value.found == f"{2**64} bytes"
    assert caught.value.expected == f"at most {2**64 - 1}"


def test_the_minor_version_round_trips():
    assert container.minor_of(container.front(b"header", 128, minor=7)) == 7
