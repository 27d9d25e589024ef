"""The command line as a user calls it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.converters.test_peft import logits_form, write_folder
from vbfmt import cli

needs_matplotlib = pytest.mark.skipif(not find_spec("matplotlib"), reason="needs matplotlib")


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def vbfmt(monkeypatch, capsys) -> Callable[..., Result]:
    """Return a function that runs the command with these arguments and returns its output and exit
    status."""

    def call(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["vbfmt", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        captured = capsys.readouterr()
        code = stop.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A PEFT folder with logits."""
    return write_folder(tmp_path / "checkpoint", logits_form())


@pytest.fixture
def packed(tmp_path, checkpoint, vbfmt) -> Path:
    """Return a packed file of that checkpoint."""
    assert vbfmt("pack", checkpoint, "-o", tmp_path / "x.vblora").code == 0
    return tmp_path / "x.vblora"
