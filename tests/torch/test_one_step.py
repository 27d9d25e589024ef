"""Composing and adding as one autograd function each: the same values as with separate
operations."""

from __future__ import annotations

from math import inf, nan

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from tests.torch.models import batch, config, net
from vbfmt.errors import ModelError
from vbfmt.torch import VectorBank, inject
from vbfmt.torch.composition import _mixed
from vbfmt.torch.low_rank import (
    add_low_rank,
    is_plain_linear,
    is_special,
    linear_with_low_rank,
)
from vbfmt.torch.one_step import compose_in_one_step
from vbfmt.torch.selection import select_top_k

RANK = 3
SHAPES = [(8,), (5, 8), (2, 3, 8), (0, 8)]


def operands(shape=(2, 3, 8), out=12, dtype=torch.float64, of_factors=torch.float64):
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=dtype, requires_grad=True)
    result = torch.randn(*shape[:-1], out, dtype=dtype, requires_grad=True)
    a = torch.randn(RANK, shape[-1], dtype=of_factors, requires_grad=True)
    bt = torch.randn(RANK, out, dtype=of_factors, requires_grad=True)
    return x, result, a, bt


def separately(x, result, a, bt):
    low = nn.functional.linear(x.to(a.dtype), a)
    return (result + nn.functional.linear(low, bt.t())).to(result.dtype)


@pytest.mark.parametrize("shape", SHAPES)
def test_adding_equals_the_separate_operations(shape):
    given = operands(shape)
    one, other = add_low_rank(*given), separately(*given)
    torch.testing.assert_close(one, other)
    upstream = torch.randn_like(one)
    found = torch.autograd.grad(one, given, upstream)
    expected = torch.autograd.grad(other, given, upstream)
    for each, right in zip(found, expected, strict=True):
        torch.testing.assert_close(each, right)


def test_a_base_of_lower_precision_is_rounded_once():
    x, result, a, bt = operands(dtype=torch.bfloat16, of_factors=torch.float32)
    one, other = add_low_rank(x, result, a, bt), separately(x, result, a, bt)
    assert torch.equal(one, other)
    found = torch.autograd.grad(one.sum(), (x, a, bt))
    expected = torch.autograd.grad(other.sum(), (x, a, bt))
    assert found[0].dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


def test_inputs_that_are_not_contiguous():
    x, result, a, bt = operands((2, 5, 8))
    x = x.detach().transpose(0, 1).contiguous().transpose(0, 1)
    result = result.detach().transpose(1, 2).contiguous().transpose(1, 2)
    assert not x.is_contiguous()
    torch.testing.assert_close(add_low_rank(x, result, a, bt), separately(x, result, a, bt))


def test_gradients_of_first_and_second_order():
    given = operands((2, 8))
    assert gradcheck(lambda *each: add_low_rank(*each), given)
    assert gradgradcheck(lambda *each: add_low_rank(*each), given)


