"""Errors: one line that says what, where, what was found and what to do."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from vbfmt import VbfmtError, errors


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


def test_every_kind_has_a_name_of_its_own():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    family = [kind for kind in kinds if issubclass(kind, VbfmtError)]
    assert len({kind.kind for kind in family}) == len(family) >= 12


def test_errors_survive_a_process_boundary():
    error = errors.LengthError("cut off", file="f", found=1)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (errors.LengthError, str(error))
