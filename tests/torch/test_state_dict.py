"""A state dict means the same, whichever adapter is active: what is whose, not what is where."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from tests.torch.models import batch, config, net
from vbfmt.errors import ModelError
from vbfmt.torch import disabled, eject, inject, param_groups, set_adapter

ADAPTERS = ("one", "two")
HEADS = {"one": "vblora.adapters.one.stand_ins.", "two": "vblora.adapters.two.stand_ins."}


def made(seed=0):
    """Two adapters with biases and heads of their own, trained apart."""
    torch.manual_seed(seed)
    model = net(seed)
    for name in ADAPTERS:
        inject(model, config(bias="all", modules_to_save=["classifier"]), name=name)
        optimizer = torch.optim.AdamW(param_groups(model))
        for step in range(3):
            x, y = batch(seed + step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def outputs(model):
    """Of the base and of every adapter."""
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
def test_it_is_the_same_whichever_is_active(active):
    model = made()
    base = net().state_dict()
    expected = copy.deepcopy(model.state_dict())
    set_adapter(model, active)
    assert_same(model.state_dict(), expected)
    with disabled(model):
        assert_same(model.state_dict(), expected)
    assert_same(nn.Sequential(model).state_dict(), {f"0.{k}": v for k, v in expected.items()})
    assert torch.equal(expected["classifier.weight"], base["classifier.weight"])
    assert torch.equal(expected["encoder.0.base_layer.bias"], base["encoder.0.bias"])
    own = [expected[f"{HEADS[name]}classifier/weight"] for name in ADAPTERS]
    assert not torch.equal(*own)
    assert all(not torch.equal(each, base["classifier.weight"]) for each in own)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("saved", [None, *ADAPTERS])
@pytest.mark.parametrize("loaded", [None, *ADAPTERS])
def test_saved_while_one_is_active_and_loaded_while_another_is(saved, loaded, assign):
    model, other = made(), made(7)
    expected = outputs(model)
    set_adapter(model, saved)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    set_adapter(other, loaded)
    other.load_state_dict(torch.load(file), assign=assign)
    assert_same(outputs(other), expected)


def test_that_of_another_k_is_refused():
    """Every shape fits, and the outputs would be others."""
    model, other = net(), net()
    inject(model, config(topk=3))
    inject(other, config())
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ModelError, match=r"another k: adapter default: found 3, expected 2"):
        other.load_state_dict(model.state_dict())
    with pytest.raises(ModelError, match="another k"):
        nn.Sequential(other).load_state_dict(nn.Sequential(model).state_dict())
    assert_same(other.state_dict(), before)


def test_safetensors_save_it_and_load_it(tmp_path):
    model, other = made(), made(7)
    save_model(model, str(tmp_path / "model.safetensors"))
    load_model(other, str(tmp_path / "model.safetensors"))
    assert_same(outputs(other), outputs(model))


def test_it_can_be_loaded_within_another_model():
    model, other = made(), made(7)
    nn.Sequential(other).load_state_dict(nn.Sequential(model).state_dict())
    assert_same(outputs(other), outputs(model))


def test_what_is_missing_is_named_as_whose_it_is_and_the_rest_goes_where_it_belongs():
    model = made()
    expected = outputs(model)
    set_adapter(model, "two")
    head = {"classifier.weight": torch.zeros(2, 8), "classifier.bias": torch.zeros(2)}
    missing = model.load_state_dict(head, strict=False).missing_keys
    assert f"{HEADS['two']}classifier/weight" in missing
    assert "encoder.0.base_layer.bias" in missing
    assert not set(head).intersection(missing)
    assert len(missing) == len(set(missing)) == len(model.state_dict()) - len(head)
    found = outputs(model)
    assert torch.equal(found["two"], expected["two"])
    assert not found[None].any()
    set_adapter(model, "two")
    with pytest.raises(RuntimeError, match=r"Missing key.*vblora\.adapters\.two\.stand_ins"):
        model.load_state_dict(net().state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_keep_to_it(copied):
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


def test_nothing_of_it_is_left_when_the_last_adapter_is_taken_out():
    model = made()
    eject(model)
    bare = net()
    for hooks in ("_state_dict_pre_hooks", "_state_dict_hooks", "_load_state_dict_pre_hooks"):
        assert getattr(model, hooks) == getattr(bare, hooks)
    model.load_state_dict(bare.state_dict())
