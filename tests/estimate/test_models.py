"""The presets, and configs from untrusted folders."""

from __future__ import annotations

import json

import pytest

from tests.conftest import warned
from vbfmt.errors import SourceError, StorageError
from vbfmt.estimate.architecture import linears
from vbfmt.estimate.models import PRESETS, from_folder
from vbfmt.estimate.shape import suggested_length

# Weights of all linear layers of all blocks, from the models' published sizes.
WEIGHTS = {
    "roberta-base": 12 * (4 * 768**2 + 2 * 768 * 3072),
    "roberta-large": 24 * (4 * 1024**2 + 2 * 1024 * 4096),
    "gpt2-medium": 24 * 12 * 1024**2,
    "gpt2-large": 36 * 12 * 1280**2,
    "llama-2-7b": 32 * (4 * 4096**2 + 3 * 4096 * 11008),
    "llama-2-13b": 40 * (4 * 5120**2 + 3 * 5120 * 13824),
    "mistral-7b": 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336),
    "gemma-7b": 28 * (4 * 3072 * 4096 + 3 * 3072 * 24576),
}
# Published parameters of the whole models (paper, Tables 1, 2 and 4; model cards).
WHOLE = {
    "roberta-base": (124.6e6, 50265, 768),
    "roberta-large": (355.4e6, 50265, 1024),
    "gpt2-medium": (354.8e6, 50257, 1024),
    "gpt2-large": (774.0e6, 50257, 1280),
    "llama-2-7b": (6738e6, 2 * 32000, 4096),
    "llama-2-13b": (13016e6, 2 * 32000, 5120),
    "mistral-7b": (7242e6, 2 * 32000, 4096),
    "gemma-7b": (8538e6, 256000, 3072),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_sizes(name):
    layers = linears(PRESETS[name])
    found = sum(layer.in_features * layer.out_features for layer in layers)
    assert found == WEIGHTS[name]
    whole, vocabulary, hidden = WHOLE[name]
    # The rest is embeddings, and less than 1 % of norms, biases, positions and poolers.
    assert found + vocabulary * hidden == pytest.approx(whole, rel=0.01)


@pytest.mark.parametrize("as_file", [True, False])
def test_a_folder_or_its_config(tmp_path, as_file):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(dict(PRESETS["gemma-7b"])))
    assert from_folder(config if as_file else tmp_path) == linears(PRESETS["gemma-7b"])


def test_other_kinds_are_built_by_transformers(tmp_path):
    pytest.importorskip("transformers")
    config = {
        "model_type": "mpnet",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 50,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = from_folder(tmp_path)
    assert [(x.leaf, x.in_features, x.out_features) for x in found[:6]] == [
        ("q", 64, 64),
        ("k", 64, 64),
        ("v", 64, 64),
        ("o", 64, 64),
        ("dense", 64, 96),
        ("dense", 96, 64),
    ]
    assert len(found) == 12


def test_without_transformers_the_known_model_types_are_listed(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vbfmt.estimate.meta", None)
    (tmp_path / "config.json").write_text('{"model_type": "mpnet"}')
    with pytest.raises(SourceError, match=r"expected one of bert, .*pip install 'vbfmt\[peft\]'"):
        from_folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"model_type": NaN}',
        "[" * 100_000,
        '{"model_type": "no such thing"}',
        '{"model_type": "mpnet", "num_hidden_layers": 1000000000}',
        '{"model_type": "mpnet", "hidden_size": "x"}',
        '{"model_type": "llama"}',
        "{}",
    ],
)
def test_nonsensical_configs_are_one_error_that_names_the_file(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SourceError, match=r"config\.json") as fault:
        from_folder(tmp_path)
    assert "\n" not in str(fault.value)


def test_code_beside_a_config_is_not_run(tmp_path):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError):
        from_folder(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_missing_folder_is_reported(tmp_path):
    with pytest.raises(StorageError):
        from_folder(tmp_path / "nothing")


def test_a_model_without_linear_layers(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="no linear layers in blocks"):
        from_folder(tmp_path)


MIXTURE = {
    "model_type": "qwen2_moe",
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 4,
    "vocab_size": 100,
}


def test_experts_that_are_not_counted_are_reported(tmp_path):
    """Earlier, they were left out silently, and a gate with one output gave b = 1."""
    pytest.importorskip("transformers", minversion="5")  # 4 has a layer per expert
    (tmp_path / "config.json").write_text(json.dumps(MIXTURE))
    with warned() as messages:
        found = from_folder(tmp_path)
    assert len(found) == 2 * 7
    assert suggested_length(found) == 32
    rest = 2 * (4 * 64 + 4 * 2 * 32 * 64 + 4 * 64 * 32 + 64)  # router, experts, gate
    assert messages == [
        f"not counted: {rest:,} parameters in blocks, in 8 matrices that are not linear layers "
        "or have one output (mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj, "
        "mlp.shared_expert_gate.weight)"
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma3", "text_config": {"num_hidden_layers": 10**8}},
        {"model_type": "swin", "depths": [2, 10**8]},
        {"model_type": "qwen2_moe", "num_experts": 10**8},
        {"model_type": "mpnet", "num_hidden_layers": 10**8},
    ],
)
@pytest.mark.timeout(20)
def test_huge_counts_in_nested_configs_are_refused(tmp_path, config):
    """Earlier, transformers started to build a hundred million layers."""
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="too many layers.*100000000"):
        from_folder(tmp_path)
