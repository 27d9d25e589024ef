"""``vbfmt plot``."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("kind", ["png", "svg", "html"])
def test_a_picture_of_each_kind(vbfmt, packed, tmp_path, kind):
    pytest.importorskip("matplotlib")
    result = vbfmt("plot", packed, "-o", tmp_path / f"x.{kind}")
    assert (result.code, result.err) == (0, "")
    starts = {"png": b"\x89PNG", "svg": b"<?xml", "html": b"<!DOCTYPE html>"}
    assert (tmp_path / f"x.{kind}").read_bytes().startswith(starts[kind])


def test_a_checkpoint_need_not_be_packed_first(vbfmt, packed, checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    words = ("--figure", "usage", "--json", "-o")
    digests = [
        json.loads(vbfmt("plot", source, *words, tmp_path / f"{source.name}.svg").out)["digest"]
        for source in (checkpoint, packed)
    ]
    assert digests[0] == digests[1]


def test_no_messages_of_matplotlib_are_printed(packed, tmp_path):
    """Matplotlib prints some if it cannot write its cache."""
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_bytes(b"")
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    }
    done = subprocess.run(
        [sys.executable, "-m", "vbfmt", "plot", packed, "-o", tmp_path / "x.png"],
        env={**environment, "HOME": str(tmp_path / "file")},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_one_figure_with_an_adapter_to_compare(vbfmt, packed, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "x.html"
    assert vbfmt("plot", packed, "-o", out, "--figure", "selection", "--before", packed).code == 0
    assert "100% of the selections are as before" in out.read_text("utf-8")
    assert 'id="norms"' not in out.read_text("utf-8")


def test_nothing_is_overwritten_without_force(vbfmt, packed, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "x.png"
    out.write_text("mine")
    refused = vbfmt("plot", packed, "-o", out)
    assert (refused.code, out.read_text()) == (1, "mine")
    assert vbfmt("plot", packed, "-o", out, "--figure", "usage", "--force").code == 0
    assert out.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_what_to_install(vbfmt, packed, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("vbfmt.plot")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("vbfmt.plot", raising=False)
    hidden = [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]
    for name in hidden:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoMatplotlib(), *sys.meta_path])
    result = vbfmt("plot", packed, "-o", tmp_path / "y.png")
    assert result.code == 1
    assert result.err == ("error: pictures need matplotlib; pip install 'vbfmt[plot]'\n")
    assert not (tmp_path / "y.png").exists()


class _NoMatplotlib:
    """An import finder that behaves as if matplotlib were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_impossible_plots_give_one_line_and_no_output(vbfmt, packed, tmp_path):
    pytest.importorskip("matplotlib")
    before = sorted(path.name for path in tmp_path.iterdir())
    for words in (
        (packed, "-o", tmp_path / "x.png", "--before", tmp_path / "none.vblora"),
        (tmp_path / "none.vblora", "-o", tmp_path / "x.png"),
        (packed, "-o", packed / "x.png", "--figure", "usage"),
    ):
        result = vbfmt("plot", *words)
        assert result.code == 1, words
        assert result.err.startswith("error: ")
        assert result.err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-o", "x.pdf"), "'x.pdf' does not end with .png, .svg, .html"),
        (("-o", "x"), "'x' does not end with .png, .svg, .html"),
        (("-o", "x.png", "--figure", "no"), "'no' is not one of 'usage', 'norms'"),
    ],
)
def test_unknown_figures_and_endings_are_wrong_usage(vbfmt, packed, words, message):
    result = vbfmt("plot", packed, *words)
    assert result.code == 2
    assert message in result.err


def test_the_choices_of_figures_are_those_that_exist():
    pytest.importorskip("matplotlib")
    from vbfmt.cli.arguments import FIGURES
    from vbfmt.plot import FIGURES as DRAWN

    assert tuple(DRAWN) == FIGURES


def test_an_adapter_of_another_model_cannot_be_compared(vbfmt, packed, tmp_path):
    pytest.importorskip("matplotlib")
    from tests.plot.conftest import made
    from vbfmt import save

    save(made(), tmp_path / "other.vblora")
    result = vbfmt("plot", packed, "-o", tmp_path / "x.png", "--before", tmp_path / "other.vblora")
    assert result.code == 1
    assert "other.vblora" in result.err
    assert "--before needs the same model" in result.err


def test_a_broken_installation_is_not_reported_as_a_missing_extra(
    vbfmt, packed, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vbfmt.plot", None)
    with pytest.raises(ModuleNotFoundError, match=r"vbfmt\.plot"):
        vbfmt("plot", packed, "-o", tmp_path / "x.png")
