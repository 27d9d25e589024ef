"""Lines fit 80 columns: they are broken between words on a terminal, and only there."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from vbfmt.cli import show

WORDS = (
    ("pack", "{checkpoint}", "-o", "y.vblora"),
    ("verify", "x.vblora", "--against", "{checkpoint}"),
    ("verify", "damaged.vblora"),
    ("inspect", "x.vblora"),
    ("expand", "x.vblora", "-o", "lora", "--rank", "1"),
    ("expand", "x.vblora", "-o", "x.safetensors"),
    ("merge", "x.vblora", "--base", "none", "-o", "merged"),
    ("pack", "{checkpoint}", "-o", "x.vblora"),
    ("pak",),
    ("estimate", "--model", "llama-2-7b"),
)


def on_terminal(words, folder, columns=80):
    """What a terminal of so many columns gets."""
    main, side = pty.openpty()
    environment = {
        **os.environ, "COLUMNS": str(columns), "TERM": "xterm", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "vbfmt", *map(str, words)],
        cwd=folder, stdout=side, stderr=side, env=environment,
    )  # fmt: skip
    os.close(side)
    found = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not block:
            break
        found += block
    child.wait()
    os.close(main)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found.decode())
    return [line.split("\r")[-1] for line in text.replace("\r\n", "\n").splitlines()]


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_no_line_is_longer_than_the_terminal(words, tmp_path, packed, checkpoint):
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.vblora").write_bytes(data)
    words = [word.format(checkpoint=checkpoint.name) for word in words]
    lines = on_terminal(words, tmp_path)
    assert lines
    assert [line for line in lines if len(line.rstrip()) > 80] == []


class Terminal:
    def __init__(self, terminal):
        self.isatty = lambda: terminal


def test_lines_break_between_words_with_an_indent(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    line = "  found a-b-c-d, expected something/without/a/blank"
    assert show.fitted(line, Terminal(True)).splitlines() == [
        "  found a-b-c-d,",
        "    expected",
        "    something/without/a/blank",
    ]
    assert show.fitted(line, Terminal(False)) == line
    assert show.fitted("  a   b", Terminal(True)) == "  a   b"
