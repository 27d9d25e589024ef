"""``vbfmt estimate``."""

from __future__ import annotations

import json

import pytest

from vbfmt.estimate.models import PRESETS


def test_llama_2_7b_as_text(vbfmt):
    result = vbfmt("estimate", "--model", "llama-2-7b", "--h", "2048")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("llama-2-7b: 224 linear layers (q_proj, ")
    assert lines[1] == "N = 39,040 sub-vectors"
    ours = next(line for line in lines if line.startswith("VB-LoRA")).split()
    assert ours[-4:] == ["80,478,208", "602,368", "2.4", "MB"]
    lora = next(line for line in lines if line.startswith("LoRA,")).split()
    assert lora[-5:] == ["9,994,240", "9,994,240", "40.0", "MB", "17×"]
    assert "b can be 16, 32, 64, 128, 256; it must divide 4096, 11008" in lines
    assert result.err == (
        "note: h = 2048 is above 256: every index takes 16 bits instead of 8, 78.1 kB more in all\n"
    )


def test_the_warning_comes_when_h_crosses_256(vbfmt):
    for h, warned in ((256, False), (257, True)):
        result = vbfmt("estimate", "--model", "roberta-base", "--h", h)
        assert ("above 256" in result.err) == warned


def test_the_estimate_as_json(vbfmt):
    words = ("--model", "roberta-base", "--targets", "qv", "--h", 90, "--lora-rank", 8, "--json")
    found = json.loads(vbfmt("estimate", *words).out)
    assert (found["N"], found["b"], found["layers"]) == (576, 256, 24)
    stored = {cost["method"]: cost["stored"] for cost in found["methods"]}
    assert stored["VB-LoRA, h = 90, b = 256, k = 2, r = 4"] == 23904
    assert stored["LoRA, r = 8"] == 294912
    assert found["b_that_fit"][-1] == 768
    assert found["b_suggested"] == 256


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset(vbfmt, name):
    assert vbfmt("estimate", "--model", name).code == 0


def test_a_folder(vbfmt, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(dict(PRESETS["gemma-7b"])))
    one = json.loads(vbfmt("estimate", "--base", tmp_path, "--json").out)
    other = json.loads(vbfmt("estimate", "--model", "gemma-7b", "--json").out)
    assert one["methods"] == other["methods"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "give either --model or --base; models: roberta-base"),
        (("--model", "gemma-7b", "--base", "."), 2, "give either"),
        (("--model", "gpt-5"), 2, "is not one of roberta-base"),
        (("--model", "gemma-7b", "--h", 0), 2, "--h"),
        (("--model", "gemma-7b", "--h", 70000), 1, "expected 1 to 65536 vectors"),
        (("--model", "gemma-7b", "--k", 300), 1, "k is out of range"),
        (("--model", "llama-2-7b", "--b", 512), 1, "expected one of 1, 2, 4, 8, 16, 32, 64, 128,"),
        (("--model", "gpt2-medium", "--targets", "qv"), 1, "c_attn, c_proj, c_fc; query and"),
        (("--base", "nowhere"), 1, "cannot read nowhere"),
    ],
)
def test_impossible_settings_are_refused(vbfmt, words, code, says):
    result = vbfmt("estimate", *words)
    assert result.code == code
    assert says in result.err
    assert result.out == ""
    if code == 1:
        assert result.err.count("\n") == 1


def test_a_small_b_gives_a_warning(vbfmt):
    long = vbfmt("estimate", "--model", "llama-2-7b", "--b", 16)
    assert (long.code, long.err) == (0, "")
    short = vbfmt("estimate", "--model", "llama-2-7b", "--b", 8)
    assert short.code == 0
    assert short.err.startswith(
        "note: b = 8 is short: there are 2 indices for every 8 parameters of LoRA; b must"
    )


def test_neither_a_gguf_file_nor_an_empty_folder_is_a_config(vbfmt, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\xff")
    assert (
        "expected a folder with config.json" in vbfmt("estimate", "--base", tmp_path / "x.gguf").err
    )
    assert "no config.json in" in vbfmt("estimate", "--base", tmp_path).err


def test_a_config_that_is_not_utf8_is_refused(vbfmt, tmp_path):
    (tmp_path / "config.json").write_bytes(b'{"model_type": "\xff"}')
    result = vbfmt("estimate", "--base", tmp_path)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "not a JSON object in" in result.err
    assert "can't decode byte 0xff" in result.err


def test_an_empty_name_of_a_layer_is_named(vbfmt):
    result = vbfmt("estimate", "--model", "llama-2-7b", "--targets", "q_proj,,x")
    assert result.code == 1
    assert "--targets: found an empty name, x, expected all, or some of q_proj" in result.err
