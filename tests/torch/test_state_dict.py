"""State dicts: saved while one adapter is active, loaded while another is."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)

from tests.torch.models import batch, config, net
from vbfmt.errors import ContentError, ModelError
from vbfmt.torch import (
    eject,
    get_adapter_state_dict,
    inject,
    param_groups,
    set_adapter,
    set_adapter_state_dict,
)

ADAPTERS = ("one", "two")
HEADS = {"one": "vblora.adapters.one.stand_ins.", "two": "vblora.adapters.two.stand_ins."}


def made(seed=0):
    """Return a model with two adapters that have different biases and heads."""
    torch.manual_seed(seed)
    model = net(seed)
    for name in ADAPTERS:
        inject(model, config(bias="all", modules_to_save=["classifier"]), adapter_name=name)
        optimizer = torch.optim.AdamW(param_groups(model))
        for step in range(3):
            x, y = batch(seed + step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def outputs(model):
    """Return the outputs of the base and of every adapter."""
    x, _ = batch()
    found = {}
    for name in (None, *ADAPTERS):
        set_adapter(model, name)
        found[name] = model(x).detach()
    return found


def assert_same(found, expected):
    assert list(found) == list(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("active", [None, *ADAPTERS])
def test_a_state_dict_has_the_names_of_named_parameters(active):
    model = made()
    set_adapter(model, active)
    state = model.state_dict(keep_vars=True)
    for name, parameter in model.named_parameters():
        assert state[name] is parameter
    within = nn.Sequential(model).state_dict()
    assert_same(within, {f"0.{key}": value for key, value in model.state_dict().items()})


def trained_only(model):
    """Return the entries of trainable parameters, by name (a common filter)."""
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name in wanted}


def without_frozen(model):
    options = StateDictOptions(ignore_frozen_params=True)
    return {k: copy.deepcopy(v) for k, v in get_model_state_dict(model, options=options).items()}


@pytest.mark.parametrize("filtered", [trained_only, without_frozen])
def test_a_state_dict_of_trainable_parameters_keeps_head_and_biases(filtered):
    model, other = made(), made(7)
    x, _ = batch()
    for each in (model, other):
        set_adapter(each, "one")
    state = filtered(model)
    assert "classifier.weight" in state
    other.load_state_dict(
        net().state_dict(), strict=False
    )  # the same base with other trained heads
    for name, tensor in other.named_parameters():
        if name.endswith("base_layer.weight"):
            tensor.data.copy_(model.get_parameter(name))
    options = StateDictOptions(strict=False)
    set_model_state_dict(other, state, options=options)
    assert torch.equal(other(x), model(x))


def test_a_state_dict_whose_head_is_of_an_unknown_adapter_is_refused():
    model, other = made(), made(7)
    set_adapter(model, "one")
    set_adapter(other, "two")
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ModelError, match="does not show which .* logits of one, and no .* two; cal"
    ):
        other.load_state_dict(trained_only(model), strict=False)
    assert_same(other.state_dict(), before)


def test_the_state_dict_of_a_single_adapter():
    model, other = made(), made(7)
    x, _ = batch()
    for name in ADAPTERS:
        state = get_adapter_state_dict(model, name)
        assert state["base_model.model.classifier.weight"].shape == (2, 8)
        set_adapter_state_dict(other, state, name)
        set_adapter(model, name)
        set_adapter(other, name)
        assert_same(get_adapter_state_dict(other), get_adapter_state_dict(model))
    other.load_state_dict(net().state_dict(), strict=False)
    for name, tensor in other.named_parameters():
        if name.endswith("base_layer.weight"):
            tensor.data.copy_(model.get_parameter(name))
    assert torch.equal(other(x), model(x))


def test_the_state_of_another_adapter_is_refused():
    model = made()
    state = get_adapter_state_dict(model, "one")
    before = copy.deepcopy(model.state_dict())
    short = {key: value for key, value in state.items() if "classifier" not in key}
    with pytest.raises(ModelError, match="some tensors are missing on one side: .*classifier"):
        set_adapter_state_dict(model, short, "two")
    bad = {key: torch.full_like(value, torch.nan) for key, value in state.items()}
    with pytest.raises(ContentError, match="not finite"):
        set_adapter_state_dict(model, bad, "two")
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("saved", [None, *ADAPTERS])
@pytest.mark.parametrize("loaded", [None, *ADAPTERS])
def test_the_active_adapter_may_differ_between_saving_and_loading(saved, loaded, assign):
    model, other = made(), made(7)
    expected = outputs(model)
    set_adapter(model, saved)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    set_adapter(other, loaded)
    other.load_state_dict(torch.load(file), assign=assign)
    assert_same(outputs(other), expected)


def test_a_state_dict_trained_with_a_different_k_is_refused():
    """Every shape matches, but the outputs would differ."""
    model, other = net(), net()
    inject(model, config(topk=3))
    inject(other, config())
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ModelError, match=r"another k: adapter default: found 3, expected 2"):
        other.load_state_dict(model.state_dict())
    with pytest.raises(ModelError, match="another k"):
        nn.Sequential(other).load_state_dict(nn.Sequential(model).state_dict())
    assert_same(other.state_dict(), before)


def test_safetensors_saves_and_loads_a_state_dict(tmp_path):
    model, other = made(), made(7)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert_same(outputs(other), outputs(model))


def test_a_state_dict_can_be_loaded_within_another_model():
    model, other = made(), made(7)
    nn.Sequential(other).load_state_dict(nn.Sequential(model).state_dict())
    assert_same(outputs(other), outputs(model))


def test_the_bases_state_dict_is_loaded_into_the_base():
    model = made()
    expected = outputs(model)
    set_adapter(model, "two")
    head = {"classifier.weight": torch.zeros(2, 8), "classifier.bias": torch.zeros(2)}
    missing = model.load_state_dict(head, strict=False).missing_keys
    assert "classifier.weight" in missing, "the active adapter's stands there"
    assert "encoder.0.base_layer.bias" in missing
    assert f"{HEADS['two']}classifier/weight" not in missing
    assert len(missing) == len(set(missing)) == len(model.state_dict()) - len(head)
    found = outputs(model)
    assert torch.equal(found["two"], expected["two"])
    assert not found[None].any()
    set_adapter(model, "two")
    with pytest.raises(RuntimeError, match=r"Missing key.*vblora\.adapters\.two\.bank"):
        model.load_state_dict(net().state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_a_model_have_the_same_state_dict(copied):
    model = made()
    twin = copied(model)
    expected = copy.deepcopy(model.state_dict())
    assert_same(twin.state_dict(), expected)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert_same(twin.state_dict(), expected)
    eject(twin)
    assert_same(twin.state_dict(), net().state_dict())


def test_no_hooks_are_left_after_the_last_adapter_is_removed():
    model = made()
    eject(model)
    bare = net()
    for hooks in ("_state_dict_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        assert getattr(model, hooks) == getattr(bare, hooks)
    model.load_state_dict(bare.state_dict())


def test_only_the_logits_of_an_inactive_adapter():
    """If no adapter has heads, it does not matter which one was active."""
    model = two_adapters()
    state = {
        key: torch.zeros_like(value)
        for key, value in model.state_dict().items()
        if key.endswith("updates.one.logits")
    }
    assert model.vblora.active == "two"
    model.load_state_dict(state, strict=False)
    for layer in model.vblora.layers("one").values():
        assert not layer.updates["one"].logits.any()
        assert layer.updates["two"].logits.any()


def two_adapters():
    model = net()
    for name in ("one", "two"):
        inject(model, config(), adapter_name=name)
    return model


def test_the_state_of_an_adapter_without_its_bank_is_refused(model):
    state = get_adapter_state_dict(model)
    bank = next(key for key in state if "bank" in key)
    with pytest.raises(ModelError, match=f"another model or config.*found {bank}"):
        set_adapter_state_dict(model, {k: v + 1 for k, v in state.items() if k != bank})
    now = get_adapter_state_dict(model)
    assert all(torch.equal(value, now[key]) for key, value in state.items())
