"""The names and shapes of the model that transformers loads."""

from __future__ import annotations

import sys

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.conversion_mapping")

from tests.converters.names.test_locations import TEXT, made, nomic, vit  # noqa: E402
from vbfmt.converters.names import loaded_model  # noqa: E402

QKV = "encoder.layers.0.attn.Wqkv.weight"
PARTS = [f"layers.0.self_attn.{letter}_proj.weight" for letter in "qkv"]


def on_disk(disk):
    with torch.device("meta"):
        return loaded_model._described(made(nomic), disk)


def test_the_rows_of_a_shared_tensor_have_the_numbers_of_its_elements():
    known = on_disk({QKV: (48, 16)})
    whole = torch.arange(48 * 16).reshape(48, 16).numpy()
    for part, rows in zip(PARTS, (whole[:16], whole[16:32], whole[32:]), strict=True):
        assert known.indices(part).tolist() == rows.tolist()


def test_a_shared_tensor_with_a_different_size_is_an_error():
    known = on_disk({QKV: (96, 16)})
    with pytest.raises(ValueError, match=f"{PARTS[0]} is not made of {QKV}"):
        known.indices(PARTS[0])


def test_a_part_that_is_stored_twice_is_read_once():
    sources = on_disk({QKV: (48, 16), PARTS[0]: (16, 16)}).sources
    assert sources[PARTS[0]].names == (QKV,)


def test_a_name_of_the_loaded_model_is_not_renamed():
    known = on_disk({})
    assert known.renamed(PARTS) == {part: (part, None) for part in PARTS}


def test_each_earlier_name_is_found_once():
    known = loaded_model.of_model(vit())
    name = "vit.layers.0.attention.q_proj.lora_A.weight"
    found = list(known.earlier(name))
    assert len(set(found)) == len(found)
    assert name not in found
    renamed = known.renamed(found)
    assert name in {target for target, _ in renamed.values()}


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "large"},
        {"model_type": "llama", "architectures": ["LlamaConfig"]},
        {"model_type": "somebodys", "architectures": ["LlamaForCausalLM"]},
        {"model_type": "llama"},
        {},
    ],
)
def test_a_config_that_transformers_cannot_build_gives_no_model(config):
    assert loaded_model.build(config, {}) is None


def test_infinity_and_nan_are_read_as_transformers_writes_them():
    config = {"a": [{"__float__": "Infinity"}], "b": {"c": 1}}
    assert loaded_model._decoded(config) == {"a": [float("inf")], "b": {"c": 1}}


def test_a_module_that_is_not_a_model_has_no_names():
    assert loaded_model.of_model(object()) is None


def test_transformers_without_a_table_of_renamings(monkeypatch):
    config = transformers.MixtralConfig(**TEXT, num_local_experts=3)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    assert loaded_model.is_installed()
    assert loaded_model.has_experts(model) is True
    assert loaded_model.has_experts(torch.nn.Linear(1, 1)) is False
    monkeypatch.setitem(sys.modules, "transformers.conversion_mapping", None)
    assert not loaded_model.is_installed()
    assert loaded_model.has_experts(model) is None


def test_a_pattern_that_cannot_be_applied_leaves_the_name():
    class Renaming:
        def rename_source_key(self, name):
            raise IndexError("no such group")

    assert loaded_model._applied(Renaming(), "x") == "x"
