"""PyTorch's Transformer encoders, whose fast path does not call the adapted layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.torch.models import config
from vbfmt.torch import (
    VBLoRALinear,
    VectorBank,
    adapters_of,
    disabled,
    eject,
    inject,
    load_packed,
    merge,
    to_adapter,
    unmerge,
)

PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
LAYERS = [["linear1", "linear2"], ["layers.1.linear1"], ["layers.0.linear2"]]


def encoder(**settings):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 3, **settings).eval()


def adapted(targets, **settings):
    model = encoder(**settings)
    inject(model, config(target_modules=targets))
    return model


def batch():
    return torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


def words(output):
    """Return the outputs without padding, where the fast path has zeros and the normal path
    arbitrary values."""
    return output[~PADDING]


def gradients_of(model, output):
    words(output).square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    return found


def test_the_fast_path_does_not_skip_the_adapter():
    model = adapted(["linear1", "linear2"], enable_nested_tensor=False)
    x = batch()
    recorded = model(x).detach()  # with gradients, PyTorch does not use that path
    with torch.no_grad():
        torch.testing.assert_close(model(x), recorded, rtol=1e-5, atol=1e-6)
        with disabled(model):
            assert not torch.allclose(model(x), recorded, rtol=1e-3)


@pytest.mark.parametrize("targets", LAYERS)
def test_a_padded_batch_in_evaluation(targets):
    """By default, PyTorch's encoder packs the batch. The results equal those without packing."""
    x, model, plain = batch(), adapted(targets), adapted(targets, enable_nested_tensor=False)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = words(plain(x, src_key_padding_mask=PADDING))
        found = model(x, src_key_padding_mask=PADDING)
        torch.testing.assert_close(words(found), expected, rtol=1e-5, atol=1e-6)
        assert not found[PADDING].any(), "zeros, as without an adapter"
        merge(model)
        merged = model(x, src_key_padding_mask=PADDING)
        torch.testing.assert_close(words(merged), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", LAYERS)
@pytest.mark.parametrize("by_name", [False, True])
def test_a_padded_batch_in_evaluation_with_gradients(targets, by_name):
    """This happens in training without dropout, or if no_grad is forgotten."""
    x, model = batch(), adapted(targets)
    args, kwargs = ((), {"src": x}) if by_name else ((x,), {})
    kwargs["src_key_padding_mask"] = PADDING
    model.train()
    expected = model(*args, **kwargs)
    gradients = gradients_of(model, expected)
    model.eval()
    found = model(*args, **kwargs)
    torch.testing.assert_close(words(found), words(expected), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(gradients_of(model, found), gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert not x.requires_grad


def test_a_call_without_a_batch_is_left_to_pytorch():
    with pytest.raises(TypeError, match="src"):
        adapted(["linear1"])(src_key_padding_mask=PADDING)


def test_without_a_trainable_adapter_the_fast_path_is_kept():
    x, bare = batch(), encoder()
    bare.requires_grad_(False)
    expected = bare(x, src_key_padding_mask=PADDING)
    model = adapted(["linear1"])
    packed = to_adapter(model)
    with disabled(model):
        found = model(x, src_key_padding_mask=PADDING)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert not found.requires_grad
    eject(model)
    assert not model._forward_pre_hooks
    load_packed(model, packed)
    found = model(x, src_key_padding_mask=PADDING)
    assert not found[PADDING].any()
    assert not found.requires_grad


def test_an_encoder_within_a_model_that_is_copied():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = encoder()
            self.head = nn.Linear(16, 2)

        def forward(self, x, padding):
            return self.head(self.encoder(x, src_key_padding_mask=padding))

    model, x = Tagger().eval(), batch()
    inject(model, config(target_modules=["linear1"]))
    twin = copy.deepcopy(model)
    expected = words(model(x, PADDING))
    expected.sum().backward()
    with torch.no_grad():
        torch.testing.assert_close(words(twin(x, PADDING)), expected, rtol=1e-5, atol=1e-6)
    merge(twin)
    unmerge(twin)
    assert len(adapters_of(twin).all_layers()) == 3
    eject(twin)
    assert not twin.encoder._forward_pre_hooks


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nested_tensor(layout, dtype):
    torch.manual_seed(0)
    bank = VectorBank(16, 8, init_bound=0.5)
    layer = VBLoRALinear(nn.Linear(16, 8).to(dtype), bank, init_logits_std=1.0)
    parts = [torch.randn(3, 16, dtype=dtype), torch.randn(5, 16, dtype=dtype)]
    outputs = layer(torch.nested.nested_tensor(parts, layout=layout)).unbind()
    for output, part in zip(outputs, parts, strict=True):
        torch.testing.assert_close(output, layer(part))
