"""One bank for several adapters: it is never overwritten, and it is saved once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.torch.models import batch, config, llama, net, tokens
from vbfmt.errors import ModelError
from vbfmt.torch import (
    VectorBank,
    adapters_of,
    eject,
    inject,
    load_checkpoint,
    param_groups,
    save_checkpoint,
    set_adapter,
)


def trained(model, optimizer, steps):
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def pair(bank):
    """Inject the adapters one and two with this bank into a model."""
    model = net()
    for name in ("one", "two"):
        inject(model, config(), adapter_name=name, bank=bank)
    return model


@pytest.fixture
def other(tmp_path):
    """Return a checkpoint with a different bank."""
    torch.manual_seed(9)
    model = net()
    inject(model, config())
    save_checkpoint(model, tmp_path / "other")
    return tmp_path / "other"


@pytest.mark.parametrize("frozen", [True, False])
def test_loading_one_adapter_does_not_change_the_bank_of_the_other(frozen, other):
    bank = VectorBank(16, 8, init_bound=0.5)
    model = pair(bank.freeze() if frozen else bank)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError, match="shared with adapter two"):
        load_checkpoint(model, other, adapter_name="one")
    with pytest.raises(ModelError, match="shared with adapter one, two"):
        load_checkpoint(model, other, adapter_name="three", bank=bank)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    eject(model, "two")
    if frozen:
        with pytest.raises(ModelError, match="a frozen bank"):
            load_checkpoint(model, other, adapter_name="one")
    else:
        load_checkpoint(model, other, adapter_name="one")
        assert not torch.equal(bank.weight, before["vblora.adapters.one.bank.weight"])


def test_the_same_bank_may_be_loaded_again(tmp_path):
    bank = VectorBank(16, 8, init_bound=0.5).freeze()
    model = pair(bank)
    save_checkpoint(model, tmp_path / "two", adapter_name="two")
    x, _ = batch()
    set_adapter(model, "two")
    expected = model(x)
    with torch.no_grad():
        model.out.updates["two"].logits.zero_()
    load_checkpoint(model, tmp_path / "two", adapter_name="two")
    assert torch.equal(model(x), expected)
    load_checkpoint(model, tmp_path / "two", adapter_name="three", bank=bank)
    assert adapters_of(model).adapter("three").bank is bank
    assert torch.equal(model(x), expected)
    with pytest.raises(ModelError, match="has a bank already"):
        load_checkpoint(model, tmp_path / "two", adapter_name="three", bank=VectorBank(16, 8))


def test_a_run_on_a_frozen_bank_is_resumed_on_a_frozen_bank(tmp_path):
    torch.manual_seed(5)
    straight = net()
    bank = VectorBank(16, 8, init_bound=0.5).freeze()
    inject(straight, config(), bank=bank)
    optimizer = torch.optim.AdamW(param_groups(straight))
    trained(straight, optimizer, range(3))
    save_checkpoint(straight, tmp_path / "checkpoint")
    state = copy.deepcopy(optimizer.state_dict())
    trained(straight, optimizer, range(3, 6))
    for settings in ({"freeze_bank": True}, {"bank": copy.deepcopy(bank)}):
        resumed = net()
        load_checkpoint(resumed, tmp_path / "checkpoint", **settings)
        optimizer = torch.optim.AdamW(param_groups(resumed))
        optimizer.load_state_dict(copy.deepcopy(state))
        trained(resumed, optimizer, range(3, 6))
        expected, found = straight.state_dict(), resumed.state_dict()
        assert found.keys() == expected.keys()
        assert [n for n in expected if not torch.equal(found[n], expected[n])] == []
        assert not adapters_of(resumed).adapter().bank.weight.requires_grad


def test_a_shared_bank_is_registered_once():
    bank = VectorBank(16, 8)
    model = pair(bank)
    assert [n for n in model.state_dict() if "bank" in n] == ["vblora.adapters.one.bank.weight"]
    eject(model, "one")
    assert [n for n in model.state_dict() if "bank" in n] == ["vblora.adapters.two.bank.weight"]
    set_adapter(model, "two")
    assert any(p is bank.weight for p in model.parameters())
    model.double()
    assert adapters_of(model).adapter("two").bank.weight.dtype == torch.float64
    twin = copy.deepcopy(model)
    assert adapters_of(twin).adapter("two").bank.weight is not bank.weight
    assert torch.equal(twin(batch()[0].double()), model(batch()[0].double()))


def test_safetensors_saves_a_model_whose_adapters_share_a_bank(tmp_path):
    from safetensors.torch import load_file, save_model

    model = llama()
    bank = VectorBank(16, 8)
    for name in ("one", "two"):
        inject(model, config(target_modules=["q_proj"]), adapter_name=name, bank=bank)
    save_model(model, str(tmp_path / "model.safetensors"))
    saved = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        expected = model(tokens()).logits
        for parameter in model.parameters():
            parameter.zero_()
    missing = model.load_state_dict(saved, strict=False).missing_keys
    assert missing == []
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, expected)
