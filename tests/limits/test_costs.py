"""Small inputs that once took minutes or gigabytes, with the commands that took them."""

from __future__ import annotations

import sys

import pytest

from tests.limits.__main__ import MB, MEMORY, PER_BYTE, SECONDS, import_everything, rows
from tests.limits.cases import CASES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="measured with /proc")

LOADED = 5
"""Factor for the time limits on a loaded machine. Quadratic algorithms exceed it anyway."""

ONCE_COSTLY = [
    ("15,000 kinds of modules, h = 65,536", "inspect a.vblora --json"),
    ("15,000 kinds of modules, h = 65,536", "plot a.vblora -o out3.html"),
    ("800 dotted names of 1,000 bytes", "inspect a.vblora --modules"),
    ("40,000 short names", "inspect a.vblora --json"),
    ("40,000 short names", "diff a.vblora a.vblora"),
    ("40,000 short names", "unpack a.vblora -o out1"),
    ("40,000 short names", "plot a.vblora -o out3.html"),
    ("header of 450,000 lists of a list", "verify a.vblora"),
    ("800 dotted tensors of 900 bytes", "pack src -o out.vblora"),
    ("4,000 untied modules", "pack src -o out.vblora"),
    ("80,000 keys twice in the config", "pack src -o out.vblora"),
    ("6,000 names that are nearly one", "pack src -o out.vblora"),
    ("base of 5,000 near names", "merge a.vblora --base base -o out"),
    ("4,000 modules of one shape", "merge a.vblora --base base -o out"),
    ("base of 5,000 files", "merge a.vblora --base base -o out"),
    ("base of 20,000 layers", "pack src -o out.vblora --base src/base"),
    ("GGUF: array of 60,000 arrays", "expand a.vblora -o out.gguf --base b.gguf"),
    ("GGUF: 65,536 blocks", "expand a.vblora -o out.gguf --base b.gguf"),
]


@pytest.fixture(scope="module", autouse=True)
def everything():
    """Import all modules that commands import lazily, so that this is not counted as the cost of an
    input."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("gguf")
    pytest.importorskip("peft", minversion="0.20")
    import_everything()


@pytest.mark.parametrize(("case", "line"), ONCE_COSTLY)
def test_a_small_hostile_input_takes_little_time_and_memory(case, line):
    make, lines = CASES[case]
    assert line in lines
    chosen = {case: (make, (line,))}
    ((_, _, size, cost),) = rows(chosen, "", LOADED * SECONDS)
    assert cost.status in (0, 1, 2)
    assert cost.seconds <= LOADED * SECONDS
    assert cost.memory <= MEMORY + PER_BYTE * size, f"{cost.memory / MB:.0f} MB"
