"""SECURITY.md: its numbers are those of the code, and the tests that it names exist."""

from __future__ import annotations

import ast
import re
import tracemalloc
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from spec.golden.make import worked_example
from tests import forge
from vbfmt import Adapter, Module, Rows, dumps, errors, loads

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
LIMITS = re.findall(r"\| ([\d ]+) \| `([\w.]+)\.(\w+)` \|", PAGE)

MEMORY_PER_BYTE = 4
MEMORY_PER_HEADER_BYTE = 48


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_tests_it_names_exist(file, name):
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_it_names_tests_only_in_the_expected_form():
    """A name that the pattern above does not match would not be checked."""
    assert len(NAMED) > 30
    assert PAGE.count("tests/") == len(re.findall(r"`tests/[\w/]+\.py::\w+`", PAGE))


@pytest.mark.parametrize(("number", "module", "name"), LIMITS)
def test_its_limits_are_those_of_the_code(number, module, name):
    assert getattr(import_module(module), name) == int(number.replace(" ", ""))


def test_every_line_of_the_table_of_limits_is_tested():
    table = PAGE.partition("## Limits")[2].partition("##")[0]
    assert len(LIMITS) == table.count("\n| ") - 1


def peak(data: bytes) -> int:
    """Return the peak memory of `loads` in bytes."""
    tracemalloc.start()
    try:
        loads(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("h", "b", "k", "n"),
    [(256, 8, 1, 1 << 20), (256, 8, 2, 1 << 18), (60000, 32, 2, 1000), (256, 8, 16, 1 << 16)],
    ids=["indices", "rows", "bank", "weights"],
)
def test_memory_of_values_is_a_small_multiple_of_the_file(h, b, k, n):
    module = Module("m", b * n // 2, b * n // 2, 1)
    indices = (np.arange(n)[:, None] % (h - k + 1) + np.arange(k)).astype(
        "u1" if h <= 256 else "<u2"
    )
    weights = np.tile(np.array([[2.0 ** -(i + 2) for i in range(k - 1)]], "<f4"), (n, 1))
    data = dumps(Adapter.from_rows(np.ones((h, b)), {module: Rows(indices, weights)}))
    assert peak(data) < MEMORY_PER_BYTE * len(data)


@pytest.mark.parametrize("h", [1, 200])
def test_memory_where_every_row_breaks_a_rule(h):
    """Earlier, a list of all invalid rows took nine bytes for each row of one byte."""
    n = 1 << 20
    module = Module("m", n // 2, n // 2, 1)
    rows = Rows(np.zeros((n, 1), "u1"), np.empty((n, 0), "<f4"))
    data = dumps(Adapter.from_rows(np.ones((h, 1)), {module: rows}))

    def spoil(content):
        content[:] = b"\xff" * n

    bad = forge.with_section(data, 1, spoil)
    tracemalloc.start()
    try:
        with pytest.raises(errors.ContentError, match="index past the end of the bank"):
            loads(bad)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_PER_BYTE * len(bad)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "item", [b"\x80", b"\x90", b"\xa0", b"\xc0", b"\x91\x90", b"\x81\xa0" * 5 + b"\x80"]
)
def test_memory_of_a_hostile_header(item):
    """The header has as many small values as fit, under a key of a later version."""
    count = 60_000 // len(item)
    plain = forge.header_of(dumps(worked_example()))
    many = b"\xa1z\xdc" + count.to_bytes(2, "big") + item * count
    header = bytes([plain[0] + 1]) + plain[1:] + many
    data = forge.with_preamble(forge.with_header_bytes(dumps(worked_example()), header), minor=1)
    found = peak(data)
    assert found < MEMORY_PER_HEADER_BYTE * len(header)


@pytest.mark.parametrize(
    "item", [b"\x90", b"\xa3abc", b"\xcd\x01\x00", b"\x92\x01\x02", b"\x81\xa0\x01"]
)
def test_memory_of_a_hostile_table(item):
    """The table of modules has as many of these values as fit. It is refused before decoding, or at
    the first."""
    count = 60_000 // len(item)
    plain = forge.header_of(dumps(worked_example()))
    begin = plain.index(b"\xa7modules") + 8
    table = b"\xdc" + count.to_bytes(2, "big") + item * count
    header = plain[:begin] + table + plain[plain.index(b"\xa7tensors") :]
    data = forge.with_header_bytes(dumps(worked_example()), header)
    tracemalloc.start()
    try:
        with pytest.raises(errors.HeaderError):
            loads(data)
        assert tracemalloc.get_traced_memory()[1] < MEMORY_PER_HEADER_BYTE * len(header)
    finally:
        tracemalloc.stop()
