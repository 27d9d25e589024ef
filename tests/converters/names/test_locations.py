"""The location of an adapter's weights in the files of bases that transformers renames."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("transformers.conversion_mapping")

from tests.architectures import model_types  # noqa: E402
from tests.converters.merge.folders import adapter_of, tensor_of  # noqa: E402
from vbfmt import errors  # noqa: E402
from vbfmt.converters import merge  # noqa: E402
from vbfmt.converters.names import plain  # noqa: E402

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TEXT = {**SIZES, "vocab_size": 40, "num_key_value_heads": 2, "head_dim": 4}
VIT = {**SIZES, "image_size": 8, "patch_size": 4, "num_labels": 3}


def mixtral():
    return transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TEXT, num_local_experts=3, num_experts_per_tok=2)
    )


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**VIT))


def llava():
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**TEXT),
            vision_config=transformers.CLIPVisionConfig(**SIZES, image_size=8, patch_size=4),
            image_token_index=5,
        )
    )


def nomic():
    return transformers.NomicBertModel(transformers.NomicBertConfig(**SIZES, vocab_size=40))


def gte():
    return transformers.GteModel(transformers.GteConfig(**SIZES, vocab_size=40))


def made(make):
    """Return the model. Skip the test if transformers has no such class."""
    try:
        return make()
    except AttributeError as error:
        pytest.skip(str(error))


def saved(model, folder, **options):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder, **options)
    return type(model)


def merged(cls, folder, adapter, tmp_path):
    """Return the state dicts of the merged model, loaded by transformers, and of the base."""
    merge.write(merge.plan(adapter, folder), tmp_path / "out")
    return tuple(
        {name: tensor.numpy() for name, tensor in cls.from_pretrained(path).state_dict().items()}
        for path in (tmp_path / "out", folder)
    )


def check(found, before, expected):
    """Check that exactly the expected tensors have changed, and that their values are correct."""
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, expected.get(name, before[name]), atol=1e-6)
    assert expected.keys() <= found.keys()


@pytest.mark.parametrize(
    ("names", "version"),
    [
        (("vit.layers.0.attention.q_proj", "vit.layers.1.mlp.fc1"), 5),
        (
            (
                "vit.encoder.layer.0.attention.attention.query",
                "vit.encoder.layer.1.intermediate.dense",
            ),
            4,
        ),
    ],
    ids=["names of version 5", "names of version 4"],
)
def test_names_of_both_versions_of_transformers(tmp_path, names, version):
    cls = saved(vit(), tmp_path / "base")
    adapter = adapter_of({names[0]: (16, 16), names[1]: (32, 16)})
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    running = ("vit.layers.0.attention.q_proj.weight", "vit.layers.1.mlp.fc1.weight")
    check(
        found,
        before,
        {run: before[run] + adapter.delta(name) for run, name in zip(running, names, strict=True)},
    )


def test_a_language_model_within_a_multimodal_model(tmp_path):
    cls = saved(llava(), tmp_path / "base")
    for index, name in enumerate(
        (
            "model.language_model.layers.0.self_attn.q_proj",
            "language_model.model.layers.0.self_attn.q_proj",
        )
    ):
        adapter = adapter_of({name: (16, 16)})
        (tmp_path / str(index)).mkdir()
        found, before = merged(cls, tmp_path / "base", adapter, tmp_path / str(index))
        run = "model.language_model.layers.0.self_attn.q_proj.weight"
        check(found, before, {run: before[run] + adapter.delta(name)})


def test_a_trained_router_replaces_the_one_with_another_name(tmp_path):
    cls = saved(mixtral(), tmp_path / "base")
    router = tensor_of(np.full((3, 16), 0.5))
    name = "model.layers.0.self_attn.q_proj"
    adapter = adapter_of({name: (16, 16)}, tensors={"model.layers.1.mlp.gate.weight": router})
    plan = merge.plan(adapter, tmp_path / "base")
    assert plan.layout.replaced == ("model.layers.1.block_sparse_moe.gate.weight",)
    assert plan.layout.added == ()
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    check(
        found,
        before,
        {
            "model.layers.1.mlp.gate.weight": router.numpy(),
            f"{name}.weight": before[f"{name}.weight"] + adapter.delta(name),
        },
    )


@pytest.mark.parametrize("fused", [False, True], ids=["single experts", "fused experts"])
def test_an_adapter_of_single_experts_merges_into_both_forms_of_a_base(tmp_path, fused):
    cls = saved(mixtral(), tmp_path / "base", save_original_format=not fused)
    stem = "model.layers.1.block_sparse_moe.experts"
    names = {f"{stem}.2.w1": (32, 16), f"{stem}.0.w3": (32, 16), f"{stem}.2.w2": (16, 32)}
    adapter = adapter_of(names)
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    gate_up, down = (f"model.layers.1.mlp.experts.{leaf}" for leaf in ("gate_up_proj", "down_proj"))
    expected = {gate_up: before[gate_up].copy(), down: before[down].copy()}
    expected[gate_up][2, :32] += adapter.delta(f"{stem}.2.w1")
    expected[gate_up][0, 32:] += adapter.delta(f"{stem}.0.w3")
    expected[down][2] += adapter.delta(f"{stem}.2.w2")
    check(found, before, expected)


def test_fully_trained_experts_replace_single_experts(tmp_path):
    cls = saved(mixtral(), tmp_path / "base")
    name, experts = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.gate_up_proj"
    trained = tensor_of(np.random.default_rng(0).standard_normal((3, 64, 16)))
    adapter = adapter_of({name: (16, 16)}, tensors={experts: trained})
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    weight = f"{name}.weight"
    check(
        found,
        before,
        {experts: trained.numpy(), weight: before[weight] + adapter.delta(name)},
    )


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (nomic, {"self_attn.q_proj": (16, 16), "self_attn.v_proj": (16, 16)}),
        (gte, {"mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16), "self_attn.k_proj": (16, 16)}),
    ],
)
def test_modules_that_share_a_stored_tensor_change_only_their_rows(tmp_path, make, shapes):
    cls = saved(made(make), tmp_path / "base")
    adapter = adapter_of({f"layers.1.{name}": shape for name, shape in shapes.items()})
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    check(
        found,
        before,
        {
            f"{module.name}.weight": before[f"{module.name}.weight"] + adapter.delta(module.name)
            for module in adapter
        },
    )


def test_a_part_of_a_shared_tensor_with_a_different_shape_is_refused(tmp_path):
    saved(made(nomic), tmp_path / "base")
    adapter = adapter_of({"layers.0.self_attn.q_proj": (16, 32)})
    with pytest.raises(errors.SourceError, match=r"no weight for layers\.0\.self_attn\.q_proj"):
        merge.plan(adapter, tmp_path / "base")


@pytest.mark.parametrize(
    ("trained", "fits"),
    [(np.full((16, 16), 0.5), True), (np.zeros((16, 32)), False)],
)
def test_a_trained_part_of_a_shared_tensor_replaces_its_rows(tmp_path, trained, fits):
    cls = saved(made(nomic), tmp_path / "base")
    name = "layers.1.self_attn.k_proj.weight"
    adapter = adapter_of({"layers.0.mlp.up_proj": (32, 16)}, tensors={name: tensor_of(trained)})
    if not fits:
        with pytest.raises(errors.SourceError, match="a trained tensor does not fit the base"):
            merge.plan(adapter, tmp_path / "base")
        return
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    up = "layers.0.mlp.up_proj"
    check(
        found, before, {name: trained, f"{up}.weight": before[f"{up}.weight"] + adapter.delta(up)}
    )


def test_names_without_the_prefix_of_the_model_that_was_saved(tmp_path):
    cls = saved(vit(), tmp_path / "base")
    adapter = adapter_of({"layers.0.attention.q_proj": (16, 16), "layers.1.mlp.fc1": (32, 16)})
    found, before = merged(cls, tmp_path / "base", adapter, tmp_path)
    check(
        found,
        before,
        {
            f"vit.{module.name}.weight": before[f"vit.{module.name}.weight"]
            + adapter.delta(module.name)
            for module in adapter
        },
    )


def test_a_weight_that_is_missing_in_the_files_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(mixtral(), tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    name = "model.layers.1.self_attn.k_proj"
    kept = {key: value for key, value in load_file(file).items() if not key.startswith(name)}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(errors.SourceError, match=f"no weight for {name} in Mixtral"):
        merge.plan(adapter_of({name: (8, 16)}), tmp_path / "base")


def test_a_head_that_is_tied_to_the_embedding_is_not_merged(tmp_path):
    model = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**TEXT, num_local_experts=3, tie_word_embeddings=True)
    )
    saved(model, tmp_path / "base", save_original_format=False)
    expert = {"model.layers.1.block_sparse_moe.experts.0.w1": (32, 16)}
    for others in ({}, expert):
        with pytest.raises(
            errors.SourceError, match=r"tied.*lm_head: .*model\.embed_tokens\.weight"
        ):
            merge.plan(adapter_of({"lm_head": (40, 16), **others}), tmp_path / "base")


def test_a_tensor_that_transformers_would_rename_is_not_added():
    from types import SimpleNamespace

    from vbfmt.converters.names import locations

    known = SimpleNamespace(
        renamed=lambda names: {name: (f"new.{name}", None) for name in names}, shapes={"x": (1,)}
    )
    assert locations._name_on_disk(known, "unknown") == "unknown"
    with pytest.raises(errors.SourceError, match=r"would rename it: x: found new\.x"):
        locations._name_on_disk(known, "x")


def test_a_shape_of_another_model_is_refused(tmp_path):
    saved(mixtral(), tmp_path / "base")
    adapter = adapter_of({"model.layers.0.self_attn.q_proj": (16, 32)})
    with pytest.raises(errors.SourceError, match="does not fit the base"):
        merge.plan(adapter, tmp_path / "base")
    with pytest.raises(errors.SourceError, match="no weight for model.layers.0.mlp.x"):
        merge.plan(adapter_of({"model.layers.0.mlp.x": (16, 16)}), tmp_path / "base")


def test_without_transformers_nothing_is_added_to_a_model_that_it_renames(tmp_path, monkeypatch):
    from vbfmt.converters.names import loaded_model

    saved(mixtral(), tmp_path / "base")
    monkeypatch.setattr(loaded_model, "build", lambda *_: None)
    monkeypatch.setattr(loaded_model, "is_installed", lambda: False)
    adapter = adapter_of({"model.layers.0.self_attn.q_proj": (16, 16)})
    plan = merge.plan(adapter, tmp_path / "base")
    assert any("is not installed" in notice for notice in plan.notices)
    router = {"model.layers.1.mlp.gate.weight": tensor_of(np.zeros((3, 16)))}
    with pytest.raises(errors.SourceError, match="pip install 'vbfmt"):
        merge.plan(dataclasses.replace(adapter, tensors=router), tmp_path / "base")


def test_the_table_of_types_is_that_of_the_installed_transformers():
    shipped = plain._table()
    now = model_types.table_of_installed()
    wrong = [kind for kind in now["renamed"] if kind in shipped["plain"]]
    assert not wrong
    assert {"llama", "gpt2", "bert", "t5"} <= shipped["plain"]
    assert {"mixtral", "vit", "llava"} <= shipped["renamed"]


@pytest.mark.parametrize(
    ("config", "names", "kind"),
    [
        ({"model_type": "llama"}, ["model.norm.weight"], "plain"),
        ({"model_type": "bert"}, ["bert.embeddings.LayerNorm.gamma"], "renamed"),
        ({"model_type": "llama", "x": {"model_type": "vit"}}, [], "renamed"),
        ({"model_type": "somebodys"}, [], None),
        ({"model_type": "llama", "x": {"model_type": "somebodys"}}, [], None),
        ({}, [], None),
    ],
)
def test_the_kind_of_a_model_is_found_from_its_config_and_names(config, names, kind):
    assert plain.kind_of(config, names) == kind


def test_the_selected_one_of_two_equal_towers_is_merged(tmp_path):
    config = transformers.CLIPConfig(
        text_config={**SIZES, "vocab_size": 40},
        vision_config={**SIZES, "image_size": 8, "patch_size": 4},
    )
    cls = saved(transformers.CLIPModel(config), tmp_path / "base")
    name = "layers.0.self_attn.q_proj"
    adapter = adapter_of({name: (16, 16)})
    with pytest.raises(errors.SourceError, match=r"match several parts.*choose one"):
        merge.plan(adapter, tmp_path / "base")
    for tower in ("text_model.encoder", "vision_model.encoder."):
        merge.write(merge.plan(adapter, tmp_path / "base", part=tower), tmp_path / tower)
        after, before = (
            {n: t.numpy() for n, t in cls.from_pretrained(path).state_dict().items()}
            for path in (tmp_path / tower, tmp_path / "base")
        )
        run = f"{tower.removesuffix('.')}.{name}.weight"
        check(after, before, {run: before[run] + adapter.delta(name)})
