"""The folders that vbfmt writes, loaded by PEFT, give the outputs of the original."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

import numpy as np  # noqa: E402

from tests.converters import models  # noqa: E402
from vbfmt import digest, load, save  # noqa: E402
from vbfmt.converters import lora, peft  # noqa: E402

KINDS = list(models.ADAPTERS)


@pytest.fixture(scope="module", params=KINDS)
def original(request, tmp_path_factory):
    """Return a trained model's kind, folder, checkpoint and outputs."""
    models.require_biases_saved(models.ADAPTERS[request.param].get("bias"))
    folder = str(tmp_path_factory.mktemp(request.param))
    model = models.trained(request.param, folder)
    with torch.no_grad():
        with_adapter = models.outputs(model)
        with model.disable_adapter():
            without = models.outputs(model)
    assert (with_adapter - without).abs().max() > 0.01, "the adapter must matter"
    return request.param, folder, models.saved(model, folder), with_adapter, model


def outputs_of(kind, folder, adapter):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of missing and unexpected keys
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        model = models.loaded(kind, folder, adapter)
    with torch.no_grad():
        return models.outputs(model)


def test_expanded_lora_matches_the_original(original, tmp_path):
    kind, folder, checkpoint, expected, _ = original
    lora.write(peft.read(checkpoint), tmp_path / "lora")
    found = outputs_of(kind, folder, str(tmp_path / "lora"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_unpacked_vblora_matches_the_original(original, tmp_path):
    kind, folder, checkpoint, expected, _ = original
    peft.write(peft.read(checkpoint), tmp_path / "vblora")
    found = outputs_of(kind, folder, str(tmp_path / "vblora"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_from_a_packed_file_matches_the_original(original, tmp_path):
    kind, folder, checkpoint, expected, _ = original
    save(peft.read(checkpoint), tmp_path / "x.vblora")
    lora.write(load(tmp_path / "x.vblora"), tmp_path / "lora")
    found = outputs_of(kind, folder, str(tmp_path / "lora"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_delta_is_what_peft_would_merge(original):
    _, _, checkpoint, _, model = original
    adapter = peft.read(checkpoint)
    layers = {
        name.removeprefix("base_model.model."): layer
        for name, layer in model.named_modules()
        if hasattr(layer, "vblora_logits_A")
    }
    assert set(layers) == {module.name for module in adapter}
    for name, layer in layers.items():
        expected = layer.get_delta_weight("default").detach().numpy()
        np.testing.assert_allclose(adapter.delta(name), expected, atol=1e-6)
        assert adapter[name].in_features == layer.in_features
        assert adapter[name].out_features == layer.out_features


def test_pefts_topk_form_and_its_logits_pack_to_the_same_selection(original, tmp_path):
    _, folder, checkpoint, _, model = original
    from_logits = peft.read(checkpoint)
    from_topk = peft.read(models.saved(model, folder, only_topk=True))
    np.testing.assert_array_equal(from_topk.indices, from_logits.indices)
    np.testing.assert_allclose(from_topk.weights, from_logits.weights, atol=1e-6)
    assert dict(from_topk.tensors) == dict(from_logits.tensors)
    assert from_topk.config == from_logits.config


def test_dropping_extras_leaves_plain_lora(original, tmp_path):
    _, _, checkpoint, _, _ = original
    lora.write(peft.read(checkpoint), tmp_path / "lora", drop_extras=True)
    from safetensors.numpy import load_file

    keys = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)
    config = peft_config_of(tmp_path / "lora")
    assert (config["bias"], config["modules_to_save"]) == ("none", None)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_rounded_factors_give_similar_outputs(original, tmp_path, dtype, tolerance):
    kind, folder, checkpoint, expected, _ = original
    lora.write(peft.read(checkpoint), tmp_path / "lora", dtype=dtype)
    found = outputs_of(kind, folder, str(tmp_path / "lora"))
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_packing_unpacking_and_packing_again_gives_the_same_file(original, tmp_path):
    _, _, checkpoint, _, _ = original
    packed = peft.read(checkpoint)
    peft.write(packed, tmp_path / "again")
    assert digest(peft.read(tmp_path / "again")) == digest(packed)


def peft_config_of(folder):
    import json

    return json.loads((folder / "adapter_config.json").read_text())
