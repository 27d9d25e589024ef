"""Commands never replace an input or a device, leave nothing behind, and print correct sizes."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys

import pytest

from tests.cli.conftest import needs_matplotlib
from tests.conftest import ROOT
from tests.converters.merge.folders import adapter_of, save_base, weights_of
from vbfmt import save
from vbfmt.cli.show import size

TRAINED = ROOT / "tests" / "data" / "minilm-vblora"
NAMES = ("adapter_model.safetensors", "adapter_config.json")


@pytest.fixture
def trained(tmp_path):
    """A copy of the trained checkpoint."""
    return shutil.copytree(TRAINED, tmp_path / "trained")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("link", [False, True])
def test_force_does_not_pack_over_the_checkpoint(vbfmt, tmp_path, trained, name, link):
    before = contents(trained)
    output = trained / name
    if link:
        output = tmp_path / "link"
        output.symlink_to(trained / name)
    result = vbfmt("pack", trained, "-o", output, "--force")
    assert contents(trained) == before
    if not link:  # the ending of another form is wrong usage
        assert (result.code, name.rpartition(".")[2] in result.err) == (2, True)
        return
    assert result.code == 1
    assert result.err == (
        f"error: the output would replace an input in {output}; choose another name\n"
    )
    assert contents(trained) == before


@pytest.mark.parametrize("words", [("unpack",), ("expand",), ("expand", "--to", "mlx")])
@pytest.mark.parametrize("name", [*NAMES, "adapters.safetensors"])
def test_force_does_not_write_over_the_packed_file(vbfmt, tmp_path, packed, words, name):
    (tmp_path / "d").mkdir()
    file = tmp_path / "d" / name
    shutil.copy(packed, file)
    result = vbfmt(words[0], file, "-o", tmp_path / "d", "--force", *words[1:])
    assert file.read_bytes() == packed.read_bytes()
    writes = {
        "unpack": NAMES,
        "expand": NAMES,
        "expand --to mlx": ("adapters.safetensors", "adapter_config.json"),
    }[" ".join(words)]
    assert ("would replace an input" in result.err) == (name in writes)


def test_force_does_not_write_gguf_over_its_input(vbfmt, packed):
    file = packed.rename(packed.with_suffix(".gguf"))
    before = file.read_bytes()
    result = vbfmt("expand", file, "-o", file, "--force", "--base", file.parent)
    assert (result.code, "would replace an input" in result.err) == (1, True)
    assert file.read_bytes() == before


def test_force_does_not_draw_over_the_packed_file(vbfmt, tmp_path, packed):
    file = tmp_path / "x.svg"
    shutil.copy(packed, file)
    result = vbfmt("plot", file, "-o", file, "--force")
    assert (result.code, "would replace an input" in result.err) == (1, True)
    assert file.read_bytes() == packed.read_bytes()


@pytest.mark.parametrize("words", [("pack", "-o", "{}/"), ("expand", "--to", "gguf", "-o", "{}/")])
def test_an_output_file_named_like_a_folder_leaves_nothing(
    vbfmt, tmp_path, checkpoint, packed, words
):
    before = os.listdir(tmp_path)
    words = [word.format(tmp_path / "new") for word in words]
    result = vbfmt(words[0], checkpoint if words[0] == "pack" else packed, *words[1:])
    assert result.code == 1
    assert result.err == (
        f"error: the output must be a file in {tmp_path / 'new'}/: found the name of a folder\n"
    )
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("command", ["pack", "unpack", "expand", "plot"])
def test_an_existing_pipe_is_not_replaced(vbfmt, tmp_path, checkpoint, packed, command, force):
    pipe = tmp_path / ("pipe.svg" if command == "plot" else "pipe")
    os.mkfifo(pipe)
    source = checkpoint if command == "pack" else packed
    result = vbfmt(command, source, "-o", pipe, *force)
    assert result.code == 1
    assert "the output exists already, and is not replaced" in result.err
    assert ": found a pipe, expected a f" in result.err
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_existing_folder_or_file_of_the_wrong_type_is_refused(
    vbfmt, tmp_path, checkpoint, packed, force
):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("precious")
    (tmp_path / "empty").mkdir()
    for folder in ("full", "empty"):
        result = vbfmt("pack", checkpoint, "-o", tmp_path / folder, *force)
        assert ": found a folder, expected a file; choose another name" in result.err
    for command in ("unpack", "expand"):
        result = vbfmt(command, packed, "-o", tmp_path / "full" / "x", *force)
        assert ": found a file, expected a folder; choose another name" in result.err
    assert (tmp_path / "full" / "x").read_text() == "precious"
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize(
    "command", ["pack", "unpack", "expand", pytest.param("plot", marks=needs_matplotlib)]
)
def test_missing_parent_folders_of_the_output_are_created(
    vbfmt, tmp_path, checkpoint, packed, command
):
    output = tmp_path / "new" / "deep" / ("x.svg" if command == "plot" else "x")
    result = vbfmt(command, checkpoint if command == "pack" else packed, "-o", output)
    assert (result.code, output.exists()) == (0, True)


def test_missing_parent_folders_of_a_merge_are_created(vbfmt, tmp_path):
    save(adapter_of(), tmp_path / "x.vblora")
    base = save_base(tmp_path / "base", weights_of())
    output = tmp_path / "new" / "deep" / "merged"
    dry = vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", output, "--dry-run")
    assert (dry.code, (tmp_path / "new").exists()) == (0, False)
    assert vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", output).code == 0
    assert (output / "model.safetensors").exists()


@pytest.mark.parametrize("command", ["pack", "unpack", "expand", "plot"])
def test_parent_folders_are_not_created_if_nothing_is_written(vbfmt, tmp_path, command):
    result = vbfmt(command, tmp_path / "nothing", "-o", tmp_path / "new" / "deep" / "x.svg"[:-4])
    assert result.code in (1, 2)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("command", ["pack", "unpack", "expand", "plot"])
def test_a_file_cannot_be_a_parent_folder(vbfmt, tmp_path, packed, command):
    output = packed / ("x.svg" if command == "plot" else "x")
    result = vbfmt(command, packed.parent / "checkpoint", "-o", output)
    assert result.code == 1
    assert f"no folder to write into in {output}: found {packed}, which is a file" in result.err


@pytest.mark.parametrize(
    "words",
    [
        ("pack", "", "-o", "x"),
        ("pack", "x", "-o", ""),
        ("unpack", "x", "-o", ""),
        ("expand", "x", "-o", ""),
        ("plot", "x", "-o", ""),
        ("verify", ""),
        ("verify", "x", "--against", ""),
        ("inspect", ""),
        ("diff", "x", ""),
        ("merge", "x", "--base", "", "-o", "y"),
        ("estimate", "--base", ""),
    ],
)
def test_an_empty_name_is_wrong_usage(vbfmt, words):
    result = vbfmt(*words)
    assert (result.code, "the name is empty" in result.err) == (2, True)


def test_the_size_before_is_that_of_the_input_files(vbfmt, trained):
    (trained / "optimizer.pt").write_bytes(bytes(10**7))
    (trained / "config.json").write_text("{}" + " " * 10**6)
    output = trained / "x.vblora"
    result = vbfmt("pack", trained, "-o", output)
    weights, config = ((trained / name).stat().st_size for name in NAMES)
    packed = output.stat().st_size
    assert result.out.splitlines()[0] == (
        f"{output}: {size(packed)}, {(weights + config) / packed:.1f}× smaller than {trained} "
        f"({size(weights + config)})"
    )


@pytest.mark.parametrize("words", [("unpack",), ("expand",), ("expand", "--to", "mlx")])
def test_the_size_of_a_folder_is_that_of_the_written_files(vbfmt, tmp_path, packed, words):
    output = tmp_path / "out"
    output.mkdir()
    (output / "diary").write_bytes(bytes(10**6))
    result = vbfmt(words[0], packed, "-o", output, "--force", *words[1:])
    written = sum(path.stat().st_size for path in output.iterdir() if path.name != "diary")
    assert result.out.splitlines()[0].endswith(f", {size(written)}")


def test_a_larger_output_is_not_reported_as_smaller(vbfmt, packed):
    out = vbfmt("inspect", packed).out
    assert re.search(r"[1-9][\d.]*× larger than LoRA", out)
    assert "0.3× smaller" not in out


@pytest.mark.parametrize("to", ["peft", "mlx"])
def test_a_writer_lists_the_files_that_it_writes(vbfmt, tmp_path, packed, to):
    from vbfmt.converters import WRITERS

    assert vbfmt("expand", packed, "-o", tmp_path / "out", "--to", to).code == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(WRITERS[to].files)


def test_a_card_that_cannot_be_written_leaves_no_packed_file(
    vbfmt, tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / "out").mkdir()
    result = vbfmt("pack", checkpoint, "-o", tmp_path / "out" / "x.vblora", "--card")
    assert (result.code, "needs huggingface_hub" in result.err) == (1, True)
    assert os.listdir(tmp_path / "out") == []
