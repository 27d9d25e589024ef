"""Errors: one line that says what, where, what was found and what to do."""

from __future__ import annotations

import errno
import pickle
import warnings
from pathlib import Path

import pytest

from spec.golden.make import worked_example
from tests import forge
from vbfmt import VbfmtError, dumps, errors, load, loads, save


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
def test_the_line_of_an_error(fields, line):
    assert str(VbfmtError("broken", **fields)) == line


def test_the_detail_does_not_name_the_file():
    assert VbfmtError("broken", file="f", part="p").detail() == "broken: p"


def test_the_file_of_an_error_is_not_replaced():
    assert str(VbfmtError("broken", file="inner").in_file("outer")) == "broken in inner"
    assert str(VbfmtError("broken").in_file("outer")) == "broken in outer"


def test_names_cannot_add_line_breaks():
    error = VbfmtError("broken", file="a\nb", part="\x1b[31m")
    assert str(error) == "broken in a\\nb: \\x1b[31m"


@pytest.mark.parametrize("character", ["x", "\n", "\x1b", "ä"])
def test_long_values_are_cut(character):
    long = character * 10**6
    error = VbfmtError(f"broken {long}", file="f", part=long, found=long, expected=long)
    assert len(str(error)) < 5 * errors.LONGEST_PIECE
    assert str(error).count("…") == 4
    assert error.found == long


def test_values_that_just_fit_are_not_cut():
    just = "x" * errors.LONGEST_PIECE
    assert str(VbfmtError("broken", part=just)) == f"broken: {just}"


def test_a_name_of_a_million_bytes_in_a_packed_file_is_one_short_line():
    def rename(header):
        header["modules"][0][0] = "x" * 10**6

    with pytest.raises(errors.ContentError) as error:
        loads(forge.with_header(dumps(worked_example()), rename))
    assert 200 < len(str(error.value)) < 1000


def test_every_error_class_has_its_own_kind():
    kinds = [value for value in vars(errors).values() if isinstance(value, type)]
    public = [kind for kind in kinds if not kind.__name__.startswith("_")]
    family = [kind for kind in public if issubclass(kind, VbfmtError)]
    assert len({kind.kind for kind in family}) == len(family) >= 12


def test_errors_can_be_pickled():
    error = errors.LengthError("cut off", file="f", found=1)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (errors.LengthError, str(error))


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.ContentError, ValueError),
        (errors.ChecksumError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.SourceError, ValueError),
        (errors.MissingSourceError, FileNotFoundError),
        (errors.MissingFileError, FileNotFoundError),
        (errors.StorageError, OSError),
        (errors.OutputExistsError, FileExistsError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_errors_are_subclasses_of_pythons_errors(kind, builtin):
    assert issubclass(kind, builtin)
    assert str(kind("broken", part="bank")) == "broken: bank"


def test_a_missing_file_has_errno_and_filename(tmp_path):
    path = tmp_path / "nothing.vblora"
    with pytest.raises(FileNotFoundError) as caught:
        load(path)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOENT, str(path))
    assert str(caught.value) == f"cannot read {path}: no such file or directory"
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.errno, str(again)) == (errno.ENOENT, str(caught.value))


def test_output_that_exists_is_a_file_exists_error(tmp_path):
    path = tmp_path / "x.vblora"
    save(worked_example(), path)
    with pytest.raises(FileExistsError) as caught:
        save(worked_example(), path)
    assert (caught.value.errno, caught.value.filename) == (errno.EEXIST, str(path))


def test_the_error_for_a_missing_extra_names_it():
    error = errors.MissingExtraError.of("pictures need matplotlib", "plot")
    assert error.extra == "plot"
    assert str(error) == "pictures need matplotlib; pip install 'vbfmt[plot]'"


def test_a_warning_points_to_the_callers_code():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        errors.warn("rows have equal logits")
    assert caught[0].category is errors.VbfmtWarning
    assert caught[0].filename == __file__
