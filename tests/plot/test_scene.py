"""Names short enough for a picture."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vbfmt.plot.scene import distinct


@given(
    st.lists(st.text("ab._", min_size=1, max_size=40), unique=True, min_size=1, max_size=12),
    st.integers(8, 24),
)
def test_labels_are_short_and_no_two_are_alike(names, most):
    labels = distinct(names, most)
    assert len(labels) == len(set(labels)) == len(names)
    assert all(len(label) <= most for label in labels)
    assert all(
        label == name
        for label, name in zip(labels, names, strict=True)
        if len(names) == 1 and len(name) <= most
    )


def test_what_names_share_is_cut_and_not_what_tells_them_apart():
    names = [f"a_very_long_beginning_{n}.and_a_long_end_of_it" for n in (3, 14)]
    assert distinct(names, 20) == ["…ning_3…ng_end_of_it", "…ning_14…g_end_of_it"]


def test_names_that_no_part_of_them_tells_apart_are_numbered():
    assert distinct(["q", "q", "q"], 8) == ["q", "q ~2", "q ~3"]


def test_what_tells_names_apart_may_be_longer_than_a_label():
    names = [f"a{letter * 20}z" for letter in "bc"]
    labels = distinct(names, 8)
    assert len(set(labels)) == 2
    assert all(len(label) <= 8 for label in labels)


def test_what_tells_names_apart_is_cut_too_if_it_is_longer_than_the_label():
    names = [f"layer.{letter * 40}.weight" for letter in "ab"]
    labels = distinct(names, 12)
    assert len(set(labels)) == 2
    assert all(len(label) <= 12 for label in labels)
