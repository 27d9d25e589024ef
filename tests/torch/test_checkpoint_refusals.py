"""Checkpoints that do not match, are damaged or have diverged are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.torch.models import NET_TARGETS, config, gpt2, net, peft_model
from vbfmt.errors import (
    ConfigError,
    ContentError,
    ModelError,
    OutputExistsError,
    SourceError,
    StorageError,
)
from vbfmt.torch import (
    VectorBank,
    inject,
    load_checkpoint,
    load_packed,
    param_groups,
    save_checkpoint,
    save_packed,
)


@pytest.fixture
def saved(tmp_path):
    model = net()
    inject(model, config())
    save_checkpoint(model, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def changed(folder, change):
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)


A_OF_OUT = "base_model.model.out.vblora_logits_A"


def test_an_adapter_of_another_model(saved):
    other = gpt2()
    before = repr(other)
    with pytest.raises(ModelError, match=r"another model.*found encoder\.0, encoder\.1, out"):
        load_checkpoint(other, saved)
    assert repr(other) == before


def test_an_adapter_of_another_config(saved):
    model = net()
    inject(model, config(r=5))
    with pytest.raises(ModelError, match="shapes differ"):
        load_checkpoint(model, saved)
    inject(model, config(bias="all"), adapter_name="second")
    with pytest.raises(ModelError, match="some tensors are missing on one side"):
        load_checkpoint(model, saved, adapter_name="second")


def test_biases_that_an_older_peft_did_not_save_are_explained(tmp_path):
    """With PEFT 0.13 to 0.20, the config mentions biases that the file does not contain."""
    model = net()
    inject(model, config(bias="vblora_only"))
    save_checkpoint(model, tmp_path / "checkpoint")
    changed(
        tmp_path / "checkpoint",
        lambda tensors: [tensors.pop(key) for key in list(tensors) if key.endswith(".bias")],
    )
    with pytest.raises(
        ModelError, match=r"some tensors are missing on one side.*PEFT before 0\.21 does not save"
    ):
        load_checkpoint(net(), tmp_path / "checkpoint")


def test_logits_trained_with_a_different_k_are_refused(saved):
    """Every shape matches, but the outputs would differ."""
    model = net()
    inject(model, config(topk=3))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match=r"another k .*: topk: found 2, expected 3; eject it"):
        load_checkpoint(model, saved)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    load_checkpoint(model, saved, adapter_name="second")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors[A_OF_OUT].fill_(float("nan")),
        lambda tensors: tensors.pop("base_model.model.out.vblora_logits_B"),
        lambda tensors: tensors.update({A_OF_OUT: torch.zeros(3, 2, 16)}),
        lambda tensors: tensors.update({A_OF_OUT: tensors[A_OF_OUT].int()}),
        lambda tensors: tensors.update({"base_model.model.out.bias": torch.zeros(8)}),
    ],
)
def test_a_refused_checkpoint_changes_nothing(saved, change):
    changed(saved, change)
    model = net()
    before = repr(model)
    with pytest.raises((ContentError, ModelError)):
        load_checkpoint(model, saved)
    assert repr(model) == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    inject(model, config())
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises((ContentError, ModelError)):
        load_checkpoint(model, saved)
    assert all(torch.equal(model.state_dict()[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_logits_that_are_not_finite(saved, value):
    changed(saved, lambda tensors: tensors[A_OF_OUT].view(-1)[3].fill_(value))
    model = net()
    with pytest.raises(ContentError, match=rf"{A_OF_OUT}.*1 of 192"):
        load_checkpoint(model, saved)


def test_a_diverged_adapter_is_not_saved(tmp_path):
    model = net()
    inject(model, config())
    with torch.no_grad():
        model.out.updates["default"].logits[0, 0] = float("nan")
    with pytest.raises(ContentError, match="diverged"):
        save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(ContentError, match="out"):
        save_packed(model, tmp_path / "adapter.vblora")
    assert list(tmp_path.iterdir()) == []


def test_a_diverged_head_is_neither_saved_nor_loaded(tmp_path):
    model = net()
    inject(model, config(modules_to_save=["classifier"]))
    save_checkpoint(model, tmp_path / "checkpoint")
    with torch.no_grad():
        model.classifier.bias[1] = float("nan")
    with pytest.raises(ContentError, match=r"classifier\.bias: found 1 of 2; .*diverged"):
        save_checkpoint(model, tmp_path / "again")
    with pytest.raises(ContentError, match=r"classifier\.bias: found 1 of 2; .*diverged"):
        save_packed(model, tmp_path / "adapter.vblora")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    bias = "base_model.model.classifier.bias"
    changed(tmp_path / "checkpoint", lambda tensors: tensors[bias].fill_(float("nan")))
    with pytest.raises(ContentError, match=r"classifier\.bias: found 2 of 2"):
        load_checkpoint(net(), tmp_path / "checkpoint")


def test_a_mask_of_infinities_does_not_count_as_divergence(tmp_path):
    def made():
        model = net()
        model.classifier.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
        return model

    model = made()
    inject(model, config(modules_to_save=["classifier"]))
    save_checkpoint(model, tmp_path / "checkpoint")
    load_checkpoint(made(), tmp_path / "checkpoint")


def test_an_incomplete_checkpoint(saved):
    changed(saved, lambda tensors: tensors.pop("base_model.model.out.vblora_logits_B"))
    with pytest.raises(ModelError, match="out.vblora_logits_B"):
        load_checkpoint(net(), saved)


def test_peft_s_top_k_form_cannot_be_trained_further(tmp_path):
    model = peft_model(net(), NET_TARGETS, save_only_topk_weights=True)
    model.save_pretrained(str(tmp_path / "topk"))
    with pytest.raises(SourceError, match=r"top-k form.*warm_start"):
        load_checkpoint(net(), tmp_path / "topk")


def test_a_packed_file_cannot_be_trained_further(tmp_path):
    model = net()
    inject(model, config())
    save_packed(model, tmp_path / "adapter.vblora")
    with pytest.raises(SourceError, match=r"load_packed.*warm_start"):
        load_checkpoint(net(), tmp_path / "adapter.vblora")
    packed = net()
    load_packed(packed, tmp_path / "adapter.vblora")
    with pytest.raises(ModelError, match=r"cannot be trained.*warm_start"):
        param_groups(packed)
    save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="a packed adapter with that name"):
        load_checkpoint(packed, tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="saved again"):
        save_checkpoint(packed, tmp_path / "again")


def test_files_that_are_not_a_checkpoint(tmp_path, saved):
    with pytest.raises(StorageError):
        load_checkpoint(net(), tmp_path / "nothing")
    (saved / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(SourceError, match="safetensors"):
        load_checkpoint(net(), saved)
    (saved / "adapter_config.json").write_text("[]")
    with pytest.raises(SourceError, match="JSON object"):
        load_checkpoint(net(), saved)


@pytest.mark.parametrize(
    "settings",
    [
        {"vblora_dropout": "much"},
        {"num_vectors": "16"},
        {"target_modules": 5},
        {"task_type": ["SEQ_CLS"]},
        {"rank_pattern": 3},
        {"bias": {}},
    ],
)
def test_a_config_with_wrong_types(saved, settings):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    model = net()
    with pytest.raises(ConfigError, match="a setting is not valid in .*checkpoint"):
        load_checkpoint(model, saved)
    assert not hasattr(model, "vblora")


def test_a_pickle_is_not_opened(saved):
    (saved / "adapter_model.safetensors").rename(saved / "adapter_model.bin")
    with pytest.raises(SourceError, match="a pickle"):
        load_checkpoint(net(), saved)


def test_checkpoints_are_not_overwritten_unless_requested(saved):
    model = net()
    inject(model, config())
    for save in (save_checkpoint, save_packed):
        with pytest.raises(
            OutputExistsError, match="choose another name or give `overwrite=True`$"
        ):
            save(model, saved)
    save_checkpoint(model, saved, overwrite=True)
    load_checkpoint(net(), saved)


def test_a_second_bank_for_an_adapter_is_refused(saved):
    model = net()
    load_checkpoint(model, saved)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="the adapter has a bank already in .*: adapter default"):
        load_checkpoint(model, saved, bank=VectorBank(16, 8))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_bank_whose_sizes_differ_from_the_config(saved):
    file = saved / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_vectors": 17}))
    with pytest.raises(SourceError, match=r"found \(16, 8\), expected \(17, 8\)"):
        load_checkpoint(net(), saved)
