"""Training compared with PEFT's VB-LoRA from the same initial state."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from torch import nn

from tests.converters.models import require_biases_saved
from tests.torch.models import (
    GPT2_TARGETS,
    NET_TARGETS,
    batch,
    gpt2,
    llama,
    net,
    peft_model,
    same_as,
    tokens,
)
from vbfmt.torch import adapters_of, disabled, load_checkpoint, param_groups, save_checkpoint


def net_loss(model, step=0):
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def gpt2_loss(model, step=0):
    ids = tokens(step)
    return model(input_ids=ids, labels=ids).loss


CASES = {
    "Linear": (net, NET_TARGETS, {}, net_loss),
    "Linear, biases and head": (
        net,
        NET_TARGETS,
        {"bias": "vblora_only", "modules_to_save": ["classifier"]},
        net_loss,
    ),
    "Linear, all biases, k = 3": (net, NET_TARGETS, {"bias": "all", "topk": 3}, net_loss),
    "Linear, h = 1000": (net, NET_TARGETS, {"num_vectors": 1000}, net_loss),
    "Linear, h = 1024": (net, NET_TARGETS, {"num_vectors": 1024}, net_loss),
    "Conv1D": (gpt2, GPT2_TARGETS, {"fan_in_fan_out": True}, gpt2_loss),
}


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    """Return PEFT's model and vbfmt's with equal weights, and their loss function."""
    make, targets, settings, loss = CASES[request.param]
    require_biases_saved(settings.get("bias"))
    theirs = peft_model(make(), targets, **settings)
    ours = same_as(theirs, make(), tmp_path / "initial")
    return theirs.train(), ours.train(), loss


def by_our_names(theirs, ours, what):
    """Return ``what`` of PEFT's parameters, in the layout and with the names of vbfmt's
    parameters."""
    inner = theirs.base_model.model
    adapters = adapters_of(ours)
    result = {}
    for name in adapters.layers("default"):
        peft_layer = inner.get_submodule(name)
        a = what(peft_layer.vblora_logits_A["default"])
        b = what(peft_layer.vblora_logits_B["default"]).transpose(0, 1)
        h = a.shape[-1]
        result[f"{name}.logits"] = torch.cat([a.reshape(-1, h), b.reshape(-1, h)])
    result["bank"] = what(theirs.base_model.vblora_vector_bank["default"])
    for name in adapters.adapter().stand_ins.names:
        owner, _, leaf = name.rpartition(".")
        module = inner.get_submodule(owner)
        module = getattr(module, "base_layer", module)
        if hasattr(module, "modules_to_save"):
            module = module.modules_to_save["default"]
        result[name] = what(getattr(module, leaf))
    return result


def of_ours(ours, what):
    adapters = adapters_of(ours)
    adapter = adapters.adapter()
    result = {
        f"{name}.logits": what(layer.updates["default"].logits)
        for name, layer in adapters.layers("default").items()
    }
    result["bank"] = what(adapter.bank.weight)
    tensors = adapter.stand_ins.tensors(ours)
    return result | {name: what(tensor) for name, tensor in tensors.items()}


def test_outputs_are_equal_up_to_rounding(pair):
    theirs, ours, loss_of = pair

    def output(model):
        return model(tokens()).logits if loss_of is gpt2_loss else model(batch()[0])

    expected = output(theirs)
    scale = expected.abs().max().item()
    torch.testing.assert_close(output(ours), expected, rtol=0, atol=1e-6 * scale)
    with disabled(ours):
        assert (output(ours) - expected).abs().max() > 0.01 * scale, "the adapter is felt"


def test_loss_and_every_gradient_are_equal_up_to_rounding(pair):
    theirs, ours, loss_of = pair
    losses = [loss_of(model) for model in (theirs, ours)]
    torch.testing.assert_close(losses[0], losses[1], rtol=2e-7, atol=0)
    for loss in losses:
        loss.backward()
    expected = by_our_names(theirs, ours, lambda p: p.grad)
    found = of_ours(ours, lambda p: p.grad)
    assert found.keys() == expected.keys()
    trained = sum(p.requires_grad for p in ours.parameters())
    assert trained == len(found), "nothing else trains"
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        assert scale > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=2e-6 * scale, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twenty_steps_of_adamw_give_the_same_parameters(pair, dtype):
    theirs, ours, loss_of = pair
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    optimizers = torch.optim.AdamW(peft_groups(theirs)), torch.optim.AdamW(param_groups(ours))
    for step in range(20):
        for model, optimizer in zip((theirs, ours), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
    expected = by_our_names(theirs, ours, lambda p: p.detach())
    for name, tensor in of_ours(ours, lambda p: p.detach()).items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            tensor, expected[name], rtol=0, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def peft_groups(model):
    """Return PEFT's parameters in groups with the same learning rates."""
    rates = {"vblora_logits": 1e-2, "vblora_vector_bank": 1e-3}
    return [
        {"params": [p], "lr": next((lr for part, lr in rates.items() if part in name), 4e-3)}
        for name, p in model.named_parameters()
        if p.requires_grad
    ]


def test_peft_loads_a_checkpoint_of_vbfmt(pair, tmp_path):
    _, ours, loss_of = pair
    with torch.no_grad():
        for parameter in adapters_of(ours).parameters_of("default")["logits"]:
            parameter.mul_(1.5)
    save_checkpoint(ours, tmp_path / "ours")
    base = gpt2() if loss_of is gpt2_loss else net()
    loaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "ours"), is_trainable=True)
    torch.testing.assert_close(loss_of(loaded), loss_of(ours), rtol=2e-7, atol=0)
    loaded.save_pretrained(str(tmp_path / "again"))
    again = load_checkpoint(gpt2() if loss_of is gpt2_loss else net(), tmp_path / "again").root
    assert torch.equal(loss_of(again), loss_of(ours))


def test_a_base_in_bfloat16_gives_the_same_loss(tmp_path):
    theirs = peft_model(llama(), ["q_proj", "v_proj", "down_proj"])
    ours = same_as(theirs, llama(), tmp_path / "initial")
    for model in (theirs, ours):
        for name, parameter in model.named_parameters():
            if "vblora" not in name and "logits" not in name:
                parameter.data = parameter.data.bfloat16()
    ids = tokens()
    expected, found = (model(input_ids=ids).logits for model in (theirs, ours))
    assert found.dtype == expected.dtype  # bfloat16, which transformers before 4.46 makes float32
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-9)


def test_dropout_acts_only_in_training(tmp_path):
    theirs = peft_model(net(), NET_TARGETS, vblora_dropout=0.5)
    ours = same_as(theirs, net(), tmp_path / "initial")
    x, _ = batch()
    assert torch.equal(ours.eval()(x), ours(x))
    assert not torch.equal(ours.train()(x), ours(x))
    for model in (theirs, ours):
        model.train()
    outputs = []
    for model in (theirs, ours):
        torch.manual_seed(7)
        outputs.append(model(x))
    torch.testing.assert_close(outputs[1], outputs[0])


def test_the_initial_state_can_be_copied(tmp_path):
    """`copy.deepcopy` of a model with an adapter gives an independent model."""
    ours = same_as(peft_model(net(), NET_TARGETS), net(), tmp_path / "initial")
    x, _ = batch()
    before = ours(x)
    twin = copy.deepcopy(ours)
    with torch.no_grad():
        adapters_of(twin).adapter().bank.weight.mul_(2)
    assert torch.equal(ours(x), before)
    assert not torch.equal(twin(x), before)