def test_a_penalty_on_the_gradient_of_the_input_reaches_the_adapter():
    model, (x, _) = net(), batch()
    inject(model, config())
    x.requires_grad_()
    (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    slope.square().sum().backward()
    assert model.out.updates["default"].logits.grad.abs().sum() > 0


def test_frozen_factors_take_no_time_for_gradients(monkeypatch):
    x, result, a, bt = operands()
    a, bt = a.detach(), bt.detach()
    monkeypatch.setattr("vbfmt.torch.low_rank._gradients_of_factors", None)
    for one in (add_low_rank(x, result, a, bt), linear_with_low_rank(x, linear(), a, bt)):
        assert torch.autograd.grad(one.sum(), x)[0].any()


def test_autocast_uses_the_separate_operations():
    x, *_ = operands(of_factors=torch.float32, dtype=torch.float32)
    assert not is_special(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_special(x)
        with torch.autocast("cpu", enabled=False):
            assert not is_special(x)


def linear(dtype=torch.float64, *, bias=True):
    torch.manual_seed(2)
    return nn.Linear(8, 12, bias=bias, dtype=dtype).requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("of_factors", [torch.float64, torch.float32])
def test_a_linear_layer_with_its_update_equals_the_separate_operations(shape, bias, of_factors):
    x, _, a, bt = operands(shape, of_factors=of_factors)
    layer = linear(bias=bias)
    assert is_plain_linear(layer)
    one, other = linear_with_low_rank(x, layer, a, bt), separately(x, layer(x), a, bt)
    assert one.shape == other.shape
    torch.testing.assert_close(one, other)
    upstream = torch.randn_like(one)
    found = torch.autograd.grad(one, (x, a, bt), upstream)
    expected = torch.autograd.grad(other, (x, a, bt), upstream)
    for each, right in zip(found, expected, strict=True):
        torch.testing.assert_close(each, right)


def test_a_linear_layer_of_lower_precision_is_rounded_once():
    x, _, a, bt = operands(dtype=torch.bfloat16, of_factors=torch.float32)
    layer = linear(torch.bfloat16)
    one, other = linear_with_low_rank(x, layer, a, bt), separately(x, layer(x), a, bt)
    assert torch.equal(one, other)
    upstream = torch.randn_like(one)
    (found,) = torch.autograd.grad(one, x, upstream)
    exact = separately(x.double(), layer.double()(x.double()), a.double(), bt.double())
    (expected,) = torch.autograd.grad(exact, x, upstream.double())
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=2**-7)


def test_inputs_of_a_linear_layer_that_are_not_contiguous():
    x, _, a, bt = operands((2, 5, 8))
    x, layer = x.detach().transpose(0, 1), linear()
    one = linear_with_low_rank(x, layer, a, bt)
    torch.testing.assert_close(one, separately(x, layer(x), a, bt))


def test_gradients_of_a_linear_layer_of_first_and_second_order():
    x, _, a, bt = operands((2, 8))
    layer = linear()

    def apply(x, a, bt):
        return linear_with_low_rank(x, layer, a, bt)

    assert gradcheck(apply, (x, a, bt))
    assert gradgradcheck(apply, (x, a, bt))


def test_the_result_of_a_transform_that_has_ended():
    """The result is still wrapped, and its gradient must reach its inputs."""
    model, (x, _) = net(), batch()
    inject(model, config())
    x.requires_grad_()
    kept = []
    torch.func.grad(lambda scale: kept.append(3 * x) or (scale * x).sum())(torch.tensor(1.0))
    layer = model.encoder[0]
    found = layer(kept[0])
    assert torch.equal(found, layer(3 * x))
    (slope,) = torch.autograd.grad(found.sum(), x)
    (expected,) = torch.autograd.grad(layer(3 * x).sum(), x)
    assert torch.equal(slope, expected)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def unlike_plain():
    """Return layers whose forward does more than multiply by a frozen weight."""
    hooked = linear()
    hooked.register_forward_hook(lambda module, args, output: 2 * output)
    before, backward = linear(), linear()
    before.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    backward.register_full_backward_hook(lambda module, into, out: None)
    replaced = linear()
    replaced.forward = lambda x: 2 * nn.functional.linear(x, replaced.weight, replaced.bias)
    normed = torch.nn.utils.parametrizations.weight_norm(linear())
    compiled = linear()
    compiled.compile(backend="eager")
    return {
        "hook": hooked, "hook before": before, "hook of the backward pass": backward,
        "forward of its own": replaced, "subclass": Doubled(8, 12).requires_grad_(False),
        "weight trains": linear().requires_grad_(True), "weight_norm": normed, "compiled": compiled,
    }  # fmt: skip


@pytest.mark.parametrize("name", unlike_plain())
def test_a_layer_that_does_more_is_called(name):
    layer = unlike_plain()[name]
    assert not is_plain_linear(layer)
    assert not is_plain_linear(nn.Conv1d(8, 12, 1))


def test_hooks_of_a_base_layer_get_the_base_layers_output():
    model, (x, _) = net(), batch()
    expected = model.encoder[0](x)
    inject(model, config())
    seen = []
    model.encoder[0].base_layer.register_forward_hook(lambda *given: seen.append(given[2]))
    assert not torch.equal(model.encoder[0](x), expected)
    assert torch.equal(seen[0], expected)


def test_global_hooks_get_the_base_layers_output():
    handle = nn.modules.module.register_module_forward_hook(lambda *given: None)
    assert not is_plain_linear(linear())
    handle.remove()
    assert is_plain_linear(linear())


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("frozen", [False, True])
def test_composing_equals_the_separate_operations(k, frozen):
    torch.manual_seed(0)
    bank = torch.randn(16, 8, dtype=torch.float64, requires_grad=not frozen)
    blocks = [torch.randn(n, 16, dtype=torch.float64, requires_grad=True) for n in (3, 1, 6)]
    indices, top = select_top_k(blocks, k)
    one = compose_in_one_step(bank, indices, top, blocks)
    other = _mixed(bank, indices, torch.cat(blocks).gather(1, indices).softmax(1))
    assert torch.equal(one, other)
    upstream, inputs = torch.randn_like(one), [*blocks] if frozen else [bank, *blocks]
    found = torch.autograd.grad(one, inputs, upstream)
    expected = torch.autograd.grad(other, inputs, upstream)
    torch.testing.assert_close(found, expected)


def test_composing_has_second_derivatives():
    torch.manual_seed(0)
    bank = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    blocks = [torch.randn(n, 5, dtype=torch.float64, requires_grad=True) for n in (2, 1)]
    indices, _ = select_top_k(blocks, 2)

    def apply(bank, *blocks):
        top = torch.cat(blocks).detach().gather(1, indices)
        return compose_in_one_step(bank, indices, top, blocks)

    assert gradcheck(apply, (bank, *blocks))
    assert gradgradcheck(apply, (bank, *blocks))


def test_not_used_if_logits_that_are_not_selected_have_a_gradient():
    model = net()
    bank = VectorBank.from_seed(1, 16, 8)
    inject(model, config(), bank=bank)
    loss = model(batch()[0]).sum()
    with pytest.raises(ModelError, match="no second derivatives"):
        loss.backward(create_graph=True)


def test_gradients_may_be_changed_in_place():
    model, (x, y) = net(), batch()
    inject(model, config())
    nn.functional.cross_entropy(model(x), y).backward()
    logits = [layer.updates["default"].logits for layer in (*model.encoder, model.out)]
    before = [each.grad.clone() for each in logits]
    nn.utils.clip_grad_norm_(logits, 1e-3)
    logits[0].grad.mul_(2)
    nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(
        logits[1].grad, before[1] + before[1] * _scale(before), atol=0, rtol=1e-5
    )


def _scale(gradients):
    norm = torch.stack([each.norm() for each in gradients]).norm()
    return 1e-3 / (norm + 1e-6)


@pytest.mark.parametrize("others", [0.0, -inf])
def test_the_two_largest_of_many_logits(others):
    rows = torch.full((4, 1024), others)
    rows[0, [70, 3]] = torch.tensor([2.0, 1.0])
    rows[1, [3, 70]] = torch.tensor([2.0, 1.0])
    rows[2, [900, 901]] = torch.tensor([2.0, 1.0])
    rows[3, [5, 600]] = torch.tensor([nan, 1.0])
    found, _ = select_top_k([rows], 2)
    assert found.tolist() == [[70, 3], [3, 70], [900, 901], [5, 600]]


def test_nan_in_one_row_and_a_single_finite_logit_in_another():
    rows = torch.full((2, 1024), -inf)
    rows[0, [5, 600]] = nan
    rows[1, 5] = 1.0
    found, top = select_top_k([rows], 2)
    assert sorted(found[0].tolist()) == [5, 600]
    assert found[1, 0] == 5
    assert found[1, 1] != 5
    assert top[1].tolist() == [1.0, -inf]


def test_one_finite_logit_among_infinities_is_selected_once():
    rows = torch.full((1, 1024), -inf)
    rows[0, 5] = 1.0
    first, second = select_top_k([rows], 2)[0][0].tolist()
    assert first == 5
    assert second != 5
