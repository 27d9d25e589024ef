"""LoRA folders for a given base: PEFT loads them correctly, or they are refused."""

from __future__ import annotations

import itertools
import json
import sys
import warnings

import numpy as np
import pytest

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers", minversion="5")
torch = pytest.importorskip("torch")

import vbfmt  # noqa: E402
from tests.architectures import tiny  # noqa: E402
from tests.converters.merge.folders import adapter_of  # noqa: E402
from vbfmt.converters.peft import on_base, renamed  # noqa: E402
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


def test_layers_that_peft_would_lose_get_the_names_in_the_base_files(tmp_path):
    model = saved(transformers.LagunaForCausalLM, tmp_path / "base")
    names = SHARED, "model.layers.1.self_attn.q_proj"
    adapter = shaped(model, *names)
    expected = {
        name: model.state_dict()[f"{name}.weight"].numpy() + adapter.delta(name) for name in names
    }
    with pytest.warns(
        VbfmtWarning, match="keys of 1 modules contain the names in the base's files"
    ):
        vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    found = merged_by_peft(model, tmp_path / "lora")
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[f"{name}.weight"], tensor, atol=1e-6)


def test_names_of_transformers_4_become_those_of_the_loaded_model(tmp_path):
    model = saved(transformers.ViTForImageClassification, tmp_path / "base")
    old = "vit.encoder.layer.0.attention.attention.query"
    new = "vit.layers.0.attention.q_proj"
    adapter = adapter_of({old: tuple(model.get_submodule(new).weight.shape)})
    expected = model.state_dict()[f"{new}.weight"].numpy() + adapter.delta(old)
    calls = []
    vbfmt.expand(
        adapter,
        tmp_path / "lora",
        base=tmp_path / "base",
        progress=lambda *given: calls.append(given),
    )
    assert calls == [(1, 1)]
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


def test_a_base_that_transformers_does_not_know_is_reported(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text(json.dumps({"model_type": "own"}))
    adapter = adapter_of({"layers.0.q": (64, 64)})
    with pytest.warns(VbfmtWarning, match="was not checked: transformers cannot build this base"):
        vbfmt.expand(adapter, tmp_path / "lora", base=tmp_path / "base")
    assert (tmp_path / "lora" / "adapter_config.json").exists()


QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def llama(tmp_path):
    """Return the folder of a base with two layers, and an adapter of one of its modules."""
    model = saved(transformers.LlamaForCausalLM, tmp_path / "base")
    return tmp_path / "base", shaped(model, QUERY)


def test_layers_that_peft_loses_under_every_name_are_refused(tmp_path, llama, monkeypatch):
    base, adapter = llama
    monkeypatch.setattr(on_base, "_lost", lambda _, names: list(names))
    with pytest.raises(TargetError, match=f"PEFT loses layers.*: {QUERY}: found 1 of 1 modules"):
        vbfmt.expand(adapter, tmp_path / "lora", base=base)
    assert not (tmp_path / "lora").exists()


def test_without_peft_the_names_of_the_adapter_are_kept(tmp_path, llama, monkeypatch):
    base, adapter = llama
    for name in [name for name in sys.modules if name.partition(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "peft", None)
    vbfmt.expand(adapter, tmp_path / "lora", base=base)
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    assert config["target_modules"] == [QUERY]


def test_a_config_with_which_peft_adapts_other_modules_is_refused(tmp_path, llama, monkeypatch):
    base, adapter = llama
    real = on_base.peft_config.for_lora
    monkeypatch.setattr(
        on_base.peft_config,
        "for_lora",
        lambda *args, **options: {**real(*args, **options), "target_modules": ["q_proj"]},
    )
    with pytest.raises(TargetError, match=r"layers\.1\.self_attn\.q_proj: found adapted"):
        vbfmt.expand(adapter, tmp_path / "lora", base=base)


class Renaming:
    """A base with these earlier names of its modules."""

    def __init__(self, **earlier):
        self._earlier = earlier

    def earlier(self, key):
        names = self._earlier.get(key.removesuffix(".lora_A.weight"), [])
        return (f"{name}.lora_A.weight" for name in names)


def found_under(names, accepted, **earlier):
    """Run the search with a fake PEFT that finds only these pairs of module and key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            on_base,
            "_lost",
            lambda _, keys: [name for name, key in keys.items() if (name, key) not in accepted],
        )
        lost = [name for name, key in names.items() if (name, key) not in accepted]
        return on_base._found_under_other_names(None, Renaming(**earlier), names, lost)


def test_earlier_names_are_tried_until_peft_finds_the_module():
    names = {"a": "a", "b": "b"}
    accepted = {("a", "old_a"), ("b", "b")}
    assert found_under(names, accepted, a=["b", "older_a", "old_a"]) == []
    assert names == {"a": "old_a", "b": "b"}  # "b" was used already


def test_a_module_that_peft_finds_under_no_name_keeps_its_name():
    names = {"a": "a", "b": "b"}
    assert found_under(names, {("b", "old_b")}, a=["old_a"], b=["x", "old_b"]) == ["a"]
    assert names == {"a": "a", "b": "old_b"}


def test_the_number_of_tried_names_is_limited():
    tried = (f"old_{number}" for number in itertools.count())
    assert found_under({"a": "a"}, set(), a=tried) == ["a"]
    assert next(tried) == f"old_{on_base._ROUNDS}"


def test_two_names_that_would_become_equal_are_not_changed():
    class Loaded:
        shapes = dict.fromkeys(["new.weight"], (4, 8))

        def renamed(self, names):
            return dict.fromkeys(names, ("new.weight", None))

    adapter = adapter_of({"old": (4, 8), "older": (4, 8)})
    assert renamed.renamed_in(adapter, Loaded()) is adapter
