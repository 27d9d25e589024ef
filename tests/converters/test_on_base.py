"""A LoRA folder for a base at hand: PEFT loads it right there, or it is refused."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers", minversion="5")
torch = pytest.importorskip("torch")

import vbfmt  # noqa: E402
from tests.architectures import tiny  # noqa: E402
from tests.converters.merge.folders import adapter_of  # noqa: E402
from vbfmt.errors import TargetError, VbfmtWarning  # noqa: E402

SHARED = "model.layers.1.mlp.shared_experts.down_proj"
"""transformers' renaming ``mlp.shared_expert.`` matches this name of the loaded model, too."""


def saved(cls, folder):
    model = cls(tiny.config(cls.config_class))
    for parameter in model.parameters():
        if parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return cls.from_pretrained(folder)


def shaped(model, *names):
    return adapter_of({name: tuple(model.get_submodule(name).weight.shape) for name in names})


def merged_by_peft(model, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, folder).merge_and_unload().state_dict()


def test_layers_that_peft_would_lose_have_the_names_of_the_files(tmp_path):
    model = saved(transformers.LagunaForCausalLM, tmp_path / "base")
    names = SHARED, "model.layers.1.self_attn.q_proj"
    adapter = shaped(model, *names)
    expected = {
        name: model.state_dict()[f"{name}.weight"].numpy() + adapter.delta(name) for name in names
    }
    with pytest.warns(VbfmtWarning, match="keys of 1 modules have their names in the base's files"):
        vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    found = merged_by_peft(model, tmp_path / "lora")
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[f"{name}.weight"], tensor, atol=1e-6)


def test_names_of_transformers_4_become_the_loaded_models(tmp_path):
    model = saved(transformers.ViTForImageClassification, tmp_path / "base")
    old = "vit.encoder.layer.0.attention.attention.query"
    new = "vit.layers.0.attention.q_proj"
    adapter = adapter_of({old: tuple(model.get_submodule(new).weight.shape)})
    expected = model.state_dict()[f"{new}.weight"].numpy() + adapter.delta(old)
    vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    found = merged_by_peft(model, tmp_path / "lora")
    np.testing.assert_allclose(found[f"{new}.weight"], expected, atol=1e-6)


def test_what_peft_refuses_is_refused_before_anything_is_written(tmp_path):
    model = saved(transformers.MambaForCausalLM, tmp_path / "base")
    adapter = shaped(model, "backbone.layers.0.mixer.out_proj")
    with pytest.raises(TargetError, match="PEFT refuses this LoRA on this base.*out_proj"):
        vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    assert not (tmp_path / "lora").exists()


def test_another_base_is_refused(tmp_path):
    saved(transformers.LlamaForCausalLM, tmp_path / "base")
    adapter = adapter_of({SHARED: (64, 64)})
    with pytest.raises(TargetError, match="the base does not fit the adapter.*is it the right"):
        vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    assert not (tmp_path / "lora").exists()


def test_a_base_that_transformers_does_not_know_is_told(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "own"}))
    adapter = adapter_of({"layers.0.q": (64, 64)})
    with pytest.warns(VbfmtWarning, match="was not checked: transformers cannot build this base"):
        vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    assert (tmp_path / "lora" / "adapter_config.json").exists()
