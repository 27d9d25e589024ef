"""The ending of an output's name must fit what is written."""

from __future__ import annotations

import os

import pytest

from tests.cli.conftest import needs_matplotlib
from vbfmt import save


@pytest.mark.parametrize(
    ("words", "name", "advice"),
    [
        (("pack", "{checkpoint}"), "x.safetensors", "vbfmt unpack, expand or merge"),
        (("pack", "{checkpoint}"), "x.BIN", "vbfmt unpack, expand or merge"),
        (("pack", "{checkpoint}"), "x.gguf", "written by vbfmt expand"),
        (("unpack", "{packed}"), "x.vblora", "written by vbfmt pack"),
        (("unpack", "{packed}"), "x.safetensors", "vbfmt unpack, expand or merge"),
        (("expand", "{packed}"), "x.safetensors", "vbfmt unpack, expand or merge"),
        (("expand", "{packed}"), "x.vblora", "written by vbfmt pack"),
        (("expand", "{packed}", "--to", "gguf"), "x.png", "written by vbfmt plot"),
        (("merge", "{packed}", "--base", "b"), "x.gguf", "written by vbfmt expand"),
        (("merge", "{packed}", "--base", "b"), "x.safetensors", "vbfmt unpack, expand or merge"),
        (("plot", "{packed}"), "x.pdf", "does not end with .png, .svg, .html"),
        (("plot", "{packed}"), "x", "does not end with .png, .svg, .html"),
    ],
)
def test_an_ending_of_another_form_is_refused(
    vbfmt, tmp_path, checkpoint, packed, words, name, advice
):
    before = sorted(os.listdir(tmp_path))
    words = [word.format(checkpoint=checkpoint, packed=packed) for word in words]
    result = vbfmt(*words, "-o", tmp_path / name)
    assert (result.code, result.out) == (2, "")
    assert advice in " ".join(result.err.split())
    assert sorted(os.listdir(tmp_path)) == before


def test_an_output_named_gguf_is_a_gguf_file(vbfmt, tmp_path):
    pytest.importorskip("gguf")
    from tests.converters.gguf.bases import base
    from tests.converters.gguf.random_adapter import random_adapter

    save(random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8), tmp_path / "x.vblora")
    output = tmp_path / "x.gguf"
    done = vbfmt("expand", tmp_path / "x.vblora", "-o", output, "--base", base(tmp_path))
    assert (done.code, done.err) == (0, "")
    assert output.read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize("to", ["peft", "mlx"])
def test_a_gguf_name_for_a_folder_is_refused(vbfmt, tmp_path, packed, to):
    result = vbfmt("expand", packed, "-o", tmp_path / "x.gguf", "--to", to)
    assert result.code == 2
    assert f"found --to {to}, expected --to gguf" in result.err
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    "words", [("unpack", "x"), ("expand", "x"), ("merge", "x", "--base", "b"), ("plot", "x")]
)
def test_standard_output_is_only_for_packed_files(vbfmt, words):
    result = vbfmt(*words, "-o", "-")
    assert (result.code, "standard output" in result.err) == (2, True)


@pytest.mark.parametrize(
    "words",
    [
        ("pack", "-", "-o", "x"),
        ("pack", "x", "-o", "x", "--base", "-"),
        ("verify", "x", "--against", "-"),
        ("merge", "x", "--base", "-", "-o", "y"),
        ("estimate", "--base", "-"),
    ],
)
def test_standard_input_is_only_for_packed_files(vbfmt, words):
    result = vbfmt(*words)
    assert (result.code, "standard input" in result.err) == (2, True)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", "bfloat16"),
        ("FP16", "float16"),
        ("fp32", "float32"),
        ("torch.bfloat16", "bfloat16"),
    ],
)
def test_dtypes_have_their_usual_names(vbfmt, tmp_path, packed, name, dtype):
    result = vbfmt("expand", packed, "-o", tmp_path / "lora", "--dtype", name)
    assert (result.code, f"in {dtype}," in result.out) == (0, True)


@pytest.mark.parametrize(
    "words",
    [
        ("expand", "{packed}", "-o", "{out}", "--to", "MLX"),
        ("expand", "{packed}", "-o", "{out}", "--check", "VLLM"),
        ("pack", "{checkpoint}", "-o", "{out}", "--layout", "PEFT"),
        pytest.param(
            ("plot", "{packed}", "-o", "{out}.svg", "--figure", "Usage"), marks=needs_matplotlib
        ),
        ("estimate", "--model", "Llama-2-7B"),
    ],
)
def test_names_are_case_insensitive(vbfmt, tmp_path, checkpoint, packed, words):
    names = {"checkpoint": checkpoint, "packed": packed, "out": tmp_path / "out"}
    assert vbfmt(*(word.format(**names) for word in words)).code == 0
