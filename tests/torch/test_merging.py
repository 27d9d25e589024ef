"""Merging adapters into the base's weights in memory, and unmerging."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.torch.models import batch, config, gpt2, llama, net, tokens
from vbfmt.errors import ModelError, VbfmtWarning
from vbfmt.torch import (
    adapters_of,
    disabled,
    eject,
    inject,
    load_checkpoint,
    load_packed,
    merge,
    merge_and_unload,
    param_groups,
    save_checkpoint,
    set_adapter,
    to_adapter,
    unmerge,
)


def output(model):
    return model(input_ids=tokens()).logits if hasattr(model, "lm_head") else model(batch()[0])


def weights(model):
    return dict(model.named_parameters(remove_duplicate=False))


@pytest.mark.parametrize("make", [net, gpt2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_merging_changes_no_output_and_unmerging_is_exact(make, dtype, packed):
    model = make().eval()
    head = ["classifier"] if make is net else []
    inject(model, config(target_modules="all-linear", exclude_modules=head))
    if packed:
        adapter, model = to_adapter(model), make().eval()
        load_packed(model, adapter)
    if dtype != torch.float32:
        for name, parameter in model.named_parameters():
            if "base_layer" in name:
                parameter.data = parameter.data.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if dtype == torch.float32:
        expected = output(model)
        merge(model)
        torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)
    else:
        merge(model)
    after = weights(model)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    unmerge(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_tied_embeddings_are_not_merged_along_with_the_head():
    model = llama(tie_word_embeddings=True).eval()
    inject(model, config(target_modules=["lm_head"], vector_length=2))
    expected = output(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge(model)
    torch.testing.assert_close(output(model), expected, rtol=1e-4, atol=1e-5)
    unmerge(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_a_model_that_was_moved_while_merged():
    model = net()
    inject(model, config())
    weight = model.out.weight.detach().clone()
    merge(model)
    model.double()
    unmerge(model)
    assert torch.equal(model.out.weight, weight.double())


def test_a_weight_in_float8_is_not_added_to():
    model = net()
    inject(model, config())
    layer = model.out.base_layer
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match="out: found Parameter, torch.float8.* 16 bits or more"):
        merge(model)


def test_a_quantized_weight_is_not_added_to():
    model = net()
    inject(model, config())
    packed = torch.zeros(128, 1, dtype=torch.uint8)
    model.out.base_layer.weight = nn.Parameter(packed, requires_grad=False)
    with pytest.raises(
        ModelError, match=r"out: found Parameter, torch\.uint8 \(128, 1\).*quantized"
    ):
        merge(model)
    assert not adapters_of(model).merged


@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm]
)
def test_a_parametrized_weight_is_not_added_to_and_nothing_is_changed(norm):
    model = net().eval()
    norm(model.out)
    inject(model, config())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = output(model)
    with pytest.raises(ModelError, match=r"out: found a parametrization.*remove"):
        merge(model)
    assert not adapters_of(model).merged
    assert torch.equal(output(model), expected)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_the_sum_is_rounded_once():
    model = net()
    inject(model, config())
    layer = model.encoder[0]
    layer.base_layer.weight.data = layer.base_layer.weight.data.bfloat16()
    a, b = layer.update().factors()
    expected = (layer.base_layer.weight.float() + b @ a).bfloat16()
    merge(model)
    assert torch.equal(layer.base_layer.weight, expected)


@pytest.mark.parametrize("double", ["base", "both"])
def test_a_float64_base_is_merged_in_float64(double):
    model = net()
    inject(model, config())
    for name, tensor in model.named_parameters():
        if double == "both" or "base_layer" in name:
            tensor.data = tensor.data.double()
    layer = model.encoder[0]
    a, b = layer.update().factors()
    expected = layer.weight + b.double() @ a.double()
    merge(model)
    assert layer.weight.dtype == torch.float64
    torch.testing.assert_close(layer.weight, expected, rtol=1e-15, atol=1e-16)


def test_other_changes_are_refused_while_merged():
    model = net()
    inject(model, config(), adapter_name="other")
    inject(model, config())
    with pytest.raises(ModelError, match="no adapter is merged"):
        unmerge(model)
    state = model.state_dict()
    merge(model)
    for wrong in (
        lambda: merge(model),
        lambda: set_adapter(model, "other"),
        lambda: eject(model),
        lambda: disabled(model).__enter__(),
        lambda: inject(model, config(), adapter_name="third"),
        lambda: model.state_dict(),
        lambda: nn.Sequential(model).state_dict(),
        lambda: model.load_state_dict(state),
    ):
        with pytest.raises(ModelError, match="unmerge"):
            wrong()
    unmerge(model)
    set_adapter(model, "other")


def test_saving_merged_weights_gives_advice():
    model = net()
    inject(model, config())
    merge(model)
    with pytest.raises(ModelError, match=r"unmerge\(model\) first; for .* files: vbfmt merge"):
        model.state_dict()


def test_a_diverged_adapter_is_not_merged():
    model = net()
    inject(model, config())
    with torch.no_grad():
        model.out.updates["default"].logits[0, 0] = float("nan")
    before = {name: layer.weight for name, layer in adapters_of(model).all_layers().items()}
    with pytest.raises(ModelError, match="out"):
        merge(model)
    assert all(layer.weight is before[n] for n, layer in adapters_of(model).all_layers().items())


def test_merging_can_be_repeated_and_leaves_layers_without_the_adapter_alone():
    """With two adapters on different layers, merging one does not change the other's layer."""
    model = net()
    inject(model, config(target_modules=["out"]))
    inject(model, config(target_modules=["encoder.0"]), adapter_name="second")
    set_adapter(model, "second")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        merge(model)
        after = weights(model)
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        assert changed == {"encoder.0.base_layer.weight"}
        unmerge(model)
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_a_merged_adapter_is_neither_loaded_nor_trained(tmp_path):
    """Both would have no effect, because the outputs are those of the merged weights."""
    model = net()
    inject(model, config())
    save_checkpoint(model, tmp_path / "checkpoint")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merge(model)
    for name in ("default", "second"):
        with pytest.raises(ModelError, match=r"call unmerge\(model\) first"):
            load_checkpoint(model, tmp_path / "checkpoint", adapter_name=name)
    with pytest.raises(ModelError, match=r"call unmerge\(model\) first"):
        param_groups(model)
    unmerge(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    load_checkpoint(model, tmp_path / "checkpoint")
    assert len(param_groups(model)) == 2


def test_a_single_adapter_may_be_given_as_a_string(model):
    other = net(seed=3)
    x, _ = batch()
    with torch.no_grad():
        before = model(x)
        merge(model, "default")
        torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    assert model.vblora.merged_names == ("default",)
    assert not torch.equal(model.encoder[0].base_layer.weight, other.encoder[0].weight)


def test_a_weight_that_its_dtype_would_round_away_is_refused():
    """Earlier, it became zeros without an error."""
    model = net().half()
    inject(model, config(init_vector_bank_bound=1e-6))
    layer = next(iter(adapters_of(model).all_layers().values()))
    layer.base_layer.weight.data.zero_()
    with pytest.raises(ModelError, match="too small for torch.float16.*load the model in bfloat16"):
        merge(model)
    assert not layer.weight.any()
    model.bfloat16()
    merge(model)
    assert layer.weight.any()


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"target": "lm_head"}])
def test_what_is_tied_to_a_changed_parameter_keeps_its_value(settings):
    model = llama(tie_word_embeddings=True, vocab_size=56).eval()
    targets = ["q_proj", *([settings["target"]] if "target" in settings else [])]
    saved = settings.get("modules_to_save")
    inject(model, config(target_modules=targets, modules_to_save=saved))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)
    embedding = model.model.embed_tokens.weight.clone()
    expected = model(tokens()).logits
    with pytest.warns(VbfmtWarning, match="embed_tokens.weight and lm_head.weight: no longer tied"):
        merge_and_unload(model)
    assert torch.equal(model.model.embed_tokens.weight, embedding)
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-4)


def test_merged_weights_stay_where_they_are_in_memory():
    """Earlier, each was copied once more, while the other merged weights were still held."""
    model = gpt2()
    inject(model, config(target_modules=["c_attn"]))
    merge(model)
    before = {name: layer.weight.data_ptr() for name, layer in adapters_of(model).layers().items()}
    merge_and_unload(model)
    assert before == {name: model.get_submodule(name).weight.data_ptr() for name in before}
    assert len(before) > 1
