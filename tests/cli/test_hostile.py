"""Hostile files with every command: a result or one line of error, no traceback, and no files
except the requested output."""

from __future__ import annotations

import json
import os
import re
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from spec.corpus.valid import adapter as tiny_adapter
from tests.converters.merge.folders import adapter_of, save_base, tensor_of
from vbfmt import Module, Tensor, dumps, load, save
from vbfmt._files import json_file

CORPUS = Path(__file__).parents[2] / "spec" / "corpus"
BANKS = ("--banks", CORPUS / "banks")
PATHS = (
    "../up",
    "../../../up",
    "/abs",
    "..",
    ".",
    "a/b",
    "a\\b",
    "C:\\x",
    "~",
    "$HOME",
    "-o",
    "|id",
)
"""Names of modules and tensors that look like paths, options or commands."""


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def assert_one_line(result) -> None:
    assert result.code in (1, 2)  # diff exits with 2 on errors
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    assert result.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("valid/*")), ids=lambda path: path.stem)
def test_valid_files_are_accepted_by_every_command(vbfmt, tmp_path, path):
    for words in (
        ("inspect", path),
        ("inspect", path, "--modules", "--json"),
        ("diff", path, path),
    ):
        result = vbfmt(*words, *BANKS)
        assert result.code == 0, (words, result.err)
    for command in ("unpack", "expand"):
        result = vbfmt(command, path, "-o", tmp_path / command, *BANKS)
        assert result.code == 0 or assert_one_line(result) is None
        assert result.code == 0 or not (tmp_path / command).exists()


@pytest.mark.parametrize("path", sorted(CORPUS.glob("invalid/*")), ids=lambda path: path.stem)
def test_invalid_files_are_refused_by_every_command(vbfmt, tmp_path, path):
    out = tmp_path / "out"
    for words in (
        ("inspect", path),
        ("unpack", path, "-o", out),
        ("expand", path, "-o", out),
        ("diff", path, path),
        ("merge", path, "--base", tmp_path, "-o", out),
    ):
        assert_one_line(vbfmt(*words, *BANKS))
        assert tree(tmp_path) == set()


def test_names_are_never_paths(vbfmt, tmp_path):
    """Modules, tensors, the base model and metadata may have names that look like paths."""
    pytest.importorskip("matplotlib")
    hostile = tiny_adapter(
        *(Module(name, 2, 2, 1) for name in sorted(PATHS, key=str.encode)),
        tensors={f"{name}.weight": Tensor.of(np.ones(2, "<f4")) for name in PATHS},
        base_model="../../base",
        base_revision="../rev",
        metadata={"../m": "../../x"},
    )
    deep = tmp_path / "a" / "b" / "deep"
    deep.mkdir(parents=True)
    (tmp_path / "x.vblora").write_bytes(dumps(hostile))
    before = tree(tmp_path)
    for words in (
        ("inspect", tmp_path / "x.vblora", "--modules"),
        ("unpack", tmp_path / "x.vblora", "-o", deep / "peft"),
        ("expand", tmp_path / "x.vblora", "-o", deep / "lora"),
        ("plot", tmp_path / "x.vblora", "-o", deep / "page.html"),
    ):
        assert vbfmt(*words).code == 0, words
    made = tree(tmp_path) - before
    files = {"peft", "lora", "page.html"}
    files |= {
        f"{folder}/adapter_{name}"
        for folder in ("peft", "lora")
        for name in ("config.json", "model.safetensors")
    }
    assert made == {f"a/b/deep/{name}" for name in files}


def test_a_file_that_expands_to_terabytes_is_refused(vbfmt, tmp_path):
    """A small valid file can expand to terabytes: one vector of many elements, selected by every
    row."""
    vast = tiny_adapter(Module("m", 1 << 20, 1 << 20, 64), h=1, b=1 << 14, k=1)
    save(vast, tmp_path / "x.vblora")
    assert (tmp_path / "x.vblora").stat().st_size < 100_000
    tracemalloc.start()
    try:
        result = vbfmt("inspect", tmp_path / "x.vblora", "--json")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20  # factors have 512 MB
    finally:
        tracemalloc.stop()
    assert result.code == 0
    assert json.loads(result.out)["N"] == 64 * 128


@pytest.fixture
def base(tmp_path) -> Path:
    folder = save_base(
        tmp_path / "base",
        {f"layers.{n}.q.weight": tensor_of(np.ones((8, 8), "f4")) for n in range(2)},
    )
    save(
        adapter_of({f"layers.{n}.q": (8, 8) for n in range(2)}, seed=0, b=4), tmp_path / "x.vblora"
    )
    return Path(folder)


def test_a_named_pipe_in_a_base_does_not_block(vbfmt, tmp_path, base):
    os.mkfifo(base / "tokenizer.json")
    result = vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert not (tmp_path / "out" / "tokenizer.json").exists()


