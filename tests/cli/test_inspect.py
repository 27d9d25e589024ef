"""``vbfmt inspect``: a page on a terminal, plain lines in a pipe."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from tests.conftest import ROOT
from vbfmt import Adapter, Module, Rows, load, save
from vbfmt.cli.show import size
from vbfmt.converters import peft

ANSI = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "minilm.vblora"
    save(peft.read(ROOT / "tests" / "data" / "minilm-vblora"), path)
    return path


def on_terminal(*words: object, columns: int = 80, **environment: str) -> str:
    """Return what the command writes to a terminal of this width."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals on this system")
    import fcntl
    import struct
    import termios

    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")
    }
    code = "from vbfmt.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        stdout=inner,
        env={**kept, "TERM": "xterm-256color", **environment},
    )
    os.close(inner)
    written = b""
    while True:
        try:
            piece = os.read(outer, 65536)
        except OSError:  # on Linux, the other side is closed
            piece = b""
        if not piece:
            break
        written += piece
    os.close(outer)
    assert process.wait() == 0
    return written.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_page_fits_the_terminal(trained, columns):
    page = on_terminal("inspect", trained, columns=columns)
    assert "\x1b[" in page
    lines = ANSI.sub("", page).splitlines()
    assert max(len(line) for line in lines if "sha256:" not in line) <= columns


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_the_digest_is_on_one_line_so_that_it_can_be_copied(trained, vbfmt, columns):
    page = ANSI.sub("", on_terminal("inspect", trained, columns=columns))
    (digest,) = re.findall(r"sha256:[0-9a-f]{64}", page)
    assert vbfmt("verify", trained, "--digest", digest).code == 0
    if columns >= 80:
        assert max(map(len, page.splitlines())) <= columns


def test_narrow_terminals_show_the_kinds_of_modules(trained):
    page = ANSI.sub("", on_terminal("inspect", trained, columns=40))
    for word in ("vector bank", "query", "key", "value", "pooler.dense", "intermediate.dense"):
        assert re.search(rf"^ +{word} ", page, re.M)


def test_a_pipe_gets_singular_nouns_and_the_word_sub_vectors(tmp_path, vbfmt):
    rows = Rows(np.zeros((2, 1), "u1"), np.zeros((2, 0), "f4"))
    adapter = Adapter.from_rows(np.ones((1, 4), "f4"), {Module("layers.0.q", 4, 4, 1): rows})
    save(adapter, tmp_path / "one.vblora")
    output = vbfmt("inspect", tmp_path / "one.vblora", "--modules").out
    assert "\n1 module:\n" in output
    assert "2 sub-vectors, 1 vector, " in output
    assert "rows" not in output
    assert not re.search(r"\b1 (modules|vectors)\b", output)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_page_shows_every_field(trained, columns):
    text = ANSI.sub("", on_terminal("inspect", trained, columns=columns))
    for word in (
        size(trained.stat().st_size),
        "sentence-transformers/all-MiniLM-L6-v2",
        "h 64 · b 128 · k 2 · r 4 · N 1,320",
        "vector bank",
        "all 64 vectors are used",
        "37 modules",
        "6 of 384 → 1536",
        "pooler.dense",
    ):
        assert word in text


def test_wide_terminals_get_two_columns(trained):
    def together(columns: int) -> bool:
        text = ANSI.sub("", on_terminal("inspect", trained, columns=columns))
        return any(
            "Times that a vector" in line and "Largest weight of" in line
            for line in text.splitlines()
        )

    assert together(120)
    assert not together(80)


def test_no_color_is_respected(trained):
    """Codes 30 to 49 and 90 to 107 are colours; bold and dim stay."""

    def colours(page: str) -> set[int]:
        codes = {int(n) for code in ANSI.findall(page) for n in re.findall(r"\d+", code)}
        return {code for code in codes if 30 <= code <= 49 or 90 <= code <= 107}

    assert colours(on_terminal("inspect", trained))
    assert not colours(on_terminal("inspect", trained, NO_COLOR="1"))


def test_a_dumb_terminal_gets_plain_lines(trained, vbfmt):
    page = on_terminal("inspect", trained, TERM="dumb")
    assert "\x1b" not in page
    # Long lines break between words, to the terminal's width.
    assert "".join(page.split()) == "".join(vbfmt("inspect", trained).out.split())


def test_a_pipe_gets_plain_lines_that_are_complete(trained, vbfmt):
    adapter = load(trained)
    output = vbfmt("inspect", trained, "--modules").out
    assert "\x1b" not in output
    for what in ("unused vectors", "times selected", "most used", "load balance", "largest weight"):
        assert len(re.findall(rf"^  {what} ", output, re.M)) == 1
    for module in adapter:
        assert f"\n  {module.name}  " in output


def test_a_pipe_does_not_wait_for_rich(trained):
    code = (
        "import sys; sys.argv[1:] = ['inspect', sys.argv[1]]\n"
        "from vbfmt.cli import main; main(); assert 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, trained], check=True, stdout=subprocess.PIPE)


def test_names_from_files_are_not_markup(trained, tmp_path):
    adapter = load(trained)
    modules = tuple(
        dataclasses.replace(module, name=f"{module.name}[red]:smile:") for module in adapter
    )
    odd = dataclasses.replace(
        adapter, modules=modules, base_model="[bold]evil[/bold]\x1b[2J[link=x]y[/link]"
    )
    save(odd, tmp_path / "[red]x.vblora")
    page = ANSI.sub("", on_terminal("inspect", tmp_path / "[red]x.vblora", columns=200))
    assert "[bold]evil[/bold]\\x1b[2J[link=x]y[/link]" in page
    assert "query[red]:smile:" in page
    assert "[red]x.vblora" in page
    assert "\x1b" not in page
