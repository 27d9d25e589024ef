"""What every reader of foreign checkpoints asks first: how large is k, and which is the bank."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from vbfmt import Tensor
from vbfmt.converters._files.checkpoint import agreed_k, bank_of
from vbfmt.errors import ContentError, SourceError


def test_sources_that_agree_or_are_silent():
    assert agreed_k({"--topk": None, "config": 3, "shape": 3}) == 3


@pytest.mark.parametrize("sources", [{}, {"--topk": None, "config": None}])
def test_nobody_knows_k(sources):
    with pytest.raises(SourceError, match="`topk=K`"):
        agreed_k(sources)


def test_sources_that_disagree():
    for sources in ({"a": 1, "b": 2}, {"b": 2, "a": 1}):
        with pytest.raises(SourceError, match="sources disagree on k"):
            agreed_k(sources)


@pytest.mark.parametrize(
    ("value", "found"),
    [(True, "true"), (1.0, "1.0"), ("1", '"1"'), ([1], "[1]"), (0, "0"), (-1, "-1")],
)
def test_what_is_no_whole_number_from_1_on_is_no_k(value, found):
    """True and 1.0 equal 1 in Python; in a config they are a mistake, shown as it is written."""
    for sources in (
        {"config": value},
        {"config": value, "--topk": 1},
        {"--topk": 1, "config": value},
    ):
        with pytest.raises(SourceError) as error:
            agreed_k(sources)
        assert str(error.value) == (
            f"not a size: topk: found {found} from config, expected a whole number, at least 1"
        )


@pytest.mark.parametrize(
    ("bits", "found"),
    [(0x7FF4000000000000, "nan"), (0x7FF0000000000000, "inf"), (0x7E37E43C8800759C, "1e+300")],
)
def test_a_bank_that_is_not_finite_is_refused_in_our_words(bits, found):
    """Not in numpy's: of a signalling NaN, and of a number beyond float32."""
    values = np.zeros((3, 2))
    values.view("<u8")[1, 1] = bits
    with warnings.catch_warnings(), pytest.raises(ContentError) as error:
        warnings.simplefilter("error")
        bank_of(Tensor.of(values))
    assert str(error.value).startswith(
        f"values are not finite in float32: vector bank: found {found} in vector 1, expected "
    )


@pytest.mark.parametrize("array", [np.ones((2, 2), int), np.ones(4), np.ones((2, 0))])
def test_no_bank(array):
    with pytest.raises(SourceError, match="not a vector bank"):
        bank_of(Tensor.of(array))


def test_a_bank_that_float32_would_round_away_is_refused():
    small = Tensor.of(np.full((2, 4), 1e-50))
    with pytest.raises(ContentError, match="too small for float32: vector bank"):
        bank_of(small)
    assert not bank_of(Tensor.of(np.zeros((2, 4)))).any()
