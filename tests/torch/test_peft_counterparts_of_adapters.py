"""PEFT's own VB-LoRA tests, rewritten for vbfmt: adapters merged, disabled, switched and taken out.

Which test of PEFT is which one here: the table in `test_peft_counterparts`.
"""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from safetensors.torch import save_file

from tests.torch.peft_models import (
    CUSTOM,
    MLP,
    A,
    B,
    assert_equal,
    inputs,
    made,
    ours,
    output,
)
from vbfmt.errors import ModelError
from vbfmt.torch import (
    VBLoRAConfig,
    VBLoRALinear,
    adapters_of,
    disabled,
    eject,
    get_base_state_dict,
    inject,
    layer_status,
    load_checkpoint,
    merge,
    merge_and_unload,
    set_adapter,
    unmerge,
)

PAIRS = pytest.mark.parametrize("second", [A, B], ids=["same layers", "different layers"])


@pytest.fixture(params=CUSTOM)
def case(request):
    return request.param


def copied(model, x):
    """Return the output of a copy made with pickle, which PEFT uses to test saving and loading."""
    return output(copy.deepcopy(model), x)


def two(second, seed=0):
    """Return an MLP with two adapters, ``one`` on lin0 and ``two``, and its outputs with each."""
    model, x = made(MLP).eval(), inputs(MLP)
    torch.manual_seed(seed)
    inject(model, VBLoRAConfig(**A, init_logits_std=1.0), adapter_name="one")
    inject(model, VBLoRAConfig(**second, init_logits_std=1.0), adapter_name="two")
    for name in ("one", "two"):
        with torch.no_grad():
            adapters_of(model).adapter(name).bank.weight.mul_(10)
    set_adapter(model, "one")
    one = output(model, x)
    set_adapter(model, "two")
    return model, x, one, output(model, x)


