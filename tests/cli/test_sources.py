"""Every kind of source, packed and verified on the command line."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft", minversion="0.20")

from tests.converters import authors
from tests.converters.test_algorithm1 import saved, state
from tests.converters.test_unilora import trained


def test_the_authors_checkpoint(vbfmt, tmp_path):
    source = authors.saved(tmp_path / "nlu", authors.model())
    packed = tmp_path / "x.vblora"
    assert vbfmt("pack", source, "-o", packed).code == 0
    assert f"matches {source}" in vbfmt("verify", packed, "--against", source).out
    wrong = vbfmt("verify", packed, "--against", source, "--layout", "algorithm1")
    assert wrong.code == 1


def test_the_layout_of_algorithm_1(vbfmt, tmp_path):
    """The other layout has the same shapes where modules are square: only --layout can tell."""
    source = saved(tmp_path, state())
    packed = tmp_path / "x.vblora"
    how = ("--layout", "algorithm1", "--topk", 2)
    assert vbfmt("pack", source, "-o", packed, *how).code == 0
    assert vbfmt("verify", packed, "--against", source, *how).code == 0
    assert "say which" in vbfmt("verify", packed, "--against", source, "--topk", 2).err
    other = vbfmt("verify", packed, "--against", source, "--layout", "nlu", "--topk", 2)
    assert (other.code, "FAILED" in other.out) == (1, True)


def test_a_uni_lora_checkpoint_with_a_seed_needs_the_base(vbfmt, tmp_path):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    packed = tmp_path / "x.vblora"
    how = ("--base", tmp_path / "base")
    assert vbfmt("pack", tmp_path / "uni", "-o", packed, *how).code == 0
    assert vbfmt("verify", packed, "--against", tmp_path / "uni", *how).code == 0
    alone = vbfmt("verify", packed, "--against", tmp_path / "uni")
    assert (alone.code, "--base PATH" in alone.err) == (1, True)


@pytest.mark.parametrize("words", [("--layout", "nlu"), ("--base", "b"), ("--topk", 2)])
def test_options_about_a_source_need_a_source(vbfmt, packed, words):
    assert vbfmt("verify", packed, *words).code == 2


def test_an_unknown_layout_names_the_known_ones(vbfmt, packed, checkpoint):
    result = vbfmt("verify", packed, "--against", checkpoint, "--layout", "odd")
    assert result.code == 2
    assert "not one of 'peft', 'unilora', 'nlu', 'algorithm1'" in result.err


def test_a_larger_packed_file_is_not_reported_as_smaller(vbfmt, tmp_path):
    trained("llama", str(tmp_path), save_indices=False).save_pretrained(tmp_path / "uni")
    weights = tmp_path / "uni" / "adapter_model.safetensors"
    result = vbfmt("pack", weights, "-o", tmp_path / "x.vblora", "--base", tmp_path / "base")
    assert f"× larger than {weights} (" in result.out
    assert "Uni-LoRA has an index for every LoRA parameter" in result.err
