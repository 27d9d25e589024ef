"""The JSON that the command line prints is the text of ``json.dumps(value, indent=2)``."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbfmt.cli import indented

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=30,
)


@given(value=VALUES, ensure_ascii=st.booleans())
def test_the_text_is_that_of_the_standard_library(value, ensure_ascii):
    found = "".join(indented.pieces(value, ensure_ascii=ensure_ascii))
    assert found == json.dumps(value, indent=2, ensure_ascii=ensure_ascii)


@pytest.mark.parametrize("items", [[], [1], [{"a": 1}, {}, [], [[2]]]])
def test_an_iterator_is_printed_as_a_list(items):
    found = "".join(indented.pieces({"x": iter(items), "y": 1}, ensure_ascii=True))
    assert found == json.dumps({"x": items, "y": 1}, indent=2)


def test_items_of_an_iterator_are_taken_as_they_are_printed():
    taken = []

    def items():
        for n in range(3):
            taken.append(n)
            yield {"n": n}

    found = indented.pieces(items(), ensure_ascii=True)
    next(found)
    next(found)
    assert taken == [0]