def test_merging_changes_no_output(case):
    model, x = ours(case)
    expected = output(model, x)
    merge(model)
    torch.testing.assert_close(output(model, x), expected, rtol=1e-4, atol=1e-4)
    unmerge(model)
    assert torch.equal(output(model, x), expected)
    merge_and_unload(model)
    assert not [name for name, _ in model.named_modules() if "vblora" in name]
    assert not any(isinstance(module, VBLoRALinear) for module in model.modules())
    torch.testing.assert_close(copied(model, x), expected, rtol=1e-4, atol=1e-4)
    base = made(CUSTOM[case][0])
    assert not torch.allclose(output(base, x), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_and_merges(case, dtype):
    kind, settings = CUSTOM[case]
    model, x = made(kind).to(dtype).eval(), inputs(kind)
    inject(model, VBLoRAConfig(**settings))
    before = output(model, x)
    merge(model)
    assert output(model, x).isfinite().all()
    unmerge(model)
    assert torch.equal(output(model, x), before)
    assert output(merge_and_unload(model), x).dtype == dtype


def test_a_second_merge_is_refused(case):
    model, x = ours(case)
    merge(model)
    expected = output(model, x)
    with pytest.raises(ModelError, match="merged already: default.*several are merged in one call"):
        merge(model)
    assert torch.equal(output(model, x), expected)


def test_merged_weights_can_be_saved(case, tmp_path):
    model, x = ours(case)
    expected = output(model, x)
    merge_and_unload(model)
    torch.testing.assert_close(output(model, x), expected, rtol=1e-5, atol=1e-5)
    torch.save(model.state_dict(), tmp_path / "model.bin")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    other, _ = ours(case)
    with torch.no_grad():
        adapters_of(other).adapter().bank.weight[0] = torch.nan
    with pytest.raises(ModelError, match="the merged weight is not finite"):
        merge_and_unload(other)


def test_disabled_gives_the_base(case):
    kind, settings = CUSTOM[case]
    model, x = made(kind), inputs(kind)
    expected = output(model, x)
    inject(model, VBLoRAConfig(**settings))
    with torch.no_grad():
        adapters_of(model).adapter().bank.weight.zero_()
    torch.testing.assert_close(output(model, x), expected)
    with torch.no_grad():
        adapters_of(model).adapter().bank.weight.uniform_(-0.5, 0.5)
    trained = output(model, x)
    assert not torch.allclose(trained, expected, atol=1e-5)
    with disabled(model):
        assert torch.equal(output(model, x), expected)
    assert torch.equal(output(model, x), trained)


def test_a_merged_adapter_cannot_be_disabled(case):
    model, x = ours(case)
    merge(model)
    expected = output(model, x)
    refused = pytest.raises(ModelError, match="merged into the base's weights; call unmerge")
    with refused, disabled(model):
        pass
    assert torch.equal(output(model, x), expected)
    unmerge(model)
    with disabled(model):
        assert torch.equal(output(model, x), output(made(CUSTOM[case][0]), x))


def test_after_disabled_outputs_are_as_before(case):
    model, _ = ours(case)
    layers = adapters_of(model).all_layers().values()
    with disabled(model):
        assert {layer.active for layer in layers} == {None}
    assert {layer.active for layer in layers} == {"default"}
    set_adapter(model, None)
    with disabled(model):
        pass
    assert {layer.active for layer in layers} == {None}
    set_adapter(model, "default")
    next(iter(layers)).active = None  # only one layer; vbfmt has no function for this
    with disabled(model):
        pass
    assert {layer.active for layer in layers} == {"default"}


def test_one_adapter_is_active_at_a_time(case):
    kind, settings = CUSTOM[case]
    model = made(kind)
    inject(model, VBLoRAConfig(**settings))
    inject(model, VBLoRAConfig(**settings), adapter_name="other")
    assert adapters_of(model).active == "other"
    set_adapter(model, "default")
    assert adapters_of(model).active == "default"
    with pytest.raises(ModelError, match="only one adapter can be active.*merge"):
        set_adapter(model, ["default", "other"])
    assert adapters_of(model).active == "default"


def test_a_removed_adapter_leaves_nothing(case):
    kind, settings = CUSTOM[case]
    model, x = made(kind), inputs(kind)
    expected, keys = output(model, x), model.state_dict().keys()
    inject(model, VBLoRAConfig(**settings))
    inject(model, VBLoRAConfig(**settings), adapter_name="foobar")
    eject(model, "foobar")
    assert [name for name, _ in model.named_modules() if "foobar" in name] == []
    assert [name for name in model.state_dict() if "foobar" in name] == []
    assert [each.ranks for each in layer_status(model) if "foobar" in each.ranks] == []
    set_adapter(model, "default")
    eject(model, "default")
    assert model.state_dict().keys() == keys
    assert torch.equal(output(model, x), expected)


def test_removing_another_adapter_keeps_the_active_one(case):
    kind, settings = CUSTOM[case]
    model, x = made(kind), inputs(kind)
    inject(model, VBLoRAConfig(**settings), adapter_name="leaves")
    inject(model, VBLoRAConfig(**settings))
    expected = output(model, x)
    eject(model, "leaves")
    assert adapters_of(model).active == "default"
    assert torch.equal(output(model, x), expected)


def test_removing_an_unknown_adapter_is_an_error(case):
    model, _ = ours(case)
    with pytest.raises(ModelError, match="no such adapter in the model: found unknown"):
        eject(model, "unknown")


def test_a_merged_adapter_cannot_be_removed(case):
    kind, settings = CUSTOM[case]
    model, x = made(kind), inputs(kind)
    inject(model, VBLoRAConfig(**settings), adapter_name="adapter0")
    inject(model, VBLoRAConfig(**settings), adapter_name="adapter1")
    merge(model)
    expected = output(model, x)
    with pytest.raises(ModelError, match="merged into the base's weights; call unmerge"):
        eject(model, "adapter1")
    assert {*adapters_of(model).adapters} == {"adapter0", "adapter1"}
    eject(model, "adapter0")
    assert torch.equal(output(model, x), expected)
    unmerge(model)
    eject(model, "adapter1")
    assert "vblora" not in model._modules


def test_each_adapter_has_its_own_biases(case):
    kind, settings = CUSTOM[case]
    model, x = made(kind), inputs(kind)
    base = output(model, x)
    inject(model, VBLoRAConfig(**settings, bias="all"), adapter_name="adapter0")
    inject(model, VBLoRAConfig(**settings, bias="all"), adapter_name="adapter1")
    set_adapter(model, "adapter0")
    before = output(model, x)
    set_adapter(model, "adapter1")
    with torch.no_grad():
        model.lin0.bias.add_(1)
    set_adapter(model, "adapter0")
    assert torch.equal(output(model, x), before)
    with disabled(model):
        assert torch.equal(output(model, x), base)


@pytest.mark.parametrize("bias", ["none", "vblora_only"])
def test_the_bases_own_state_dict(case, bias):
    model, _ = ours(case, bias=bias)
    expected = made(CUSTOM[case][0]).state_dict()
    for parameter in adapters_of(model).parameters_of("default")["rest"]:
        with torch.no_grad():
            parameter.add_(1)
    assert_equal(get_base_state_dict(model), expected)
    with disabled(model):
        assert_equal(get_base_state_dict(model), expected)


@PAIRS
def test_the_sum_of_two_adapters_is_merged(second):
    model, x, one, other = two(second)
    base = output(made(MLP), x)
    assert not torch.allclose(one, other, atol=1e-3)
    whole, first, last = (copy.deepcopy(model) for _ in range(3))
    merge(whole, ["one", "two"])
    together = output(whole, x)
    assert not torch.allclose(together, one, atol=1e-3)
    assert not torch.allclose(together, other, atol=1e-3)
    for name in ("one", "two"):
        with pytest.raises(ModelError, match="merged into the base's weights"):
            eject(whole, name)
    unmerge(whole)
    with disabled(whole):
        assert torch.equal(output(whole, x), base)
    torch.testing.assert_close(output(merge_and_unload(whole, ["two", "one"]), x), together)
    torch.testing.assert_close(output(merge_and_unload(first, ["one"]), x), one)
    torch.testing.assert_close(output(merge_and_unload(last, ["two"]), x), other)
    merge(model, {"one": 0.0, "two": 1.0})
    torch.testing.assert_close(output(model, x), other)


@PAIRS
def test_the_sum_is_what_peft_merges(second, tmp_path):
    pytest.importorskip("peft", minversion="0.21")  # 0.15 saves both adapters in each file
    strong = {"init_vector_bank_bound": 0.5, "init_logits_std": 1.0}
    other = peft.get_peft_model(made(MLP), peft.VBLoRAConfig(**{**A, **strong}), "one").eval()
    other.add_adapter("two", peft.VBLoRAConfig(**{**second, **strong}))
    other.save_pretrained(str(tmp_path))
    model, x = made(MLP).eval(), inputs(MLP)
    for name in ("one", "two"):
        load_checkpoint(model, tmp_path / name, adapter_name=name)
    merge(model, ["one", "two"])
    other.merge_adapter(["one", "two"])
    torch.testing.assert_close(output(model, x), output(other, x), rtol=1e-5, atol=1e-6)


def test_heads_and_biases_are_not_summed():
    model = made(MLP)
    inject(model, VBLoRAConfig(**A), adapter_name="plain")
    inject(model, VBLoRAConfig(**A, modules_to_save=["lin3"]), adapter_name="head")
    before = get_base_state_dict(model)["lin0.weight"].clone()
    with pytest.raises(ModelError, match=r"heads and biases would stay"):
        merge(model, ["plain"])
    set_adapter(model, "plain")
    with pytest.raises(ModelError, match=r"not active cannot be merged: adapter head"):
        merge(model, {"plain": 0.5, "head": 0.5})
    with pytest.raises(ModelError, match="no adapter is named"):
        merge(model, [])
    with pytest.raises(ModelError, match="no such adapter"):
        merge(model, ["unknown"])
    assert torch.equal(get_base_state_dict(model)["lin0.weight"], before)
    set_adapter(model, "head")
    merge(model, ["plain", "head"])
    assert layer_status(model)[0].merged


@PAIRS
def test_only_the_active_adapter_trains(second):
    model, *_ = two(second)

    def training():
        return {name for name, each in model.named_parameters() if each.requires_grad}

    own = {
        "one": {"lin0.updates.one.logits", "vblora.adapters.one.bank.weight"},
        "two": {
            f"{second['target_modules'][0]}.updates.two.logits",
            "vblora.adapters.two.bank.weight",
        },
    }
    for name in ("one", "two"):
        set_adapter(model, name)
        assert training() == own[name]
        set_adapter(model, None)
        assert training() == set()
        set_adapter(model, name)
        with disabled(model):
            pass
        assert training() == own[name]


def test_a_new_adapter_does_not_move_another():
    with torch.device("meta"):
        model = MLP()
    inject(model, VBLoRAConfig(**A))
    adapters = adapters_of(model)
    adapters.adapter().bank.to_empty(device="cpu")
    model.lin0.updates.to_empty(device="cpu")
    inject(model, VBLoRAConfig(**A), adapter_name="other")
    devices = {
        name: {p.device.type for group in adapters.parameters_of(name).values() for p in group}
        for name in ("default", "other")
    }
    assert devices == {"default": {"cpu"}, "other": {"meta"}}
