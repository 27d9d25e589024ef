"""The comparison of what PEFT has loaded with the adapter, layer by layer."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.conversion_mapping")

from tests.converters.merge.folders import adapter_of, tensor_of  # noqa: E402
from vbfmt import errors, save  # noqa: E402
from vbfmt.converters.peft import load_adapter  # noqa: E402
from vbfmt.converters.peft.loaded import require_lora_loaded, require_vblora_loaded  # noqa: E402

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 8,
    "patch_size": 4,
    "num_labels": 3,
}
NAME = "vit.layers.0.attention.q_proj"


def model():
    torch.manual_seed(0)
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()


@pytest.mark.parametrize("name", [NAME, "vit.encoder.layer.0.attention.attention.query"])
def test_names_of_both_versions_of_transformers_are_loaded(tmp_path, name):
    adapter = adapter_of({name: (16, 16)})
    save(adapter, tmp_path / "x.vblora")
    base = model()
    before = base.get_submodule(NAME).weight.detach().clone()
    merged = load_adapter(base, tmp_path / "x.vblora").merge_and_unload()
    found = merged.get_submodule(NAME).weight.detach() - before
    np.testing.assert_allclose(found.numpy(), adapter.delta(name), atol=1e-6)


def loaded(tmp_path, adapter):
    save(adapter, tmp_path / "x.vblora")
    return load_adapter(model(), tmp_path / "x.vblora")


def test_factors_that_peft_loses_are_set(tmp_path):
    adapter = adapter_of({NAME: (16, 16)})
    result = loaded(tmp_path, adapter)
    layer = result.base_model.model.get_submodule(NAME)
    torch.nn.init.zeros_(layer.lora_B["default"].weight)
    require_lora_loaded(result, adapter, "default")
    _, b = adapter.factors(NAME)
    np.testing.assert_array_equal(layer.lora_B["default"].weight.detach().numpy(), b)


def test_a_layer_that_is_not_in_the_adapter_is_refused(tmp_path):
    whole = adapter_of({NAME: (16, 16), "vit.layers.1.mlp.fc1": (32, 16)})
    result = loaded(tmp_path, whole)
    with pytest.raises(errors.TargetError, match="layers.1.mlp.fc1.*does not have"):
        require_lora_loaded(result, adapter_of({NAME: (16, 16)}), "default")


def test_a_layer_that_is_missing_is_refused(tmp_path):
    result = loaded(tmp_path, adapter_of({NAME: (16, 16)}))
    other = adapter_of({"vit.layers.1.mlp.fc1": (32, 16)})
    with pytest.raises(
        errors.TargetError, match="has not loaded the adapter's values.*no LoRA layer"
    ):
        require_lora_loaded(result, other, "default")


def test_a_head_with_different_values_is_refused(tmp_path):
    head = {
        "classifier.weight": tensor_of(np.ones((3, 16))),
        "classifier.bias": tensor_of(np.zeros(3)),
    }
    adapter = adapter_of({NAME: (16, 16)}, tensors=head)
    result = loaded(tmp_path, adapter)
    require_lora_loaded(result, adapter, "default")
    wrapped = result.base_model.model.classifier.modules_to_save["default"]
    torch.nn.init.zeros_(wrapped.weight)
    with pytest.raises(errors.TargetError, match=r"classifier\.weight: found other values"):
        require_lora_loaded(result, adapter, "default")


def test_what_peft_refuses_is_one_clear_error(tmp_path):
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=40)
    mamba = transformers.MambaForCausalLM(config)
    name = "backbone.layers.0.mixer.out_proj"
    shape = tuple(mamba.get_submodule(name).weight.shape)
    save(adapter_of({name: shape}), tmp_path / "x.vblora")
    with pytest.raises(errors.TargetError, match="PEFT refuses the adapter.*form='vblora'"):
        load_adapter(mamba, tmp_path / "x.vblora")


def test_vb_lora_layers_of_peft_are_compared_too(tmp_path):
    names = NAME, "vit.layers.1.attention.q_proj"
    adapter = adapter_of(dict.fromkeys(names, (16, 16)))
    save(adapter, tmp_path / "x.vblora")
    result = load_adapter(model(), tmp_path / "x.vblora", form="vblora")
    layer = result.base_model.model.get_submodule(NAME)
    torch.nn.init.normal_(layer.vblora_logits_A["default"])
    with pytest.raises(errors.TargetError, match="q_proj.*another ΔW"):
        require_vblora_loaded(result, adapter, "default")


def test_vb_lora_layers_that_are_not_in_the_adapter_are_refused(tmp_path):
    adapter = adapter_of({NAME: (16, 16)}, config='{"target_modules":["q_proj"]}')
    save(adapter, tmp_path / "x.vblora")
    with pytest.raises(errors.TargetError, match=r"layers\.1.*the adapter does not have"):
        load_adapter(model(), tmp_path / "x.vblora", form="vblora")


def test_vb_lora_layers_that_are_missing_are_refused(tmp_path):
    adapter = adapter_of({NAME: (16, 16)}, config='{"target_modules":["0.attention.q_proj"]}')
    save(adapter, tmp_path / "x")
    result = load_adapter(model(), tmp_path / "x", form="vblora")
    other = adapter_of({"vit.layers.1.mlp.fc1": (32, 16)})
    with pytest.raises(errors.TargetError, match=r"layers\.1\.mlp\.fc1: found no VB-LoRA layer"):
        require_vblora_loaded(result, other, "default")


def test_a_layer_with_a_different_scale_is_refused(tmp_path):
    adapter = adapter_of({NAME: (16, 16)})
    result = loaded(tmp_path, adapter)
    result.base_model.model.get_submodule(NAME).scaling["default"] = 2.0
    with pytest.raises(errors.TargetError, match=r"found a LoRA layer of shape \(2, 16\)"):
        require_lora_loaded(result, adapter, "default")


def test_a_layer_without_effect_is_accepted(tmp_path):
    other = "vit.layers.1.mlp.fc1"
    result = loaded(tmp_path, adapter_of({NAME: (16, 16), other: (32, 16)}))
    torch.nn.init.zeros_(result.base_model.model.get_submodule(other).lora_B["default"].weight)
    require_lora_loaded(result, adapter_of({NAME: (16, 16)}), "default")


@pytest.mark.parametrize(
    ("name", "found"), [("no.such.weight", "no such tensor"), ("classifier.bias", r"\(3,\)")]
)
def test_a_trained_tensor_that_does_not_match_the_model_is_refused(tmp_path, name, found):
    adapter = adapter_of({NAME: (16, 16)})
    result = loaded(tmp_path, adapter)
    trained = adapter_of({NAME: (16, 16)}, tensors={name: tensor_of(np.ones(4))})
    with pytest.raises(errors.TargetError, match=f"{name}: found {found}"):
        require_lora_loaded(result, trained, "default")


@pytest.mark.parametrize("form", ["lora", "vblora"])
@pytest.mark.parametrize(("scale", "what"), [(1e6, "too large"), (1e-9, "too small")])
def test_a_head_that_the_models_dtype_cannot_represent_is_refused(tmp_path, form, scale, what):
    """Earlier, small values became zeros without an error."""
    head = {
        "classifier.weight": tensor_of(np.full((3, 16), scale)),
        "classifier.bias": tensor_of(np.zeros(3)),
    }
    save(adapter_of({NAME: (16, 16)}, tensors=head), tmp_path / "x.vblora")
    with pytest.raises(
        errors.TargetError, match=rf"{what} for float16 in .*x\.vblora: classifier.* in bfloat16"
    ):
        load_adapter(model().half(), tmp_path / "x.vblora", form=form)
    loaded = load_adapter(model().bfloat16(), tmp_path / "x.vblora", form=form)
    found = loaded.base_model.model.classifier.modules_to_save["default"].weight
    assert found.float().numpy() == pytest.approx(scale, rel=0.01)
