"""Weights that a base's files hold twice: which copy transformers loads, and what a merge does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.converters.merge.folders import adapter_of, save_base, tensor_of, weights_of
from tests.tensor_files import write_tensors
from vbfmt import errors
from vbfmt.converters import merge
from vbfmt.converters.names import copies

UNKNOWN = {"model_type": "somebodys"}
QUERY = "layers.0.self_attn.q_proj"


def refused(adapter, base, *words):
    with pytest.raises(errors.SourceError, match="may hold a weight twice") as caught:
        merge.plan(adapter, base)
    for word in (*words, "save it with save_pretrained"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        ("model.layers.0.a.weight", "layers.0.a.weight"),
        ("layers.0.a.weight", "base_model.layers.0.a.weight"),
        ("0.q_proj.weight", "0.qkv_proj.weight"),
        ("0.qkv_proj.weight", "0.q_proj.weight"),
        ("0.attn.Wqkv.weight", "0.attn.v_proj.weight"),
        ("0.query_key_value.bias", "0.key.bias"),
        ("0.q_proj.weight", "0.in_proj_weight"),
        ("q_proj.weight", "qkv_proj.weight"),
        ("0.mlp.gate_up_proj.weight", "0.mlp.gate_proj.weight"),
        ("0.mlp.up_proj.weight", "0.mlp.gate_up_proj.weight"),
        ("0.experts.1.w1.weight", "0.experts.gate_up_proj"),
        ("0.experts.down_proj", "0.experts.0.down_proj.weight"),
        ("experts.0.up.weight", "experts.up"),
        ("0.conv.weight", "0.conv.weight_g"),
        ("0.conv.weight", "0.conv.weight_v"),
        ("0.conv.weight", "0.conv.parametrizations.weight.original0"),
        ("0.conv.weight", "0.conv.parametrizations.weight.original1"),
        ("0.norm.weight", "0.norm.gamma"),
        ("0.norm.bias", "0.norm.beta"),
    ],
)
def test_pairs_of_names_for_one_weight(changed, other):
    disk = {changed: (3, 4, 4), other: (3, 4, 4), "unrelated.weight": (4, 4)}
    assert list(copies._alike([changed], disk)) == [copies._Pair(changed, other)]


@pytest.mark.parametrize(
    ("changed", "other"),
    [
        ("model.layers.0.a.weight", "model.layers.1.a.weight"),
        ("text.layers.0.a.weight", "vision.layers.0.a.weight"),
        ("model.layers.0.a.weight", "xlayers.0.a.weight"),
        ("0.q_proj.weight", "1.qkv_proj.weight"),
        ("0.q_proj.weight", "0.qkv_proj.bias"),
        ("0.c_attn.weight", "0.q_attn.weight"),
        ("0.q_proj.weight", "0.kv_proj.weight"),
        ("0.experts.1.w1.weight", "1.experts.gate_up_proj"),
        ("0.experts.1.w1.weight", "0.experts.bias"),
        ("0.experts.1.w1.weight", "0.shared_experts.w1.weight"),
        ("0.weight", "0.weight_scale"),
    ],
)
def test_pairs_of_names_for_different_weights(changed, other):
    disk = {changed: (4, 4), other: (4, 4)}
    assert not list(copies._alike([changed], disk))


def test_hostile_names_take_little_time():
    """Names may have 500 components, so their suffixes must not be copied."""
    import time

    disk = {f"{number}." + "a." * 500 + "weight": (1,) for number in range(20_000)}
    begin = time.process_time()
    assert not list(copies._alike(["b.weight"], disk))
    assert time.process_time() - begin < 10


def test_two_copies_in_a_base_of_unknown_type_are_refused(tmp_path):
    name = "model.layers.0.q_proj"
    tensors = weights_of({name: (16, 24), "model.layers.0.qkv_proj": (48, 24)})
    base = save_base(tmp_path / "base", tensors, config=UNKNOWN)
    refused(adapter_of({name: (16, 24)}), base, f"{name}.weight", "qkv_proj.weight, too")


def test_copies_of_other_weights_are_accepted(tmp_path):
    name = "model.layers.0.o_proj"
    shapes = {name: (16, 24), "model.layers.0.q_proj": (16, 24)}
    tensors = weights_of({**shapes, "model.layers.0.qkv_proj": (48, 24)})
    base = save_base(tmp_path / "base", tensors, config=UNKNOWN)
    assert merge.plan(adapter_of({name: (16, 24)}), base).layout.applied == 1


def test_a_trained_head_for_which_the_base_has_another_name(tmp_path):
    """transformers loads ``bert.classifier`` as ``classifier``, in preference to the trained
    one."""
    tensors = weights_of({"bert.layer.0.q": (16, 24), "bert.classifier": (3, 24)})
    base = save_base(tmp_path / "base", tensors, config=UNKNOWN)
    head = {"classifier.weight": tensor_of(np.ones((3, 24)))}
    refused(adapter_of({"bert.layer.0.q": (16, 24)}, tensors=head), base, "bert.classifier")


def test_a_config_that_names_another_weights_file(tmp_path):
    """transformers 5 loads what `transformers_weights` names."""
    config = {"model_type": "llama", "transformers_weights": "other.safetensors"}
    base = save_base(tmp_path / "base", weights_of(), config=config)
    with pytest.raises(errors.SourceError, match=r"transformers_weights: found other\.safet"):
        merge.plan(adapter_of(), base)
    (base / "config.json").write_text(
        json.dumps({**config, "transformers_weights": "model.safetensors"})
    )
    assert merge.plan(adapter_of(), base).layout.applied == 4


def test_a_file_of_the_same_tensors_is_not_copied(tmp_path):
    """vLLM loads all safetensors files of a folder without an index."""
    base = save_base(tmp_path / "base", weights_of())
    write_tensors(base / "ema.safetensors", weights_of(seed=2))
    write_tensors(base / "voices.safetensors", {"voice": tensor_of(np.ones(3))})
    (base / "broken.safetensors").write_bytes(b"x")
    (base / "2_Dense").mkdir()
    write_tensors(base / "2_Dense" / "model.safetensors", weights_of())
    found = merge.base.read(base)
    assert found.left_out == ("ema.safetensors",)
    assert {"voices.safetensors", "broken.safetensors"} <= set(found.side_files)
    assert "2_Dense/model.safetensors" in found.side_files


torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.conversion_mapping")

from tests.converters.names.test_locations import (  # noqa: E402
    SIZES,
    TEXT,
    gte,
    made,
    mixtral,
    nomic,
    saved,
)

SEVENS = 7.0


def with_copies(make, folder, others):
    """Return a saved model with more tensors, all filled with 7. `others` gives name → shape."""
    from safetensors.torch import load_file, save_file

    cls = saved(made(make), folder)
    file = folder / "model.safetensors"
    more = {name: torch.full(shape, SEVENS) for name, shape in others.items()}
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file({**tensors, **more}, file, {"format": "pt"})
    return cls


def loads(cls, folder, name):
    """Return what transformers loads: ``copy``, ``own``, or ``raises`` for an error."""
    try:
        loaded = cls.from_pretrained(folder).state_dict()[name]
    except RuntimeError:  # issues during automatic conversion of the weights
        return "raises"
    return "copy" if (loaded == SEVENS).any() else "own"


def llama():
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT))


def phi3():
    sizes = {key: value for key, value in TEXT.items() if key != "head_dim"}
    return transformers.Phi3ForCausalLM(transformers.Phi3Config(**sizes, pad_token_id=0))


def bert():
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(**SIZES, vocab_size=40, num_labels=3)
    )


NORM = "bert.encoder.layer.0.output.LayerNorm.weight"
FUSED = "model.layers.0.mlp.experts.gate_up_proj"
SINGLE = "model.layers.0.block_sparse_moe.experts.0.w1"


@pytest.mark.parametrize(
    ("make", "weight", "others", "loaded", "modules"),
    [
        (llama, f"model.{QUERY}.weight", {f"{QUERY}.weight": (16, 16)}, "copy",
         {f"model.{QUERY}": (16, 16)}),
        (nomic, f"{QUERY}.weight", {f"{QUERY}.weight": (16, 16)}, "raises", {QUERY: (16, 16)}),
        (gte, "layers.0.mlp.gate_proj.weight", {"layers.0.mlp.gate_proj.weight": (32, 16)},
         "copy", {"layers.0.mlp.gate_proj": (32, 16)}),
        (mixtral, FUSED, {FUSED: (3, 64, 16)}, "own", {SINGLE: (32, 16)}),
        (mixtral, FUSED, {SINGLE.replace("block_sparse_moe", "mlp") + ".weight": (32, 16)},
         "raises", {SINGLE: (32, 16)}),
    ],
    ids=["two prefixes", "fused and split", "gate and up", "experts", "one expert twice"],
)  # fmt: skip
def test_two_copies_of_a_weight(tmp_path, make, weight, others, loaded, modules):
    cls = with_copies(make, tmp_path / "base", others)
    assert loads(cls, tmp_path / "base", weight) == loaded
    refused(adapter_of(modules), tmp_path / "base")


def test_a_norm_with_two_names(tmp_path):
    old = NORM.replace("weight", "gamma")
    cls = with_copies(bert, tmp_path / "base", {old: (16,)})
    assert loads(cls, tmp_path / "base", NORM) == "copy"
    name = "bert.encoder.layer.0.output.dense"
    adapter = adapter_of({name: (16, 32)}, tensors={NORM: tensor_of(np.ones(16))})
    refused(adapter, tmp_path / "base", old)


def test_a_head_under_two_prefixes(tmp_path):
    cls = with_copies(bert, tmp_path / "base", {"bert.classifier.weight": (3, 16)})
    assert loads(cls, tmp_path / "base", "classifier.weight") == "copy"
    name = "bert.encoder.layer.0.output.dense"
    head = {"classifier.weight": tensor_of(np.ones((3, 16)))}
    refused(adapter_of({name: (16, 32)}, tensors=head), tmp_path / "base", "bert.classifier")


@pytest.mark.parametrize(
    ("make", "own", "others"),
    [
        (llama, "q_proj", {"qkv_proj": (32, 16)}),
        (phi3, "qkv_proj", {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16)}),
    ],
)
def test_the_loaded_copy_is_changed_and_the_other_is_reported(tmp_path, make, own, others):
    stem = "model.layers.0.self_attn"
    more = {f"{stem}.{leaf}.weight": shape for leaf, shape in others.items()}
    cls = with_copies(make, tmp_path / "base", more)
    name, other = f"{stem}.{own}", f"{stem}.{next(iter(others))}"
    before = cls.from_pretrained(tmp_path / "base").state_dict()
    shape = tuple(before[f"{name}.weight"].shape)
    adapter = adapter_of({name: shape})
    plan = merge.plan(adapter, tmp_path / "base")
    assert any("does not load" in notice and other in notice for notice in plan.notices)
    merge.write(plan, tmp_path / "out")
    after = cls.from_pretrained(tmp_path / "out").state_dict()
    expected = before[f"{name}.weight"].numpy() + adapter.delta(name)
    np.testing.assert_allclose(after[f"{name}.weight"].numpy(), expected, atol=1e-6)
    refused(adapter_of({other: next(iter(others.values()))}), tmp_path / "base", own)


def test_two_copies_are_refused_without_transformers(tmp_path, monkeypatch):
    from vbfmt.converters.names import loaded_model

    monkeypatch.setattr(loaded_model, "build", lambda *_: None)
    with_copies(llama, tmp_path / "base", {f"model.{QUERY.replace('q_', 'qkv_')}.weight": (32, 16)})
    refused(adapter_of({f"model.{QUERY}": (16, 16)}), tmp_path / "base", "qkv_proj")


def test_transformers_saves_one_copy_of_each_weight(tmp_path):
    with_copies(llama, tmp_path / "base", {f"{QUERY}.weight": (16, 16)})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "again")
    adapter = adapter_of({f"model.{QUERY}": (16, 16)})
    assert merge.plan(adapter, tmp_path / "again").layout.applied == 1
