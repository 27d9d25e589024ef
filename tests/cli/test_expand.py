"""``vbfmt expand``: LoRA for runtimes."""

from __future__ import annotations

import os

import pytest

from spec.golden.make import wide_indices
from vbfmt import save


def test_expand_writes_lora(vbfmt, tmp_path, packed):
    result = vbfmt("expand", packed, "-o", tmp_path / "lora", "--dtype", "bfloat16")
    assert result.code == 0
    assert "LoRA of rank 2 in bfloat16, 1 modules" in result.out
    assert sorted(os.listdir(tmp_path / "lora")) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_expand_notes_whether_extras_are_kept(vbfmt, tmp_path):
    save(wide_indices(), tmp_path / "w.vblora")
    kept = vbfmt("expand", tmp_path / "w.vblora", "-o", tmp_path / "a")
    assert kept.code == 0
    assert "3 other trained tensors (empty, h.0.mlp.c_fc.bias, score.weight) kept" in kept.err
    dropped = vbfmt("expand", tmp_path / "w.vblora", "-o", tmp_path / "b", "--drop-extras")
    assert "left out" in dropped.err


def test_expand_to_other_runtimes(vbfmt, tmp_path, packed, monkeypatch):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = vbfmt("expand", packed, "-o", tmp_path / "mlx", "--to", "mlx")
    assert result.code == 0
    assert "mlx-lm LoRA of rank 2" in result.out
    assert sorted(os.listdir(tmp_path / "mlx")) == ["adapter_config.json", "adapters.safetensors"]
    missing = vbfmt("expand", packed, "-o", tmp_path / "x.gguf", "--to", "gguf")
    assert missing.code == 1
    assert "give the base: --base PATH" in missing.err
    assert not (tmp_path / "x.gguf").exists()
    useless = vbfmt("expand", packed, "-o", tmp_path / "y", "--to", "mlx", "--base", tmp_path)
    assert useless.code == 2


def test_expand_checks_before_writing(vbfmt, tmp_path):
    save(wide_indices(), tmp_path / "w.vblora")
    words = ("expand", tmp_path / "w.vblora", "-o", tmp_path / "a")
    refused = vbfmt(*words, "--check", "vllm")
    assert refused.code == 1
    assert refused.err.startswith("error: vllm would not load it (vllm/lora/peft_helper.py")
    assert not (tmp_path / "a").exists()
    result = vbfmt(*words, "--check", "tgi")
    assert result.code == 0
    assert "note: tgi drops " in result.err
    assert "no problems found" not in result.out
    assert "--check" not in result.err  # --check was given


def test_a_check_without_findings_is_reported(vbfmt, tmp_path):
    save(wide_indices(), tmp_path / "w.vblora")
    words = ("expand", tmp_path / "w.vblora", "-o", tmp_path / "a", "--drop-extras")
    result = vbfmt(*words, "--check", "vllm")
    assert result.code == 0
    assert result.out.splitlines()[1] == "vllm: no problems found"


@pytest.mark.parametrize(
    ("runtime", "form", "takes"),
    [
        ("llama.cpp", None, "gguf"),
        ("ollama", "mlx", "gguf"),
        ("mlx", None, "mlx"),
        ("vllm", "gguf", "peft"),
        ("tgi", "mlx", "peft"),
    ],
)
def test_a_form_that_the_runtime_cannot_load_is_not_written(
    vbfmt, tmp_path, packed, runtime, form, takes
):
    to = ("--to", form) if form else ()
    result = vbfmt("expand", packed, "-o", tmp_path / "x", "--check", runtime, *to)
    assert result.code == 2
    assert f"{runtime} does not load this form: --check: found {form or 'peft'}" in result.err
    assert f"give --to {takes}" in result.err
    assert not (tmp_path / "x").exists()


def test_extras_for_mlx_are_refused_once(vbfmt, tmp_path):
    """Earlier, they were reported as dropped, and then refused by the writer."""
    save(wide_indices(), tmp_path / "w.vblora")
    words = ("expand", tmp_path / "w.vblora", "-o", tmp_path / "a", "--to", "mlx")
    refused = vbfmt(*words, "--check", "mlx")
    assert refused.code == 1
    assert refused.err.startswith("error: not supported by mlx-lm")
    assert refused.err.count("\n") == 1


def test_the_choices_of_runtime_are_those_with_rules():
    from vbfmt.cli.arguments import RUNTIMES
    from vbfmt.converters.runtimes import FORMS

    assert tuple(FORMS) == RUNTIMES


def test_no_loss_is_printed_if_the_rank_is_not_lower(vbfmt, tmp_path, packed):
    """Earlier, it printed a line of 0 for every module."""
    result = vbfmt("expand", packed, "-o", tmp_path / "x", "--rank", "20")
    assert result.code == 0
    assert result.out.splitlines()[1:] == [
        "nothing lost: the rank was already 2",
        f"to upload: hf upload OWNER/NAME {tmp_path / 'x'}",
    ]
