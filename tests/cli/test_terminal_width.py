"""Lines fit 80 columns: they are broken between words on a terminal, and only there."""

from __future__ import annotations

import os

import pytest

from tests.terminal import on_terminal
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


@pytest.mark.parametrize("words", WORDS, ids=" ".join)
def test_no_line_is_longer_than_the_terminal(words, tmp_path, packed, checkpoint):
    pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    data = bytearray(packed.read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged.vblora").write_bytes(data)
    words = [word.format(checkpoint=checkpoint.name) for word in words]
    lines = on_terminal(words, tmp_path).splitlines()
    assert lines
    assert [line for line in lines if len(line) > 80] == []


def test_a_width_of_0_in_the_environment_is_ignored(tmp_path, packed):
    pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    shown = on_terminal(("inspect", "x.vblora"), tmp_path, columns=0)
    assert shown == on_terminal(("inspect", "x.vblora"), tmp_path)


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


def test_a_terminal_that_reports_no_width_has_80_columns(monkeypatch):
    """Python 3.10 returns the 0 that a pseudo-terminal reports."""
    import shutil

    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((0, 24)))
    assert show.terminal_width() == 80
    assert max(map(len, show.fitted("word " * 40, Terminal(True)).splitlines())) <= 80


def test_a_line_to_copy_is_not_broken(tmp_path, packed):
    pytest.importorskip("pty", reason="pseudo-terminals are POSIX")
    output = f"{'long' * 20}/y.vblora"
    shown = on_terminal(("bank", "split", packed.name, "-o", output), tmp_path)
    assert f"\nto upload: hf upload OWNER/NAME {output}\n" in shown
