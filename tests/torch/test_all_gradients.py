"""The option to train logits whose vectors are not selected."""

from __future__ import annotations

import pytest
import torch

from tests.torch.models import batch, config, net
from vbfmt.torch import VBLoRALinear, VectorBank, compose, inject, param_groups

H, B, K = 12, 6, 3


@pytest.fixture
def inputs():
    source = torch.Generator().manual_seed(4)
    bank = torch.randn(H, B, generator=source, dtype=torch.float64, requires_grad=True)
    blocks = [
        torch.randn(n, H, generator=source, dtype=torch.float64, requires_grad=True) for n in (5, 2)
    ]
    gradient = torch.randn(7, B, generator=source, dtype=torch.float64)
    return bank, blocks, gradient


def test_rows_and_gradients_of_selected_logits_are_the_same(inputs):
    bank, blocks, gradient = inputs
    plain = compose(bank, blocks, K)
    every = compose(bank, blocks, K, train_unselected=True)
    assert torch.equal(plain, every)
    expected = torch.autograd.grad(plain, [bank, *blocks], gradient)
    found = torch.autograd.grad(every, [bank, *blocks], gradient)
    torch.testing.assert_close(found[0], expected[0])
    for of_all, of_selected in zip(found[1:], expected[1:], strict=True):
        selected = of_selected != 0
        assert (selected.sum(1) == K).all()
        torch.testing.assert_close(of_all[selected], of_selected[selected])
        assert (of_all[~selected] != 0).all()


def test_other_logits_have_the_gradient_of_adding_their_vector(inputs):
    bank, blocks, gradient = inputs
    logits = torch.cat(blocks)
    found = torch.autograd.grad(
        compose(bank, [logits], K, train_unselected=True), logits, gradient
    )[0]
    top, indices = logits.detach().topk(K, dim=1)
    smallest = top.softmax(1)[:, -1]
    for row in range(len(logits)):
        shift = torch.zeros(H, dtype=torch.float64, requires_grad=True)
        u = compose(bank, [logits], K)[row].detach()
        mixed = u + (smallest[row] * shift[:, None] * (bank.detach() - u)).sum(0)
        expected = torch.autograd.grad(mixed, shift, gradient[row])[0]
        others = torch.ones(H, dtype=torch.bool)
        others[indices[row]] = False
        torch.testing.assert_close(found[row][others], expected[others])


def test_a_frozen_bank_has_no_gradient(inputs):
    bank, blocks, gradient = inputs
    compose(bank.detach(), blocks, K, train_unselected=True).backward(gradient)
    assert bank.grad is None
    assert all(block.grad is not None for block in blocks)


def test_if_all_logits_are_selected_nothing_changes(inputs):
    bank, blocks, gradient = inputs
    expected = torch.autograd.grad(compose(bank, blocks, H), blocks, gradient)
    found = torch.autograd.grad(compose(bank, blocks, H, train_unselected=True), blocks, gradient)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("whole", [True, False])
def test_a_bank_from_a_seed_trains_all_logits_in_models_and_layers(whole):
    bank = VectorBank.from_seed(0, 16, 8)
    if whole:
        model = net()
        inject(model, config(), bank=bank)
        x, _ = batch()
        model(x).sum().backward()
        (logits,) = (g["params"] for g in param_groups(model) if g["name"] == "logits")
    else:
        layer = VBLoRALinear(torch.nn.Linear(8, 8), bank)
        layer(torch.ones(2, 8)).sum().backward()
        logits = [layer.updates["default"].logits]
    assert all((each.grad != 0).sum() > each.shape[0] * 2 for each in logits)


def test_a_compiled_model_has_the_same_gradients():
    model = net()
    inject(model, config(), bank=VectorBank.from_seed(0, 16, 8))
    x, y = batch()
    gradients = []
    for each in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        torch.nn.functional.cross_entropy(each(x), y).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == 3
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(compiled, plain)