def test_an_index_that_names_files_outside_the_base_is_refused(vbfmt, tmp_path, base):
    weights = next(base.glob("*.safetensors"))
    (tmp_path / "secret.safetensors").write_bytes(weights.read_bytes())  # valid weights
    for name in ("../secret.safetensors", "/etc/passwd", "sub/x.safetensors", ".."):
        index = {"weight_map": {f"layers.{n}.q.weight": name for n in range(2)}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
        hidden = weights.rename(weights.with_suffix(".hidden"))
        result = vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", tmp_path / "out")
        assert_one_line(result)
        assert "a shard outside the folder" in result.err or name == ".."
        hidden.rename(weights)
        assert not (tmp_path / "out").exists()


def test_code_in_a_base_folder_is_not_run_and_causes_no_prompt(tmp_path):
    """A config.json with auto_map makes transformers ask whether to run the model's own code."""
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    from vbfmt.converters.peft import skeleton
    from vbfmt.errors import SourceError

    base = tmp_path / ("a-folder-of-a-long-name-" * 5) / "base"
    base.mkdir(parents=True)
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (base / "config.json").write_text(json.dumps(config))
    ran = tmp_path / "ran"
    (base / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(SourceError, match="contains custom code|requires you to execute"):
        skeleton.shapes_in_order({"peft_type": "VBLORA"}, base)
    assert not ran.exists()


def test_a_checkpoint_with_false_sizes_is_refused_in_little_memory(vbfmt, tmp_path):
    """Safetensors files that claim a header of 2^63 bytes or a tensor of 2^60."""
    entry = {"dtype": "F32", "shape": [1 << 58], "data_offsets": [0, 1 << 60]}
    text = json.dumps({"base_model.vblora_vector_bank": entry}).encode()
    for data, found in (
        (struct.pack("<Q", 1 << 63), "not a safetensors file, or truncated"),
        (struct.pack("<Q", len(text)) + text + bytes(64), "go past the end of the file"),
    ):
        (tmp_path / "adapter_model.safetensors").write_bytes(data)
        result = vbfmt("pack", tmp_path, "-o", tmp_path / "x.vblora")
        assert_one_line(result)
        assert found in result.err
        assert not (tmp_path / "x.vblora").exists()


def test_a_loaded_adapter_does_not_change_with_its_file(tmp_path):
    """With `mmap=False` a later change of the file, even in place, is not seen."""
    path = tmp_path / "x.vblora"
    made = tiny_adapter()
    save(made, path)
    held = load(path, mmap=False)
    with open(path, "r+b") as stream:
        stream.write(b"x" * path.stat().st_size)
    assert held == made


def test_the_line_of_an_error_is_bounded(vbfmt, tmp_path):
    """Long names and values from a file do not fill the terminal."""
    entry = {"x" * 5000: {"dtype": "F32" * 5000, "shape": [1] * 5000, "data_offsets": [0, 4]}}
    text = json.dumps(entry).encode()
    (tmp_path / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    result = vbfmt("pack", tmp_path, "-o", tmp_path / "x.vblora")
    assert_one_line(result)
    assert len(re.sub("x+", "x", result.err)) < 1000


HALF = '"half": "\\ud800"'
"""JSON's grammar allows a lone surrogate, which UTF-8 cannot encode."""


def test_a_lone_surrogate_in_a_base_is_copied_unchanged(vbfmt, tmp_path, base):
    for name in ("config.json", "model.safetensors.index.json"):
        config = json.loads((base / name).read_text()) if (base / name).exists() else None
        if config is not None:
            (base / name).write_text(json.dumps(config)[:-1].rstrip() + f", {HALF}}}")
    result = vbfmt("merge", tmp_path / "x.vblora", "--base", base, "-o", tmp_path / "out")
    assert result.code == 0, result.err
    assert HALF in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("where", ["tensor", "metadata"])
def test_a_lone_surrogate_in_safetensors_is_refused(vbfmt, tmp_path, where):
    """The package safetensors refuses it, too."""
    entry = '{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    text = (
        f'{{"a\\ud800":{entry}}}'
        if where == "tensor"
        else f'{{"__metadata__":{{{HALF}}},"a":{entry}}}'
    )
    (tmp_path / "adapter_model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text.encode()
    )
    package = pytest.importorskip("safetensors")
    with pytest.raises(package.SafetensorError):
        package.deserialize((tmp_path / "adapter_model.safetensors").read_bytes())
    result = vbfmt("pack", tmp_path, "-o", tmp_path / "x.vblora")
    assert_one_line(result)
    assert "not a safetensors file" in result.err


def test_file_names_that_are_not_valid_unicode(vbfmt, tmp_path):
    """Linux accepts any bytes as a file name."""
    path = tmp_path / "\udcff.vblora"
    save(tiny_adapter(), path)
    for words in (("verify", path), ("verify", path, "--json"), ("inspect", path)):
        assert vbfmt(*words).code == 0, words
    (tmp_path / "x\udcfe").mkdir()
    assert_one_line(vbfmt("pack", tmp_path / "x\udcfe", "-o", path, "--force"))


@pytest.mark.parametrize("command", ["pack", "merge"])
def test_an_endless_json_file_is_not_read(vbfmt, tmp_path, monkeypatch, command):
    base = tmp_path / "base"
    save_base(base, {"q.weight": Tensor.of(np.ones((2, 2), np.float32))})
    save(tiny_adapter(), tmp_path / "a.vblora")
    name = "config.json"
    if command == "pack":
        vbfmt("unpack", tmp_path / "a.vblora", "-o", base, "--force")
        name = "adapter_config.json"
    with open(base / name, "wb") as file:
        file.truncate(json_file.LONGEST + 1)
    words = (
        ("pack", base) if command == "pack" else ("merge", tmp_path / "a.vblora", "--base", base)
    )
    result = vbfmt(*words, "-o", tmp_path / "out")
    assert_one_line(result)
    assert "too long for a JSON file" in result.err
