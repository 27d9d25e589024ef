"""Short labels for names in a picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vbfmt.plot.scene import distinct


@given(
    st.lists(st.text("ab._", min_size=1, max_size=40), unique=True, min_size=1, max_size=12),
    st.integers(8, 24),
)
def test_labels_are_short_and_distinct(names, most):
    labels = distinct(names, most)
    assert len(labels) == len(set(labels)) == len(names)
    assert all(len(label) <= most for label in labels)
    assert all(
        label == name
        for label, name in zip(labels, names, strict=True)
        if len(names) == 1 and len(name) <= most
    )


def test_common_parts_of_names_are_cut_before_distinguishing_ones():
    names = [f"a_very_long_beginning_{n}.and_a_long_end_of_it" for n in (3, 14)]
    assert distinct(names, 20) == ["…ning_3…ng_end_of_it", "…ning_14…g_end_of_it"]


def test_names_without_a_distinguishing_part_are_numbered():
    assert distinct(["q", "q", "q"], 8) == ["q", "q ~2", "q ~3"]


def test_a_distinguishing_part_may_be_longer_than_a_label():
    names = [f"a{letter * 20}z" for letter in "bc"]
    labels = distinct(names, 8)
    assert len(set(labels)) == 2
    assert all(len(label) <= 8 for label in labels)


def test_a_very_long_distinguishing_part_is_cut():
    names = [f"layer.{letter * 40}.weight" for letter in "ab"]
    labels = distinct(names, 12)
    assert len(set(labels)) == 2
    assert all(len(label) <= 12 for label in labels)
