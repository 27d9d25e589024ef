"""Errors: one line that says what, where, what was found and what to do."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from spec.golden.make import worked_example
from tests import forge
from vbfmt import VbfmtError, dumps, errors, loads


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "broken"),
        ({"file": Path("f")}, "broken in f"),
        ({"part": "bank"}, "broken: bank"),
        (
            {"file": "f", "part": "p", "found": 1, "expected": 2},
            "broken in f: p: found 1, expected 2",
        ),
        ({"expected": 2, "advice": "mend it"}, "broken: expected 2; mend it"),
        ({"found": 0}, "broken: found 0"),
    ],
)
def test_the_line(fields, line):
    assert str(VbfmtError("broken", **fields)) == line


def test_the_detail_leaves_the_file_out():
    assert VbfmtError("broken", file="f", part="p").detail() == "broken: p"


def test_a_file_that_is_known_stays():
    assert str(VbfmtError("broken", file="inner").in_file("outer")) == "broken in inner"
    assert str(VbfmtError("broken").in_file("outer")) == "broken in outer"


def test_names_cannot_break_the_line():
    error = VbfmtError("broken", file="a\nb", part="\x1b[31m")
    assert str(error) == "broken in a\\nb: \\x1b[31m"


@pytest.mark.parametrize("character", ["x", "\n", "\x1b", "ä"])
def test_what_is_long_is_cut(character):
    long = character * 10**6
    error = VbfmtError(f"broken {long}", file="f", part=long, found=long, expected=long)
    assert len(str(error)) < 5 * errors.LONGEST_PIECE
    assert str(error).count("…") == 4
    assert error.found == long


def test_what_just_fits_is_not_cut():
    just = "x" * errors.LONGEST_PIECE
    assert str(VbfmtError("broken", part=just)) == f"broken: {just}"


def test_a_name_of_a_million_bytes_in_a_packed_file_is_one_short_line():
    def rename(header):
        header["modules"][0][0] = "x" * 10**6

    with pytest.raises(errors.ContentError) as error:
        loads(forge.with_header(dumps(worked_example()), rename))
    assert 200 < len(str(error.value)) < 1000


def test_every_kind_has_a_name_of_its_own():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    family = [kind for kind in kinds if issubclass(kind, VbfmtError)]
    assert len({kind.kind for kind in family}) == len(family) >= 12


def test_errors_survive_a_process_boundary():
    error = errors.LengthError("cut off", file="f", found=1)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (errors.LengthError, str(error))
