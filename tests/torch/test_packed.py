"""Packed files in training: saving, loading, and warm starts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import vbfmt
from tests.conftest import warned
from tests.torch.models import GPT2_TARGETS, batch, config, gpt2, net, tokens
from vbfmt.converters import peft as peft_format
from vbfmt.errors import ConfigError, DigestError, ModelError, OutputExistsError
from vbfmt.torch import (
    VectorBank,
    adapters_of,
    disabled,
    eject,
    inject,
    load_packed,
    param_groups,
    save_checkpoint,
    save_packed,
    set_adapter,
    to_adapter,
    warm_start,
)

CASES = {
    "plain": (net, {}),
    "k = 1": (net, {"topk": 1}),
    "k = 4": (net, {"topk": 4}),
    "biases and head": (net, {"bias": "all", "modules_to_save": ["classifier"]}),
    "ranks": (net, {"rank_pattern": {"out": 1}}),
    "described": (
        net,
        {"base_model_name_or_path": "someone/net", "revision": "main", "task_type": "SEQ_CLS"},
    ),
    "Conv1D": (gpt2, {"target_modules": GPT2_TARGETS}),
}


@pytest.fixture(params=CASES)
def trained(request):
    make, settings_ = CASES[request.param]
    torch.manual_seed(11)
    model = make()
    inject(model, config(**settings_))
    optimizer = torch.optim.AdamW(param_groups(model))
    for step in range(3):
        optimizer.zero_grad()
        output(model, step).square().mean().backward()
        optimizer.step()
    return model.eval(), make


def output(model, step=0):
    if hasattr(model, "lm_head"):
        return model(input_ids=tokens(step)).logits
    return model(batch(step)[0])


def test_save_packed_gives_the_bytes_of_save_checkpoint_and_pack(trained, tmp_path):
    model, _ = trained
    digest = save_packed(model, tmp_path / "direct.vblora")
    save_checkpoint(model, tmp_path / "checkpoint")
    adapter = peft_format.read(tmp_path / "checkpoint")
    assert vbfmt.save(adapter, tmp_path / "packed.vblora") == digest
    assert (tmp_path / "direct.vblora").read_bytes() == (tmp_path / "packed.vblora").read_bytes()
    assert vbfmt.verify(tmp_path / "direct.vblora").ok


def test_loaded_factors_equal_the_trained_ones_up_to_rounding(trained, tmp_path):
    """The bound is (k + 1) · 2⁻²⁴ · max|bank| for the packed factor, and the same plus the rounding
    of softmax for the model, which computes in float32."""
    model, make = trained
    save_packed(model, tmp_path / "adapter.vblora")
    packed = make()
    load_packed(packed, tmp_path / "adapter.vblora")
    attached = adapters_of(model).adapter()
    largest = attached.bank.weight.abs().max().item()
    bound = (2 * (attached.config.topk + 1) + 8) * 2.0**-24 * largest
    ours = adapters_of(packed).all_layers()
    for name, layer in adapters_of(model).all_layers().items():
        for mine, theirs in zip(
            ours[name].update().factors(), layer.update().factors(), strict=True
        ):
            assert (mine - theirs).abs().max().item() <= bound
    torch.testing.assert_close(output(packed.eval()), output(model), rtol=1e-5, atol=1e-6)


def test_an_adapter_in_memory_is_not_changed_by_further_training(trained):
    model, _ = trained
    adapter = to_adapter(model)
    before = vbfmt.dumps(adapter)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert vbfmt.dumps(adapter) == before


def test_a_packed_adapter_is_loaded_into_a_model(trained, tmp_path):
    model, make = trained
    path = tmp_path / "adapter.vblora"
    digest = save_packed(model, path)
    running = make().eval()
    base, text = output(running), repr(running)
    load_packed(running, path, digest=digest)
    adapted = output(running)
    assert not torch.equal(adapted, base)
    assert not any(p.requires_grad for p in running.parameters())
    layers = list(adapters_of(running).all_layers().values())
    load_packed(running, vbfmt.load(path))  # replaces the first
    assert list(adapters_of(running).all_layers().values()) == layers
    assert torch.equal(output(running), adapted)
    load_packed(running, path, adapter_name="second")
    set_adapter(running, "default")
    with disabled(running):
        assert torch.equal(output(running), base)
    eject(running)
    assert repr(running) == text
    assert torch.equal(output(running), base)


def test_a_different_digest_is_refused(trained, tmp_path):
    model, make = trained
    save_packed(model, tmp_path / "adapter.vblora")
    with pytest.raises(DigestError):
        load_packed(make(), tmp_path / "adapter.vblora", digest="sha256:" + "0" * 64)
    with pytest.raises(OutputExistsError):
        save_packed(model, tmp_path / "adapter.vblora")


def test_a_warm_start_gives_the_same_outputs_and_the_same_packed_rows(trained, tmp_path):
    model, make = trained
    save_packed(model, tmp_path / "adapter.vblora")
    warm = make().eval()
    warm_start(warm, tmp_path / "adapter.vblora")
    torch.testing.assert_close(output(warm), output(model), rtol=1e-5, atol=1e-6)
    first, again = to_adapter(model), to_adapter(warm)
    assert np.array_equal(first.indices, again.indices)
    np.testing.assert_allclose(again.weights, first.weights, rtol=1e-6, atol=1e-9)
    logits = adapters_of(warm).parameters_of("default")["logits"]
    assert all(bool(parameter.isfinite().all()) for parameter in logits)
    output(warm).square().mean().backward()
    assert all(p.grad is not None for p in warm.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(param_groups(warm))
    optimizer.step()


@settings(max_examples=25)
@given(k=st.integers(1, 4), seed=st.integers(0, 10**6), gap=st.sampled_from([1e-3, 0.1, 5.0]))
def test_a_warm_start_selects_what_was_packed(k, seed, gap):
    """This includes vectors whose weight was rounded to zero."""
    torch.manual_seed(seed)
    model = net()
    inject(model, config(topk=k, init_logits_std=60.0))
    adapter = to_adapter(model)
    warm = net()
    warm_start(warm, adapter, gap=gap)
    again = to_adapter(warm)
    assert np.array_equal(np.sort(adapter.indices, axis=1), np.sort(again.indices, axis=1))
    np.testing.assert_allclose(adapter.subvectors(), again.subvectors(), rtol=1e-5, atol=1e-6)


def test_training_a_new_task_on_the_frozen_bank_of_a_packed_file(trained, tmp_path):
    model, make = trained
    save_packed(model, tmp_path / "adapter.vblora")
    bank = VectorBank.from_packed(tmp_path / "adapter.vblora")
    other = make()
    own = adapters_of(model).adapter().config
    inject(other, own, bank=bank)
    groups = param_groups(other)
    assert "bank" not in [group["name"] for group in groups]
    optimizer = torch.optim.AdamW(groups)
    output(other).square().mean().backward()
    optimizer.step()
    assert np.array_equal(to_adapter(other).bank, to_adapter(model).bank)
    assert not np.array_equal(to_adapter(other).weights, to_adapter(model).weights) or own.topk == 1


def test_the_first_modules_that_do_not_match_are_named(tmp_path):
    model = net()
    inject(model, config())
    adapter = to_adapter(model)
    with pytest.raises(ModelError, match=r"no encoder\.0; no encoder\.1; no out"):
        load_packed(gpt2(), adapter)
    other = net()
    other.out = nn.Linear(32, 16)
    before = repr(other)
    for load in (load_packed, warm_start):
        with pytest.raises(ModelError, match="out is 32 → 16, not 32 → 8"):
            load(other, adapter)
    assert repr(other) == before


def test_a_head_with_a_different_shape_is_refused():
    model = net()
    inject(model, config(modules_to_save=["classifier"]))
    adapter = to_adapter(model)
    other = net()
    other.classifier = nn.Linear(8, 3)
    with pytest.raises(ModelError, match=r"classifier\.bias.*found \(2,\), expected \(3,\)"):
        load_packed(other, adapter)


def test_equal_logits_give_a_warning():
    model = net()
    inject(model, config(init_logits_std=0.0))
    with warned() as notices:
        to_adapter(model)
    assert notices == [
        "57 of 57 sub-vectors have equal logits at the top-2 boundary; the lowest index was "
        "selected"
    ]


@pytest.mark.parametrize("gap", [0.0, -1.0, float("inf"), float("nan"), "0.1"])
def test_an_invalid_gap_is_refused(gap):
    model = net()
    inject(model, config())
    with pytest.raises(ConfigError, match=f"gap: found {gap!r}, expected a finite"):
        warm_start(net(), to_adapter(model), gap=gap)


class Other(nn.Module):
    """A variant of `Net` with one difference."""

    def __init__(self, out):
        super().__init__()
        self.encoder = nn.ModuleList([nn.Linear(16, 32), nn.Linear(32, 32)])
        self.out = out
        self.classifier = nn.Linear(8, 2)


def test_modules_of_other_kinds_are_refused_transposed_weights_accepted():
    model = net()
    inject(model, config())
    adapter = to_adapter(model)
    with pytest.raises(ModelError, match="out is a Identity"):
        load_packed(Other(nn.Identity()), adapter)
    transposed = Other(Conv1D(8, 32))
    load_packed(transposed, adapter)
    expected = model.out.updates["default"].factors()
    for mine, theirs in zip(transposed.out.updates["default"].factors(), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_tensor_that_is_missing_in_the_model_is_refused():
    model = net()
    inject(model, config(modules_to_save=["classifier"]))
    adapter = to_adapter(model)
    other = net()
    other.classifier = nn.Identity()
    with pytest.raises(
        ModelError, match=r"does not have a tensor of the adapter, or has it in another shape: "
    ):
        load_packed(other, adapter)


def test_fully_saved_modules_may_have_buffers(tmp_path):
    """Running statistics of a norm are saved with it and loaded as buffers."""
    model = Other(nn.Linear(32, 8, bias=False))
    model.classifier = nn.BatchNorm1d(8)
    inject(model, config(modules_to_save=["classifier"]))
    with torch.no_grad():
        model.classifier(torch.randn(20, 8))
    model.classifier.running_mean += 3
    adapter = to_adapter(model)
    assert "classifier.running_mean" in adapter.tensors
    other = Other(nn.Linear(32, 8, bias=False))
    other.classifier = nn.BatchNorm1d(8)
    load_packed(other, adapter)
    assert torch.equal(other.classifier.running_mean, model.classifier.running_mean)


def test_the_digest_of_an_adapter_in_memory_is_checked():
    model = net()
    inject(model, config())
    adapter = to_adapter(model)
    plain = net().eval()
    with pytest.raises(DigestError, match="asked for"):
        load_packed(plain, adapter, digest="sha256:" + 64 * "0")
    assert not hasattr(plain, "vblora")
    load_packed(plain, adapter, digest=vbfmt.digest(adapter))
    assert torch.equal(plain(batch()[0]), load_packed(net().eval(), adapter).root(batch()[0]))


def test_an_adapter_saved_without_its_bank_is_the_same_adapter(trained, tmp_path):
    model, _ = trained
    whole = save_packed(model, tmp_path / "whole.vblora")
    assert save_packed(model, tmp_path / "thin.vblora", bank="external") == whole
    assert vbfmt.load(tmp_path / "thin.vblora") == vbfmt.load(tmp_path / "whole.vblora")
    assert len(list(tmp_path.glob("*.bank"))) == 1
