"""The rules about values, which a reader checks in addition to the checksums."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from spec.golden.make import wide_indices, worked_example
from tests import forge
from vbfmt import Adapter, Module, Rows, Tensor, dumps, errors, loads
from vbfmt._format import rules

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
def test_weights_are_in_their_range(value):
    error = refusal(WEIGHTS, put("<f", 0, value))
    assert (error.what, error.part) == ("weight outside its range", "weights")


def test_the_largest_weight_is_the_one_left_out():
    error = refusal(WEIGHTS, put("<f", 0, 0.5000001))
    assert error.what == "rows are not canonical"


def test_equal_weights_are_in_ascending_order_of_index():
    def swap(content):
        content[2], content[3] = content[3], content[2]

    assert refusal(INDICES, swap).what == "rows are not canonical"


def test_weights_descend():
    def swap(content):
        content[0:4], content[4:8] = content[4:8], content[0:4]

    assert refusal(WEIGHTS, swap, dumps(wide_indices())).what == "rows are not canonical"


def test_every_occurrence_of_a_fault_is_counted():
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
    ("changes", "message"),
    [
        ({"bank": np.ones((3, 2))}, "found float64 [3, 2], expected float32 [3, 2]"),
        ({"bank": np.ones((3, 2, 1), dtype="<f4")}, "must be matrices"),
        ({"bank": np.ones((2, 3), dtype="<f4").T}, "not contiguous"),
        (
            {"indices": np.array([[0, 1]] * 3, dtype="<u2")},
            "indices: found uint16 [3, 2], expected uint8",
        ),
        ({"indices": np.array([[0, 1]] * 2, dtype="u1")}, "expected uint8 [3, 2]"),
        ({"weights": np.full((3, 2), 0.25, dtype="<f4")}, "expected float32 [3, 1]"),
        ({"modules": ()}, "no modules"),
        ({"modules": (Module("m", 4, 3, 1),)}, "out_features is not a multiple"),
        ({"tensors": dict.fromkeys("ba", Tensor.of(np.ones(1)))}, "not sorted"),
        ({"base_model": "\ud800"}, "not valid Unicode"),
        ({"metadata": {"a": "\ud800"}}, "not valid Unicode"),
        ({"metadata": {"\ud800": "a"}}, "not valid Unicode"),
        ({"config": "[1]"}, "JSON object"),
    ],
)
def test_adapter_refuses_what_a_reader_refuses(changes, message):
    with pytest.raises(errors.ContentError) as error:
        adapter(**changes)
    assert message in str(error.value)


def test_a_plain_adapter_breaks_no_rule():
    assert loads(dumps(adapter())) == adapter()


def test_an_adapter_may_have_no_modules():
    with pytest.raises(errors.ContentError, match="no modules"):
        Adapter.from_rows(np.ones((3, 2)), {})


def test_rows_with_different_k_are_refused():
    one = Rows(np.zeros((2, 1), "u1"), np.zeros((2, 0), "<f4"))
    two = Rows(np.array([[0, 1]] * 2, "u1"), np.zeros((2, 1), "<f4"))
    with pytest.raises(ValueError, match="dimension"):
        Adapter.from_rows(np.ones((3, 2)), {Module("a", 2, 2, 1): one, Module("b", 2, 2, 1): two})


def test_the_first_three_of_many_occurrences_are_named():
    def all_but_the_first(content):
        content[16:] = np.full(4 * 256, np.nan, dtype="<f4").tobytes()

    error = refusal(BANK, all_but_the_first, dumps(wide_indices()))
    assert str(error) == ("values are not finite: bank: found vector 1, 2, 3 and 253 more")


def test_a_fourth_occurrence_is_only_counted():
    def four(content):
        content[16:80] = np.full(16, np.nan, dtype="<f4").tobytes()

    assert refusal(BANK, four, dumps(wide_indices())).found == "vector 1, 2, 3 and 1 more"


def test_the_first_value_out_of_range_is_shown_with_its_row():
    def third_row(content):
        struct.pack_into("<2f", content, 16, 0.25, -0.5)
        struct.pack_into("<2f", content, 24, 7.0, 0.125)

    error = refusal(WEIGHTS, third_row, dumps(wide_indices()))
    assert str(error) == (
        "weight outside its range: weights: found -0.5 in row 2, 3, expected 0 to 1"
    )


def test_the_range_of_a_weight_ends_at_1_itself():
    assert refusal(WEIGHTS, put("<f", 0, 1.0)).what == "rows are not canonical"
    above = np.nextafter(np.float32(1), np.float32(2))
    assert refusal(WEIGHTS, put("<f", 0, above)).found.startswith("1.0")


def test_the_order_of_rows_is_named():
    assert str(refusal(WEIGHTS, put("<f", 4, 0.75))) == (
        "rows are not canonical: weights: found row 1, expected weights descending, the largest "
        "left out, equal ones by ascending index"
    )


@pytest.mark.parametrize("name", [" ", "~", "\xa0", "\U0010ffff", "a" * 1024, "é" * 512])
def test_names_just_within_the_limits_are_accepted(name):
    assert name in adapter(modules=(Module(name, 4, 2, 1),))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "name is empty"),
        ("\x1f", "name has control characters"),
        ("\x7f", "name has control characters"),
        ("\x9f", "name has control characters"),
        ("a" * 1025, "name is longer than 1024 bytes"),
        ("\ud800", "name is not valid Unicode"),
    ],
)
def test_names_beyond_the_limits_are_refused(name, fault):
    with pytest.raises(errors.ContentError) as error:
        adapter(modules=(Module(name, 4, 2, 1),))
    found = errors.printable(repr(name))
    assert str(error.value).startswith(f"module {fault}: module 0: found {found[:190]}")
    assert len(str(error.value)) < 300


def test_the_order_of_names_is_that_of_their_bytes():
    """In UTF-16 order, which JavaScript uses, the second name would come first."""
    names = ["\uffff", "\U00010000"]
    tensors = {name: Tensor.of(np.ones(1)) for name in names}
    assert list(adapter(tensors=tensors).tensors) == names
    with pytest.raises(errors.ContentError) as error:
        adapter(tensors=dict(reversed(tensors.items())))
    assert str(error.value) == (
        "other tensor name is not sorted by its bytes: other tensor 1: found '\\uffff'"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bank": np.ones((3, 2, 1), "<f4"), "weights": np.ones(3, "<f4")},
            "bank, indices and weights must be matrices: found 3, 2 and 1 dimensions",
        ),
        (
            {"indices": np.zeros(3, "u1")},
            "bank, indices and weights must be matrices: found 2, 1 and 2 dimensions",
        ),
        (
            {"weights": np.ones(3, "<f4")},
            "bank, indices and weights must be matrices: found 2, 2 and 1 dimensions",
        ),
        (
            {"bank": np.ones((2, 3), "<f4").T},
            "wrong dtype, shape or order: bank: found float32 [3, 2], not contiguous, "
            "expected float32 [3, 2]",
        ),
        (
            {"weights": np.full((3, 2), 0.25, "<f4")},
            "wrong dtype, shape or order: weights: found float32 [3, 2], expected float32 [3, 1]",
        ),
        (
            {"bank": np.ones((3, 0), "<f4")},
            "the vectors have no elements: bank: found b = 0",
        ),
        (
            {"bank": np.ones((0, 2), "<f4")},
            "the vector bank's size is out of range: bank: found h = 0, expected 1 to 65536 "
            "vectors; indices of this format are 16 bits at most",
        ),
        (
            {"indices": np.zeros((3, 0), "u1")},
            "k is out of range: indices: found 0, expected 1 to 3 (h)",
        ),
        ({"modules": ()}, "the adapter has no modules: module table"),
        (
            {"modules": (Module("m", 4, 2, 0),)},
            "rank is out of range: module m: found 0, expected ≥ 1",
        ),
        (
            {"modules": (Module("m", 0, 2, 1),)},
            "in_features is not a multiple of the vector length: module m: found 0, expected a "
            "positive multiple of b = 2",
        ),
        (
            {"modules": (Module("m", 4, 3, 1),)},
            "out_features is not a multiple of the vector length: module m: found 3, expected a "
            "positive multiple of b = 2",
        ),
        (
            {"base_model": "x" * 50 + "\ud800"},
            "text is not valid Unicode: base model: found " + repr("x" * 40),
        ),
        (
            {"base_revision": "\ud800"},
            "text is not valid Unicode: base revision: found '\\ud800'",
        ),
        ({"config": "\ud800"}, "text is not valid Unicode: config: found '\\ud800'"),
        ({"metadata": {"a": "\ud800"}}, "text is not valid Unicode: metadata 'a': found '\\ud800'"),
        ({"config": "[1]"}, "the source's config is not a JSON object: config"),
        (
            {"metadata": {"b": "", "a": ""}},
            "metadata name is not sorted by its bytes: metadata 1: found 'a'",
        ),
    ],
)
def test_every_rule_says_what_it_found(changes, message):
    with pytest.raises(errors.ContentError) as error:
        adapter(**changes)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("sizes", "faults"),
    [
        ((1, 1, 1), []),
        ((65536, 1, 65536), []),
        ((65537, 1, 1), ["bank"]),
        ((0, 1, 1), ["bank", "indices"]),
        ((3, 0, 4), ["bank", "indices"]),
        ((3, 1, 0), ["indices"]),
    ],
)
def test_sizes(sizes, faults):
    assert [fault.part for fault in rules.broken_sizes(*sizes)] == faults


def test_modules_are_checked_even_if_b_is_0():
    """b = 0 is a separate fault, and causes no division by zero."""
    assert list(rules.broken_modules([Module("m", 1, 1, 1)], 0)) == []
