"""What every reader of foreign checkpoints asks first: how large is k, and which is the bank."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from vbfmt import Tensor
from vbfmt.converters.checkpoint import agreed_k, bank_of
from vbfmt.errors import SourceError


def test_sources_that_agree_or_are_silent():
    assert agreed_k({"--topk": None, "config": 3, "shape": 3}) == 3


@pytest.mark.parametrize("said", [{}, {"--topk": None, "config": None}])
def test_nobody_knows_k(said):
    with pytest.raises(SourceError, match="--topk K"):
        agreed_k(said)


@pytest.mark.parametrize("other", [2, True, 1.0, "1", [1]])
def test_sources_that_disagree(other):
    """True and 1.0 equal 1 in Python; in a config they are a mistake."""
    for said in ({"a": 1, "b": other}, {"b": other, "a": 1}):
        with pytest.raises(SourceError, match="sources disagree on k"):
            agreed_k(said)


def test_true_is_no_number_of_vectors_even_alone():
    with pytest.raises(SourceError, match="found True from config"):
        agreed_k({"config": True})


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_positive(k):
    with pytest.raises(SourceError, match=f"k is out of range: topk: found {k}"):
        agreed_k({"config": k})


def test_numpys_warnings_stay_off_the_terminal():
    """Of a value beyond float32 and of a signalling NaN; both are refused later, in our words."""
    values = np.array([[1e300], [0.0]])
    values.view("<u8")[1] = 0x7FF4000000000000
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bank = bank_of(Tensor.of(values))
    assert np.isposinf(bank[0, 0])
    assert np.isnan(bank[1, 0])


@pytest.mark.parametrize("array", [np.ones((2, 2), int), np.ones(4), np.ones((2, 0))])
def test_no_bank(array):
    with pytest.raises(SourceError, match="not a vector bank"):
        bank_of(Tensor.of(array))
