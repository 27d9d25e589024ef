"""Standard LoRA folders."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from spec.golden.make import wide_indices, worked_example
from tests.strategies import adapters
from vbfmt import errors
from vbfmt.converters import lora
from vbfmt.converters._files import safetensors

safe_open = pytest.importorskip("safetensors").safe_open
load_file = pytest.importorskip("safetensors.numpy").load_file


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_factors_are_written_exactly(tmp_path):
    adapter = worked_example()
    lora.write(adapter, tmp_path / "x")
    found = load_file(tmp_path / "x" / "adapter_model.safetensors")
    a, b = adapter.factors("layer")
    np.testing.assert_array_equal(found["base_model.model.layer.lora_A.weight"], a)
    np.testing.assert_array_equal(found["base_model.model.layer.lora_B.weight"], b)
    with safe_open(tmp_path / "x" / "adapter_model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_config_is_valid_for_every_runtime(tmp_path):
    lora.write(worked_example(), tmp_path / "x")
    config = config_of(tmp_path / "x")
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] == "example/base"
    assert (config["r"], config["lora_alpha"]) == (1, 1)
    assert isinstance(config["lora_alpha"], int)
    assert not config["use_rslora"]
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    assert (config["bias"], config["modules_to_save"]) == ("none", None)
    assert config["target_modules"] == ["layer"]


def test_lower_ranks_are_padded_with_zeros(tmp_path):
    """Runtimes drop or refuse rank patterns, so one rank must hold for all modules."""
    adapter = wide_indices()
    lora.write(adapter, tmp_path / "x", drop_extras=True)
    assert config_of(tmp_path / "x")["r"] == 2
    found = load_file(tmp_path / "x" / "adapter_model.safetensors")
    for module in adapter:
        key = f"base_model.model.{module.name}.lora_"
        a, b = found[f"{key}A.weight"], found[f"{key}B.weight"]
        assert a.shape == (2, module.in_features)
        assert b.shape == (module.out_features, 2)
        exact_a, exact_b = adapter.factors(module.name)
        np.testing.assert_array_equal(b @ a, exact_b @ exact_a)


@pytest.mark.filterwarnings("ignore:overflow")  # banks of 1e20 are drawn too
@given(adapters(plain=True))
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
def test_the_product_is_delta(tmp_path, adapter):
    folder = tmp_path / "x"
    lora.write(adapter, folder, overwrite=True)
    found = load_file(folder / "adapter_model.safetensors")
    for module in adapter:
        key = f"base_model.model.{module.name}.lora_"
        delta = found[f"{key}B.weight"] @ found[f"{key}A.weight"]
        expected = adapter.delta(module.name)
        np.testing.assert_array_equal(delta.T if module.fan_in_fan_out else delta, expected)


@pytest.mark.parametrize(("dtype", "name"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_rounding_is_to_nearest_even(tmp_path, dtype, name):
    adapter = wide_indices()
    lora.write(adapter, tmp_path / "x", dtype=dtype, drop_extras=True)
    found = safetensors.read(tmp_path / "x" / "adapter_model.safetensors").tensors
    tensor = found["base_model.model.h.0.attn.c_attn.lora_A.weight"]
    assert tensor.dtype == name
    exact, _ = adapter.factors("h.0.attn.c_attn")
    rounded = tensor.numpy().astype(np.float64)
    unit = 2.0 ** -(8 if dtype == "bfloat16" else 11)
    assert np.abs(rounded - exact).max() <= unit * np.abs(exact).max()
    assert (np.abs(rounded - exact) <= unit * np.abs(exact)).all()


def test_extras_are_kept_in_their_own_dtype_and_named_in_the_config(tmp_path):
    adapter = wide_indices()
    lora.write(adapter, tmp_path / "x", dtype="bfloat16")
    found = safetensors.read(tmp_path / "x" / "adapter_model.safetensors").tensors
    assert found["base_model.model.score.weight"] == adapter.tensors["score.weight"]
    bias = found["base_model.model.h.0.mlp.c_fc.base_layer.bias"]
    assert bias == adapter.tensors["h.0.mlp.c_fc.bias"]
    assert config_of(tmp_path / "x")["bias"] == "lora_only"
    assert "score" in config_of(tmp_path / "x")["modules_to_save"]


def test_factors_beyond_float16_are_refused_and_nothing_is_written(tmp_path):
    adapter = worked_example()
    large = dataclasses.replace(adapter, bank=adapter.bank * np.float32(1e6))
    with pytest.raises(errors.TargetError, match="give `dtype=bfloat16`"):
        lora.write(large, tmp_path / "x", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_dtype_is_refused(tmp_path):
    with pytest.raises(errors.TargetError, match="expected float32, bfloat16, float16"):
        lora.write(worked_example(), tmp_path / "x", dtype="int8")


@pytest.mark.parametrize("name", ["layer.lora_A.weight", "layer.lora_B.weight"])
def test_another_tensor_with_a_factors_name_is_refused(tmp_path, name):
    tensor = wide_indices().tensors["score.weight"]
    adapter = dataclasses.replace(worked_example(), tensors={name: tensor})
    with pytest.raises(errors.TargetError, match="has the key of a factor.*drop_extras=True"):
        lora.write(adapter, tmp_path / "x")
    assert not list(tmp_path.iterdir())
    lora.write(adapter, tmp_path / "x", drop_extras=True)
