"""The rules of the values: what a reader refuses although every checksum is right."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from spec.golden.make import wide_indices, worked_example
from tests import forge
from vbfmt import Adapter, Module, Rows, Tensor, dumps, errors, loads

FILE = dumps(worked_example())  # rows (2, 0), (0, 1), (1, 2) with weights 0.25, 0.5, 0
BANK, INDICES, WEIGHTS = 0, 1, 2


def put(fmt, position, value):
    return lambda content: struct.pack_into(fmt, content, position, value)


def refusal(section, change, file=FILE):
    with pytest.raises(errors.ContentError) as error:
        loads(forge.with_section(file, section, change))
    return error.value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_bank_is_finite(value):
    error = refusal(BANK, put("<f", 12, value))
    assert (error.part, error.found) == ("bank", "vector 1")


def test_indices_are_below_h():
    error = refusal(INDICES, put("<B", 1, 3))
    assert str(error) == (
        "index past the end of the bank: indices: found 3 in row 0, expected below 3 (h)"
    )


def test_indices_of_a_row_are_distinct():
    error = refusal(INDICES, put("<B", 4, 2))
    assert (error.part, error.found) == ("indices", "row 2")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1e-9, 1.0000001, -0.0])
def test_weights_are_shares(value):
    error = refusal(WEIGHTS, put("<f", 0, value))
    assert (error.what, error.part) == ("weight outside its range", "weights")


def test_the_largest_weight_is_the_one_left_out():
    error = refusal(WEIGHTS, put("<f", 0, 0.5000001))
    assert error.what == "rows are not canonical"


def test_equal_weights_stand_by_ascending_index():
    def swap(content):
        content[2], content[3] = content[3], content[2]

    assert refusal(INDICES, swap).what == "rows are not canonical"


def test_weights_descend():
    def swap(content):
        content[0:4], content[4:8] = content[4:8], content[0:4]

    assert refusal(WEIGHTS, swap, dumps(wide_indices())).what == "rows are not canonical"


def test_every_place_of_a_fault_is_counted():
    def everywhere(content):
        content[:] = np.full(6, np.nan, dtype="<f4").tobytes()

    assert refusal(BANK, everywhere).found == "vector 0, 1, 2"


def adapter(**changes):
    fields = {
        "bank": np.ones((3, 2), dtype="<f4"),
        "indices": np.array([[0, 1]] * 3, dtype="u1"),
        "weights": np.full((3, 1), 0.25, dtype="<f4"),
        "modules": (Module("m", 4, 2, 1),),
    }
    return Adapter(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bank": np.ones((3, 2))}, "found float64 [3, 2], expected float32 [3, 2]"),
        ({"bank": np.ones((3, 2, 1), dtype="<f4")}, "must be matrices"),
        ({"bank": np.ones((2, 3), dtype="<f4").T}, "not contiguous"),
        ({"indices": np.array([[0, 1]] * 3, dtype="<u2")}, "expected uint8"),
        ({"indices": np.array([[0, 1]] * 2, dtype="u1")}, "expected uint8 [3, 2]"),
        ({"weights": np.full((3, 2), 0.25, dtype="<f4")}, "expected float32 [3, 1]"),
        ({"modules": ()}, "no modules"),
        ({"modules": (Module("m", 4, 3, 1),)}, "out_features is not a multiple"),
        ({"tensors": dict.fromkeys("ba", Tensor.of(np.ones(1)))}, "order"),
        ({"base_model": "\ud800"}, "not valid Unicode"),
        ({"metadata": {"a": "\ud800"}}, "not valid Unicode"),
        ({"metadata": {"\ud800": "a"}}, "not valid Unicode"),
        ({"config": "[1]"}, "JSON object"),
    ],
)
def test_an_adapter_cannot_be_made_that_a_reader_would_refuse(changes, said):
    with pytest.raises(errors.ContentError) as error:
        adapter(**changes)
    assert said in str(error.value)


def test_the_plain_one_is_fine():
    assert loads(dumps(adapter())) == adapter()


def test_no_modules_at_all():
    with pytest.raises(errors.ContentError, match="no modules"):
        Adapter.from_rows(np.ones((3, 2)), {})


def test_rows_of_another_k_do_not_fit():
    one = Rows(np.zeros((2, 1), "u1"), np.zeros((2, 0), "<f4"))
    two = Rows(np.array([[0, 1]] * 2, "u1"), np.zeros((2, 1), "<f4"))
    with pytest.raises(ValueError, match="dimension"):
        Adapter.from_rows(np.ones((3, 2)), {Module("a", 2, 2, 1): one, Module("b", 2, 2, 1): two})
