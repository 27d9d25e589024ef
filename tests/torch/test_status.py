"""The status of a model; merge_and_unload; layers that a user has built."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.torch.models import batch, config, llama, net, tokens
from vbfmt import load
from vbfmt.errors import ConfigError, ModelError, VbfmtWarning
from vbfmt.torch import (
    VBLoRALinear,
    VectorBank,
    adopt,
    inject,
    layer_status,
    load_checkpoint,
    load_packed,
    merge,
    merge_and_unload,
    num_stored_parameters,
    num_trainable_parameters,
    param_groups,
    print_trainable_parameters,
    save_checkpoint,
    save_packed,
)


def test_numbers_of_trainable_and_stored_parameters(model, capsys, tmp_path):
    trained, total = num_trainable_parameters(model)
    assert trained == 16 * 8 + 57 * 16
    assert total == trained + sum(p.numel() for p in net().parameters())
    assert num_stored_parameters(model) == -(-(4 * 16 * 8 + 57 * (2 + 4)) // 4)
    save_packed(model, tmp_path / "adapter.vblora")
    adapter = load(tmp_path / "adapter.vblora")
    arrays = adapter.bank.nbytes + adapter.indices.nbytes + adapter.weights.nbytes
    assert num_stored_parameters(model) == -(-arrays // 4)
    print_trainable_parameters(model)
    assert capsys.readouterr().out.startswith(
        f"trainable params: {trained:,} || all params: {total:,} || trainable%: "
    )


def test_layer_status(model, tmp_path):
    model(batch()[0])
    save_packed(model, tmp_path / "adapter.vblora")
    load_packed(model, tmp_path / "adapter.vblora", adapter_name="packed")
    status = layer_status(model)
    assert [each.name for each in status] == ["encoder.0", "encoder.1", "out"]
    first = status[0]
    assert (first.module_type, first.in_features, first.out_features) == ("Linear", 16, 32)
    assert first.ranks == {"default": 3, "packed": 3}
    assert (first.active_adapter, first.merged, first.called) == ("packed", False, True)
    assert first.trains == {"default": False, "packed": False}
    assert set(first.devices.values()) == {"cpu"}
    merge(model)
    assert all(each.merged for each in layer_status(model))


@pytest.mark.parametrize("already", [False, True])
def test_merge_and_unload_gives_a_plain_model_with_the_same_outputs(already):
    model, x = net(), batch()[0]
    inject(model, config(bias="all", modules_to_save=["classifier"]))
    with torch.no_grad():
        model.classifier.weight.mul_(2)
        model.encoder[0].bias.add_(1)
    expected = model(x)
    if already:
        merge(model)
    assert merge_and_unload(model) is model
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert type(model.out) is nn.Linear
    assert model.state_dict().keys() == net().state_dict().keys()


class Own(nn.Module):
    """A custom model with `VBLoRALinear` layers."""

    def __init__(self, ranks=(2, 3), banks=1):
        super().__init__()
        self.bank = VectorBank(16, 8, init_bound=0.5)
        other = self.bank if banks == 1 else VectorBank(16, 8)
        self.one = VBLoRALinear(nn.Linear(16, 32), self.bank, r=ranks[0], init_logits_std=1.0)
        self.two = VBLoRALinear(nn.Linear(32, 8), other, r=ranks[1], init_logits_std=1.0)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


def test_a_custom_model_is_trained_and_saved(tmp_path):
    torch.manual_seed(0)
    model, x = Own(), batch()[0]
    expected = model(x)
    adopt(model)
    assert torch.equal(model(x), expected)
    assert model.head.weight.requires_grad, "stays as it was"
    groups = {group["name"]: len(group["params"]) for group in param_groups(model)}
    assert groups == {"bank": 1, "logits": 2}
    with pytest.warns(VbfmtWarning, match=r"head\.bias"):
        save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.warns(VbfmtWarning, match=r"head\.bias"):
        save_packed(model, tmp_path / "adapter.vblora")
    torch.manual_seed(1)
    other = Own()
    adopt(other)
    load_checkpoint(other, tmp_path / "checkpoint")
    found = {name: p for name, p in other.named_parameters() if "logits" in name or "bank" in name}
    for name, parameter in model.named_parameters():
        assert name not in found or torch.equal(found[name], parameter)
    plain = nn.ModuleDict({"one": nn.Linear(16, 32), "two": nn.Linear(32, 8)})
    load_packed(plain, tmp_path / "adapter.vblora")


def test_layers_that_cannot_be_adopted_are_refused():
    with pytest.raises(ModelError, match="no VB-LoRA layers.*inject"):
        adopt(net())
    with pytest.raises(ConfigError, match="one bank and one k: found 2 banks, k = 2"):
        adopt(Own(banks=2))
    model = Own()
    adopt(model)
    with pytest.raises(ModelError, match="has adapters already"):
        adopt(model)


def test_all_linear_warns_if_it_leaves_out_most_weights():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50}
    model = MixtralForCausalLM(
        MixtralConfig(num_attention_heads=4, num_key_value_heads=2, num_local_experts=8, **sizes)
    )
    if not any(p.ndim == 3 for p in model.parameters()):
        pytest.skip("this version of transformers has separate layers for each expert")
    with pytest.warns(VbfmtWarning, match=r"all-linear leaves out 9\d % of the weights: .*experts"):
        inject(model, config(target_modules="all-linear"))
    model(input_ids=tokens()).logits.sum().backward()
    plain = llama()
    inject(plain, config(target_modules="all-linear"))


def test_a_packed_adapter_stores_no_trainable_numbers(model, capsys, tmp_path):
    save_packed(model, tmp_path / "x.vblora")
    load_packed(model, tmp_path / "x.vblora", adapter_name="packed")
    print_trainable_parameters(model)
    line = capsys.readouterr().out
    assert line.startswith("trainable params: 0 || all params: ")
    assert "stored" not in line


def test_a_bank_that_is_not_registered_in_a_custom_model_is_trained():
    bank = VectorBank(16, 8)
    layers = [VBLoRALinear(nn.Linear(16, 16), bank, r=2) for _ in range(2)]
    model = nn.Sequential(*layers)
    assert all(parameter is not bank.weight for parameter in model.parameters())
    adopt(model)
    assert bank.weight.requires_grad
    groups = {group["name"]: group["params"] for group in param_groups(model)}
    assert groups["bank"] == [bank.weight]
    model(torch.randn(3, 16)).sum().backward()
    assert bank.weight.grad is not None
