"""LoRA folders for mlx-lm."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from spec.golden.make import wide_indices, worked_example
from tests.converters.gguf.random_adapter import random_adapter
from tests.converters.merge.folders import adapter_of
from vbfmt import Tensor, errors
from vbfmt.converters import mlx
from vbfmt.converters._files import safetensors


@pytest.fixture
def adapter():
    return random_adapter(layers=2, hidden=32, feed=48, kv=16, b=8)


def test_factors_are_transposed_and_named_as_in_mlx_lm(tmp_path, adapter):
    mlx.write(adapter, tmp_path / "x")
    found = safetensors.read(tmp_path / "x" / "adapters.safetensors").tensors
    assert len(found) == 2 * len(adapter)
    for module in adapter:
        a, b = adapter.factors(module.name)
        np.testing.assert_array_equal(found[f"{module.name}.lora_a"].numpy(), a.T)
        np.testing.assert_array_equal(found[f"{module.name}.lora_b"].numpy(), b.T)


def test_the_config_adapts_every_layer_and_scales_nothing(tmp_path, adapter):
    """A positive num_layers counts from the last layer, so an adapter of the first layers would be
    lost."""
    mlx.write(adapter, tmp_path / "x")
    config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "lora"
    assert config["num_layers"] == -1
    parameters = config["lora_parameters"]
    assert (parameters["rank"], parameters["scale"], parameters["dropout"]) == (4, 1.0, 0.0)
    assert parameters["keys"] == sorted({module.name.split(".", 3)[3] for module in adapter})


def test_modules_outside_of_layers_are_refused(tmp_path):
    with pytest.raises(errors.TargetError, match=r"outside of layers.<n> \(layer\), expected"):
        mlx.write(worked_example(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_extras_are_refused(tmp_path, adapter):
    score = {"score.weight": Tensor.of(np.ones((3, 32), np.float32))}
    trained = dataclasses.replace(adapter, tensors=score)
    with pytest.raises(errors.TargetError, match=r"heads \(score.weight\).*drop_extras=True"):
        mlx.write(trained, tmp_path / "x")
    mlx.write(trained, tmp_path / "x", drop_extras=True)


def test_all_problems_are_one_error(tmp_path):
    """drop_extras=True would not help, so it is not suggested."""
    message = r"outside of layers.<n> \(h.0.attn.c_attn, .*\) and trained .* \(empty, .*weight\)"
    with pytest.raises(errors.TargetError, match=message) as caught:
        mlx.write(wide_indices(), tmp_path / "x")
    assert "drop_extras=True" not in str(caught.value)


def test_mlx_lms_loader_gives_the_same_outputs(tmp_path, adapter):
    """mlx also runs on CPUs. The adapter does not change the last of three layers."""
    mx = pytest.importorskip("mlx.core", reason="mlx is not installed")
    llama = pytest.importorskip("mlx_lm.models.llama", reason="mlx-lm is not installed")
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import load_adapters

    arguments = llama.ModelArgs.from_dict(
        {
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6,
            "vocab_size": 64,
        }
    )
    mx.random.seed(0)
    model, merged = llama.Model(arguments), llama.Model(arguments)
    weights = dict(tree_flatten(model.parameters()))
    for module in adapter:
        delta = mx.array(adapter.delta(module.name))
        weights[f"{module.name}.weight"] = weights[f"{module.name}.weight"] + delta
    merged.load_weights(list(weights.items()))
    ids = mx.arange(24).reshape(2, 12)
    without, expected = np.array(model(ids)), np.array(merged(ids))
    mlx.write(adapter, tmp_path / "x")
    found = np.array(load_adapters(model, str(tmp_path / "x"))(ids))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected - without).max() > 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.q_proj",
        "model.vision_tower.encoder.layers.0.self_attn.q_proj",
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1",
    ],
)
def test_layers_of_vision_language_models_are_refused(name, tmp_path):
    adapter = adapter_of({name: (32, 32)})
    with pytest.raises(errors.TargetError, match="or have under another name"):
        mlx.write(adapter, tmp_path / "x")
    assert not (tmp_path / "x").exists()
