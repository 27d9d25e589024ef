"""Damage to a real packed file: the trained MiniLM adapter in tests/data, 46 400 bytes."""

from __future__ import annotations

import pytest

from tests.flips import missed_flips, missed_truncations
from vbfmt import dumps
from vbfmt.converters import peft


@pytest.fixture(scope="module")
def data(data_folder):
    return dumps(peft.read(data_folder / "minilm-vblora"))


def test_one_flip_in_every_fifth_byte_is_found(data):
    for bit in range(8):
        positions = range(bit, len(data), 40)
        assert list(missed_flips(data, positions, [bit])) == []


def test_every_truncation_is_found(data):
    assert list(missed_truncations(data)) == []


@pytest.mark.slow
def test_every_flipped_bit_is_found(data):
    """There are 371 200 bits. `make flips` also tests the corpus."""
    assert list(missed_flips(data, range(len(data)))) == []


def test_undetected_flips_are_found_without_section_hashes(data, monkeypatch):
    """This tests the search itself."""
    monkeypatch.setattr("vbfmt._format.container.damage", lambda *_: iter(()))
    assert list(missed_flips(data, [len(data) - 1], [0])) == [(len(data) - 1, 0)]
